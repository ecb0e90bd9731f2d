"""Every number of the gateway's transport, in one frozen record.

`config.py` fills it from the command line, the environment and files; tests shorten the
deadlines. All names carry their unit. None means: no such limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["MODEL_ALIASES", "GatewayOptions"]

MODEL_ALIASES: Mapping[str, str] = {
    "tts-1": "speech",
    "tts-1-hd": "speech",
    "gpt-4o-mini-tts": "speech",
    "whisper-1": "recognition",
    "gpt-4o-transcribe": "recognition",
    "gpt-4o-mini-transcribe": "recognition",
    "gpt-image-1": "image",
    "gpt-image-1-mini": "image",
    "dall-e-2": "image",
}
"""Names that clients of public APIs send by habit: KIND (its first pool) or KIND/MODEL."""

KiB = 1024
MiB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayOptions:
    """Limits, deadlines and access rules of one gateway process.

    Limits marked *off loopback* are not applied on a listener bound to a loopback address:
    there, whoever connects already has an account on this machine.
    """

    # ---------------------------------------------------------------- connections
    max_connections: int = 10_000
    """Per process. Lowered at start to what the file-descriptor limit can carry."""
    max_per_address: int = 50
    """Off loopback."""
    handshakes_per_s: float = 500.0
    """New connections per process. Off loopback; a burst of two seconds' worth passes."""
    handshakes_per_address_s: float = 20.0
    """Off loopback; a burst of `max_per_address` passes."""
    reserve_fds: int = 64
    """File descriptors kept for files, the worker link and answers to the refused."""

    # ------------------------------------------------------------------ deadlines
    head_s: float = 10.0
    """From connecting, or from a request's first byte, to the end of its header lines."""
    body_s: float = 30.0
    """For a whole request body, prolonged by one second for every `body_min_bytes_s`."""
    body_min_bytes_s: int = 1 * KiB
    handshake_s: float = 10.0
    """From a whole WebSocket request to our answer."""
    first_message_s: float | None = 5.0
    """On the main port, from our 101 on `/tts` and `/chat` to the client's first message."""
    keep_alive_s: float = 15.0
    """Silence between two requests of one connection."""
    ping_s: float = 20.0
    """Silence of a WebSocket peer after which it is pinged."""
    pong_s: float = 10.0
    """Further silence after which it counts as dead."""
    close_s: float = 5.0
    """For the peer's half of the closing handshake."""
    write_stall_s: float = 60.0
    """A full write buffer of which the peer takes not one byte; then the socket is cut."""
    sweep_s: float = 1.0
    """Grain of all deadlines of this list: one timer serves every connection."""

    # ---------------------------------------------------------------------- sizes
    request_line_bytes: int = 8 * KiB
    path_bytes: int = 2 * KiB
    header_count: int = 100
    header_bytes: int = 8 * KiB
    """One header line, name and value."""
    head_bytes: int = 64 * KiB
    """Request line and headers together."""
    body_bytes: int = 1 * MiB
    """A request body, where the route names no other limit."""
    pipelined_requests: int = 64
    ws_message_bytes: int = 256 * KiB
    """One WebSocket message, where the port's personality names no other limit."""
    sndbuf_bytes: int = 64 * KiB
    """SO_SNDBUF of every connection; 0 leaves the kernel's own, megabytes per stalled client."""
    plain_wire_bytes: int = 1 * MiB
    """Bound of the queue in front of a stock ASGI ``send``; past it the connection ends."""

    # --------------------------------------------------------------------- access
    keys_file: str | None = None
    require_key: bool | None = None
    """None: required off loopback, and wherever `allowed_hosts` says others get here."""
    jwt_keys_file: str | None = None
    """Keys of another service, whose signed tokens are taken in place of a key of ours."""
    jwt_audience: str | None = None
    jwt_issuer: str | None = None
    insecure_no_auth: bool = False
    allowed_hosts: tuple[str, ...] = ()
    """Names (without port) beside this machine's own that a Host header may carry; ``*`` any."""
    allowed_origins: tuple[str, ...] = ()
    """Origins beside same-origin and loopback, as in ``https://app.example.com``; ``*`` any."""
    orch_api_key: str | None = None
    """``ORCH_API_KEY``: what `/chat` on the compat ports asks for, as the original did."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses whose X-Forwarded-For is believed; they are not held to `max_per_address`."""
    trust_client_tenant: bool = False
    """Let ``X-Tenant`` name the tenant of a request without key (tests and load tools)."""
    ticket_s: float = 30.0
    max_tickets: int = 10_000

    # ---------------------------------------------------------------------- drain
    linger_s: float = 1.0
    """After readiness is off and the listeners are closed, before clients are told."""
    quiet_s: float = 5.0
    """A WebSocket without a message either way for so long has nothing to finish, unless a
    session is under way on it."""
    drain_s: float = 30.0
    """From SIGTERM on, the linger included; whoever is left then is cut."""
