"""Whisper (base, int8, CTranslate2) for whole utterances in some ninety languages.

Whisper is no streaming model: every call costs a window of 15 to 30 s, however short the
sound. So voice activity finds the utterances, each is recognised once (see `whisper_call`),
and there is no unfinished text. A call cannot be stopped inside; it takes 0.4 to 1.5 s on
two cores.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from forebay.core.events import End, Final, InputItem, OutputEvent, Sound
from forebay.core.kinds import Kind
from forebay.engines import EngineInfo, Report, Resume, ThreadedEngine, weights
from forebay.engines.endpoint import RATE, Endpointer, Samples, Utterance, Voice, silero
from forebay.engines.options import Option, parse
from forebay.engines.stages import Stages
from forebay.engines.whisper_call import hear
from forebay.errors import Unsupported

__all__ = ["LIMITS", "Whisper", "WhisperSession", "floats"]

LIMITS = "no unfinished text; a pause of 0.6 s ends an utterance; no speaker names"

_USUAL_UTTERANCE_S = 4.0  # what the real-time factor is told for
_TELL = RATE // 2  # silence is told of in steps of half a second


@dataclass(slots=True)
class WhisperSession:
    """One job. ``language`` None: found out for each utterance."""

    ends: Endpointer
    reset: Callable[[], None]
    voice: Voice
    language: str | None
    prompt: str | None
    task: str
    told: int = 0


def floats(items: Sequence[InputItem]) -> Samples:
    """The samples of one step, from -1 to 1."""
    data = b"".join(item.data for item in items if isinstance(item, Sound))
    return np.frombuffer(data, "<i2").astype(np.float32) / np.float32(32768)


class Whisper(ThreadedEngine):
    name = "whisper"
    kind = Kind.RECOGNITION
    OPTIONS = (
        Option("slots", int, 1, "calls at once", 1, 64),
        Option("threads", int, None, "threads of one call; unset: up to 4", 1, 64),
        Option("language", str, None, "language where a request names none; unset: found out"),
        Option("beam", int, 1, "beam size: larger is slower and a little better", 1, 10),
        Option("silence_s", float, 0.6, "pause that ends an utterance", 0.2, 5),
        Option("rtf", float, None, "real-time factor; unset: measured at start", 0, 100),
        Option("path", str, None, "folder of another CTranslate2 Whisper model"),
        Option("models_dir", str, None, "where catalogued weights lie"),
    )

    def __init__(self, **options: Any) -> None:
        self._options = parse(self.name, self.OPTIONS, options)
        self._model: Any = None
        self._voices: list[tuple[Voice, Callable[[], None]]] = []
        self._lock = threading.Lock()

    # ------------------------------------------------------------------ loading

    async def load(self, report: Report) -> EngineInfo:
        stages = Stages(report)
        stages.at("locate", "whisper-base")
        folder = self._folder()
        stages.at("weights", folder.name, 0, 1)
        slots = int(self._options["slots"])
        self._model = await asyncio.to_thread(self._load, folder, slots)
        stages.at("warm_up")
        rtf = await asyncio.to_thread(self._warm_up)
        self.start_threads(slots)
        stages.at("ready")
        return EngineInfo(
            model=self._model_name(folder),
            version=version("faster-whisper"),
            slots=slots,
            facts={
                "rtf": rtf,
                "languages": sorted(self._model.supported_languages),
                "partials": False,
                "limits": LIMITS,
                "licence": "MIT",
                "device": "cpu",
            },
        )

    def _folder(self) -> Path:
        if self._options["path"]:
            return Path(self._options["path"])
        models = self._options["models_dir"]
        folder = Path(models) if models else weights.default_dir(os.environ)
        return weights.require("whisper-base", folder)

    def _model_name(self, folder: Path) -> str:
        return folder.name if self._options["path"] else "whisper-base"

    def _load(self, folder: Path, slots: int) -> Any:
        from faster_whisper import WhisperModel

        threads = self._options["threads"] or min(4, max(1, (os.cpu_count() or 1) // slots))
        return WhisperModel(
            str(folder),
            device="cpu",
            compute_type="int8",
            cpu_threads=threads,
            num_workers=slots,
            local_files_only=True,
        )

    def _warm_up(self) -> float:
        """The real-time factor of an utterance of usual length."""
        self._voices.append(silero())
        noise = np.random.default_rng(1).normal(0, 0.01, round(_USUAL_UTTERANCE_S * RATE))
        audio = noise.astype(np.float32)
        best = 1e9
        for _ in range(3):
            began = time.monotonic()
            self._transcribe(audio, "en", None, "transcribe", again=False)
            best = min(best, time.monotonic() - began)
        if self._options["rtf"] is not None:
            return float(self._options["rtf"])
        # Noise yields no words; the encoder's window is most of the time, words a third more.
        return round(1.3 * best / _USUAL_UTTERANCE_S, 3)

    # ------------------------------------------------------------------ sessions

    async def open(self, params: Mapping[str, Any], resume: Resume) -> WhisperSession:
        language = self.language(params.get("language"))
        kept = self._take_voice()
        voice, reset = kept if kept is not None else await asyncio.to_thread(silero)
        reset()
        task = "translate" if params.get("task") == "translate" else "transcribe"
        prompt = params.get("prompt") or None
        ends = Endpointer(voice, silence_s=self._options["silence_s"])
        return WhisperSession(ends, reset, voice, language, prompt, task)

    def _take_voice(self) -> tuple[Voice, Callable[[], None]] | None:
        with self._lock:
            return self._voices.pop() if self._voices else None

    def language(self, asked: Any) -> str | None:
        """Whisper's word for a language tag. Raises `Unsupported` for one it does not know."""
        word = str(asked or self._options["language"] or "auto").lower()
        word = word.replace("_", "-").partition("-")[0]
        if word in ("auto", "*"):
            return None
        word = {"cmn": "zh", "cn": "zh", "iw": "he", "nb": "no"}.get(word, word)
        if word not in self._model.supported_languages:
            raise Unsupported(f"language {word[:16]!r} is not known to whisper", language=word[:16])
        return word

    def run(
        self, session: WhisperSession, items: Sequence[InputItem], stopped: Callable[[], bool]
    ) -> Iterator[OutputEvent]:
        for utterance in session.ends.feed(floats(items)):
            yield self._final(session, utterance)
            if stopped():
                return
        if any(isinstance(item, End) for item in items):
            rest = session.ends.flush()
            if rest is not None:
                yield self._final(session, rest)
            yield _quiet(session, session.ends.given)
        elif session.ends.quiet - session.told >= _TELL:
            yield _quiet(session, session.ends.quiet)

    def _final(self, session: WhisperSession, said: Utterance) -> Final:
        text, language = self._transcribe(
            said.audio, session.language, session.prompt, session.task
        )
        session.told = max(session.told, said.end)
        return Final(text=text, start=said.start, end=said.end, language=language)

    def _transcribe(
        self,
        audio: Samples,
        language: str | None,
        prompt: str | None,
        task: str,
        *,
        again: bool = True,
    ) -> tuple[str, str]:
        return hear(
            self._model,
            audio,
            language=language,
            prompt=prompt,
            task=task,
            beam=self._options["beam"],
            again=again,
        )

    async def close(self, session: WhisperSession) -> None:
        with self._lock:
            if len(self._voices) < 64:
                self._voices.append((session.voice, session.reset))

    async def unload(self) -> None:
        self.stop_threads()
        self._model = None


def _quiet(session: WhisperSession, position: int) -> Final:
    start, session.told = session.told, max(session.told, position)
    return Final(text="", start=start, end=session.told)
