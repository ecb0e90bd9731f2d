"""A remote recogniser with OpenAI's ``POST /v1/audio/transcriptions``, utterance by utterance.

Voice activity finds the utterances here; each is sent as a WAV file of its own and comes
back as one final. There is no unfinished text. A request to which nobody answered, or that
the server was too busy for (429, 503), is repeated: recognising twice does no harm.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec

from forebay.core.events import End, Final, InputItem, OutputEvent
from forebay.core.kinds import Kind
from forebay.engines import EngineInfo, Report, Resume
from forebay.engines.endpoint import RATE, Endpointer, Samples, Utterance, Voice, silero
from forebay.engines.openai_client import normal_base, read_key
from forebay.engines.openai_errors import refusal, retry_after, unreachable
from forebay.engines.options import Option, parse
from forebay.engines.sound import pcm16
from forebay.engines.stages import Stages
from forebay.engines.whisper import floats
from forebay.errors import ForebayError, UpstreamFailed, UpstreamTimeout

__all__ = ["RemoteRecognition", "RemoteSession"]

LIMITS = "no unfinished text; a pause ends an utterance; the rest is the server's"

_ANSWER_BYTES = 1024 * 1024
_PAUSE_S = 0.25
_TELL = RATE // 2
_AGAIN = frozenset({429, 503})
_KEPT_VOICES = 256


@dataclass(slots=True)
class RemoteSession:
    ends: Endpointer
    voice: Voice
    reset: Callable[[], None]
    fields: dict[str, str]
    told: int = 0


class RemoteRecognition:
    """See the module; options are `OPTIONS`. Raises `ConfigError` for a bad one."""

    name = "remote"
    kind = Kind.RECOGNITION
    OPTIONS = (
        Option("base_url", str, "http://localhost:8000", "server address, with or without /v1"),
        Option("api_key", str, "", "sent as Bearer; prefer api_key_file"),
        Option("api_key_file", str, "", "file whose first line is the key"),
        Option("model", str, "whisper-1", "model name, sent with every utterance"),
        Option("language", str, "", "language where a request names none"),
        Option("slots", int, 8, "requests at once", 1, 1000),
        Option("rtf", float, 0.1, "real-time factor of one request, for how many are let in", 0, 100),
        Option("silence_s", float, 0.6, "pause that ends an utterance", 0.2, 5),
        Option("connect_timeout_s", float, 3.0, "seconds to connect", 0.01, 600),
        Option("timeout_s", float, 30.0, "seconds to an answer", 0.1, 3600),
        Option("retries", int, 2, "tries more while nobody answers or all are busy", 0, 10),
        Option("wait", bool, True, "not ready until the server is; no: ready at once"),
    )  # fmt: skip

    def __init__(self, **options: Any) -> None:
        values = parse(self.name, self.OPTIONS, options)
        self._values = values
        base = normal_base(values["base_url"]).removesuffix("/audio/transcriptions")
        self._url = f"{base}/audio/transcriptions"
        self._models_url = f"{base}/models"
        self._key = read_key(values["api_key"], values["api_key_file"])
        self.model: str = values["model"]
        self._http: aiohttp.ClientSession | None = None
        self._voices: list[tuple[Voice, Callable[[], None]]] = []

    # ------------------------------------------------------------------ loading

    async def load(self, report: Report) -> EngineInfo:
        """Raises `CannotBoot` when nobody answers, unless ``wait=no``."""
        stages = Stages(report)
        stages.at("locate", "remote recogniser")
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._http = aiohttp.ClientSession(
            headers=headers,
            connector=aiohttp.TCPConnector(limit=self._values["slots"] + 2),
            timeout=aiohttp.ClientTimeout(
                total=self._values["timeout_s"], sock_connect=self._values["connect_timeout_s"]
            ),
        )
        stages.at("warm_up")
        if self._values["wait"]:
            try:
                await self._prove()
            except ForebayError as exc:
                await self.unload()
                raise stages.failed(exc.message) from exc
        self._voices.append(await asyncio.to_thread(silero))
        stages.at("ready")
        return EngineInfo(
            model=self.model,
            slots=self._values["slots"],
            capabilities=frozenset({"abortable"}),
            facts={
                "rtf": self._values["rtf"],
                "languages": [self._values["language"]] if self._values["language"] else [],
                "partials": False,
                "limits": LIMITS,
                "device": "remote",
            },
        )

    async def _prove(self) -> None:
        """Somebody answers and takes the key. Raises `UpstreamFailed`. Servers of this one
        path often list no models, so what they say of that counts for nothing else."""
        assert self._http is not None
        try:
            async with self._http.get(self._models_url, allow_redirects=False) as response:
                body = await response.content.read(64 * 1024)
        except (aiohttp.ClientError, OSError, TimeoutError) as exc:
            raise _nobody(exc) from exc
        if response.status in (401, 403):
            raise refusal(response.status, body, model=self.model, key_given=bool(self._key))

    # ------------------------------------------------------------------ sessions

    async def open(self, params: Mapping[str, Any], resume: Resume) -> RemoteSession:
        voice, reset = self._voices.pop() if self._voices else await asyncio.to_thread(silero)
        reset()
        fields = {"model": self.model, "response_format": "json"}
        language = str(params.get("language") or self._values["language"])
        if language and language != "auto":
            fields["language"] = language.replace("_", "-").partition("-")[0]
        if params.get("prompt"):
            fields["prompt"] = str(params["prompt"])
        ends = Endpointer(voice, silence_s=self._values["silence_s"])
        return RemoteSession(ends, voice, reset, fields)

    async def step(
        self, session: RemoteSession, items: Sequence[InputItem]
    ) -> AsyncIterator[OutputEvent]:
        end = any(isinstance(item, End) for item in items)
        for said in await asyncio.to_thread(_utterances, session.ends, floats(items), end):
            text = await self._ask(session.fields, said)
            session.told = max(session.told, said.end)
            language = session.fields.get("language", "")
            yield Final(text=text, start=said.start, end=said.end, language=language)
        quiet = session.ends.given if end else session.ends.quiet
        if end or quiet - session.told >= _TELL:
            start, session.told = session.told, max(session.told, quiet)
            yield Final(text="", start=start, end=session.told)

    async def _ask(self, fields: Mapping[str, str], said: Utterance) -> str:
        """The text of one utterance. Raises what `openai_errors` makes of a refusal."""
        sound, pause_s = _wav(said.audio), _PAUSE_S
        for left in range(self._values["retries"], -1, -1):
            try:
                return await self._post(fields, sound)
            except UpstreamTimeout:
                raise
            except UpstreamFailed as exc:
                if not left or exc.details.get("status", 0) not in (0, *_AGAIN):
                    raise
                await asyncio.sleep(min(exc.retry_after_s or pause_s, 5.0))
                pause_s *= 2
        raise AssertionError("unreachable")  # pragma: no cover - the last round returns or raises

    async def _post(self, fields: Mapping[str, str], sound: bytes) -> str:
        assert self._http is not None
        form = aiohttp.FormData()
        for name, value in fields.items():
            form.add_field(name, value)
        form.add_field("file", sound, filename="speech.wav", content_type="audio/wav")
        try:
            async with self._http.post(self._url, data=form, allow_redirects=False) as response:
                body = await _bounded(response)
        except (aiohttp.ClientError, OSError, TimeoutError) as exc:
            raise _nobody(exc) from exc
        if response.status != 200:
            wait_s = retry_after(response.headers.get("Retry-After"))
            key = bool(self._key)
            raise refusal(
                response.status, body, model=self.model, key_given=key, retry_after_s=wait_s
            )
        return _text(body)

    async def close(self, session: RemoteSession) -> None:
        if len(self._voices) < _KEPT_VOICES:
            self._voices.append((session.voice, session.reset))

    async def unload(self) -> None:
        if self._http is not None:
            await self._http.close()
            self._http = None


def _utterances(ends: Endpointer, samples: Samples, end: bool) -> list[Utterance]:
    found = list(ends.feed(samples))
    rest = ends.flush() if end else None
    return [*found, rest] if rest is not None else found


def _wav(audio: Samples) -> bytes:
    data = pcm16(audio)
    head = struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        *(b"RIFF", 36 + len(data), b"WAVE", b"fmt ", 16, 1, 1, RATE, 2 * RATE, 2, 16),
        *(b"data", len(data)),
    )
    return head + data


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    body = b""
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > _ANSWER_BYTES:
            raise UpstreamFailed(
                f"recogniser answered more than {_ANSWER_BYTES} bytes", reason="garbage", status=200
            )
    return body


def _text(body: bytes) -> str:
    try:
        answer = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        answer = None
    text = answer.get("text") if isinstance(answer, dict) else None
    if not isinstance(text, str):
        raise UpstreamFailed("recogniser answered no text", reason="garbage", status=200)
    return text


def _nobody(exc: Exception) -> UpstreamFailed:
    if isinstance(exc, TimeoutError):
        return UpstreamTimeout("recogniser sent no answer in time", reason="no_answer")
    if isinstance(exc, aiohttp.ClientConnectorError):
        return unreachable("refused the connection", "connection_refused")
    return unreachable("broke the connection", "connection_lost")
