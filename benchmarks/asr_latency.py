"""Claim: the way of a chunk through the gateway, a worker and back costs about a millisecond.

``--sessions`` clients send a chunk of 100 ms every 100 ms to recognisers of RTF 0; measured is
chunk in to result out, over what the same clients see of an echo in the same gateway: the
acknowledgement, which never leaves it.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import dataclass, field

import aiohttp
import msgspec

from benchmarks.asr_overload import engine, url
from benchmarks.harness import options, report, run, serving
from forebay.lab.asr import make_clip
from forebay.lab.stats import summary


@dataclass(slots=True)
class Times:
    acks: list[float] = field(default_factory=list)
    results: list[float] = field(default_factory=list)


async def talk(
    http: aiohttp.ClientSession, address: str, seconds: float, phase_s: float, times: Times
) -> None:
    clip = make_clip(seconds, 100, 0)
    session = secrets.token_hex(16)
    sent: dict[int, float] = {}
    await asyncio.sleep(phase_s)
    async with http.ws_connect(address, compress=0) as socket:
        await socket.send_str(f'{{"action":"start","session_id":"{session}"}}')
        await socket.receive()
        begin = time.monotonic()

        async def send() -> None:
            for index, data in enumerate(clip.chunks):
                await asyncio.sleep(begin + index * 0.1 - time.monotonic())
                sent[index] = time.monotonic()
                await socket.send_str(
                    f'{{"action":"chunk","session_id":"{session}","chunk_index":{index},'
                    f'"audio_data":"{data}"}}'
                )

        sending = asyncio.ensure_future(send())
        last = len(clip.chunks) - 1
        async for message in socket:
            now, found = time.monotonic(), msgspec.json.decode(message.data)
            index = found["chunk_index"]
            if found["type"] == "ack":
                times.acks.append(now - sent[index])
            elif found["type"] == "chunk_result":
                times.results.append(now - sent[index])
                if index == last:
                    break
        await sending


async def main() -> int:
    wanted = options(__doc__ or "", sessions=200, seconds=20.0, workers=1)
    times = Times()
    with serving(*engine(wanted.workers, rtf=0)) as server:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
            await asyncio.gather(
                *(
                    talk(http, url(server), wanted.seconds, n * 0.1 / wanted.sessions, times)
                    for n in range(wanted.sessions)
                )
            )
    acks, results = summary(times.acks), summary(times.results)
    p50 = results["p50_ms"] - acks["p50_ms"]
    p99 = results["p99_ms"] - acks["p99_ms"]
    chunks = wanted.sessions * int(wanted.seconds * 10)
    rows: list[tuple[str, str, str, bool | None]] = [
        ("results", f"{results['count']}", str(chunks), results["count"] == chunks),
        ("chunk to ack, p50 / p99", f"{acks['p50_ms']} / {acks['p99_ms']} ms", "", None),
        ("chunk to result, p50 / p99", f"{results['p50_ms']} / {results['p99_ms']} ms", "", None),
        ("result over the floor, p50", f"{p50:.2f} ms", "<= 1 ms", p50 <= 1),
        ("result over the floor, p99", f"{p99:.2f} ms", "<= 5 ms", p99 <= 5),
    ]
    return report("recognition, latency", rows, wanted.output_json, acks=acks, results=results)


if __name__ == "__main__":
    run(main)
