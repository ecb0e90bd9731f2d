"""What a connection has said and its reader has not taken yet.

A queue with one reader, in as few steps as it takes: everything that clients say passes here.
"""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

__all__ = ["Inbox"]

T = TypeVar("T")


class Inbox(Generic[T]):
    """Unbounded by itself: whoever puts looks first whether it is `full`, which is when
    ``most`` are in it. One reader at a time."""

    __slots__ = ("_items", "_loop", "_most", "_reader")

    def __init__(self, loop: asyncio.AbstractEventLoop, most: int) -> None:
        self._loop = loop
        self._most = most
        self._items: list[T] = []  # a deque takes 600 bytes to hold the few there ever are
        self._reader: asyncio.Future[None] | None = None

    def __len__(self) -> int:
        return len(self._items)

    @property
    def full(self) -> bool:
        return len(self._items) >= self._most

    @property
    def waited_for(self) -> bool:
        """Nothing is in here, and the reader has dealt with all there was."""
        return self._reader is not None

    def put_nowait(self, item: T) -> None:
        self._items.append(item)
        reader, self._reader = self._reader, None
        if reader is not None and not reader.done():
            reader.set_result(None)

    async def get(self) -> T:
        """The oldest. Cancelling loses nothing."""
        while not self._items:
            reader = self._reader = self._loop.create_future()
            try:
                await reader
            finally:
                if self._reader is reader:
                    self._reader = None
        return self._items.pop(0)
