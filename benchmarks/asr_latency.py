"""Claim: the way of a chunk through the gateway, a worker and back costs about a millisecond.

``--sessions`` clients send a chunk of 100 ms every 100 ms, evenly spaced over these 100 ms, to
recognisers of RTF 0; measured is chunk in to result out while all of them speak. They begin over
two seconds, and end together: a session's first chunk waits for a lease and a worker that opens
the session, and 200 of them within 100 ms weigh more in the slowest hundredth the shorter the run
is (a storm of clients is `asr_storm`). Their time is told beside. The floor is what the same clients see, in the
same order, in the same run of a bare WebSocket server that answers each chunk from memory
(`peers/echo.py`): network and load tool, none of the product. Beside it the acknowledgement,
which never leaves the gateway.
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

from benchmarks.asr_overload import engine, url
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


async def everybody(address: str, sessions: int, seconds: float) -> Times:
    times = Times()
    talkers = [Talker(address, seconds, times, n % ROUNDS) for n in range(sessions)]
    for talker in talkers:
        await talker.open()
        await asyncio.sleep(OPEN_S)
    first = asyncio.get_running_loop().time() + SETTLE_S
    spaced = enumerate(talkers)
    await asyncio.gather(*(one.talk(first + n * CHUNK_S / sessions) for n, one in spaced))
    for talker in talkers:
        talker.close()
    return times


@contextlib.asynccontextmanager
async def echoing() -> AsyncIterator[str]:
    """The address of a bare server that answers from memory."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.peers.echo", "--port", str(port)
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
    wanted = options(__doc__ or "", sessions=200, seconds=20.0, workers=1)
    async with echoing() as address:
        bare = await everybody(address, wanted.sessions, wanted.seconds)
    with serving(*engine(wanted.workers, rtf=0)) as server:
        times = await everybody(url(server), wanted.sessions, wanted.seconds)
    floor, acks, results = summary(bare.results), summary(times.acks), summary(times.results)
    firsts = summary(times.firsts)
    p50 = results["p50_ms"] - floor["p50_ms"]
    p99 = results["p99_ms"] - floor["p99_ms"]
    chunks = wanted.sessions * int(wanted.seconds * 10)
    rows: list[tuple[str, str, str, bool | None]] = [
        ("results", f"{results['count']}", str(chunks), results["count"] == chunks),
        ("bare server, p50 / p99", f"{floor['p50_ms']} / {floor['p99_ms']} ms", "", None),
        ("chunk to ack, p50 / p99", f"{acks['p50_ms']} / {acks['p99_ms']} ms", "", None),
        ("first chunk, p50 / p99", f"{firsts['p50_ms']} / {firsts['p99_ms']} ms", "", None),
        ("chunk to result, p50 / p99", f"{results['p50_ms']} / {results['p99_ms']} ms", "", None),
        ("result over the floor, p50", f"{p50:.2f} ms", "<= 1 ms", p50 <= 1),
        ("result over the floor, p99", f"{p99:.2f} ms", "<= 5 ms", p99 <= 5),
    ]
    return report(
        "recognition, latency",
        rows,
        wanted.output_json,
        floor=floor,
        acks=acks,
        firsts=firsts,
        results=results,
    )


if __name__ == "__main__":
    run(main)
