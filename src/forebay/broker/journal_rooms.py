"""Persistent rooms in the journal: what each is, what it keeps, and where its writers stand.

The tables lie beside those of jobs in the same file and are made when missing, so a journal
written before rooms existed goes on being used. What a publish changes (captions, held
messages, next numbers) is one transaction, written before the publish is answered.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from forebay.broker.journal import Journal
from forebay.core.events import OutputEvent
from forebay.core.room import RoomSpec, Writer

__all__ = ["RoomJournal", "SavedRoom"]

_TABLES = (
    """create table if not exists room (
        id text primary key, spec blob not null, epoch text not null,
        head integer not null default 0, active_ms integer not null default 0
    ) without rowid""",
    """create table if not exists room_item (
        room text, offset integer, event blob, primary key (room, offset)
    ) without rowid""",
    """create table if not exists room_writer (
        room text, client text, state blob, primary key (room, client)
    ) without rowid""",
)

_encode = msgspec.msgpack.Encoder().encode
_spec = msgspec.msgpack.Decoder(RoomSpec)
_event: msgspec.msgpack.Decoder[OutputEvent] = msgspec.msgpack.Decoder(OutputEvent)
_writer = msgspec.msgpack.Decoder(Writer)


class SavedRoom(msgspec.Struct, frozen=True, kw_only=True):
    """A room as it was written. What its writers hold has arrival times of another process."""

    spec: RoomSpec
    epoch: str
    head: int
    active_ms: int
    events: list[OutputEvent]
    writers: dict[str, Writer]


class RoomJournal:
    """The rooms' part of an open journal; it is closed with it. Raises as `Journal` does."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        with journal.transaction() as db:
            for table in _TABLES:
                db.execute(table)

    def made(self, spec: RoomSpec, epoch: str) -> None:
        with self._journal.transaction() as db:
            db.execute(
                "insert into room (id, spec, epoch, active_ms) values (?, ?, ?, ?)",
                (spec.id, _encode(spec), epoch, spec.created_ms),
            )

    def published(
        self,
        room: str,
        events: Sequence[OutputEvent],
        writers: Mapping[str, Writer],
        *,
        head: int,
        active_ms: int,
        trimmed: int = 0,
        forgotten: Iterable[str] = (),
    ) -> None:
        """One publish, or one release of what waited. ``trimmed``: items up to this offset
        are no longer kept."""
        with self._journal.transaction() as db:
            db.executemany(
                "insert into room_item values (?, ?, ?)",
                [(room, event.offset, _encode(event)) for event in events],
            )
            db.executemany(
                "insert or replace into room_writer values (?, ?, ?)",
                [(room, client, _encode(writer)) for client, writer in writers.items()],
            )
            db.execute(
                "update room set head = ?, active_ms = ? where id = ?", (head, active_ms, room)
            )
            if trimmed:
                db.execute("delete from room_item where room = ? and offset <= ?", (room, trimmed))
            db.executemany(
                "delete from room_writer where room = ? and client = ?",
                [(room, client) for client in forgotten],
            )

    def dropped(self, room: str) -> None:
        with self._journal.transaction() as db:
            for table, key in (("room", "id"), ("room_item", "room"), ("room_writer", "room")):
                db.execute(f"delete from {table} where {key} = ?", (room,))

    def load(self) -> list[SavedRoom]:
        """Every room in the file. Raises `CannotBoot` for a damaged record."""
        try:
            with self._journal.transaction() as db:
                rows = db.execute("select id, spec, epoch, head, active_ms from room").fetchall()
                return [self._saved(db, *row) for row in rows]
        except (sqlite3.Error, msgspec.MsgspecError) as error:
            raise self._journal.unusable(str(error)) from error

    def _saved(
        self, db: sqlite3.Connection, room: str, spec: bytes, epoch: str, head: int, active_ms: int
    ) -> SavedRoom:
        events = db.execute("select event from room_item where room = ? order by offset", (room,))
        writers = db.execute("select client, state from room_writer where room = ?", (room,))
        return SavedRoom(
            spec=_spec.decode(spec),
            epoch=epoch,
            head=head,
            active_ms=active_ms,
            events=[_event.decode(blob) for (blob,) in events],
            writers={client: _writer.decode(state) for client, state in writers},
        )
