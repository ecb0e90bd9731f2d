"""Recognition in real worker processes that are killed while somebody speaks."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from test_processes import House, house

from forebay.core.events import End, Final, Heard, Sound
from forebay.core.kinds import Kind
from forebay.core.spec import JobSpec
from forebay.core.tones import speak

WORDS = [f"w{n}" for n in range(60)]


async def talk(home: House, job: str) -> None:
    """Six seconds of speech, five times as fast as anybody speaks."""
    spec = JobSpec(
        id=job, kind=Kind.RECOGNITION, pool="recognition/synthetic", params={}, detach_s=60.0
    )
    await home.broker.submit(spec, gateway="g1")
    at = await home.broker.attach(job, gateway="g1", write=True)
    for n in range(60):
        await home.broker.append(
            job, [Sound(data=speak([n]), seq=n)], attachment=at.number or 0, client_pos=n
        )
        await asyncio.sleep(0.02)
    await home.broker.append(job, [End(seq=60)], attachment=at.number or 0)


async def test_killed_processes_lose_and_double_no_word(tmp_path: Path) -> None:
    def worker(name: str):
        return lambda home: home.spec(name, "synthetic:rtf=0.1,slots=2,words=5", kind="recognition")

    jobs = [f"j{n}" for n in range(4)]
    async with house(tmp_path, worker("r-1"), worker("r-2")) as home:
        talking = asyncio.gather(*(talk(home, job) for job in jobs))
        for name in ("r-1", "r-2"):
            await asyncio.sleep(0.5)
            os.kill(home.pids()[name], signal.SIGKILL)
        await talking
        await home.until(lambda: all(home.ended(job) for job in jobs))
        for job in jobs:
            events, ended = home.out[job], home.ended(job)
            assert [e.offset for e in events] == list(range(1, len(events) + 1))
            assert ended is not None and ended.state == "completed"
            assert "".join(e.text for e in events if isinstance(e, Final)).split() == WORDS
            assert [e.seq for e in events if isinstance(e, Heard)] == list(range(60))
            assert ended.details["text"].split() == WORDS
            assert ended.details["audio_s"] == 6.0
        assert max([(await home.broker.status(job)).attempts for job in jobs]) >= 2
