"""A model server that is none: each token is the moment at which it was sent.

Nanoseconds of this machine's monotonic clock, one word a chunk, so that whoever reads the
text knows how long each word has travelled. ``python -m benchmarks.peers.stamping``; the
first line it prints is its address.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time

from aiohttp import web

__all__ = ["MODEL", "main"]

MODEL = "stamps"


async def serve(tokens: int, interval_s: float) -> None:
    async def models(request: web.Request) -> web.Response:
        entry = {"id": MODEL, "object": "model", "created": 1, "owned_by": "bench"}
        return web.json_response({"object": "list", "data": [entry]})

    async def health(request: web.Request) -> web.Response:
        return web.Response()

    async def chat(request: web.Request) -> web.StreamResponse:
        await request.read()
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        for number in range(tokens):
            if number and interval_s:
                await asyncio.sleep(interval_s)
            await answer.write(_chunk({"content": f"{time.monotonic_ns()} "}, None))
        await answer.write(_chunk({}, "stop") + b"data: [DONE]\n\n")
        await answer.write_eof()
        return answer

    app = web.Application()
    app.router.add_get("/health", health)
    app.router.add_get("/v1/models", models)
    app.router.add_post("/v1/chat/completions", chat)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)  # noqa: T201 - read by the caller
    await asyncio.Event().wait()


def _chunk(delta: dict[str, str], finish: str | None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


def main() -> None:
    import uvloop

    parser = argparse.ArgumentParser(description="a model server that tells the time")
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--interval-ms", type=float, default=25)
    options = parser.parse_args()
    uvloop.run(serve(options.tokens, options.interval_ms / 1000))


if __name__ == "__main__":
    main()
