"""What outlives the gateway's process with the local broker: durable jobs, in SQLite.

One file, `FILE_NAME`, under the data directory, in WAL mode. A durable job's record, input,
committed output, ``consumed`` and terminal event are written before the call that brought
them is answered. After a restart `Journal.load` gives them back: the same epoch and offsets;
the next lease is attempt + 1.

Kill -9 of the process loses nothing that was answered. A crash of the machine may lose the
last moments (``synchronous=NORMAL``). The file is held exclusively: two gateways with one data
directory are refused. Rows go when the job's window after its end has passed.

All calls are synchronous, a few tens of microseconds each. Errors of the disk are raised as
`StoreFull`; a file that cannot be used is `CannotBoot` and says what to do.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from forebay.core.events import Consumed, Ended, InputItem, OutputEvent
from forebay.core.spec import JobSpec, PipeSpec
from forebay.errors import CannotBoot, StoreFull

__all__ = ["FILE_NAME", "SCHEMA", "Journal", "Saved"]

FILE_NAME = "journal.sqlite3"
SCHEMA = 2

_TABLES = """
create table job (
    id text primary key, spec blob not null, epoch text not null, created real not null,
    attempt integer not null default 0, strikes integer not null default 0,
    prefix integer not null default 0, consumed_offset integer not null default 0,
    consumed_fine integer not null default 0, model_s real not null default 0,
    client_pos integer, number integer not null default 0, units integer not null default 0,
    ended real, consumed_heard integer not null default 0, consumed_at integer not null default 0
) without rowid;
create table input (job text, offset integer, item blob, primary key (job, offset)) without rowid;
create table output (job text, offset integer, event blob, primary key (job, offset)) without rowid;
create table pipe (id text primary key, spec blob not null) without rowid;
"""

_TO_2 = """
alter table job add column consumed_heard integer not null default 0;
alter table job add column consumed_at integer not null default 0;
"""

_encode = msgspec.msgpack.Encoder().encode
_spec = msgspec.msgpack.Decoder(JobSpec)
_pipe = msgspec.msgpack.Decoder(PipeSpec)
_item: msgspec.msgpack.Decoder[InputItem] = msgspec.msgpack.Decoder(InputItem)
_event: msgspec.msgpack.Decoder[OutputEvent] = msgspec.msgpack.Decoder(OutputEvent)


class Saved(msgspec.Struct, frozen=True, kw_only=True):
    """One job as it was written. ``created``, ``ended``: wall clock seconds."""

    spec: JobSpec
    epoch: str
    created: float
    attempt: int
    strikes: int
    prefix: bool
    consumed: Consumed
    model_s: float
    client_pos: int | None
    number: int
    units: int
    ended: float | None
    input: list[InputItem]
    output: list[OutputEvent]


class Journal:
    """The open journal of one data directory. ``wall``: seconds since 1970, for ages that
    must survive a restart of the machine. Close it with `close`."""

    def __init__(self, data_dir: Path, *, wall: Callable[[], float] = time.time) -> None:
        self.path = data_dir / FILE_NAME
        self.wall = wall
        data_dir.mkdir(parents=True, exist_ok=True)
        try:
            self._db = sqlite3.connect(self.path, isolation_level=None, timeout=2)
            self._open()
        except sqlite3.Error as error:
            raise self.unusable(str(error)) from error

    def _open(self) -> None:
        self._db.execute("pragma locking_mode=exclusive")
        self._db.execute("pragma journal_mode=wal")
        self._db.execute("pragma synchronous=normal")
        verdict = self._db.execute("pragma quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise self.unusable(str(verdict))
        version = self._db.execute("pragma user_version").fetchone()[0]
        if version > SCHEMA:
            raise CannotBoot(
                f"journal {self.path} has schema {version}, this forebay knows up to {SCHEMA}; "
                "start the newer version again, or move the file away to start without its jobs",
                stage="journal",
            )
        if version < SCHEMA:
            change = _TABLES if version == 0 else _TO_2
            self._db.executescript(f"begin;{change}pragma user_version={SCHEMA};commit;")

    def unusable(self, reason: str) -> CannotBoot:
        """The error for a file that cannot be gone on with, and what to do."""
        return CannotBoot(
            f"journal {self.path} cannot be used: {reason}; if another forebay uses this data "
            "directory, stop it or give another one; otherwise move the file away to start "
            "without the jobs in it",
            stage="journal",
        )

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        """One transaction; what SQLite refuses is raised as `StoreFull`."""
        try:
            self._db.execute("begin")
            yield self._db
            self._db.execute("commit")
        except sqlite3.Error as error:
            if self._db.in_transaction:
                self._db.execute("rollback")
            raise StoreFull(f"journal {self.path} cannot be written: {error}") from error

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """One transaction for tables that others keep in this file, such as rooms."""
        with self._write() as db:
            yield db

    # ------------------------------------------------------------------- writes

    def submitted(self, spec: JobSpec, epoch: str, items: Sequence[InputItem]) -> None:
        """A new job and its first input."""
        with self._write() as db:
            db.execute(
                "insert into job (id, spec, epoch, created) values (?, ?, ?, ?)",
                (spec.id, _encode(spec), epoch, self.wall()),
            )
            self._put_input(db, spec.id, items)

    def _put_input(self, db: sqlite3.Connection, job: str, items: Iterable[InputItem]) -> None:
        db.executemany(
            "insert into input values (?, ?, ?)",
            [(job, item.offset, _encode(item)) for item in items],
        )

    def input(
        self, job: str, items: Sequence[InputItem], *, client_pos: int, number: int, units: int
    ) -> None:
        """More input, with the position and units recorded beside it."""
        with self._write() as db:
            self._put_input(db, job, items)
            db.execute(
                "update job set client_pos = ?, number = ?, units = ? where id = ?",
                (client_pos, number, units, job),
            )

    def output(
        self, job: str, events: Sequence[OutputEvent], consumed: Consumed, model_s: float
    ) -> None:
        """One commit: events, consumed, and the strikes it clears. A terminal event among
        them ends the job."""
        ended = self.wall() if events and isinstance(events[-1], Ended) else None
        with self._write() as db:
            db.executemany(
                "insert into output values (?, ?, ?)",
                [(job, event.offset, _encode(event)) for event in events],
            )
            db.execute(
                "update job set consumed_offset = ?, consumed_fine = ?, consumed_heard = ?,"
                " consumed_at = ?, model_s = ?, strikes = 0, ended = ? where id = ?",
                (*msgspec.structs.astuple(consumed), model_s, ended, job),
            )

    def leased(self, job: str, attempt: int, strikes: int, prefix: bool) -> None:
        """A new attempt began; written before the worker hears of it."""
        with self._write() as db:
            db.execute(
                "update job set attempt = ?, strikes = ?, prefix = ? where id = ?",
                (attempt, strikes, prefix, job),
            )

    def struck(self, job: str, strikes: int) -> None:
        with self._write() as db:
            db.execute("update job set strikes = ? where id = ?", (strikes, job))

    def restarted(self, job: str) -> None:
        """Output that nobody has seen is dropped, to begin again."""
        with self._write() as db:
            db.execute("delete from output where job = ?", (job,))
            db.execute(
                "update job set consumed_offset = 0, consumed_fine = 0, consumed_heard = 0,"
                " consumed_at = 0 where id = ?",
                (job,),
            )

    def piped(self, spec: PipeSpec, *, done: bool) -> None:
        """A pipe between durable jobs, as far as it has copied."""
        with self._write() as db:
            if done:
                db.execute("delete from pipe where id = ?", (spec.id,))
            else:
                db.execute("insert or replace into pipe values (?, ?)", (spec.id, _encode(spec)))

    def forget(self, job: str) -> None:
        """The job's window after its end has passed."""
        with self._write() as db:
            for table, key in (("job", "id"), ("input", "job"), ("output", "job")):
                db.execute(f"delete from {table} where {key} = ?", (job,))

    # -------------------------------------------------------------------- reads

    def load(self) -> list[Saved]:
        """Every job in the file, oldest first. Raises `CannotBoot` for a damaged record."""
        try:
            rows = self._db.execute(
                "select id, spec, epoch, created, attempt, strikes, prefix, consumed_offset,"
                " consumed_fine, model_s, client_pos, number, units, ended, consumed_heard,"
                " consumed_at from job"
                " order by created, id"
            ).fetchall()
            return [self._saved(row) for row in rows]
        except (sqlite3.Error, msgspec.MsgspecError) as error:
            raise self.unusable(str(error)) from error

    def _saved(self, row: tuple[Any, ...]) -> Saved:
        job = row[0]
        select = self._db.execute
        items = select("select item from input where job = ? order by offset", (job,))
        events = select("select event from output where job = ? order by offset", (job,))
        return Saved(
            spec=_spec.decode(row[1]),
            epoch=row[2],
            created=row[3],
            attempt=row[4],
            strikes=row[5],
            prefix=bool(row[6]),
            consumed=Consumed(row[7], row[8], row[14], row[15]),
            model_s=row[9],
            client_pos=row[10],
            number=row[11],
            units=row[12],
            ended=row[13],
            input=[_item.decode(blob) for (blob,) in items],
            output=[_event.decode(blob) for (blob,) in events],
        )

    def load_pipes(self) -> list[PipeSpec]:
        try:
            rows = self._db.execute("select spec from pipe order by id").fetchall()
            return [_pipe.decode(blob) for (blob,) in rows]
        except (sqlite3.Error, msgspec.MsgspecError) as error:
            raise self.unusable(str(error)) from error

    def close(self) -> None:
        """Fold the WAL into the file and let go of it. Idempotent."""
        self._db.close()
