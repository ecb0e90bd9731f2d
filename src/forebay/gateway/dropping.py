"""Removing the blobs of forgotten jobs, in a thread and never more than one at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from forebay.blobs import Blobs

__all__ = ["Dropper"]


class Dropper:
    """Takes names from the broker, which may not wait for a disk."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._names: list[str] = []
        self._task: asyncio.Task[None] | None = None

    def drop(self, names: Iterable[str]) -> None:
        self._names += names
        if self._names and self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="drop blobs")

    async def _run(self) -> None:
        try:
            while self._names:
                names, self._names = self._names, []
                await asyncio.to_thread(self._drop_all, names)
        finally:
            self._task = None

    async def drop_now(self, names: Sequence[str]) -> None:
        """Returns when they are gone."""
        await asyncio.to_thread(self._drop_all, names)

    def _drop_all(self, names: Sequence[str]) -> None:
        for name in names:
            self._blobs.drop(name)

    async def close(self) -> None:
        """Returns when everything that was named is gone."""
        if self._task is not None:
            await self._task
