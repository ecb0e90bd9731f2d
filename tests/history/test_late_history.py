"""A history that is opened late loses nothing, and costs a start nothing."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from forebay.errors import ConfigError, StoreFull
from forebay.history import History, LateHistory, Recordings, SessionRecord, late, sqlite_url
from forebay.history.database import HEAD, address, connect, migrate

WHEN = datetime(2026, 1, 2, tzinfo=UTC)


def record(name: str) -> SessionRecord:
    return SessionRecord(name=name, job=name, created_at=WHEN, status="done", text="heard")


def test_a_gateway_loads_no_database_package_before_it_serves() -> None:
    code = (
        "import sys, forebay.gateway.main;"
        "print([m for m in ('sqlalchemy', 'alembic', 'aiosqlite', 'numpy', 'redis', 'av', 'PIL')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


async def test_what_ended_before_it_was_open_is_written_when_it_is_asked(tmp_path: Path) -> None:
    async with LateHistory(sqlite_url(tmp_path / "h.db")) as history:
        history.put(record("early"))
        assert not (tmp_path / "h.db").exists()
        assert [r.name for r in await history.sessions("local", 10)] == ["early"]
        history.put(record("later"))
        assert await history.count_sessions("local") == 2


async def test_what_ended_before_it_was_open_is_written_when_the_process_ends(
    tmp_path: Path,
) -> None:
    url = sqlite_url(tmp_path / "h.db")
    async with LateHistory(url) as history:
        history.put(record("early"))
    async with History(url) as after:
        assert [r.name for r in await after.sessions("local", 10)] == ["early"]


async def test_a_process_that_ends_while_it_is_opened_lets_that_come_to_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entered, went_on, told = asyncio.Event(), asyncio.Event(), []

    class Slow:
        async def __aenter__(self) -> Slow:
            entered.set()
            await went_on.wait()
            told.append("open")
            return self

        async def __aexit__(self, *_: object) -> None:
            told.append("closed")

    monkeypatch.setattr(late, "_load", lambda: lambda url, create: Slow())
    history = LateHistory("sqlite:///unused.db")
    async with history:
        asking = asyncio.create_task(history.count_sessions("local"))
        await entered.wait()
        asking.cancel()
        asyncio.get_running_loop().call_later(0.05, went_on.set)
    assert told == ["open", "closed"]


async def test_a_database_that_is_away_is_tried_again_and_asking_is_refused_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(late, "OPEN_S", 2.0)
    monkeypatch.setattr(late, "RETRY_S", 0.02)
    folder = tmp_path / "away"
    async with LateHistory(sqlite_url(folder / "h.db")) as history:
        history.put(record("early"))
        with pytest.raises(StoreFull, match="not open yet"):
            await history.stats("local")
        folder.mkdir()
        assert await history.session("local", "early") is not None


async def test_of_too_many_that_wait_the_oldest_is_given_up_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(late, "MAX_WAITING", 2)
    async with LateHistory(sqlite_url(tmp_path / "h.db")) as history:
        for name in "abc":
            history.put(record(name))
        assert {r.name for r in await history.sessions("local", 10)} == {"b", "c"}
        assert history.dropped == 1


@pytest.mark.parametrize(
    ("url", "word"), [("mysql://h/d", "is mysql, expected"), ("here", "cannot be read")]
)
def test_an_address_that_cannot_be_meant_is_refused_before_anything_is_served(
    url: str, word: str
) -> None:
    with pytest.raises(ConfigError, match=word):
        LateHistory(url)


def test_the_newest_migration_is_the_one_that_counts_as_up_to_date() -> None:
    config = Config()
    folder = Path(late.__file__).parent / "migrations"
    config.set_main_option("script_location", str(folder))
    assert ScriptDirectory.from_config(config).get_current_head() == HEAD


async def test_tables_that_are_up_to_date_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = connect(address(sqlite_url(tmp_path / "h.db")))
    await migrate(engine)
    monkeypatch.setattr("alembic.command.upgrade", lambda *args: pytest.fail("migrated again"))
    await migrate(engine)
    await engine.dispose()


def test_only_recordings_that_grow_no_longer_are_cleared(tmp_path: Path) -> None:
    recordings = Recordings(tmp_path)
    for job in ("a" * 32, "b" * 32):
        recordings.append(job, bytes(320), 16_000)
    left = tmp_path / "parts" / ("a" * 32)
    now = left.stat().st_mtime + 60
    os.utime(left, (0, 0))
    assert recordings.clear_parts(now) == 1
    assert [part.name for part in (tmp_path / "parts").iterdir()] == ["b" * 32]
