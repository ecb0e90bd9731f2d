"""Claim: the way of a chunk through the gateway, a worker and back costs about a millisecond.

``--sessions`` clients send a chunk of 100 ms every 100 ms, evenly spaced over these 100 ms, to
recognisers of RTF 0; measured is chunk in to result out while all of them speak. They begin over
two seconds, and end together: a session's first chunk waits for a lease and a worker that opens
the session, and 200 of them within 100 ms weigh more in the slowest hundredth the shorter the run
is (a storm of clients is `asr_storm`). Their time is told beside.

The floor is what the same clients see, in the same order and the same run, of a bare WebSocket
server that hands each chunk to another process, which answers from memory (`peers/echo.py
--engine`): network, load tool and an engine's process, none of the product. Told beside: the same
server without the engine, the acknowledgement, which never leaves the gateway, and what
``--beside`` more clients see of the floor's server *while* Forebay is measured. A machine that
other machines take time from stops anybody for milliseconds; how much of the slowest hundredth
that is, only the same moment can tell.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import msgspec

from benchmarks.asr_overload import Row, engine, url
from benchmarks.harness import free_port, options, report, run, serving
from forebay.lab.asr import make_clip
from forebay.lab.line import Line, text_frame
from forebay.lab.stats import summary

CHUNK_S = 0.1
OPEN_S = 0.005
"""Between two clients that open their lines."""
SETTLE_S = 1.0
"""From the last line's opening to the first chunk."""
ROUNDS = 20
"""In so many chunks' time one client after the other begins to speak."""
WARM = ROUNDS + 5
"""From this chunk of the first client on all are measured."""


@dataclass(slots=True)
class Times:
    acks: list[float] = field(default_factory=list)
    results: list[float] = field(default_factory=list)
    firsts: list[float] = field(default_factory=list)


class Talker:
    """Sends a chunk at each tick; a timer and a write, no task. ``late``: so many chunks after
    the first client it begins."""

    def __init__(self, address: str, seconds: float, times: Times, late: int) -> None:
        self._address = address
        self._late = late
        self._warm = WARM - late
        self._clip = make_clip(self._warm * CHUNK_S + seconds, 100, 0)
        self._times = times
        self._session = secrets.token_hex(16)
        self._sent: dict[int, float] = {}
        self._loop = asyncio.get_running_loop()
        self._done: asyncio.Future[None] = self._loop.create_future()
        self._line: Line | None = None

    async def open(self) -> None:
        self._line = await Line.open(self._address, self._hear, self._gone)
        start = b'{"action":"start","session_id":"%s"}' % self._session.encode()
        self._line.send(text_frame(start))

    async def talk(self, at: float) -> None:
        first = at + self._late * CHUNK_S
        self._loop.call_at(first, self._say, 0, first)
        await self._done

    def close(self) -> None:
        if self._line is not None:
            self._line.close()

    def _say(self, index: int, due: float) -> None:
        assert self._line is not None  # noqa: S101 - set by open
        head = (
            f'{{"action":"chunk","session_id":"{self._session}","chunk_index":{index},'
            f'"audio_data":"'
        )
        frame = text_frame(head.encode(), self._clip.chunks[index], b'"}')
        self._sent[index] = time.monotonic()
        self._line.send(frame)
        if index + 1 < len(self._clip.chunks):
            self._loop.call_at(due + CHUNK_S, self._say, index + 1, due + CHUNK_S)

    def _hear(self, data: bytes) -> None:
        now, found = time.monotonic(), msgspec.json.decode(data)
        index = found["chunk_index"]
        if found["type"] == "ack" and index in self._sent:
            if index >= self._warm:
                self._times.acks.append(now - self._sent[index])
        elif found["type"] == "chunk_result":
            if index >= self._warm:
                self._times.results.append(now - self._sent[index])
            elif index == 0:
                self._times.firsts.append(now - self._sent[index])
            if index == len(self._clip.chunks) - 1 and not self._done.done():
                self._done.set_result(None)

    def _gone(self) -> None:
        if not self._done.done():
            self._done.set_exception(ConnectionResetError("the line was lost"))


async def everybody(seconds: float, *crowds: tuple[str, int]) -> list[Times]:
    """What each of ``crowds`` (address, clients) saw; all of them speak at the same time."""
    found = [Times() for _ in crowds]
    talkers: list[tuple[Talker, float]] = []
    for times, (address, clients) in zip(found, crowds, strict=True):
        for n in range(clients):
            talker = Talker(address, seconds, times, n % ROUNDS)
            talkers.append((talker, n * CHUNK_S / clients))
            await talker.open()
            await asyncio.sleep(OPEN_S)
    first = asyncio.get_running_loop().time() + SETTLE_S
    await asyncio.gather(*(talker.talk(first + after_s) for talker, after_s in talkers))
    for talker, _ in talkers:
        talker.close()
    return found


@contextlib.asynccontextmanager
async def echoing(*options: str) -> AsyncIterator[str]:
    """The address of a bare server that answers from memory."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.peers.echo", "--port", str(port), *options
    )
    try:
        for _ in range(100):
            await asyncio.sleep(0.1)
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                break
        yield f"ws://127.0.0.1:{port}/"
    finally:
        process.kill()
        await process.wait()


async def main() -> int:
    wanted = options(__doc__ or "", sessions=200, seconds=20.0, workers=1, beside=10)
    sessions, seconds = wanted.sessions, wanted.seconds
    async with echoing() as address:
        (bare,) = await everybody(seconds, (address, sessions))
    async with echoing("--engine") as address:
        (floor,) = await everybody(seconds, (address, sessions))
        with serving(*engine(wanted.workers, rtf=0)) as server:
            times, meanwhile = await everybody(
                seconds, (url(server), sessions), (address, wanted.beside)
            )
    seen = {
        "bare": summary(bare.results),
        "floor": summary(floor.results),
        "meanwhile": summary(meanwhile.results),
        "acks": summary(times.acks),
        "firsts": summary(times.firsts),
        "results": summary(times.results),
    }
    rows = judged(seen, sessions * int(seconds * 10))
    return report("recognition, latency", rows, wanted.output_json, **seen)


def judged(seen: dict[str, dict[str, float]], chunks: int) -> list[Row]:
    def row(what: str, name: str) -> Row:
        return (what, f"{seen[name]['p50_ms']} / {seen[name]['p99_ms']} ms", "", None)

    def over(floor: str, share: str) -> float:
        return seen["results"][f"{share}_ms"] - seen[floor][f"{share}_ms"]

    count, p50, p99 = seen["results"]["count"], over("floor", "p50"), over("floor", "p99")
    return [
        ("results", f"{count}", str(chunks), count == chunks),
        row("bare server, p50 / p99", "bare"),
        row("with an engine's process: the floor", "floor"),
        row("the floor meanwhile", "meanwhile"),
        row("chunk to ack", "acks"),
        row("first chunk to result", "firsts"),
        row("chunk to result", "results"),
        ("over the bare server, p50 / p99", f"{over('bare', 'p50'):.2f} / "
         f"{over('bare', 'p99'):.2f} ms", "", None),
        ("over the floor meanwhile, p99", f"{over('meanwhile', 'p99'):.2f} ms", "", None),
        ("over the floor, p50", f"{p50:.2f} ms", "<= 1 ms", p50 <= 1),
        ("over the floor, p99", f"{p99:.2f} ms", "<= 5 ms", p99 <= 5),
    ]  # fmt: skip


if __name__ == "__main__":
    run(main)
