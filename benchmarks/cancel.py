"""Claim: stop is answered at once, nothing is heard after it, and the slot is free again.

Counted from the client: cancel sent to `tts_end`, audio frames after it. The server's own
histogram `forebay_cancel_to_slot_free_seconds` says when the slot was free.
"""

from __future__ import annotations

import asyncio
import random
import re
import secrets
import time
import urllib.request

import aiohttp
import msgspec

from benchmarks.harness import Server, options, report, run, serving
from forebay.client.s1 import SpeechState
from forebay.lab.stats import summary

TEXT = "A long sentence that keeps the voice busy while somebody decides to stop it. " * 4


async def once(http: aiohttp.ClientSession, url: str) -> tuple[float, int]:
    """Seconds from cancel to tts_end, and audio frames that came after tts_end."""
    state = SpeechState(secrets.token_hex(16))
    async with http.ws_connect(url, compress=0) as socket:

        async def say(message: dict[str, object]) -> None:
            await socket.send_str(msgspec.json.encode(message).decode())

        await say(state.start())
        await socket.receive()
        await say(state.delta(TEXT))
        await asyncio.sleep(random.uniform(0.05, 0.6))
        at = time.monotonic()
        await say(state.cancel())
        late = 0
        while True:
            message = await socket.receive()
            if message.type is not aiohttp.WSMsgType.TEXT:
                raise RuntimeError(f"closed with {socket.close_code} before tts_end")
            found = msgspec.json.decode(message.data)
            if found["type"] == "tts_end":
                if not found["cancelled"]:
                    raise RuntimeError("tts_end did not say cancelled")
                break
        took = time.monotonic() - at
        async for message in socket:
            late += message.type is aiohttp.WSMsgType.TEXT
        return took, late


def slot_free_ms(server: Server, q: float) -> float:
    """The ``q`` quantile's bucket bound of the server's own histogram, in milliseconds."""
    with urllib.request.urlopen(server.http + "/metrics", timeout=5) as answer:
        text = answer.read().decode()
    pattern = (
        r'forebay_cancel_to_slot_free_seconds_bucket\{kind="speech",le="([^"]+)"\} ([0-9.e+]+)'
    )
    buckets = [(float(bound), float(count)) for bound, count in re.findall(pattern, text)]
    total = buckets[-1][1]
    return next(b for b, n in buckets if n >= q * total) * 1000


async def main() -> int:
    wanted = options(__doc__ or "", cancels=400, at_once=2, engine="voices")
    with serving(
        "--engine", f"speech={wanted.engine}", "--engine", "text=synthetic", ready_s=180
    ) as server:
        await asyncio.to_thread(server.wait_spares)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
            done: list[tuple[float, int]] = []
            while len(done) < wanted.cancels:
                done += await asyncio.gather(
                    *(once(http, server.tts) for _ in range(wanted.at_once))
                )
        free_p99 = slot_free_ms(server, 0.99)
    found = summary([t for t, _ in done])
    late = sum(n for _, n in done)
    rows: list[tuple[str, str, str, bool | None]] = [
        ("cancels", str(len(done)), "", None),
        ("cancel to tts_end p50", f"{found['p50_ms']} ms", "", None),
        ("cancel to tts_end p99", f"{found['p99_ms']} ms", "<= 50 ms", found["p99_ms"] <= 50),
        ("frames after tts_end", str(late), "0", late == 0),
        ("slot free p99 (bucket bound)", f"<= {free_p99:g} ms", "<= 250 ms", free_p99 <= 250),
    ]
    return report(f"cancel ({wanted.engine})", rows, wanted.output_json, times=found)


if __name__ == "__main__":
    run(main)
