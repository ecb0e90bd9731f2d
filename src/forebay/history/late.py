"""A history that is opened when it is first asked something, and not before.

Its packages and its database take longer to load than all else that a gateway needs to serve,
so a gateway that was restarted takes connections first. What is to be written until then
waits here, under the history's own bound, and is written when it is open; at the latest when
the process ends.
"""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING

import structlog

from forebay.errors import CannotBoot, ConfigError, ForebayError, StoreFull
from forebay.history.records import SessionRecord, Stats, TaskRecord

if TYPE_CHECKING:
    from forebay.history.store import History

__all__ = ["LateHistory"]

MAX_WAITING = 10_000
OPEN_S = 10.0
"""Who asks waits so long for it to be opened."""
RETRY_S = 1.0
SAY_EVERY = 60
CLOSE_S = 5.0

log = structlog.get_logger(__name__)


class LateHistory:
    """`History`, opened late. Open it with ``async with``; that itself waits for nothing.

    A database that cannot be opened is tried again every second, and said in the log."""

    def __init__(self, url: str, *, create: bool = False) -> None:
        """Raises `ConfigError` for an address of no database that is used here, and
        `CannotBoot` when the package that it needs is not installed."""
        _check(url)
        self._url = url
        self._create = create
        self._early: list[SessionRecord | TaskRecord] = []
        self._dropped = 0
        self._history: History | None = None
        self._opening: asyncio.Task[None] | None = None
        self._entering = False
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> LateHistory:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._early:
            try:
                await self._opened(CLOSE_S)
            except StoreFull:
                log.error("history.lost", rows=len(self._early), error="not open")
        task, self._opening = self._opening, None
        if task is not None:
            if self._entering:  # broken off there, it would leave its connections to nobody
                await asyncio.wait({task}, timeout=CLOSE_S)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await self._stack.aclose()

    # ---------------------------------------------------------------------- opening

    @property
    def dropped(self) -> int:
        """Rows that were given up because too many waited."""
        return self._dropped + (self._history.dropped if self._history is not None else 0)

    async def _opened(self, wait_s: float = OPEN_S) -> History:
        if self._history is None:
            if self._opening is None or self._opening.done():
                self._opening = asyncio.create_task(self._open(), name="history-open")
            try:
                async with asyncio.timeout(wait_s):
                    await asyncio.shield(self._opening)
            except TimeoutError:
                raise StoreFull("the history's database is not open yet") from None
        if self._history is None:
            raise StoreFull("the history's database is not open yet")
        return self._history

    async def _open(self) -> None:
        tries = 0
        while self._history is None:
            try:
                make = await asyncio.to_thread(_load)
                self._entering = True
                history = await self._stack.enter_async_context(make(self._url, self._create))
            except (ForebayError, OSError) as error:
                if tries % SAY_EVERY == 0:
                    log.error("history.not_opened", reason=str(error))
                tries += 1
                self._entering = False
                await asyncio.sleep(RETRY_S)
                continue
            early, self._early = self._early, []
            for record in early:
                history.put(record)
            self._history = history

    # ---------------------------------------------------------------------- writing

    def put(self, record: SessionRecord | TaskRecord) -> None:
        """See `History.put`."""
        if self._history is not None:
            self._history.put(record)
            return
        self._early.append(record)
        if len(self._early) > MAX_WAITING:
            del self._early[0]
            self._dropped += 1

    async def flush(self) -> None:
        """See `History.flush`."""
        await (await self._opened()).flush()

    # ---------------------------------------------------------------------- asking

    async def sessions(self, tenant: str, limit: int) -> list[SessionRecord]:
        return await (await self._opened()).sessions(tenant, limit)

    async def count_sessions(self, tenant: str) -> int:
        return await (await self._opened()).count_sessions(tenant)

    async def session(self, tenant: str, name: str) -> SessionRecord | None:
        return await (await self._opened()).session(tenant, name)

    async def recordings(self, tenant: str, user: str) -> list[SessionRecord]:
        return await (await self._opened()).recordings(tenant, user)

    async def delete_session(self, tenant: str, name: str) -> bool:
        return await (await self._opened()).delete_session(tenant, name)

    async def task(self, tenant: str, id: str) -> TaskRecord | None:
        return await (await self._opened()).task(tenant, id)

    async def tasks(self, tenant: str, limit: int) -> list[TaskRecord]:
        return await (await self._opened()).tasks(tenant, limit)

    async def unfinished(self) -> list[TaskRecord]:
        return await (await self._opened()).unfinished()

    async def task_of(self, tenant: str, job: str) -> TaskRecord | None:
        return await (await self._opened()).task_of(tenant, job)

    async def swap_task(self, old: TaskRecord, new: TaskRecord) -> bool:
        return await (await self._opened()).swap_task(old, new)

    async def delete_task(self, tenant: str, id: str) -> bool:
        return await (await self._opened()).delete_task(tenant, id)

    async def stats(self, tenant: str) -> Stats:
        return await (await self._opened()).stats(tenant)

    async def expire(self, keep_days: float, now: datetime) -> list[str]:
        return await (await self._opened()).expire(keep_days, now)


def _load() -> Callable[[str, bool], History]:
    """Import what a database needs. Blocks for most of a second."""
    from forebay.history.store import History

    return lambda url, create: History(url, create=create)


def _check(url: str) -> None:
    """What can be known of ``url`` without opening it; it may hold a password."""
    scheme, found, _ = url.partition("://")
    backend = scheme.partition("+")[0]
    if not found:
        raise ConfigError("the history's database url cannot be read")
    if backend not in ("sqlite", "postgres", "postgresql"):
        raise ConfigError(f"the history's database is {backend}, expected sqlite or postgresql")
    if backend != "sqlite" and importlib.util.find_spec("asyncpg") is None:
        raise CannotBoot(
            "a PostgreSQL history needs a package: pip install 'forebay[postgres]'", stage="history"
        )
