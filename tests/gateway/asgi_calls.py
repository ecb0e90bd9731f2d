"""Call an ASGI application as a server would, without one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import msgspec

from forebay.broker.tickets import TicketShelf
from forebay.core.kinds import Kind
from forebay.core.spec import LoadStage, PoolView, QueuePlace
from forebay.gateway.app import GatewayApp
from forebay.gateway.auth import Auth
from forebay.gateway.context import GatewayContext
from forebay.gateway.endpoints import routes
from forebay.gateway.metrics import GatewayMetrics
from forebay.gateway.options import GatewayOptions
from forebay.gateway.personality import MAIN, Personality, Port
from forebay.gateway.routes import Route

LOADING = PoolView(
    name="speech/tone",
    kind=Kind.SPEECH,
    workers=1,
    engine="synthetic",
    model="tone",
    synthetic=True,
    stages={"w1": LoadStage(stage="weights", done=1, total=3)},
)
READY = msgspec.structs.replace(
    LOADING, ready=1, slots=2, free_credits=200, stages={}, facts={"sample_rate": 22050}
)

LISTENING = PoolView(
    name="recognition/words",
    kind=Kind.RECOGNITION,
    workers=1,
    ready=1,
    slots=1,
    free_credits=9,
    engine="synthetic",
    model="words",
    synthetic=True,
)


@dataclass
class Pools:
    """As much of a broker as health, metrics and tickets look at."""

    views: list[PoolView] = field(default_factory=lambda: [READY, LISTENING])
    shelf: TicketShelf = field(default_factory=TicketShelf)
    now: float = 0.0

    async def keep_ticket(self, ticket: str, holder: str, *, life_s: float, limit: int) -> None:
        until = self.now + life_s
        self.shelf.keep(ticket, holder, until_s=until, limit=limit, now=self.now)

    async def take_ticket(self, ticket: str) -> str | None:
        return self.shelf.take(ticket, self.now)

    def pools(self, kind: str = "") -> list[PoolView]:
        return [view for view in self.views if not kind or view.kind == kind]

    def place_for(self, pool: str, tenant: str, cost_s: float) -> QueuePlace:
        return QueuePlace(position=1)


@dataclass
class Answer:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    close: int | None = None

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)


def context(options: GatewayOptions | None = None, pools: Any = None, **facts: Any) -> Any:
    options = options or GatewayOptions()
    return GatewayContext(
        broker=cast(Any, pools or Pools()),
        hub=cast(Any, None),
        gateway_id="g1",
        metrics=GatewayMetrics(),
        options=options,
        auth=Auth(options),
        version="1.2.3",
        **facts,
    )


def application(ctx: GatewayContext, table: list[Route] | None = None) -> GatewayApp:
    return GatewayApp(ctx, routes() if table is None else table)


async def call(
    app: GatewayApp,
    path: str,
    *,
    method: str = "GET",
    headers: dict[str, str] | None = None,
    body: bytes = b"",
    personality: Personality = MAIN,
    loopback: bool = True,
    denial: bool = True,
) -> Answer:
    """One request; ``method`` WEBSOCKET asks for a WebSocket."""
    websocket = method == "WEBSOCKET"
    bare, _, query = path.partition("?")
    named = {"host": "localhost", **(headers or {})}
    scope: dict[str, Any] = {
        "type": "websocket" if websocket else "http",
        "path": bare,
        "query_string": query.encode(),
        "headers": [(k.lower().encode(), v.encode("latin-1")) for k, v in named.items()],
        "server": ("127.0.0.1", 8600),
        "forebay.port": Port(personality, loopback),
        "extensions": {"websocket.http.response": {}} if denial else {},
    }
    if not websocket:
        scope["method"] = method
    messages = [
        {"type": "websocket.connect"}
        if websocket
        else {"type": "http.request", "body": body, "more_body": False}
    ]
    answer = Answer()

    async def receive() -> Any:
        if messages:
            return messages.pop(0)
        return {"type": "websocket.disconnect" if websocket else "http.disconnect", "code": 1005}

    async def send(message: Any) -> None:
        kind = message["type"]
        if kind.endswith("response.start"):
            answer.status = message["status"]
            answer.headers = {k.decode(): v.decode() for k, v in message["headers"]}
        elif kind.endswith("response.body"):
            answer.body += message.get("body", b"")
        elif kind == "websocket.accept":
            answer.status = 101
        elif kind == "websocket.close":
            answer.close = message.get("code", 1000)

    await app(scope, receive, send)
    return answer
