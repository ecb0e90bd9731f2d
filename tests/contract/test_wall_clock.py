"""A wall clock that is set an hour forward or back changes no lease, deadline or limit."""

from __future__ import annotations

import asyncio
import itertools
import re
import time
from contextlib import closing
from pathlib import Path

import pytest
from homes import Hand, Home, speech_spec
from redis_homes import program

from forebay.broker.local import LocalBroker, Settings
from forebay.core.events import Text
from forebay.lab.redis_server import PrivateRedis

from test_redis_faults import Site, until  # isort: skip

SOURCE = Path(__file__).resolve().parents[2] / "src" / "forebay"
HOUR_S = 3600.0


@pytest.fixture
def jumping(monkeypatch: pytest.MonkeyPatch) -> None:
    """`time.time` is an hour off, the other way with every call."""
    real, signs = time.time, itertools.cycle((1, -1))
    monkeypatch.setattr(time, "time", lambda: real() + HOUR_S * next(signs))
    monkeypatch.setattr(time, "time_ns", lambda: int(time.time() * 1e9))


async def test_sessions_leases_and_waits_go_on_around_redis(jumping: None) -> None:
    with closing(PrivateRedis(program("valkey"))) as server:
        site = Site(server)
        try:
            broker = await site.gateway("g1")
            hand = await site.worker("w1")
            await broker.submit(speech_spec("a"), [Text(text="abcdef", unit=0)], gateway="g1")
            await until(lambda: "a" in hand.leases)
            for piece in ("ab", "cd", "ef"):
                await asyncio.sleep(0.5)
                hand.speak("a", piece)
            await until(lambda: len(site.output("g1", "a")) == 3)
            view = await broker.status("a")
            assert (view.state, view.attempts, hand.lost) == ("running", 1, [])
            assert all(not worker.silent for worker in broker.workers())
        finally:
            await site.close()


async def test_sessions_leases_and_waits_go_on_in_one_process(jumping: None) -> None:
    home = Home()
    home.broker = LocalBroker(Settings())
    home.broker.open("g1", home.pushes.append)
    hand: Hand = await home.worker("w1", sessions=1)
    await home.broker.submit(speech_spec("a"), [Text(text="ab", unit=0)], gateway="g1")
    await home.broker.submit(speech_spec("b"), [Text(text="ab", unit=0)], gateway="g1")
    for _ in range(6):
        await asyncio.sleep(0.25)
        hand.port.beat("w1", {})
    hand.speak("a", "ab")
    a, b = await home.broker.status("a"), await home.broker.status("b")
    assert (a.state, a.attempts, b.state, hand.lost) == ("running", 1, "queued", [])
    assert 0 <= time.monotonic() - a.created_s < HOUR_S
    await home.broker.close()


STAMPS = {
    "broker/journal.py": "the time that passed while no process ran",
    "broker/local_rooms.py": "how old a caption is, over restarts",
}
"""Where the wall clock is read beneath the gateways, and for what."""

LEASES = ("core", "broker", "worker")
ALONE = ("supervisor.py", "spawner.py", "rolling.py", "node.py", "process.py")


def test_nothing_that_decides_a_lease_or_a_deadline_reads_the_wall_clock() -> None:
    asks = re.compile(r"\btime\.(time|time_ns|localtime|gmtime|strftime)\b|datetime\.now\(")
    files = [file for folder in LEASES for file in (SOURCE / folder).rglob("*.py")]
    files += [SOURCE / name for name in ALONE if (SOURCE / name).exists()]
    found = {
        file.relative_to(SOURCE).as_posix()
        for file in files
        if asks.search(file.read_text(encoding="utf-8"))
    }
    assert found == set(STAMPS), "say here what the wall clock is read for"
