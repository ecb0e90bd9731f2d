"""A remote FunASR server, spoken to over its WebSocket: text while one speaks, then corrected.

In its "2pass" mode the server sends pieces as they are heard, which belong together until it
corrects the whole utterance at once; pieces become partials, the correction a final. One
connection serves one session; it is made with the first sound after an end, so a session
that is silent holds none.

Which result is the last after an end, servers say in two ways. The one in C++ marks it with
``is_final``; the one in Python sets that word in everything *but* what comes after the end
(and its newer versions answer ``is_end``, which is asked for). Which one it is shows in what
it says while somebody speaks; where neither shows, a correction after which nothing comes for
`_MORE_S` was the last.

The server says no exact position of what a final accounts for. Voice that began after the
utterance must not be lost to a new attempt, so a final counts up to `_BEHIND_S` before the
sound sent so far: less than the pause after which FunASR ends an utterance (0.8 s).

Protocol: FunASR, runtime/docs/websocket_protocol.md.
"""

from __future__ import annotations

import asyncio
import secrets
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec

from forebay.core.events import End, Final, InputItem, OutputEvent, Partial, Sound
from forebay.core.kinds import Kind
from forebay.engines import EngineInfo, Report, Resume
from forebay.engines.options import Option, parse
from forebay.engines.stages import Stages
from forebay.errors import ConfigError, UpstreamCut, UpstreamFailed, UpstreamTimeout

__all__ = ["FunAsr", "FunAsrSession"]

LIMITS = "what the server's models hear; a final says no exact times"

_RATE = 16_000
_BEHIND_S = 0.7
_MESSAGE_BYTES = 1024 * 1024
_MORE_S = 1.5
_WAITING = 256  # messages read and not yet taken by a step; then the socket is read no further


class _Said(msgspec.Struct):
    """One result. ``mode``: 2pass-online (a piece), 2pass-offline or offline (the whole).
    ``is_end``: everything before the end was answered."""

    mode: str = ""
    text: str = ""
    is_final: bool = False
    is_end: bool = False

    @property
    def whole(self) -> bool:
        return self.mode.endswith("offline")


@dataclass(slots=True)
class _Line:
    """One connection, its reader, and what came over it. ``final_amid``: whether results amid
    speech call themselves final; None while there was none."""

    socket: aiohttp.ClientWebSocketResponse
    final_amid: bool | None = None
    results: asyncio.Queue[_Said | None] = field(
        default_factory=lambda: asyncio.Queue(maxsize=_WAITING)
    )
    reader: asyncio.Task[None] | None = None


@dataclass(slots=True)
class FunAsrSession:
    """One job. ``open_text``: pieces since the last final."""

    hotwords: str
    partials: bool
    line: _Line | None = None
    given: int = 0
    told: int = 0
    open_text: str = ""


class FunAsr:
    """See the module; options are `OPTIONS`. Raises `ConfigError` for a bad one."""

    name = "funasr"
    kind = Kind.RECOGNITION
    OPTIONS = (
        Option("url", str, "ws://localhost:10095", "server address, ws:// or wss://"),
        Option("verify", bool, True, "check the certificate of a wss:// server"),
        Option("model", str, "funasr", "name under which it is served here"),
        Option("language", str, "zh", "language of the server's models, for faces"),
        Option("slots", int, 8, "sessions that may wait for the server at once", 1, 1000),
        Option("rtf", float, 0.1, "real-time factor, for how many are let in", 0, 100),
        Option("itn", bool, True, "numbers as digits, where the server can"),
        Option("connect_timeout_s", float, 3.0, "seconds to connect", 0.01, 600),
        Option("timeout_s", float, 10.0, "seconds to the last text after the sound ended", 0.1, 600),
        Option("wait", bool, True, "not ready until the server is; no: ready at once"),
    )  # fmt: skip

    def __init__(self, **options: Any) -> None:
        values = parse(self.name, self.OPTIONS, options)
        self._values = values
        self._url: str = values["url"]
        if not self._url.startswith(("ws://", "wss://")):
            raise ConfigError(f"url is {self._url!r}, expected ws://host:port", option="url")
        self._http: aiohttp.ClientSession | None = None

    async def load(self, report: Report) -> EngineInfo:
        """Raises `CannotBoot` when nobody answers, unless ``wait=no``."""
        stages = Stages(report)
        stages.at("locate", "remote recogniser")
        self._http = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(sock_connect=self._values["connect_timeout_s"])
        )
        stages.at("warm_up")
        if self._values["wait"]:
            try:
                await (await self._connect()).close()
            except UpstreamFailed as exc:
                await self.unload()
                raise stages.failed(exc.message) from exc
        stages.at("ready")
        return EngineInfo(
            model=self._values["model"],
            slots=self._values["slots"],
            capabilities=frozenset({"abortable"}),
            facts={
                "rtf": self._values["rtf"],
                "languages": [self._values["language"]],
                "partials": True,
                "limits": LIMITS,
                "device": "remote",
            },
        )

    async def open(self, params: Mapping[str, Any], resume: Resume) -> FunAsrSession:
        return FunAsrSession(str(params.get("prompt") or ""), bool(params.get("partials", True)))

    async def step(
        self, session: FunAsrSession, items: Sequence[InputItem]
    ) -> AsyncIterator[OutputEvent]:
        sound = b"".join(item.data for item in items if isinstance(item, Sound))
        if sound:
            line = session.line or await self._begin(session)
            await self._send(line, sound)
            session.given += len(sound) // 2
        for event in self._arrived(session):
            yield event
        if any(isinstance(item, End) for item in items):
            async for event in self._finish(session):
                yield event

    async def close(self, session: FunAsrSession) -> None:
        line, session.line = session.line, None
        if line is None:
            return
        await line.socket.close()
        if line.reader is not None:
            line.reader.cancel()
            await asyncio.gather(line.reader, return_exceptions=True)

    async def unload(self) -> None:
        if self._http is not None:
            await self._http.close()
            self._http = None

    # ------------------------------------------------------------ the connection

    async def _connect(self) -> aiohttp.ClientWebSocketResponse:
        assert self._http is not None
        trust: ssl.SSLContext | bool = bool(self._values["verify"])
        try:
            return await self._http.ws_connect(
                self._url, protocols=("binary",), max_msg_size=_MESSAGE_BYTES, ssl=trust
            )
        except (aiohttp.ClientError, OSError, TimeoutError) as exc:
            raise UpstreamFailed("recogniser does not answer", reason="unreachable") from exc

    async def _begin(self, session: FunAsrSession) -> _Line:
        line = _Line(await self._connect())
        line.reader = asyncio.get_running_loop().create_task(_read(line))
        session.line = line
        hello = {
            "mode": "2pass",
            "chunk_size": [5, 10, 5],
            "chunk_interval": 10,
            "wav_name": secrets.token_hex(8),
            "wav_format": "pcm",
            "audio_fs": _RATE,
            "is_speaking": True,
            "hotwords": session.hotwords,
            "itn": self._values["itn"],
        }
        await self._send(line, msgspec.json.encode(hello).decode())
        return line

    async def _send(self, line: _Line, data: bytes | str) -> None:
        """Waits while the server takes no more; a step's deadline is the runner's."""
        try:
            if isinstance(data, bytes):
                await line.socket.send_bytes(data)
            else:
                await line.socket.send_str(data)
        except (aiohttp.ClientError, OSError) as exc:
            raise UpstreamCut("recogniser broke the connection") from exc

    # ------------------------------------------------------------------ results

    def _arrived(self, session: FunAsrSession) -> list[OutputEvent]:
        """Everything that has come, in order. Raises `UpstreamCut` for a lost connection."""
        events: list[OutputEvent] = []
        while session.line is not None and not session.line.results.empty():
            said = session.line.results.get_nowait()
            if said is None:
                raise UpstreamCut("recogniser broke the connection")
            session.line.final_amid = said.is_final
            events += _event(session, said, session.given - round(_BEHIND_S * _RATE))
        return events

    async def _finish(self, session: FunAsrSession) -> AsyncIterator[OutputEvent]:
        """Everything so far made final; the connection ends, the next sound makes another."""
        line = session.line
        if line is None:
            return
        await self._send(line, '{"is_speaking": false, "is_end": true}')
        corrected = False
        while (said := await self._next(line, corrected and not session.open_text)) is not None:
            for event in _event(session, said, session.given):
                yield event
            corrected |= said.whole
            if _last(line, said):
                break
        if session.open_text:  # it closed without correcting what it had said
            yield _final(session, session.open_text, session.given)
        await self.close(session)

    async def _next(self, line: _Line, enough: bool) -> _Said | None:
        """The next result after the end; None: there is none. ``enough``: there need be none.
        Raises `UpstreamTimeout`."""
        try:
            async with asyncio.timeout(_MORE_S if enough else self._values["timeout_s"]):
                return await line.results.get()
        except TimeoutError:
            if enough:
                return None
            raise UpstreamTimeout("recogniser sent no last text in time") from None


def _last(line: _Line, said: _Said) -> bool:
    """Whether this is the last result, after the end was said."""
    if said.is_end:
        return True
    if not said.whole:
        line.final_amid = said.is_final  # it was on its way before the end
        return False
    return line.final_amid is None or said.is_final is not line.final_amid


async def _read(line: _Line) -> None:
    async for message in line.socket:
        if message.type is not aiohttp.WSMsgType.TEXT:
            continue
        try:
            said = msgspec.json.decode(message.data, type=_Said)
        except msgspec.DecodeError:
            break  # no FunASR server; the step learns of it by the end below
        await line.results.put(said)
    await line.results.put(None)


def _event(session: FunAsrSession, said: _Said, end: int) -> list[OutputEvent]:
    if said.mode.endswith("online"):
        session.open_text += said.text
        if not session.partials or not said.text:
            return []
        return [Partial(text=session.open_text, start=session.told, end=session.given)]
    return [_final(session, said.text, end)] if said.text or session.open_text else []


def _final(session: FunAsrSession, text: str, end: int) -> Final:
    start, session.told = session.told, max(session.told, end)
    session.open_text = ""
    return Final(text=text, start=start, end=session.told)
