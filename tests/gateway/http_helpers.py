"""A whole gateway in this process: LocalBroker, hub, real server, and a worker that plays."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from forebay.broker import Assign, CancelJob, LeaseLost, WorkerPush
from forebay.broker.local import LocalBroker, Settings
from forebay.core.events import Consumed, Ended, OutputEvent, TextDelta, Usage
from forebay.core.spec import Lease, WorkerInfo
from forebay.core.stream import Stamper
from forebay.errors import ForebayError
from forebay.gateway.app import GatewayApp
from forebay.gateway.auth import Auth
from forebay.gateway.context import GatewayContext
from forebay.gateway.dropping import Dropper
from forebay.gateway.endpoints import routes
from forebay.gateway.hub import Hub
from forebay.gateway.metrics import GatewayMetrics
from forebay.gateway.options import GatewayOptions
from forebay.gateway.personality import MAIN
from forebay.gateway.server import GatewayServer

Script = Callable[[Lease], AsyncIterator[OutputEvent]]

__all__ = ["Player", "Stand", "stand", "words"]


async def words(lease: Lease) -> AsyncIterator[OutputEvent]:
    """Three words and a usage."""
    for word in ("one ", "two ", "three"):
        yield TextDelta(text=word)
    yield Usage(prompt_tokens=4, completion_tokens=3)


class Player:
    """A worker that answers each lease with ``script``; `ForebayError` ends it as failed.

    ``leases``: what it was given. ``cancelled``: jobs it was told to stop."""

    def __init__(self, broker: LocalBroker, pool: str, slots: int = 4) -> None:
        self.script: Script = words
        self.leases: list[Lease] = []
        self.cancelled: list[str] = []
        self.stopped = asyncio.Event()
        self._broker = broker
        self._id = f"player-{pool}"
        self._tasks: dict[str, asyncio.Task[None]] = {}
        broker.worker_connect(self._id, self._sink)
        broker.worker_register(
            WorkerInfo(id=self._id, pools=[pool], slots=slots, sessions=slots, engine="player",
                       model=pool.partition("/")[2], facts={"context": 4096})
        )  # fmt: skip
        self._heart = asyncio.get_running_loop().create_task(self._beat())

    async def _beat(self) -> None:
        while True:
            self._broker.worker_beat(self._id, {})
            await asyncio.sleep(0.2)

    def _sink(self, push: WorkerPush) -> None:
        if isinstance(push, Assign):
            self.leases.append(push.lease)
            job = push.lease.spec.id
            self._tasks[job] = asyncio.get_running_loop().create_task(self._play(push.lease))
        elif isinstance(push, CancelJob | LeaseLost):
            self.cancelled.append(push.job)
            self._tasks.pop(push.job).cancel()
            self._broker.worker_park(self._id, push.job, push.attempt)
            self.stopped.set()

    async def _play(self, lease: Lease) -> None:
        stamper = Stamper(lease.last_offset, lease.counts, lease.marks)
        ended = Ended(state="completed")
        try:
            async for event in self.script(lease):
                self._commit(lease, stamper.stamp(event))
        except ForebayError as exc:
            ended = Ended(
                state="failed",
                code=exc.code,
                message=exc.message,
                retryable=exc.retryable,
                details=exc.details,
            )
        self._commit(lease, stamper.stamp(ended))

    def _commit(self, lease: Lease, event: OutputEvent) -> None:
        consumed = Consumed(offset=len(lease.input))
        self._broker.worker_commit(self._id, lease.spec.id, lease.attempt, [event], consumed)

    async def close(self) -> None:
        tasks = [self._heart, *self._tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@dataclass
class Stand:
    url: str
    ctx: GatewayContext
    broker: LocalBroker
    text: Player
    speech: Player


@asynccontextmanager
async def stand(*, stock: bool = False, **context: Any) -> AsyncIterator[Stand]:
    """``stock``: on uvicorn's own protocol classes instead of ours."""
    blobs = context.get("blobs")
    dropper = None if blobs is None else Dropper(blobs)  # as the gateway's own start has it
    broker = LocalBroker(Settings(), drop_blobs=dropper.drop if dropper else lambda names: None)
    options = GatewayOptions()
    metrics = GatewayMetrics()
    async with Hub(broker, "g1", asyncio.get_running_loop().time) as hub:
        ctx = GatewayContext(
            broker=broker, hub=hub, gateway_id="g1", metrics=metrics, options=options,
            auth=Auth(options), **context,
        )  # fmt: skip
        text, speech = Player(broker, "text/tiny"), Player(broker, "speech/tone")
        server = GatewayServer(GatewayApp(ctx, routes()), options, metrics, stock=stock)
        listening = socket.create_server(("127.0.0.1", 0))
        try:
            await server.start([(listening, MAIN)])
            url = f"http://127.0.0.1:{server.ports['main']}"
            yield Stand(url, ctx, broker, text, speech)
        finally:
            await server.close()
            await text.close()
            await speech.close()
            await broker.close()
            if dropper is not None:
                await dropper.close()
