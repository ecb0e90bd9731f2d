"""A room on python-socketio and aiohttp. POST /pub sends to everybody. Run by the Python of an
environment that has them (`captions_fanout --peers DIR` makes one)."""

import sys

import socketio  # type: ignore[import-not-found]
from aiohttp import web

sio = socketio.AsyncServer(async_mode="aiohttp", transports=["websocket"])
app = web.Application()
sio.attach(app)


async def pub(request: web.Request) -> web.Response:
    await sio.emit("caption", await request.json())
    return web.json_response({})


app.router.add_post("/pub", pub)
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)
