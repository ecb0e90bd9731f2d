"""Reading and writing the history. Writers wait for nothing: `put` queues, one task writes.

A database that is slow or away delays nobody: what is to be written waits, newest state per
row, up to `MAX_WAITING` rows; past that the oldest is given up and counted. Reads see the
database as it is, after what waits has been written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any

import sqlalchemy as sa
import structlog
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from forebay.errors import StoreFull
from forebay.history.database import address, connect, migrate
from forebay.history.records import SessionRecord, Stats, TaskRecord
from forebay.history.tables import sessions, tasks

__all__ = ["MAX_WAITING", "History"]

MAX_WAITING = 10_000
BATCH = 200
RETRY_S = 1.0
CLOSE_S = 3.0
"""What waits when the process ends may take so long."""

log = structlog.get_logger(__name__)

Record = SessionRecord | TaskRecord


class History:
    """The history of one gateway. Open it with ``async with``."""

    def __init__(self, url: str, *, create: bool = False) -> None:
        self.dropped = 0
        self._create = create
        self._engine: AsyncEngine = connect(address(url))
        self._waiting: dict[tuple[type, str], Record] = {}
        self._news = asyncio.Event()
        self._writing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> History:
        """Raises `CannotBoot` when the database cannot be opened or brought up to date."""
        try:
            await migrate(self._engine, create=self._create)
        except BaseException:
            await self._engine.dispose()
            raise
        self._task = asyncio.create_task(self._write_on())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        try:
            async with asyncio.timeout(CLOSE_S):
                await self.flush()
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            log.error("history.lost", rows=len(self._waiting), error=type(error).__name__)
        await self._engine.dispose()

    # ---------------------------------------------------------------------- writing

    def put(self, record: Record) -> None:
        """Write this state of the row, soon."""
        key = (type(record), _id_of(record))
        self._waiting.pop(key, None)
        self._waiting[key] = record
        if len(self._waiting) > MAX_WAITING:
            self._waiting.pop(next(iter(self._waiting)))
            self.dropped += 1
        self._news.set()

    async def _write_on(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            try:
                await self.flush()
            except (SQLAlchemyError, OSError, TimeoutError) as error:
                log.warning("history.delayed", rows=len(self._waiting), error=type(error).__name__)
                self._news.set()
                await asyncio.sleep(RETRY_S)

    async def flush(self) -> None:
        """Write what waits, now. Raises what the database raises; then it waits on."""
        async with self._writing:
            while self._waiting:
                batch = dict(list(self._waiting.items())[:BATCH])
                async with self._engine.begin() as connection:
                    for record in batch.values():
                        await self._upsert(connection, record)
                for key, record in batch.items():
                    if self._waiting.get(key) is record:
                        del self._waiting[key]

    async def _upsert(self, connection: AsyncConnection, record: Record) -> None:
        table, values = _row_of(record)
        insert: Any = (
            postgresql.insert(table)
            if connection.dialect.name == "postgresql"
            else sqlite.insert(table)
        )
        changed = {name: insert.excluded[name] for name in values if name != "id"}
        mine = table.c.tenant == values["tenant"]
        if isinstance(record, TaskRecord):  # the late end of a job that was tried again is no news
            mine &= table.c.job == values["job"]
        statement = insert.values(values).on_conflict_do_update(
            index_elements=[table.c.id], set_=changed, where=mine
        )
        await connection.execute(statement)

    async def _change(self, statement: Any) -> int:
        await self._settled()
        try:
            async with self._engine.begin() as connection:
                return (await connection.execute(statement)).rowcount
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            raise StoreFull("the history's database does not answer") from error

    async def _settled(self) -> None:
        if self._waiting:
            try:
                await self.flush()
            except (SQLAlchemyError, OSError, TimeoutError) as error:
                raise StoreFull("the history's database does not answer") from error

    async def _rows(self, statement: Any) -> Sequence[Any]:
        await self._settled()
        try:
            async with self._engine.connect() as connection:
                return (await connection.execute(statement)).mappings().all()
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            raise StoreFull("the history's database does not answer") from error

    # ---------------------------------------------------------------------- sessions

    async def sessions(self, tenant: str, limit: int) -> list[SessionRecord]:
        """Sessions that are done, newest first."""
        found = await self._rows(
            sa.select(sessions)
            .where(sessions.c.tenant == tenant, sessions.c.status == "done")
            .order_by(sessions.c.created_at.desc(), sessions.c.id)
            .limit(limit)
        )
        return [_session(row) for row in found]

    async def count_sessions(self, tenant: str) -> int:
        query = sa.select(sa.func.count()).where(
            sessions.c.tenant == tenant, sessions.c.status == "done"
        )
        return int((await self._rows(query))[0]["count_1"])

    async def session(self, tenant: str, name: str) -> SessionRecord | None:
        """The newest session of that name."""
        found = await self._rows(
            sa.select(sessions)
            .where(sessions.c.tenant == tenant, sessions.c.name == name)
            .order_by(sessions.c.created_at.desc())
            .limit(1)
        )
        return _session(found[0]) if found else None

    async def recordings(self, tenant: str, user: str) -> list[SessionRecord]:
        """Sessions of one user that have a recording, newest first."""
        found = await self._rows(
            sa.select(sessions)
            .where(
                sessions.c.tenant == tenant,
                sessions.c.user_id == user[:64],
                sessions.c.audio_path != "",
            )
            .order_by(sessions.c.created_at.desc(), sessions.c.id)
        )
        return [_session(row) for row in found]

    async def delete_session(self, tenant: str, name: str) -> bool:
        statement = sa.delete(sessions).where(sessions.c.tenant == tenant, sessions.c.name == name)
        return await self._change(statement) > 0

    # ------------------------------------------------------------------------- tasks

    async def task(self, tenant: str, id: str) -> TaskRecord | None:
        query = sa.select(tasks).where(tasks.c.tenant == tenant, tasks.c.id == id)
        found = await self._rows(query)
        return _task(found[0]) if found else None

    async def task_of(self, tenant: str, job: str) -> TaskRecord | None:
        """The task that ``job`` works on."""
        query = sa.select(tasks).where(tasks.c.tenant == tenant, tasks.c.job == job)
        found = await self._rows(query)
        return _task(found[0]) if found else None

    async def tasks(self, tenant: str, limit: int) -> list[TaskRecord]:
        """Newest first."""
        found = await self._rows(
            sa.select(tasks)
            .where(tasks.c.tenant == tenant)
            .order_by(tasks.c.created_at.desc(), tasks.c.id)
            .limit(limit)
        )
        return [_task(row) for row in found]

    async def unfinished(self) -> list[TaskRecord]:
        """Tasks of every tenant that have no end yet."""
        query = sa.select(tasks).where(tasks.c.status.in_(["queued", "processing"]))
        return [_task(row) for row in await self._rows(query)]

    async def swap_task(self, old: TaskRecord, new: TaskRecord) -> bool:
        """Make the row ``new`` if it still has ``old``'s job and status. Of several who try,
        at whatever gateways, one does; False for the others. Nothing else changes a task's job."""
        values = _row_of(new)[1]
        statement = (
            sa.update(tasks)
            .where(
                tasks.c.id == old.id,
                tasks.c.tenant == old.tenant,
                tasks.c.job == old.job,
                tasks.c.status == old.status,
            )
            .values({name: values[name] for name in values if name not in ("id", "tenant")})
        )
        return await self._change(statement) == 1

    async def delete_task(self, tenant: str, id: str) -> bool:
        statement = sa.delete(tasks).where(tasks.c.tenant == tenant, tasks.c.id == id)
        return await self._change(statement) > 0

    async def stats(self, tenant: str) -> Stats:
        done = sa.case((tasks.c.status == "done", 1), else_=0)
        query = sa.select(
            sa.func.count().label("tasks"),
            sa.func.sum(sa.case((tasks.c.status == "failed", 1), else_=0)).label("failed"),
            sa.func.sum(tasks.c.audio_s * done).label("audio_s"),
            sa.func.sum(tasks.c.model_s * done).label("model_s"),
            sa.func.sum(tasks.c.audio_bytes).label("audio_bytes"),
        ).where(tasks.c.tenant == tenant)
        row = (await self._rows(query))[0]
        audio_s, model_s = float(row["audio_s"] or 0), float(row["model_s"] or 0)
        return Stats(
            tasks=int(row["tasks"]),
            failed=int(row["failed"] or 0),
            audio_s=audio_s,
            rtf=model_s / audio_s if audio_s > 0 else 0.0,
            audio_bytes=int(row["audio_bytes"] or 0),
        )

    # --------------------------------------------------------------------- retention

    async def expire(self, keep_days: float, now: datetime) -> list[str]:
        """Remove rows older than ``keep_days``; the audio paths they held."""
        before = now - timedelta(days=keep_days)
        paths: list[str] = []
        for table in (sessions, tasks):
            old = table.c.created_at < before
            rows = await self._rows(sa.select(table.c.audio_path).where(old))
            paths += [row["audio_path"] for row in rows if row["audio_path"]]
            await self._change(sa.delete(table).where(old))
        return paths


def _id_of(record: Record) -> str:
    """A session's row is called as its client called it, like the original's, where that
    is possible and nobody else's."""
    if isinstance(record, TaskRecord):
        return record.id
    if record.tenant == "local" and 0 < len(record.name) <= 64:
        return record.name
    return record.job


def _row_of(record: Record) -> tuple[sa.Table, dict[str, Any]]:
    if isinstance(record, TaskRecord):
        return tasks, _clean(asdict(record))
    return sessions, _clean(
        {
            "id": _id_of(record),
            "user_id": record.user[:64],
            "status": record.status,
            "final_text": record.text,
            "chunk_count": record.chunks,
            "total_duration": record.duration_s,
            "audio_path": record.audio_path,
            "created_at": record.created_at,
            "completed_at": record.completed_at,
            "tenant": record.tenant,
            "name": record.name[:256],
            "job": record.job,
            "audio_s": record.audio_s,
            "model_s": record.model_s,
            "error": record.error,
        }
    )


def _clean(values: dict[str, Any]) -> dict[str, Any]:
    """PostgreSQL keeps neither NUL nor lone surrogates."""
    return {
        name: value.replace("\0", "").encode("utf-8", "replace").decode()
        if isinstance(value, str)
        else value
        for name, value in values.items()
    }


def _session(row: Any) -> SessionRecord:
    return SessionRecord(
        name=row["name"] or row["id"],
        job=row["job"],
        created_at=_aware(row["created_at"]),
        tenant=row["tenant"],
        user=row["user_id"] or "",
        status=row["status"] or "",
        text=row["final_text"] or "",
        chunks=row["chunk_count"] or 0,
        duration_s=row["total_duration"] or 0.0,
        audio_path=row["audio_path"] or "",
        completed_at=_aware(row["completed_at"]),
        audio_s=row["audio_s"],
        model_s=row["model_s"],
        error=row["error"],
    )


def _task(row: Any) -> TaskRecord:
    facts = dict(row)
    facts["created_at"] = _aware(facts["created_at"])
    facts["completed_at"] = _aware(facts["completed_at"])
    return TaskRecord(**facts)


def _aware(when: Any) -> Any:
    """SQLite forgets the zone; everything here is UTC."""
    return when.replace(tzinfo=UTC) if isinstance(when, datetime) and when.tzinfo is None else when
