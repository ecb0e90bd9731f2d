"""Finished sessions, tasks and their transcripts: SQLite by default, PostgreSQL by URL.

What needs the database's packages is imported when it is first asked for: a gateway that
starts has better things to do first.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from forebay.history.late import LateHistory
from forebay.history.recordings import Recordings, Take
from forebay.history.records import HistoryOptions, SessionRecord, Stats, TaskRecord, sqlite_url

if TYPE_CHECKING:
    from forebay.history.database import postgres_url
    from forebay.history.store import History

__all__ = [
    "History",
    "HistoryOptions",
    "LateHistory",
    "Recordings",
    "SessionRecord",
    "Stats",
    "Take",
    "TaskRecord",
    "postgres_url",
    "sqlite_url",
]

_LATE = {"History": "store", "postgres_url": "database"}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LATE[name]}"), name)
