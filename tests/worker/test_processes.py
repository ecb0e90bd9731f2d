"""Real worker processes on a real broker: killed, frozen, poisoned, drained.

The checker: offsets and units of what a gateway was pushed have no gap and no repeat, and
exactly one terminal event ends the stream.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from forebay.broker import OutputPush
from forebay.broker.link_server import LinkServer, serve_link
from forebay.broker.local import LocalBroker
from forebay.core.events import Audio, End, Ended, Prompt, Text
from forebay.core.kinds import Kind
from forebay.core.spec import JobSpec
from forebay.supervisor import Event, ProcessSpec, serve

SENTENCE = "The quick brown fox jumps over the lazy dog near the river bank. "


class House:
    """LocalBroker with its link, a supervisor with worker processes, and one gateway."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "b.sock"
        self.broker = LocalBroker()
        self.server: LinkServer
        self.boss: asyncio.Task[int]
        self.events: list[Event] = []
        self.out: dict[str, list[Any]] = {}
        self.times: dict[str, list[float]] = {}
        self.broker.open("g1", self._take)

    def _take(self, push: Any) -> None:
        if isinstance(push, OutputPush):
            self.out.setdefault(push.job, []).extend(push.events)
            self.times.setdefault(push.job, []).append(time.monotonic())

    async def until(self, ready: Callable[[], Any], limit_s: float = 60.0) -> None:
        async with asyncio.timeout(limit_s):
            while not ready():  # noqa: ASYNC110 - other processes have no event to await
                await asyncio.sleep(0.005)

    def pids(self) -> dict[str, int]:
        """Newest pid per process name that is ready."""
        return {e.name: e.pid for e in self.events if e.what == "ready"}

    def spec(self, name: str, engine: str, *, kind: str = "speech", **more: Any) -> ProcessSpec:
        broker = f"unix://{self.path}"
        return ProcessSpec(
            name=name,
            argv=[
                *(sys.executable, "-m", "forebay", "worker"),
                *("--broker", broker, "--kind", kind, "--engine", engine),
            ],
            role="worker",
            group=kind,
            env={"FOREBAY_LOG_LEVEL": "warning"},
            **more,
        )

    async def speak(self, job: str, text: str = SENTENCE, *, end: bool = True) -> None:
        spec = JobSpec(
            id=job,
            kind=Kind.SPEECH,
            pool="speech/synthetic",
            params={"sample_rate": 16_000, "channels": 1, "format": "pcm16"},
            detach_s=60.0,
        )
        items: list[Any] = [Text(text=text, unit=0, seq=1)]
        await self.broker.submit(spec, [*items, End(seq=2)] if end else items, gateway="g1")

    def ended(self, job: str) -> Ended | None:
        last = self.out.get(job, [])[-1:]
        return last[0] if last and isinstance(last[0], Ended) else None

    def check(self, job: str, text: str = SENTENCE) -> None:
        """Nothing lost, nothing twice, one end."""
        events = self.out[job]
        assert [e.offset for e in events] == list(range(1, len(events) + 1))
        pieces = [e for e in events if isinstance(e, Audio)]
        assert "".join(p.text for p in pieces) == text
        assert [p.unit for p in pieces] == [0, *(p.units for p in pieces[:-1])]
        assert [isinstance(e, Ended) for e in events].count(True) == 1
        assert sum(p.frames for p in pieces) == len(text) * 640


@asynccontextmanager
async def house(folder: Path, *specs: Callable[[House], ProcessSpec]) -> AsyncIterator[House]:
    home = House(folder)
    home.server = await serve_link(home.path, home.broker)
    made = [make(home) for make in specs]
    home.boss = asyncio.create_task(
        serve(made, link_path=home.path, on_event=home.events.append, worker_drain_s=5.0)
    )
    try:
        await home.until(
            lambda: sum(p.ready for p in home.broker.pools()) >= len(made) and home.pids()
        )
        yield home
    finally:
        home.boss.cancel()
        await asyncio.gather(home.boss, return_exceptions=True)
        await home.broker.close()
        await home.server.close()


def voice(name: str, **options: Any) -> Callable[[House], ProcessSpec]:
    words = ",".join(f"{k}={v}" for k, v in {"rtf": 0.25, "piece_ms": 80, **options}.items())
    return lambda home: home.spec(name, f"synthetic:{words}")


async def test_a_sentence_goes_through_a_real_worker(tmp_path: Path) -> None:
    async with house(tmp_path, voice("w1", rtf=0)) as home:
        await home.speak("j")
        await home.until(lambda: home.ended("j"))
        home.check("j")
        [pool] = home.broker.pools()
        assert (pool.synthetic, pool.engine, pool.facts["sample_rate"]) == (
            True,
            "synthetic",
            16_000,
        )
        assert [stage.stage for stage in pool.stages.values()] == ["ready"]


async def test_killing_workers_mid_sentence_loses_and_repeats_nothing(tmp_path: Path) -> None:
    async with house(tmp_path, voice("w1", rtf=0.5), voice("w2", rtf=0.5)) as home:
        jobs = [f"j{i}" for i in range(6)]
        for job in jobs:
            await home.speak(job)
        for kill in range(4):
            await asyncio.sleep(0.15 + 0.03 * kill)
            await home.until(lambda: home.pids())
            victim = list(home.pids().values())[kill % 2]
            try:
                os.kill(victim, signal.SIGKILL)
            except ProcessLookupError:
                continue
        await home.until(lambda: all(home.ended(j) for j in jobs))
        for job in jobs:
            assert home.ended(job).state == "completed"
            home.check(job)


async def test_with_another_worker_up_the_next_audio_comes_within_a_second(
    tmp_path: Path,
) -> None:
    async with house(tmp_path, voice("w1", slots=1), voice("w2", slots=1)) as home:
        await home.speak("j", SENTENCE * 2)
        await home.until(lambda: len(home.out.get("j", [])) > 5)
        view = await home.broker.status("j")
        assert view.attempts == 1
        worker = next(w for w in home.events if w.what == "ready" and w.pid == _holder(home, "j"))
        killed = time.monotonic()
        os.kill(worker.pid, signal.SIGKILL)
        count = len(home.out["j"])
        await home.until(lambda: len(home.out["j"]) > count)
        gap_s = time.monotonic() - killed
        await home.until(lambda: home.ended("j"))
        home.check("j", SENTENCE * 2)
        assert gap_s < 1.0
        assert (await home.broker.status("j")).attempts == 2


def _holder(home: House, job: str) -> int:
    core = home.broker._core
    worker = core.workers[core.entries[job].job.worker]
    return worker.info.pid


async def test_a_frozen_worker_is_replaced_and_its_late_words_are_refused(
    tmp_path: Path,
) -> None:
    async with house(tmp_path, voice("w1", slots=1), voice("w2", slots=1)) as home:
        await home.speak("j")
        await home.until(lambda: len(home.out.get("j", [])) > 3)
        frozen = _holder(home, "j")
        os.kill(frozen, signal.SIGSTOP)
        try:
            await home.until(lambda: _holder_or_none(home, "j") not in (None, frozen))
            await asyncio.sleep(0.3)
        finally:
            os.kill(frozen, signal.SIGCONT)
        await home.until(lambda: home.ended("j"))
        home.check("j")
        await home.speak("k")
        await home.until(lambda: home.ended("k"))
        home.check("k")
        await home.until(lambda: home.broker.pools()[0].ready == 2)  # the woken one is taken back


def _holder_or_none(home: House, job: str) -> int | None:
    try:
        return _holder(home, job)
    except (KeyError, AttributeError):
        return None


async def test_a_job_that_crashes_every_worker_ends_as_poison_and_condemns_nobody_else(
    tmp_path: Path,
) -> None:
    async with house(tmp_path, voice("w1", crash=1.0, slots=1, piece_ms=1000)) as home:
        await home.speak("bad", "Boom.")
        await home.until(lambda: home.ended("bad"))
        assert (home.ended("bad").state, home.ended("bad").code) == ("failed", "poison")
        crashes = [e for e in home.events if e.what == "exited"]
        assert len(crashes) <= 5  # three count; on a busy machine one may be told of too late
        assert all("signal 9" in e.detail for e in crashes)
        [dead] = await home.broker.jobs(dead=True)
        assert dead.spec.id == "bad"


async def test_a_cancelled_job_frees_its_slot_for_the_next(tmp_path: Path) -> None:
    async with house(tmp_path, voice("w1", slots=1, rtf=1.0)) as home:
        await home.speak("j", SENTENCE * 200)  # it would speak for ten minutes
        await home.until(lambda: len(home.out.get("j", [])) > 2)
        await home.speak("k", "Hi.")
        await home.broker.cancel("j")
        await home.until(lambda: home.out.get("k"))
        assert home.ended("j").state == "cancelled"


async def test_sigterm_to_a_worker_hands_its_sessions_over_without_loss_or_strike(
    tmp_path: Path,
) -> None:
    async with house(tmp_path, voice("w1", slots=1), voice("w2", slots=1)) as home:
        for job in ("a", "b"):
            await home.speak(job, SENTENCE * 3)
        await home.until(lambda: len(home.out.get("a", [])) > 3)
        os.kill(_holder(home, "a"), signal.SIGTERM)
        await home.until(lambda: home.ended("a") and home.ended("b"))
        for job in ("a", "b"):
            home.check(job, SENTENCE * 3)
            assert (await home.broker.status(job)).strikes == 0
        await home.until(lambda: [e for e in home.events if e.what == "exited"])
        assert "exit code 0" in next(e for e in home.events if e.what == "exited").detail


async def test_a_text_job_is_answered_by_a_real_worker(tmp_path: Path) -> None:
    engine = "synthetic:token_ms=1,tokens=5"
    async with house(tmp_path, lambda home: home.spec("t", engine, kind="text")) as home:
        spec = JobSpec(id="t1", kind=Kind.TEXT, pool="text/synthetic", params={})
        prompt = Prompt(messages=[{"role": "user", "content": "say hello"}])
        await home.broker.submit(spec, [prompt], gateway="g1")
        await home.until(lambda: home.ended("t1"))
        said = "".join(getattr(e, "text", "") for e in home.out["t1"])
        assert said == "say1 hello2 say3 hello4 say5"


async def test_a_worker_whose_engine_cannot_load_says_at_which_stage_and_why(
    tmp_path: Path,
) -> None:
    home = House(tmp_path)
    home.server = await serve_link(home.path, home.broker)
    spec = home.spec("w", "synthetic:rate=1")
    home.boss = asyncio.create_task(serve([spec], link_path=home.path, on_event=home.events.append))
    try:
        await home.until(lambda: [e for e in home.events if e.what == "waiting"])
    finally:
        home.boss.cancel()
        await asyncio.gather(home.boss, return_exceptions=True)
        await home.broker.close()
        await home.server.close()
    [exited] = [e for e in home.events if e.what == "exited"]
    assert exited.detail.startswith("cannot boot")
    assert "rate" in exited.detail


@pytest.fixture(autouse=True)
def _no_settings_of_the_person_at_the_desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
