"""A streaming model of the user's own on sherpa-onnx: zipformer transducer or paraformer.

Forebay ships no such model. ``path`` is a folder with ``tokens.txt`` and, for a transducer,
one ``encoder*.onnx``, ``decoder*.onnx`` and ``joiner*.onnx``; without a joiner the model is
taken for a paraformer. int8 files are preferred where both lie there. Unfinished text grows
with the sound; the model's own endpoint rules make finals.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from forebay.core.events import End, Final, InputItem, OutputEvent, Partial
from forebay.core.kinds import Kind
from forebay.engines import EngineInfo, Report, Resume, ThreadedEngine
from forebay.engines.endpoint import RATE
from forebay.engines.options import Option, parse
from forebay.engines.stages import Stages
from forebay.engines.whisper import floats
from forebay.errors import ConfigError

__all__ = ["Sherpa", "SherpaSession"]

_TAIL_S = 0.5  # of silence, so that the model says its last word
_WARM_UP_S = 3


@dataclass(slots=True)
class SherpaSession:
    stream: Any
    given: int = 0
    start: int = 0  # where what is open began
    text: str = ""


class Sherpa(ThreadedEngine):
    name = "sherpa"
    kind = Kind.RECOGNITION
    OPTIONS = (
        Option("path", str, None, "folder of the model: tokens.txt, encoder, decoder, joiner"),
        Option("model", str, None, "the pool's name; unset: the folder's"),
        Option("language", str, "", "what the model hears, for the record"),
        Option("slots", int, 1, "calls at once", 1, 64),
        Option("threads", int, None, "threads of one call; unset: up to 4", 1, 64),
        Option("silence_s", float, 0.8, "pause after words that makes a final", 0.1, 5),
        Option("rtf", float, None, "real-time factor; unset: measured at start", 0, 100),
    )

    def __init__(self, **options: Any) -> None:
        self._options = parse(self.name, self.OPTIONS, options)
        if not self._options["path"]:
            raise ConfigError("engine 'sherpa' needs option 'path', the folder of a model")
        self.model = self._options["model"] or Path(self._options["path"]).name
        self._recogniser: Any = None

    # ------------------------------------------------------------------ loading

    async def load(self, report: Report) -> EngineInfo:
        stages = Stages(report)
        stages.at("locate", self.model)
        folder = Path(self._options["path"])
        files = {name: _find(folder, name) for name in ("encoder", "decoder", "joiner")}
        tokens = folder / "tokens.txt"
        wanted = {"tokens.txt": tokens.is_file() or None, **files}
        lacking = [name for name, found in wanted.items() if found is None and name != "joiner"]
        if lacking:
            raise stages.failed(f"{folder} has no {', '.join(lacking)}")
        stages.at("weights", self.model, 0, 1)
        self._recogniser = await asyncio.to_thread(self._load, tokens, files)
        stages.at("warm_up")
        rtf = await asyncio.to_thread(self._warm_up)
        slots = int(self._options["slots"])
        self.start_threads(slots)
        stages.at("ready")
        language = self._options["language"]
        return EngineInfo(
            model=self.model,
            version=version("sherpa-onnx"),
            slots=slots,
            facts={
                "rtf": rtf,
                "languages": [language] if language else [],
                "partials": True,
                "device": "cpu",
            },
        )

    def _load(self, tokens: Path, files: Mapping[str, Path | None]) -> Any:
        from sherpa_onnx import OnlineRecognizer

        given = {name: str(path) for name, path in files.items() if path is not None}
        make = OnlineRecognizer.from_transducer if "joiner" in given else OnlineRecognizer.from_paraformer  # fmt: skip
        return make(
            tokens=str(tokens),
            **given,
            num_threads=self._options["threads"] or min(4, os.cpu_count() or 1),
            sample_rate=RATE,
            enable_endpoint_detection=True,
            rule1_min_trailing_silence=2.4,
            rule2_min_trailing_silence=self._options["silence_s"],
            rule3_min_utterance_length=20.0,
        )

    def _warm_up(self) -> float:
        """The real-time factor over noise: these models take the same time for any sound."""
        if self._options["rtf"] is not None:
            return float(self._options["rtf"])
        noise = np.random.default_rng(1).normal(0, 0.05, _WARM_UP_S * RATE).astype(np.float32)
        best = 1e9
        for _ in range(3):
            session = SherpaSession(self._recogniser.create_stream())
            began = time.monotonic()
            for at in range(0, len(noise), RATE // 5):
                self._decode(session, noise[at : at + RATE // 5])
            best = min(best, time.monotonic() - began)
        return round(best / _WARM_UP_S, 3)

    # ------------------------------------------------------------------ sessions

    async def open(self, params: Mapping[str, Any], resume: Resume) -> SherpaSession:
        return SherpaSession(self._recogniser.create_stream())

    def run(
        self, session: SherpaSession, items: Sequence[InputItem], stopped: Callable[[], bool]
    ) -> Iterator[OutputEvent]:
        samples = floats(items)
        session.given += len(samples)
        if len(samples):
            self._decode(session, samples)
            yield from self._told(session)
        if any(isinstance(item, End) for item in items):
            self._decode(session, np.zeros(round(_TAIL_S * RATE), np.float32))
            yield self._close(session)

    def _decode(self, session: SherpaSession, samples: Any) -> None:
        session.stream.accept_waveform(RATE, samples)
        while self._recogniser.is_ready(session.stream):
            self._recogniser.decode_stream(session.stream)

    def _told(self, session: SherpaSession) -> Iterator[OutputEvent]:
        text = self._recogniser.get_result(session.stream)
        if self._recogniser.is_endpoint(session.stream):
            yield self._close(session)
        elif text and text != session.text:
            session.text = text
            yield Partial(text=text, start=session.start, end=session.given)

    def _close(self, session: SherpaSession) -> Final:
        """What is open is final; the model begins anew at this sample."""
        text = self._recogniser.get_result(session.stream)
        final = Final(
            text=text,
            start=session.start,
            end=session.given,
            language=self._options["language"] if text else "",
        )
        session.stream = self._recogniser.create_stream()
        session.start, session.text = session.given, ""
        return final

    async def close(self, session: SherpaSession) -> None:
        session.stream = None

    async def unload(self) -> None:
        self.stop_threads()
        self._recogniser = None


def _find(folder: Path, name: str) -> Path | None:
    """The model file whose name begins with ``name``, int8 before others."""
    found = sorted(folder.glob(f"{name}*.onnx"), key=lambda path: ("int8" not in path.name, path))
    return found[0] if found else None
