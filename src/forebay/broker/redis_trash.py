"""Files of jobs that are over, on their way out of the store of large files.

Redis knows which names a job left behind; a gateway fetches them a page at a time and says so
when they are gone. One that dies in between has taken nothing along: what it did not confirm is
given to another a minute later.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import structlog

from forebay.broker.redis_client import Store

__all__ = ["DropBlobs", "Trash"]

DropBlobs = Callable[[Sequence[str]], Awaitable[None]]
"""Removes files by their names; returns when they are gone, and raises where they are not."""

log = structlog.get_logger(__name__)


class Trash:
    """Empties the store's list of names nobody needs, with ``drop``."""

    def __init__(self, store: Store, drop: DropBlobs | None) -> None:
        self._store = store
        self._drop = drop

    async def empty(self) -> None:
        """Remove everything that lies ready. Raises `StoreDown`; a file store that cannot be
        reached is asked again later."""
        if self._drop is None:
            return
        done: list[str] = []
        while True:
            answer = await self._store.call("trash", {"done": done}, again=True)
            done = [name.decode() for name in answer]
            if not done:
                return
            try:
                await self._drop(done)
            except Exception as error:  # noqa: BLE001 - each file store has errors of its own
                log.warning("blobs.not_removed", files=len(done), reason=type(error).__name__)
                return
