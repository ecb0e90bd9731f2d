"""A bare streaming pass-through on aiohttp: the least a Python proxy can do.

No queue, no worker, no parsing: what arrives is written on. Run:
``python -m benchmarks.peers.passthrough --upstream http://127.0.0.1:8082``; the first line
it prints is its address.
"""

from __future__ import annotations

import argparse
import asyncio

import aiohttp
from aiohttp import web

__all__ = ["main"]


async def serve(upstream: str, port: int) -> None:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def chat(request: web.Request) -> web.StreamResponse:
            body = await request.read()
            url = upstream + request.path
            async with session.post(url, data=body, headers={"Content-Type": "application/json"}) as answer:  # fmt: skip
                response = web.StreamResponse(
                    status=answer.status, headers={"Content-Type": answer.content_type}
                )
                await response.prepare(request)
                async for data in answer.content.iter_any():
                    await response.write(data)
                await response.write_eof()
                return response

        app = web.Application()
        app.router.add_post("/v1/chat/completions", chat)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)  # noqa: T201 - read by the caller
        await asyncio.Event().wait()


def main() -> None:
    import uvloop

    parser = argparse.ArgumentParser(description="a bare pass-through")
    parser.add_argument("--upstream", required=True)
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    uvloop.run(serve(options.upstream, options.port))


if __name__ == "__main__":
    main()
