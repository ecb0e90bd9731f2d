"""Finished sessions, tasks and their transcripts: SQLite by default, PostgreSQL by URL."""

from __future__ import annotations

from forebay.history.database import postgres_url, sqlite_url
from forebay.history.recordings import Recordings
from forebay.history.records import HistoryOptions, SessionRecord, Stats, TaskRecord
from forebay.history.store import History

__all__ = [
    "History",
    "HistoryOptions",
    "Recordings",
    "SessionRecord",
    "Stats",
    "TaskRecord",
    "postgres_url",
    "sqlite_url",
]
