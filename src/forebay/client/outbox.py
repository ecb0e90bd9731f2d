"""Captions not delivered yet, in a SQLite file, so that they survive a restart.

A write is in the file's log before it returns (not flushed to the disk: a crash of the
program loses nothing, one of the machine perhaps the last second). The file belongs to one
publisher at a time.
"""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from forebay.client.publish_state import Message
from forebay.errors import ConfigError

__all__ = ["Outbox"]

_TABLES = """
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS messages (seq INTEGER PRIMARY KEY, body BLOB NOT NULL);
"""


class Outbox:
    """One room's outbox. Calls are short and may come from any thread. Raises `ConfigError`
    where the file cannot be used, for instance because another publisher has it."""

    def __init__(self, path: Path, room: str) -> None:
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._db = sqlite3.connect(
                path, timeout=0.5, isolation_level=None, check_same_thread=False
            )
            self._open(room)
        except (OSError, sqlite3.Error) as exc:
            raise ConfigError(f"the outbox {path.name!r} cannot be used: {exc}") from exc

    def _open(self, room: str) -> None:
        self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute("PRAGMA wal_autocheckpoint=0")  # `tidy` does it, off the speaker's way
        self._db.executescript(_TABLES)
        self._db.execute("BEGIN IMMEDIATE")  # whoever comes second fails here, by name
        rows = dict(self._db.execute("SELECT name, value FROM about"))
        if rows.setdefault("room", room) != room:
            self._db.execute("ROLLBACK")
            raise ConfigError(f"the outbox belongs to room {rows['room']!r}, not {room!r}")
        self.client_id = rows.setdefault("client_id", secrets.token_hex(16))
        self.next_seq = int(rows.setdefault("next_seq", "1"))
        self.settled = int(rows.setdefault("settled", "0"))
        self._db.executemany("INSERT OR IGNORE INTO about VALUES (?, ?)", rows.items())
        self._db.execute("COMMIT")

    def load(self) -> list[Message]:
        with self._lock:
            rows = self._db.execute("SELECT seq, body FROM messages ORDER BY seq").fetchall()
        found = []
        for seq, data in rows:
            body: dict[str, Any] = msgspec.json.decode(data)
            found.append(Message(seq, body, skip=not body))
        return found

    def put(self, message: Message) -> None:
        """Keep it; a `skip` takes the place of what it gives up."""
        with self._lock:
            self._db.execute("BEGIN")
            self._db.execute(
                "INSERT OR REPLACE INTO messages VALUES (?, ?)",
                (message.seq, msgspec.json.encode(message.body)),
            )
            self._db.execute(
                "UPDATE about SET value = max(CAST(value AS INTEGER), ?) WHERE name = 'next_seq'",
                (message.seq + 1,),
            )
            self._db.execute("COMMIT")

    def forget(self, seqs: Iterable[int], settled: int) -> None:
        with self._lock:
            self._db.execute("BEGIN")
            self._db.executemany("DELETE FROM messages WHERE seq = ?", [(seq,) for seq in seqs])
            self._db.execute("UPDATE about SET value = ? WHERE name = 'settled'", (settled,))
            self._db.execute("COMMIT")

    def tidy(self) -> None:
        with self._lock:
            self._db.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def close(self) -> None:
        with self._lock, contextlib.closing(self._db):
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
