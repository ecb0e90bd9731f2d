"""Claim: open sessions that say nothing cost nothing. No polling anywhere.

1000 sessions are started and left alone for 60 s, pings included; counted: CPU of every
process of the server, as a share of one core, beside the same server with none open.
"""

from __future__ import annotations

import asyncio
import secrets

import aiohttp
import msgspec

from benchmarks.harness import options, report, run, serving
from forebay.client.s1 import SpeechState


async def main() -> int:
    wanted = options(__doc__ or "", sessions=1000, seconds=60.0)
    with serving("--engine", "speech=synthetic:slots=16", "--engine", "text=synthetic") as server:
        await asyncio.to_thread(server.wait_spares)
        before = server.cpu_s()
        await asyncio.sleep(wanted.seconds / 3)
        empty = (server.cpu_s() - before) / (wanted.seconds / 3)
        memory = server.gateway().memory_info().rss
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
            sockets = []
            for _ in range(wanted.sessions):
                socket = await http.ws_connect(server.tts, compress=0, autoping=True)
                start = SpeechState(secrets.token_hex(16)).start()
                await socket.send_str(msgspec.json.encode(start).decode())
                await socket.receive()
                sockets.append(socket)
            readers = [asyncio.ensure_future(s.receive()) for s in sockets]  # answers the pings
            await asyncio.sleep(3)
            grown = server.gateway().memory_info().rss - memory
            before = server.cpu_s()
            await asyncio.sleep(wanted.seconds)
            idle = (server.cpu_s() - before) / wanted.seconds
            alive = sum(not r.done() for r in readers)
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)
    rows: list[tuple[str, str, str, bool | None]] = [
        ("sessions still open", str(alive), str(wanted.sessions), alive == wanted.sessions),
        ("CPU with none open", f"{empty * 100:.2f} % of a core", "", None),
        ("CPU, all processes", f"{idle * 100:.2f} % of a core", "<= 1 %", idle <= 0.01),
        ("memory per session", f"{grown / wanted.sessions / 1024:.1f} KiB", "", None),
    ]
    return report("idle", rows, wanted.output_json, idle_cores=idle, empty_cores=empty)


if __name__ == "__main__":
    run(main)
