"""What the history is told and what it answers: plain data."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

__all__ = ["HistoryOptions", "SessionRecord", "Stats", "TaskRecord", "sqlite_url"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryOptions:
    """``url``: of the database; None: SQLite in the data folder, or none without one.
    ``create_database``: make a PostgreSQL database that is not there. ``recordings``: newest
    recordings kept per user; 0: nothing is recorded. ``keep_days``: how long rows and files
    stay; None: for good."""

    url: str | None = None
    create_database: bool = False
    recordings: int = 10
    keep_days: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRecord:
    """One recognition session. ``name``: its client's word for it; ``job``: ours. ``status``:
    recording, done, failed or cancelled. ``duration_s``: wall time from start to end;
    ``audio_s``: of audio, from real bytes. ``audio_path``: below the recordings' folder."""

    name: str
    job: str
    created_at: datetime
    tenant: str = "local"
    user: str = ""
    status: str = "recording"
    text: str = ""
    chunks: int = 0
    duration_s: float = 0.0
    audio_path: str = ""
    completed_at: datetime | None = None
    audio_s: float = 0.0
    model_s: float = 0.0
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRecord:
    """One file to be recognised. ``status``: queued, processing, done or failed."""

    id: str
    job: str
    created_at: datetime
    tenant: str = "local"
    status: str = "queued"
    text: str = ""
    language: str = ""
    audio_path: str = ""
    audio_bytes: int = 0
    audio_s: float = 0.0
    model_s: float = 0.0
    error: str = ""
    completed_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """Sums over finished tasks. ``rtf``: model time over audio time; 0 before the first."""

    tasks: int = 0
    failed: int = 0
    audio_s: float = 0.0
    rtf: float = 0.0
    audio_bytes: int = 0


def sqlite_url(path: Path) -> str:
    """The address of the SQLite database in the file ``path``."""
    return f"sqlite+aiosqlite:///{path}"
