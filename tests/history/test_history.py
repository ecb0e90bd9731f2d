"""The history: what is written is found again, by its tenant only, on either database."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from forebay.errors import CannotBoot, ConfigError, StoreFull
from forebay.history import History, SessionRecord, Stats, TaskRecord
from forebay.history import store as store_module
from forebay.history.database import address, connect, migrate

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


def session(name: str = "s1", n: int = 1, **facts: object) -> SessionRecord:
    base = SessionRecord(
        name=name,
        job=f"{n:032x}",
        created_at=NOON + timedelta(seconds=n),
        user="ann",
        status="done",
        text="hello 世界",
        chunks=3,
        duration_s=1.5,
        audio_s=1.25,
        completed_at=NOON + timedelta(seconds=n + 2),
    )
    return replace(base, **facts)  # type: ignore[arg-type]


def task(id: str = "0a0b0c0d", **facts: object) -> TaskRecord:
    return replace(TaskRecord(id=id, job="f" * 32, created_at=NOON), **facts)  # type: ignore[arg-type]


async def test_what_was_put_is_found_with_every_field(url: str) -> None:
    async with History(url, create=True) as history:
        history.put(session())
        assert await history.sessions("local", 20) == [session()]
        assert await history.session("local", "s1") == session()
        history.put(task(text="x", audio_s=2.0))
        assert await history.task("local", "0a0b0c0d") == task(text="x", audio_s=2.0)


async def test_it_is_there_after_a_restart_and_migrating_again_changes_nothing(url: str) -> None:
    async with History(url, create=True) as history:
        history.put(session())
    async with History(url, create=True) as history:
        assert await history.sessions("local", 20) == [session()]


async def test_a_row_is_written_in_its_newest_state(url: str) -> None:
    async with History(url, create=True) as history:
        history.put(session(status="recording", text="", completed_at=None))
        assert await history.sessions("local", 20) == []
        history.put(session())
        history.put(session(text="newer"))
        assert [s.text for s in await history.sessions("local", 20)] == ["newer"]
        assert await history.count_sessions("local") == 1


async def test_newest_come_first_and_no_more_than_asked_for(url: str) -> None:
    async with History(url, create=True) as history:
        for n in range(1, 6):
            history.put(session(f"s{n}", n))
        assert [s.name for s in await history.sessions("local", 3)] == ["s5", "s4", "s3"]


async def test_other_tenants_see_and_change_nothing(url: str) -> None:
    async with History(url, create=True) as history:
        history.put(session(tenant="a"))
        history.put(session(n=2, tenant="b", text="b's"))
        history.put(task(tenant="a"))
        assert [s.text for s in await history.sessions("b", 20)] == ["b's"]
        assert await history.task("b", "0a0b0c0d") is None
        assert not await history.delete_task("b", "0a0b0c0d")
        assert await history.delete_session("b", "s1")
        assert len(await history.sessions("a", 20)) == 1
        history.put(task(tenant="b", text="stolen"))
        found = await history.task("a", "0a0b0c0d")
        assert found is not None and found.text == ""


async def test_what_was_deleted_is_gone(url: str) -> None:
    async with History(url, create=True) as history:
        history.put(session())
        assert await history.delete_session("local", "s1")
        assert not await history.delete_session("local", "s1")
        history.put(task())
        assert await history.delete_task("local", "0a0b0c0d")
        assert await history.task("local", "0a0b0c0d") is None


async def test_names_that_fit_no_column_and_texts_no_database_keeps(url: str) -> None:
    long = "名" * 256
    async with History(url, create=True) as history:
        history.put(session(long, user="u" * 300, text="a\0b\ud800c"))
        found = await history.session("local", long)
        assert found is not None
        assert (found.text, found.user) == ("ab?c", "u" * 64)
        assert len(await history.recordings("local", "u" * 300)) == 0


async def test_of_several_who_try_a_task_again_one_does(url: str) -> None:
    failed = task(status="failed", error="x", completed_at=NOON)
    async with History(url, create=True) as one, History(url) as two:
        one.put(failed)
        await one.flush()
        tries = [replace(failed, job=f"{n:032x}", status="queued", error="") for n in range(6)]
        took = await asyncio.gather(
            *((one, two)[n % 2].swap_task(failed, new) for n, new in enumerate(tries))
        )
        assert sorted(took) == [False] * 5 + [True]
        assert await two.task("local", failed.id) == tries[took.index(True)]
        assert not await one.swap_task(replace(failed, tenant="other"), tries[0])


async def test_the_late_end_of_a_job_that_was_tried_again_changes_nothing(url: str) -> None:
    failed = task(status="failed")
    again = replace(failed, job="a" * 32, status="queued")
    async with History(url, create=True) as history:
        history.put(failed)
        assert await history.swap_task(failed, again)
        history.put(replace(failed, error="late"))
        assert await history.task("local", failed.id) == again
        history.put(replace(again, status="done", text="x"))
        found = await history.task("local", failed.id)
        assert found is not None and found.text == "x"


async def test_no_error_of_the_database_quotes_what_was_written(url: str) -> None:
    async with History(url, create=True) as history:
        assert history._engine.sync_engine.hide_parameters


async def test_stats_sum_what_is_done(url: str) -> None:
    async with History(url, create=True) as history:
        assert await history.stats("local") == Stats()
        history.put(task("1", status="done", audio_s=10.0, model_s=1.0, audio_bytes=100))
        history.put(task("2", status="done", audio_s=10.0, model_s=3.0, audio_bytes=50))
        history.put(task("3", status="failed", audio_s=5.0, model_s=9.0))
        stats = await history.stats("local")
        assert stats == Stats(tasks=3, failed=1, audio_s=20.0, rtf=0.2, audio_bytes=150)
        assert [t.id for t in await history.tasks("local", 2)] == ["1", "2"]
        history.put(task("4", status="processing", tenant="x"))
        assert [t.id for t in await history.unfinished()] == ["4"]


async def test_what_is_too_old_goes_with_its_audio(url: str) -> None:
    async with History(url, create=True) as history:
        history.put(session(audio_path="x/y.wav"))
        history.put(session("new", 2, created_at=NOON + timedelta(days=9)))
        history.put(task(audio_path="z/t.mp3"))
        gone = await history.expire(5, NOON + timedelta(days=10))
        assert sorted(gone) == ["x/y.wav", "z/t.mp3"]
        assert [s.name for s in await history.sessions("local", 20)] == ["new"]
        assert await history.tasks("local", 20) == []


async def test_a_table_of_the_original_is_taken_over_with_its_rows(url: str) -> None:
    target = address(url)
    if target.get_backend_name() == "postgresql":
        async with History(url, create=True):
            pass
    engine = connect(target)
    async with engine.begin() as connection:
        for name in ("asr_sessions", "asr_tasks", "alembic_version"):
            await connection.execute(sa.text(f"DROP TABLE IF EXISTS {name}"))
        await connection.execute(
            sa.text(
                "CREATE TABLE asr_sessions (id varchar(64) PRIMARY KEY, user_id varchar(64), "
                "status varchar(20) DEFAULT 'recording', final_text text, "
                "chunk_count integer DEFAULT 0, total_duration float DEFAULT 0, "
                "audio_path text, created_at timestamp, completed_at timestamp)"
            )
        )
        await connection.execute(
            sa.text(
                "INSERT INTO asr_sessions (id, user_id, status, final_text, chunk_count, "
                "audio_path, created_at) VALUES ('old', 'u', 'done', 'words', 2, '', "
                "'2025-01-01 00:00:00')"
            )
        )
    await engine.dispose()
    async with History(url) as history:
        (found,) = await history.sessions("local", 20)
        assert (found.name, found.text, found.chunks) == ("old", "words", 2)


OPENS = """
import asyncio, sys
from forebay.history.database import address, connect, migrate
async def main():
    sys.stdin.readline()
    await migrate(connect(address(sys.argv[1])), create=True)
asyncio.run(main())
"""


async def test_processes_that_open_a_new_database_at_once_take_turns(url: str) -> None:
    openers = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", OPENS, url),
            stdin=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        for _ in range(4)
    ]
    said = await asyncio.gather(*(opener.communicate(b"now\n") for opener in openers))
    assert [opener.returncode for opener in openers] == [0] * 4, said
    async with History(url) as history:
        assert await history.sessions("local", 20) == []


async def test_a_database_that_goes_away_delays_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "RETRY_S", 0.02)
    monkeypatch.setattr(store_module, "MAX_WAITING", 5)
    async with History(f"sqlite:///{tmp_path}/h.db") as history:
        engine = history._engine
        await engine.dispose()
        history._engine = connect(address(f"sqlite:///{tmp_path}/none/h.db"))
        for n in range(1, 9):
            history.put(session(f"s{n}", n))
        await asyncio.sleep(0.1)
        assert history.dropped == 3
        with pytest.raises(StoreFull):
            await history.sessions("local", 20)
        await history._engine.dispose()
        history._engine = engine
        assert [s.name for s in await history.sessions("local", 20)] == [
            "s8", "s7", "s6", "s5", "s4"
        ]  # fmt: skip


async def test_addresses_that_cannot_be_meant_are_refused_without_being_shown() -> None:
    for url in ("mysql://u:secret@h/d", "::secret::"):
        with pytest.raises(ConfigError) as caught:
            address(url)
        assert "secret" not in str(caught.value)
    assert address("postgres://u@h/d").drivername == "postgresql+asyncpg"
    with pytest.raises(CannotBoot):
        await migrate(connect(address("postgresql://u@127.0.0.1:1/d")))
