"""Every route of the gateway: the one list that the application and its tests read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from forebay.core.intents import Open
from forebay.core.kinds import Kind
from forebay.dialects.asr import ANONYMOUS, AsrDialect
from forebay.dialects.chat import TextChat, VoiceChat
from forebay.dialects.tts import TtsDialect
from forebay.gateway import asr_sessions, asr_tasks, faces
from forebay.gateway.auth import LOCAL, PUBLIC, port_of
from forebay.gateway.capacity import ROUTES as CAPACITY_ROUTES
from forebay.gateway.captions import ROUTES as CAPTION_ROUTES
from forebay.gateway.captions_pages import ROUTES as CAPTION_PAGES
from forebay.gateway.captions_socket import ROUTES as CAPTION_SOCKETS
from forebay.gateway.chat import serve_chat
from forebay.gateway.connection import serve_websocket
from forebay.gateway.console import pools_page, static
from forebay.gateway.context import GatewayContext
from forebay.gateway.http import ROUTES as OPENAI_ROUTES
from forebay.gateway.http import health as model_health
from forebay.gateway.image_edits import ROUTES as IMAGE_EDIT_ROUTES
from forebay.gateway.job_events import ROUTES as JOB_EVENT_ROUTES
from forebay.gateway.keys import valid_tenant
from forebay.gateway.listening import ROUTES as LISTENING_ROUTES
from forebay.gateway.notebook_api import ROUTES as NOTEBOOK_ROUTES
from forebay.gateway.notebook_s0 import ROUTES as NOTEBOOK_S0_ROUTES
from forebay.gateway.notebook_s0_files import ROUTES as NOTEBOOK_FILE_ROUTES
from forebay.gateway.operations import ROUTES as OPERATION_ROUTES
from forebay.gateway.photo_tasks import ROUTES as PHOTO_TASK_ROUTES
from forebay.gateway.photos import PORTS as PHOTO_PORTS
from forebay.gateway.photos import ROUTES as PHOTO_ROUTES
from forebay.gateway.probe import ROUTES as PROBE_ROUTES
from forebay.gateway.responses import Receive, Scope, Send
from forebay.gateway.responses_api import ROUTES as RESPONSE_ROUTES
from forebay.gateway.routes import Handler, Route
from forebay.gateway.sign_in import ROUTES as SIGN_IN_ROUTES

__all__ = ["routes"]

CONSOLES = frozenset({"main", "voice", "voice-alt", "captions"})
ASR_MESSAGE_BYTES = 16 * 1024 * 1024
WORKING_METHODS = frozenset({"POST", "PUT", "PATCH"})


async def _tts(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    dialect = TtsDialect(ctx.rows[Kind.SPEECH].detach_s)
    await serve_websocket(
        scope,
        receive,
        send,
        ctx,
        dialect,
        tenant=scope["forebay.tenant"],
        first_message_s=_first_message_s(scope, ctx),
    )


async def _asr(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    dialect = AsrDialect(new_id=ctx.new_id, notice_threshold=ctx.recognition.queue_notice_threshold)
    await serve_websocket(
        scope,
        receive,
        send,
        ctx,
        dialect,
        tenant=scope["forebay.tenant"],
        first_message_s=_first_message_s(scope, ctx),
        message_bytes=ASR_MESSAGE_BYTES,
        tenant_of=_user_as_tenant(scope, ctx),
    )


def _user_as_tenant(scope: Scope, ctx: GatewayContext) -> Callable[[Open], str] | None:
    """With `trust_client_tenant` a `start` names its tenant as ``user_id``, unless a key or
    ``X-Tenant`` said it before."""
    tenant = scope["forebay.tenant"]
    if not ctx.options.trust_client_tenant or scope["forebay.principal"] != LOCAL:
        return None

    def named(opened: Open) -> str:
        user = str(opened.params.get("user", ""))
        return user if user != ANONYMOUS and valid_tenant(user) else tenant

    return named


async def _chat(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    await serve_chat(
        scope,
        receive,
        send,
        ctx,
        tenant=scope["forebay.tenant"],
        greet=port_of(scope).personality.greeting,
        first_message_s=_first_message_s(scope, ctx),
    )


async def _text_chat(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """People think before they type: no deadline for the first message."""
    await serve_chat(scope, receive, send, ctx, tenant=scope["forebay.tenant"], greet="at_once")


def _first_message_s(scope: Scope, ctx: GatewayContext) -> float | None:
    """The originals knew no such deadline, so their ports have none."""
    return None if port_of(scope).personality.compat else ctx.options.first_message_s


def routes() -> list[Route]:
    """The table. Order does not matter."""
    return [
        *_own(),
        *_jobs(),
        *_openai(),
        *CAPACITY_ROUTES,
        *CAPTION_ROUTES,
        *CAPTION_PAGES,
        *CAPTION_SOCKETS,
        *JOB_EVENT_ROUTES,
        *LISTENING_ROUTES,
        *IMAGE_EDIT_ROUTES,
        *PHOTO_ROUTES,
        *PHOTO_TASK_ROUTES,
        *OPERATION_ROUTES,
        *NOTEBOOK_ROUTES,
        *NOTEBOOK_S0_ROUTES,
        *NOTEBOOK_FILE_ROUTES,
        *PROBE_ROUTES,
        *RESPONSE_ROUTES,
        *SIGN_IN_ROUTES,
        *_recognition(),
        *_voice(),
    ]


def _own() -> list[Route]:
    def get(path: str, handler: Handler, needs: str = PUBLIC, **facts: object) -> Route:
        return Route(method="GET", path=path, handler=handler, needs=needs, **facts)  # type: ignore[arg-type]

    return [
        get("/", faces.root),
        get("/pools", pools_page, on=frozenset({"main"})),
        get("/static/{name:path}", static, on=CONSOLES | PHOTO_PORTS),
        get("/healthz", faces.tts_health),
        get("/tts/healthz", faces.tts_health),
        get("/orch/healthz", faces.orch_health),
        get("/health", faces.health, on=frozenset({"main"})),
        get("/health", model_health, on=frozenset({"model"})),
        get("/readyz", faces.ready),
        get("/metrics", faces.metrics, "admin", compat_needs="read"),
        get("/api/status", faces.status, "read"),
        Route(method="POST", path="/api/ticket", handler=faces.ticket, needs="submit"),
    ]


def _jobs() -> list[Route]:
    def row(method: str, path: str, needs: str, works: bool = False) -> Route:
        return Route(method=method, path=path, handler=faces.jobs, needs=needs, works=works)

    return [
        row("GET", "/api/jobs", "read"),
        row("GET", "/api/jobs/{id}", "read"),
        row("POST", "/api/jobs/{id}/cancel", "cancel"),
        row("POST", "/api/jobs/{id}/retry", "submit", works=True),
    ]


def _openai() -> list[Route]:
    return [
        Route(
            method=method,
            path=path,
            handler=handler,
            needs="submit" if method in WORKING_METHODS else "read",
            works=method in WORKING_METHODS,
        )
        for methods, path, handler in OPENAI_ROUTES
        for method in methods
    ]


def _recognition() -> list[Route]:
    return [*asr_sessions.ROUTES, *asr_tasks.ROUTES]


def _voice() -> list[Route]:
    def row(path: str, handler: Handler, serves: tuple[Kind, str], orchestrator: bool) -> Route:
        return Route(
            method="WEBSOCKET",
            path=path,
            handler=handler,
            needs="submit",
            works=True,
            serves=serves,
            orchestrator=orchestrator,
        )

    asr = row("/ws/asr", _asr, (Kind.RECOGNITION, AsrDialect.name), False)

    return [
        replace(asr, errors="error"),
        row("/tts", _tts, (Kind.SPEECH, TtsDialect.name), False),
        row("/chat", _chat, (Kind.TEXT, VoiceChat.name), True),
        row("/ws/chat", _text_chat, (Kind.TEXT, TextChat.name), True),
    ]
