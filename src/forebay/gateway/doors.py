"""The connection gate of WebSocket paths: who is let in before a word was said.

A refused handshake is fatal to most clients' libraries, a refused `start` is not; so a path
that leads to one kind of job promises each handshake it accepts a place in the queue, for as
long as a client may take to say `start` (`core.admission.Gate`). Clients that come back to a
session pass: by name where they give one, otherwise as many as sessions are waiting for
theirs.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qs

from forebay.core.admission import RESERVE_S, Connections, Gate, Load, busy_rate
from forebay.core.kinds import Cut, Kind
from forebay.core.spec import PoolView, QueuePlace
from forebay.gateway.access import header
from forebay.gateway.context import GatewayContext
from forebay.gateway.responses import Receive, Scope

__all__ = ["Doors"]

LIVE = frozenset({"queued", "running"})
MARGIN = 0.8


class Doors:
    """The gates of one gateway, one per kind of job. ``jitter``: 0..1, for Retry-After."""

    def __init__(self, ctx: GatewayContext, *, jitter: Callable[[], float] = random.random) -> None:
        self._ctx = ctx
        self._jitter = jitter
        limits = {
            Kind.RECOGNITION: Connections(
                total=ctx.recognition.max_connections, min_workers=ctx.recognition.min_workers
            )
        }
        self._gates: Mapping[Kind, Gate] = {kind: Gate(limits.get(kind)) for kind in Kind}
        self._open: Counter[Kind] = Counter()

    async def enter(self, scope: Scope, kind: Kind, dialect: str) -> None:
        """Let this handshake in and keep it a place, or raise why not (`Refused`).

        Next: `watch` its messages, and `leave` when the connection ends. Until
        ``scope["forebay.promised_until"]`` its first job is not refused for the queue's sake."""
        named = await self._named(scope, dialect)
        gate, connection, now = self._gates[kind], scope["forebay.request_id"], self._ctx.clock()
        refusal = gate.decide(connection, self._load(kind, named), now, jitter=self._jitter())
        if refusal is not None:
            raise refusal
        self._open[kind] += 1
        if gate.promised(connection, now):
            scope["forebay.promised_until"] = now + RESERVE_S

    def watch(self, scope: Scope, kind: Kind, receive: Receive) -> Receive:
        """``receive``, which gives the place up once the job itself is counted: at the
        client's first message where that is the whole input, else at its second, because a
        job waits in no queue before it has input."""
        left = 1 if self._ctx.rows[kind].cut is Cut.WHOLE else 2

        async def watched() -> Any:
            nonlocal left
            message = await receive()
            if left and message["type"] == "websocket.receive":
                left -= 1
                if not left:
                    self._begun(scope, kind)
            return message

        return watched

    def leave(self, scope: Scope, kind: Kind) -> None:
        """The connection has ended. Once for each that was let in."""
        self._open[kind] -= 1
        self._begun(scope, kind)

    def _begun(self, scope: Scope, kind: Kind) -> None:
        """Its place, if it still holds one, is free. Idempotent."""
        self._gates[kind].begun(scope["forebay.request_id"])

    async def _named(self, scope: Scope, dialect: str) -> bool:
        """Whether the handshake names a live session of its tenant."""
        query = parse_qs(scope.get("query_string", b"").decode("latin-1"), max_num_fields=100)
        session = header(scope, b"x-forebay-session") or query.get("session_id", [""])[0]
        if not session or len(session) > 256 or not self._ctx.store_up():
            return False
        found = await self._ctx.broker.find(scope["forebay.tenant"], dialect, session)
        return found is not None and found.state in LIVE

    def _load(self, kind: Kind, named: bool) -> Load:
        pools = [pool for pool in self._ctx.broker.pools() if pool.kind == kind]
        first = pools[0] if pools else PoolView(name=f"{kind}/", kind=kind)
        place = QueuePlace(position=1)
        if pools:
            place = self._ctx.broker.place_for(first.name, "", 1.0)
        return Load(
            store_down=not self._ctx.store_up(),
            workers=sum(pool.ready for pool in pools),
            open_total=self._open[kind],
            queued=first.queued,
            queue_limit=min(self._ctx.queue_limit, self._fits(place, kind)),
            named=named,
            detached=sum(pool.detached for pool in pools),
            drain_rate=busy_rate(first.drain_rate, place),
        )

    def _fits(self, place: QueuePlace, kind: Kind) -> int:
        """How many may wait so that the last of them still begins before its queue deadline,
        with `MARGIN` for what turns out slower than predicted. Should the first place only come
        free late, `GRACE` on the deadline makes up for it."""
        if not place.each_s or not place.eta_s:  # not known, or nobody waits
            return self._ctx.queue_limit
        return int(MARGIN * self._ctx.rows[kind].queue_s / place.each_s)
