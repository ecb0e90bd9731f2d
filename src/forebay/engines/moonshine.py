"""Moonshine (tiny, English) as a stream: text while it is being said, final by the sentence.

The model decodes the open sentence again and again, so unfinished text is rewritten as it
grows. Its own voice detector makes the sentences. Calls block for up to half a second and
cannot be stopped; they run in threads. English only.

The package's Python layer copies all sound so far into lists at every update; this module
speaks to the library underneath, whose version is pinned, and begins a new stream in a
pause now and then, so that a session of hours costs what one of a minute does.
"""

from __future__ import annotations

import asyncio
import ctypes
import importlib.util
import time
import wave
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from forebay.core.events import End, Final, InputItem, OutputEvent, Partial
from forebay.core.kinds import Kind
from forebay.engines import EngineInfo, Report, Resume, ThreadedEngine, weights
from forebay.engines.endpoint import RATE, Samples
from forebay.engines.options import Option, parse
from forebay.engines.stages import Stages
from forebay.engines.whisper import floats
from forebay.errors import EngineFailed, Unsupported

__all__ = ["LIMITS", "Moonshine", "MoonshineSession"]

LIMITS = "English only; no speaker names; unfinished text is rewritten as it grows"

_ARCH_TINY = 0
_MARGIN = round(0.8 * RATE)  # a sentence may begin this long before it is noticed
_RENEW = 30 * RATE
_OPTIONS = {"return_audio_data": "false", "identify_speakers": "false"}
_WARM_UP_S = 3.0


@dataclass(frozen=True, slots=True)
class _Line:
    text: str
    start: int
    end: int
    complete: bool


@dataclass(slots=True)
class MoonshineSession:
    """One job: the library's stream, where it began, and what was said of it."""

    partials: bool
    handle: int
    base: int = 0
    given: int = 0
    updated: int = 0
    done: int = 0  # samples that finals account for
    said: set[int] = field(default_factory=set)  # lines of this stream that are final


class Moonshine(ThreadedEngine):
    name = "moonshine"
    kind = Kind.RECOGNITION
    OPTIONS = (
        Option("slots", int, 1, "calls at once; each uses all cores", 1, 64),
        Option("update_s", float, 0.6, "sound between two looks at an open sentence", 0.1, 5),
        Option("rtf", float, None, "real-time factor; unset: measured at start", 0, 100),
    )

    def __init__(self, **options: Any) -> None:
        self._options = parse(self.name, self.OPTIONS, options)
        self._update = round(self._options["update_s"] * RATE)
        self._transcriber: Any = None
        self._lib: Any = None

    # ------------------------------------------------------------------ loading

    async def load(self, report: Report) -> EngineInfo:
        stages = Stages(report)
        stages.at("locate", "moonshine")
        folder = weights.require("moonshine", Path())
        slots = int(self._options["slots"])
        stages.at("weights", "tiny-en", 0, 1)
        await asyncio.to_thread(self._load, folder)
        stages.at("warm_up")
        rtf = await asyncio.to_thread(self._warm_up)
        self.start_threads(slots)
        stages.at("ready")
        return EngineInfo(
            model="moonshine",
            version=version("moonshine-voice"),
            slots=slots,
            facts={
                "rtf": rtf,
                "languages": ["en"],
                "partials": True,
                "limits": LIMITS,
                "licence": "MIT",
                "device": "cpu",
            },
        )

    def _load(self, folder: Path) -> None:
        from moonshine_voice.moonshine_api import ModelArch
        from moonshine_voice.transcriber import Transcriber

        self._transcriber = Transcriber(str(folder), ModelArch(_ARCH_TINY), options=_OPTIONS)
        self._lib = self._transcriber._lib

    def _warm_up(self) -> float:
        """The real-time factor on the best of three runs over a sentence of the package."""
        if self._options["rtf"] is not None:
            return float(self._options["rtf"])
        spoken, best = _sample(), 1e9
        for _ in range(3):
            session = self._open(True)
            began = time.monotonic()
            for at in range(0, len(spoken), RATE // 5):
                list(self._hear(session, spoken[at : at + RATE // 5]))
            list(self._flush(session))
            best = min(best, time.monotonic() - began)
            self._free(session.handle)
        return round(best * RATE / len(spoken), 3)

    # ------------------------------------------------------------------ sessions

    async def open(self, params: Mapping[str, Any], resume: Resume) -> MoonshineSession:
        language = str(params.get("language") or "en").lower().replace("_", "-").partition("-")[0]
        if language not in ("en", "auto"):
            raise Unsupported(f"moonshine hears English only, not {language[:16]!r}")
        return await asyncio.to_thread(self._open, params.get("partials") is not False)

    def _open(self, partials: bool) -> MoonshineSession:
        return MoonshineSession(partials, self._new_stream())

    def _new_stream(self) -> int:
        handle = int(self._lib.moonshine_create_stream(self._transcriber._handle, 0))
        self._check(handle, "create_stream")
        self._check(self._lib.moonshine_start_stream(self._transcriber._handle, handle), "start")
        return handle

    def _free(self, handle: int) -> None:
        self._lib.moonshine_free_stream(self._transcriber._handle, handle)

    def _check(self, code: int, what: str) -> None:
        if code < 0:
            raise EngineFailed(f"moonshine {what} failed with {code}")

    def run(
        self, session: MoonshineSession, items: Sequence[InputItem], stopped: Callable[[], bool]
    ) -> Iterator[OutputEvent]:
        yield from self._hear(session, floats(items))
        if any(isinstance(item, End) for item in items):
            yield from self._flush(session)

    def _hear(self, session: MoonshineSession, samples: Samples) -> Iterator[OutputEvent]:
        if not len(samples):
            return
        data = np.ascontiguousarray(samples)
        pointer = data.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        self._check(
            self._lib.moonshine_transcribe_add_audio_to_stream(
                self._transcriber._handle, session.handle, pointer, len(data), RATE, 0
            ),
            "add_audio",
        )
        session.given += len(data)
        if session.given - session.updated < self._update:
            return
        session.updated = session.given
        open_line = False
        for event in self._look(session):
            open_line = open_line or isinstance(event, Partial)
            if session.partials or isinstance(event, Final):
                yield event
        if not open_line:
            yield from self._pause(session)

    def _pause(self, session: MoonshineSession) -> Iterator[OutputEvent]:
        """Nothing is being said: what has passed need not be heard again."""
        quiet = session.given - _MARGIN
        if quiet - session.done >= RATE:
            yield Final(text="", start=session.done, end=quiet)
            session.done = quiet
        if session.given - session.base > _RENEW and quiet >= session.done:
            self._renew(session)

    def _flush(self, session: MoonshineSession) -> Iterator[OutputEvent]:
        """Make the open line final and begin another stream.

        The library itself may fail on the last scrap of sound when a stream is stopped, so
        what it has said before that is what counts."""
        last: list[Partial | Final] = []
        for event in self._look(session):
            if isinstance(event, Final):
                yield event
            else:
                last = [event]
        stop = self._lib.moonshine_stop_stream(self._transcriber._handle, session.handle)
        self._check(stop, "stop")
        if last:
            with suppress(EngineFailed):
                last = list(self._look(session)) or last
        for event in last:
            yield Final(text=event.text, start=event.start, end=event.end, language="en")
        yield Final(text="", start=session.done, end=session.given)
        session.done = session.given
        self._renew(session)

    def _renew(self, session: MoonshineSession) -> None:
        fresh = self._new_stream()
        self._free(session.handle)
        session.handle, session.base = fresh, session.given
        session.updated = session.given
        session.said.clear()

    def _look(self, session: MoonshineSession) -> Iterator[Partial | Final]:
        """New finals in order, then the open line."""
        for index, line in enumerate(self._lines(session)):
            if index in session.said:
                continue
            if not line.complete:
                yield Partial(text=line.text, start=line.start, end=line.end)
                continue
            session.said.add(index)
            end = min(max(line.end, session.done), session.given)
            yield Final(text=line.text, start=line.start, end=end, language="en")
            session.done = end

    def _lines(self, session: MoonshineSession) -> list[_Line]:
        from moonshine_voice.moonshine_api import TranscriptC

        found = ctypes.POINTER(TranscriptC)()
        code = self._lib.moonshine_transcribe_stream(
            self._transcriber._handle, session.handle, 0, ctypes.byref(found)
        )
        self._check(code, "transcribe")
        if not found:
            return []
        # The library owns what it points to until its next call on this stream.
        return [
            _line(found.contents.lines[index], session.base)
            for index in range(found.contents.line_count)
        ]

    async def close(self, session: MoonshineSession) -> None:
        if self._transcriber is not None:
            await asyncio.to_thread(self._free, session.handle)

    async def unload(self) -> None:
        self.stop_threads()
        transcriber, self._transcriber = self._transcriber, None
        if transcriber is not None:
            await asyncio.to_thread(transcriber.close)


def _line(line: Any, base: int) -> _Line:
    text = ctypes.string_at(line.text).decode("utf-8", "ignore") if line.text else ""
    start = base + round(line.start_time * RATE)
    end = start + round(line.duration * RATE)
    return _Line(text.strip(), start, end, bool(line.is_complete))


def _sample() -> Samples:
    """A few seconds of speech that lie in the package."""
    spec = importlib.util.find_spec("moonshine_voice")
    folder = Path(spec.origin).parent if spec is not None and spec.origin else Path()
    with wave.open(str(folder / "assets" / "beckett.wav")) as file:
        frames = file.readframes(round(_WARM_UP_S * file.getframerate()))
        step = max(1, file.getframerate() // RATE)
        return np.frombuffer(frames, "<i2")[::step].astype(np.float32) / np.float32(32768)
