"""Ports and their manners: what a client that came in on a port expects to find there.

The main port answers every protocol under strict rules. Each other port exists for
unmodified clients of one original system, which hard-code it: it gives exactly what they
expect, and takes that protocol's own limits (architecture, section 9).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from forebay.errors import ConfigError
from forebay.gateway.responses import ErrorFace

__all__ = ["MAIN", "PERSONALITIES", "Personality", "Port", "is_loopback", "personality"]

MiB = 1024 * 1024
Face = Literal["console", "info", "model", "photos", "captions"]
Greeting = Literal["silent", "patient", "at_once"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Personality:
    """One port's manners. None means: what `GatewayOptions` says for the main port.

    ``face``: what ``/`` is. ``greeting``: whether the server speaks first on `/chat`
    (patient: only after a while without a first message). ``compat``: the looser rules an
    original had (any Origin, ``?api_key=``, CORS ``*``), on loopback or behind a key only.
    ``errors``: the shape of errors at paths it does not have.
    """

    name: str
    port: int
    face: Face
    about: str
    compat: bool = True
    greeting: Greeting = "silent"
    errors: ErrorFace = "openai"
    ping_s: float | None = None
    pong_s: float | None = None
    ws_message_bytes: int | None = None


PERSONALITIES: dict[str, Personality] = {
    p.name: p
    for p in (
        Personality(
            name="main",
            port=8600,
            face="console",
            about="console and every protocol",
            compat=False,
        ),
        Personality(
            name="tts",
            port=9000,
            face="info",
            about="the voice server: WebSocket /tts",
            greeting="patient",
            ping_s=30,
            pong_s=15,
            ws_message_bytes=1 * MiB,
        ),
        Personality(
            name="chat",
            port=9100,
            face="info",
            about="the orchestrator: WebSocket /chat and /ws/chat",
            greeting="patient",
            ping_s=30,
            pong_s=15,
            ws_message_bytes=1 * MiB,
        ),
        Personality(
            name="voice",
            port=8080,
            face="console",
            about="voice behind one port, and recognition: /ws/asr, /api/v1",
            greeting="patient",
            ping_s=30,
            pong_s=15,
            ws_message_bytes=1 * MiB,
        ),
        Personality(
            name="voice-alt",
            port=8081,
            face="console",
            about="the same, where 8080 is taken",
            greeting="patient",
            ping_s=30,
            pong_s=15,
            ws_message_bytes=1 * MiB,
        ),
        Personality(
            name="captions",
            port=3000,
            face="captions",
            errors="error",
            about="captions: /api/send, /api/list, /display, server.php",
        ),
        Personality(
            name="api",
            port=8000,
            face="photos",
            errors="detail",
            about="photo enhancement and its page; recognition's REST, as the Python service had it",
        ),
        Personality(
            name="api-alt",
            port=8001,
            face="photos",
            errors="detail",
            about="the same, where the stress tests look for it",
        ),
        Personality(
            name="notebook",
            port=18600,
            face="info",
            errors="detail",
            about="the notebook backend: /send_operation, /execute, files",
        ),
        Personality(
            name="model",
            port=8082,
            face="model",
            about="a model server: /health, /v1/models, /v1/chat/completions",
        ),
    )
}
"""Every personality by its name, which is also its name in ``--compat``."""

MAIN = PERSONALITIES["main"]


@dataclass(frozen=True, slots=True)
class Port:
    """Where a connection came in; in every ASGI scope as ``scope["forebay.port"]``."""

    personality: Personality
    loopback: bool


def personality(name: str) -> Personality:
    """The personality of that name. Raises `ConfigError` naming those there are."""
    found = PERSONALITIES.get(name)
    if found is None:
        raise ConfigError(
            f"no port personality is called {name!r}, expected one of {', '.join(PERSONALITIES)}"
        )
    return found


def is_loopback(address: str) -> bool:
    """Whether an address a socket is bound to can be reached from this machine only."""
    return address.startswith("127.") or address in ("::1", "localhost", "")
