"""Files that an encoder needs, read in a thread before their event is encoded.

An encoder runs in the loop and waits for nothing. So `Files` holds an event back, as a pace
does, until what it names has been read; what the disk takes is nobody else's wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from forebay.core.events import OutputEvent

__all__ = ["Files"]

AGAIN_S = 60.0
"""A reading that has not come back by then is looked at again; it wakes its reader itself."""

Content = TypeVar("Content")


class Files(Generic[Content]):
    """A `Pacing`. ``wanted`` names the file an event needs, or nothing; ``read`` reads it, in a
    thread. One file is held at a time: that of the event about to leave."""

    def __init__(
        self,
        wanted: Callable[[OutputEvent], str],
        read: Callable[[str], Content],
        spawn: Callable[[Coroutine[Any, Any, None]], Any],
    ) -> None:
        self._wanted = wanted
        self._read = read
        self._spawn = spawn
        self._name = ""
        self._done: asyncio.Future[Content] | None = None
        self.on_read: Callable[[], None] = lambda: None

    def due(self, event: OutputEvent, now: float) -> float:
        name = self._wanted(event)
        if not name:
            return now
        if name != self._name:
            self._name = name
            self._done = asyncio.get_running_loop().create_future()
            self._spawn(self._fetch(name, self._done))
        return now if self._done is not None and self._done.done() else now + AGAIN_S

    def sent(self, event: OutputEvent, now: float) -> None:
        if self._name and self._name == self._wanted(event):
            self._name, self._done = "", None

    def take(self, name: str) -> Content:
        """What was read, or what reading it raised."""
        if name != self._name or self._done is None:
            raise RuntimeError("a file was asked for that its event does not name")
        return self._done.result()

    async def _fetch(self, name: str, done: asyncio.Future[Content]) -> None:
        try:
            content = await asyncio.to_thread(self._read, name)
        except Exception as error:  # noqa: BLE001 - `take` raises it where it is needed
            done.set_exception(error)
            done.exception()  # nobody may be left to take it
        else:
            done.set_result(content)
        self.on_read()
