"""A broker that other gateways share: opened with patience, because it may start beside us."""

from __future__ import annotations

import asyncio

import structlog

from forebay.broker.local_base import Settings
from forebay.broker.redis import RedisBroker, open_gateway_broker
from forebay.broker.redis_trash import DropBlobs
from forebay.errors import CannotBoot, StoreDown

__all__ = ["open_shared"]

PATIENCE_S = 20.0
"""How long a store may take to answer first: it replays its file before it does."""
AGAIN_S = 0.1

log = structlog.get_logger(__name__)


async def open_shared(
    url: str, settings: Settings, drop_blobs: DropBlobs | None = None
) -> RedisBroker:
    """The broker at ``url``. Raises `CannotBoot` when it cannot keep our promises, or does
    not answer within `PATIENCE_S`."""
    loop = asyncio.get_running_loop()
    until = loop.time() + PATIENCE_S
    while True:
        try:
            return await open_gateway_broker(url, settings, drop_blobs=drop_blobs)
        except StoreDown as error:
            if loop.time() >= until:
                raise CannotBoot(error.message, stage="broker") from error
            log.debug("broker.awaited", reason=error.message)
        await asyncio.sleep(AGAIN_S)
