"""How a gateway leaves: from SIGTERM to its last connection.

1. Not ready any more, says `/readyz`; it accepts and serves as before for `linger_s`, until
   whoever distributes connections has noticed.
2. The listeners are closed. Where the sockets are shared (the supervisor, other gateways),
   those go on accepting: no connection is refused at any moment.
3. Sessions are told. With a broker that other gateways share, every client with a handle to
   come back is sent away at once with how far it is, and goes on elsewhere; with the local
   broker only who is idle is, and the others may finish.
4. Half a linger later, when connections that were on their way have said what they want, no
   new work is taken.
5. Whoever is left may finish until `drain_s`; then it is cut.

A second signal skips to the end.
"""

from __future__ import annotations

import asyncio
from typing import Any

import structlog

from forebay.gateway.context import GatewayContext
from forebay.gateway.options import GatewayOptions
from forebay.gateway.server import GatewayServer

__all__ = ["drain"]

log = structlog.get_logger(__name__)


async def drain(
    ctx: GatewayContext, server: GatewayServer, options: GatewayOptions, hurry: asyncio.Event
) -> None:
    """Leave, within `GatewayOptions.drain_s`, or at once when ``hurry`` is set."""
    log.info("gateway.draining", limit_s=options.drain_s, **server.gate.counts())
    loop = asyncio.get_running_loop()
    until = loop.time() + options.drain_s
    ctx.draining = ctx.metrics.draining = True
    linger_s = min(options.linger_s, options.drain_s / 2)
    await _first_of(hurry.wait(), asyncio.sleep(linger_s))
    server.stop_accepting()
    _tell(ctx)
    await _first_of(hurry.wait(), asyncio.sleep(linger_s / 2))
    ctx.refusing = True
    await ctx.broker.drain()
    _tell(ctx)  # who came in meanwhile
    if not await server.wait_idle(until - loop.time(), hurry):
        log.warning("gateway.cutting", **server.gate.counts())
    await server.close()


def _tell(ctx: GatewayContext) -> None:
    for tell in tuple(ctx.drain_watchers):
        tell()


async def _first_of(*waits: Any) -> None:
    """Return when the first of ``waits`` does; the others are cancelled."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
