"""Claim: thousands of clients that come back at once are back, or told when, within seconds.

``--clients`` sessions are open when their gateway process is killed. Its supervisor starts
another; all of them connect again at once, under their session ids, as our clients do, and
those who are refused count as answered when they were given a time (503, Retry-After).
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter

from benchmarks.asr_overload import engine, url
from benchmarks.harness import options, report, run, serving
from forebay.lab.line import Line, TurnedAway, text_frame
from forebay.lab.stats import summary

GIVE_UP_S = 60.0


class Client:
    """One session, which is begun, lost, and begun again."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._name = secrets.token_hex(16)
        self._line: Line | None = None
        self._answer: asyncio.Future[bytes] | None = None

    def _hear(self, data: bytes) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(data)

    def _gone(self) -> None:
        self._hear(b"")

    async def start(self) -> str:
        """One attempt: in, refused (with a time), or what went wrong."""
        self.close()
        self._answer = asyncio.get_running_loop().create_future()
        headers = {"X-Forebay-Session": self._name}
        try:
            async with asyncio.timeout(GIVE_UP_S):
                self._line = await Line.open(self._address, self._hear, self._gone, headers)
                start = b'{"action":"start","session_id":"%s"}' % self._name.encode()
                self._line.send(text_frame(start))
                answer = await self._answer
        except TurnedAway as away:
            told = away.status == 503 and "retry-after" in away.headers
            return "refused" if told else f"status {away.status}"
        except (OSError, TimeoutError) as error:
            return type(error).__name__
        return "in" if b'"ack"' in answer else "error" if answer else "closed"

    def close(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None


async def main() -> int:
    wanted = options(__doc__ or "", clients=2000)
    with serving(*engine(1)) as server:
        clients = [Client(url(server)) for _ in range(wanted.clients)]
        first = Counter([await client.start() for client in clients])
        gateway = server.gateway()
        gateway.kill()
        await asyncio.sleep(0.1)
        await asyncio.to_thread(server.wait_ready, 60)
        begin = time.monotonic()
        took: list[float] = []

        async def again(client: Client) -> str:
            found = await client.start()
            took.append(time.monotonic() - begin)
            return found

        ended = Counter(await asyncio.gather(*(again(client) for client in clients)))
        for client in clients:
            client.close()
    rest = {name: count for name, count in ended.items() if name not in ("in", "refused")}
    answered, last = summary(took), max(took)
    return report(
        "recognition, a storm",
        [
            ("open before", str(dict(first)), "", None),
            ("in / refused with Retry-After", f"{ended['in']} / {ended['refused']}", "", None),
            ("neither", str(rest or 0), "0", not rest),
            ("answered, p50 / p99", f"{answered['p50_ms']} / {answered['p99_ms']} ms", "", None),
            ("all answered after", f"{last:.1f} s", "<= 10 s", last <= 10),
        ],
        wanted.output_json,
        answered=answered,
    )


if __name__ == "__main__":
    run(main)
