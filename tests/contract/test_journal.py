"""Durable jobs come back with the process: same epoch, same offsets, next attempt."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from homes import TEXT, Home, speech_spec, text_spec

from forebay.broker.journal import FILE_NAME, Journal
from forebay.core.events import Consumed, End, Ended, Final, Heard, Prompt, Sound, Text
from forebay.core.kinds import Kind
from forebay.core.spec import JobSpec, PipeSpec
from forebay.errors import CannotBoot, ResumeNotAvailable, StoreFull


def crash(home: Home) -> None:
    """The process dies: nothing is ended, the file is let go."""
    assert home.broker._core.journal is not None
    home.broker._core.journal.close()


async def test_a_durable_job_goes_on_after_the_process_died(tmp_path: Path) -> None:
    home = Home(journal_dir=tmp_path)
    worker = await home.worker("w1")
    spec = speech_spec("a", durable=True)
    await home.broker.submit(spec, [Text(text="abcd", unit=0)], gateway="g1")
    attachment = await home.broker.attach("a", gateway="g1", write=True)
    await home.broker.append("a", [End()], attachment=attachment.number or 0, client_pos=9, units=4)
    worker.speak("a", "ab")
    before, events = await home.broker.status("a"), await home.stored("a")
    crash(home)

    home = Home(journal_dir=tmp_path)
    view = await home.broker.status("a")
    assert view.epoch == before.epoch
    assert await home.broker.read_after("a", 0, epoch=before.epoch) == events
    assert (view.state, view.client_pos, view.units) == ("queued", 9, 4)
    found = await home.broker.find("local", "tts", "a")
    assert found is not None
    worker = await home.worker("w2")
    lease = worker.leases["a"]
    assert (lease.attempt, lease.consumed.fine, lease.last_offset) == (2, 2, 1)
    assert [item.offset for item in lease.input] == [1, 2]
    worker.speak("a", "cd", through=1)
    worker.end("a")
    assert [event.offset for event in await home.stored("a")] == [1, 2, 3]
    crash(home)

    home = Home(journal_dir=tmp_path)
    assert (await home.broker.status("a")).state == "completed"
    assert len(await home.stored("a")) == 3
    await home.advance(121)
    with pytest.raises(ResumeNotAvailable):
        await home.broker.read_after("a", 0)
    await home.broker.close()
    journal = Journal(tmp_path)
    assert journal.load() == []
    journal.close()


async def test_what_ended_long_ago_is_not_brought_back(tmp_path: Path) -> None:
    home = Home(journal_dir=tmp_path, wall=1_000_000)
    await home.worker("w1")
    await home.broker.submit(speech_spec("a", durable=True), [Text(text="x", unit=0)])
    await home.broker.cancel("a")
    crash(home)
    home = Home(journal_dir=tmp_path, wall=1_000_100)
    assert (await home.broker.status("a")).state == "cancelled"
    crash(home)
    home = Home(journal_dir=tmp_path, wall=1_000_200)
    assert await home.broker.jobs() == []
    assert home.broker._core.journal is not None
    assert home.broker._core.journal.load() == []
    await home.broker.close()


async def test_an_interrupted_answer_that_may_have_been_seen_fails_by_name(
    tmp_path: Path,
) -> None:
    home = Home(journal_dir=tmp_path)
    worker = await home.worker("w1", pools=[TEXT])
    await home.broker.submit(text_spec("t", durable=True), [Prompt(messages=[])])
    worker.say("t", "half")
    crash(home)
    home = Home(journal_dir=tmp_path)
    view = await home.broker.status("t")
    assert (view.state, view.code) == ("failed", "worker_lost")
    assert isinstance((await home.stored("t"))[-1], Ended)
    await home.broker.close()


async def test_jobs_that_are_not_durable_leave_no_trace(tmp_path: Path) -> None:
    home = Home(journal_dir=tmp_path)
    worker = await home.worker("w1")
    await home.speech("a", "x", end=True)
    worker.end("a")
    await home.broker.close()
    journal = Journal(tmp_path)
    assert journal.load() == []
    journal.close()


async def test_an_orderly_close_keeps_durable_jobs_for_the_next_start(tmp_path: Path) -> None:
    home = Home(journal_dir=tmp_path)
    await home.worker("w1")
    await home.broker.submit(speech_spec("a", durable=True), [Text(text="x", unit=0)])
    await home.broker.close()
    home = Home(journal_dir=tmp_path)
    worker = await home.worker("w2")
    assert worker.leases["a"].attempt == 2
    await home.broker.close()


async def test_strikes_are_remembered(tmp_path: Path) -> None:
    home = Home(journal_dir=tmp_path)
    worker = await home.worker("w1")
    await home.broker.submit(speech_spec("a", durable=True), [Text(text="x", unit=0)])
    await worker.die(stepping=["a"])
    crash(home)
    home = Home(journal_dir=tmp_path)
    assert (await home.broker.status("a")).strikes == 1
    await home.broker.close()


async def poisoned(home: Home, job: str) -> None:
    await home.worker("w0")
    await home.broker.submit(speech_spec(job, durable=True), [Text(text="x", unit=0), End()])
    for turn in range(3):
        worker = await home.worker(f"{job}{turn}")
        for hand in home.hands:
            if job in hand.leases and hand is not worker:
                worker = hand
        await worker.die(stepping=[job])
    assert (await home.broker.status(job)).code == "poison"


async def test_a_dead_letter_is_still_there_after_a_restart_until_it_is_tried_again(
    tmp_path: Path,
) -> None:
    home = Home(journal_dir=tmp_path, wall=1_000_000)
    await poisoned(home, "a")
    crash(home)

    home = Home(journal_dir=tmp_path, wall=1_000_010)
    assert (await home.broker.status("a")).code == "poison"
    assert [v.spec.id for v in await home.broker.jobs(dead=True)] == ["a"]
    await home.advance(121)
    assert [v.spec.id for v in await home.broker.jobs()] == []
    crash(home)

    home = Home(journal_dir=tmp_path, wall=1_001_000)
    (letter,) = await home.broker.jobs(dead=True)
    assert (letter.spec.id, letter.code) == ("a", "poison")
    worker = await home.worker("w1")
    again = await home.broker.retry("a")
    assert [type(item) for item in worker.leases[again.spec.id].input] == [Text, End]
    assert await home.broker.jobs(dead=True) == []
    crash(home)

    home = Home(journal_dir=tmp_path, wall=1_001_010)
    assert await home.broker.jobs(dead=True) == []
    assert [v.spec.id for v in await home.broker.jobs()] == [again.spec.id]
    await home.broker.close()


async def test_a_dead_letter_that_is_forgotten_leaves_no_trace(tmp_path: Path) -> None:
    home = Home(journal_dir=tmp_path)
    await poisoned(home, "a")
    await home.broker.forget("a")
    assert await home.broker.jobs(dead=True) == []
    assert home.broker._core.journal is not None
    assert home.broker._core.journal.load() == []
    await home.broker.close()


async def test_a_pipe_is_offered_to_whoever_takes_over(tmp_path: Path) -> None:
    home = Home(journal_dir=tmp_path)
    await home.worker("w1", pools=[TEXT, "speech/tone"], sessions=9)
    await home.broker.submit(text_spec("t", durable=True), [Prompt(messages=[])])
    await home.broker.submit(speech_spec("s", durable=True))
    await home.broker.pipe(PipeSpec(id="p", source="t", target="s", map="speak"))
    await home.broker.append_from_pipe("p", [Text(text="a", unit=0)], source_offset=5)
    crash(home)
    home = Home(journal_dir=tmp_path)
    (pipe,) = await home.broker.pipes("g1")
    assert pipe.copied == 5
    assert await home.broker.pipes("g1") == []
    ack = await home.broker.append_from_pipe("p", [Text(text="a", unit=0)], source_offset=5)
    assert ack.repeats == 1
    await home.broker.close()


def test_a_damaged_file_is_named_and_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"this is not a database, it only looks like a file" * 50)
    with pytest.raises(CannotBoot, match="move the file away") as refused:
        Journal(tmp_path)
    assert refused.value.details["stage"] == "journal"
    assert str(tmp_path / FILE_NAME) in refused.value.message


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal._db.execute("pragma user_version=99")
    journal.close()
    with pytest.raises(CannotBoot, match="schema 99"):
        Journal(tmp_path)


def test_two_processes_cannot_hold_one_journal(tmp_path: Path) -> None:
    first = Journal(tmp_path)
    first.submitted(speech_spec("a"), "e", [])
    with pytest.raises(CannotBoot, match="another forebay"):
        Journal(tmp_path)
    first.close()


async def test_a_journal_with_a_hole_is_refused_and_says_what_to_do(tmp_path: Path) -> None:
    home = Home(journal_dir=tmp_path)
    worker = await home.worker("w1")
    await home.broker.submit(speech_spec("a", durable=True), [Text(text="abc", unit=0)])
    for letter in "abc":
        worker.speak("a", letter)
    crash(home)
    journal = Journal(tmp_path)
    journal._db.execute("delete from output where offset = 2")
    journal.close()
    with pytest.raises(CannotBoot, match="job a: .*move the file away"):
        Home(journal_dir=tmp_path)


async def test_an_answer_nobody_saw_begins_again_in_the_journal_too(tmp_path: Path) -> None:
    home = Home(journal_dir=tmp_path)
    one = await home.worker("w1", pools=[TEXT])
    await home.broker.submit(text_spec("t", durable=True), [Prompt(messages=[])])
    one.say("t", "lost", "words")
    await one.die(stepping=["t"])
    two = await home.worker("w2", pools=[TEXT])
    two.say("t", "new")
    two.end("t")
    crash(home)
    home = Home(journal_dir=tmp_path)
    assert [event.offset for event in await home.stored("t")] == [1, 2]
    await home.broker.close()


async def test_a_disk_that_is_full_refuses_the_job_and_keeps_the_broker(tmp_path: Path) -> None:
    home = Home(journal_dir=tmp_path)
    await home.worker("w1")
    assert home.broker._core.journal is not None
    db = home.broker._core.journal._db
    db.execute("pragma max_page_count=20")
    big = [Text(text="x" * 200_000, unit=0)]
    with pytest.raises(StoreFull, match="journal"):
        await home.broker.submit(speech_spec("a", durable=True), big)
    assert await home.broker.jobs() == []
    db.execute("pragma max_page_count=100000")
    assert (await home.broker.submit(speech_spec("a", durable=True), big)).state == "running"
    await home.broker.close()


async def test_a_transcript_goes_on_after_its_last_final(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    spec = JobSpec(id="r", kind=Kind.RECOGNITION, pool="recognition/x", params={}, durable=True)
    sounds = [Sound(data=bytes(3200), seq=n, offset=n) for n in (1, 2, 3)]
    journal.submitted(spec, "e", sounds)
    journal.leased("r", 1, 0, False)
    at = Consumed(offset=1, fine=2000, heard=2, at=1600)
    said = Final(text="hello", start=0, end=2000, offset=1, n=1, chars=5)
    heard = [Heard(seq=n, samples=1600 * n, offset=n + 1, n=n) for n in (1, 2)]
    journal.output("r", [said, *heard], at, 0.5)
    journal.close()

    home = Home(journal_dir=tmp_path)
    entry = home.broker._core.entries["r"]
    assert entry.job.consumed == at
    assert entry.unheard() == (3264, 1)
    assert [item.offset for item in entry.unread()] == [2, 3]
    assert entry.text_so_far() == "hello"
    assert entry.out.marks == {"consumed": 2000, "chars": 5, "heard": 3200, "told": 0}
    crash(home)


def test_a_journal_of_the_first_schema_is_brought_up_to_date(tmp_path: Path) -> None:
    Journal(tmp_path).close()
    with sqlite3.connect(tmp_path / FILE_NAME) as db:
        db.execute("alter table job drop column consumed_heard")
        db.execute("alter table job drop column consumed_at")
        db.execute("pragma user_version=1")
        db.execute("insert into job (id, spec, epoch, created) values ('old', x'00', 'e', 0)")
        db.execute("delete from job")
    db.close()
    journal = Journal(tmp_path)
    journal.submitted(text_spec("a", durable=True), "e", [])
    (saved,) = journal.load()
    assert saved.consumed == Consumed()
    journal.close()
