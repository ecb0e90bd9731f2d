"""Piper voices: any ``NAME.onnx`` with its ``NAME.onnx.json`` beside it.

The Piper runtime is GPL-3.0-or-later. Forebay neither contains nor requires it: this module
only calls it where the user has installed the extra ``tts-piper``, in a worker process of
its own. The catalogued voice ``joe`` (American English, CC0) is a package of its own.

A call cannot be stopped inside, but takes a fifteenth of the audio's length on one core.
Nothing is ever downloaded: voices whose phonemes need further files (Chinese by g2pW) are
refused at load.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from forebay.core.events import Audio, InputItem, OutputEvent, Text
from forebay.core.kinds import Kind
from forebay.engines import EngineInfo, Report, Resume, ThreadedEngine, weights
from forebay.engines.options import Option, parse
from forebay.engines.script import pieces, speakable
from forebay.engines.sound import Samples, pause_s, pcm16, shape, silence
from forebay.engines.stages import Stages

__all__ = ["PiperSpeech"]

_PHONEMES = frozenset({"espeak", "text"})  # the kinds that need no file of their own
_LIMIT = 400
_SPEEDS = (0.5, 2.0)
_GAIN = 1.5  # to about 0.088 RMS, as the other voices


@dataclass(frozen=True, slots=True)
class _Session:
    speed: float


class PiperSpeech(ThreadedEngine):
    name = "piper"
    kind = Kind.SPEECH
    OPTIONS = (
        Option("voice", str, "joe", "an .onnx file with its .onnx.json, or a catalogued name"),
        Option("slots", int, 2, "segments at once", 1, 64),
        Option("threads", int, 1, "threads of one call", 1, 64),
        Option("speaker", int, None, "speaker of a voice that has several", 0, 10_000),
        Option("models_dir", str, None, "where catalogued weights lie"),
    )

    def __init__(self, **options: Any) -> None:
        self._options = parse(self.name, self.OPTIONS, options)
        self._voice: Any = None
        self._rate = 0

    async def load(self, report: Report) -> EngineInfo:
        stages = Stages(report)
        stages.at("locate", self._options["voice"])
        model = self._locate()
        config = _config(model, stages)
        stages.at("weights", model.name, 0, 1)
        self._voice = await asyncio.to_thread(self._open, model, config)
        self._rate = int(config["audio"]["sample_rate"])
        stages.at("weights", model.name, 1, 1)
        stages.at("allocate", f"{self._options['slots']} threads")
        self.start_threads(self._options["slots"])
        stages.at("warm_up", "one word")
        await asyncio.to_thread(self._say, "Ready.", 1.0)
        stages.at("ready", model.stem)
        language = config.get("language") or {}
        return EngineInfo(
            model=model.stem,
            version=version("piper-tts"),
            slots=self._options["slots"],
            rate=self._rate,
            facts={
                "sample_rate": self._rate,
                "languages": [language.get("code") or config.get("espeak", {}).get("voice", "")],
                "voices": [model.stem],
                "speakers": int(config.get("num_speakers") or 1),
                "device": "cpu",
                "runtime_licence": "GPL-3.0-or-later",
            },
        )

    def _locate(self) -> Path:
        name: str = self._options["voice"]
        if name not in weights.CATALOGUE:
            return Path(name).expanduser()
        given = self._options["models_dir"]
        folder = weights.require(name, Path(given) if given else weights.default_dir({}))
        return folder / weights.get(name).files[0].name

    def _open(self, model: Path, config: Mapping[str, Any]) -> Any:
        import onnxruntime
        import piper

        logging.getLogger("piper").setLevel(logging.WARNING)  # at DEBUG it logs the text
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._options["threads"]
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return piper.PiperVoice(
            session=onnxruntime.InferenceSession(
                str(model), options, providers=["CPUExecutionProvider"]
            ),
            config=piper.config.PiperConfig.from_dict(dict(config)),
            download_dir=model.parent,
        )

    # ------------------------------------------------------------------ working

    async def open(self, params: Mapping[str, Any], resume: Resume) -> _Session:
        low, high = _SPEEDS
        return _Session(speed=min(high, max(low, float(params.get("speed") or 1.0))))

    def run(
        self, session: _Session, items: Sequence[InputItem], stopped: Callable[[], bool]
    ) -> Iterator[OutputEvent]:
        for item in items:
            if not isinstance(item, Text) or not item.text:
                continue
            unit = item.unit
            for text in pieces(item.text, _LIMIT, _LIMIT):
                if stopped():
                    return
                data = self._speak(text, session.speed)
                yield Audio(data=data, text=text, unit=unit, frames=len(data) // 2, seq=item.seq)
                unit += len(text)

    def _speak(self, text: str, speed: float) -> bytes:
        if not speakable(text):
            return pcm16(silence(pause_s(text), self._rate))
        return pcm16(shape(self._say(text, speed), text, self._rate, _GAIN))

    def _say(self, text: str, speed: float) -> Samples:
        import piper

        how = piper.config.SynthesisConfig(
            speaker_id=self._options["speaker"],
            length_scale=self._voice.config.length_scale / speed,
            normalize_audio=False,  # it would make a whisper as loud as a shout
        )
        text = "".join(char if char.isprintable() else " " for char in text)  # espeak is C
        parts = [chunk.audio_float_array for chunk in self._voice.synthesize(text, how)]
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    async def close(self, session: _Session) -> None:
        return None

    async def unload(self) -> None:
        self.stop_threads()
        self._voice = None


def _config(model: Path, stages: Stages) -> dict[str, Any]:
    path = model.with_name(f"{model.name}.json")
    try:
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
        kind = found.get("phoneme_type") or "espeak"
        rate = found["audio"]["sample_rate"]
    except OSError as exc:
        raise stages.failed(f"cannot read {path}: {exc.strerror}", path=str(path)) from exc
    except (ValueError, KeyError, TypeError) as exc:
        raise stages.failed(f"{path} is no Piper voice description", path=str(path)) from exc
    if not model.is_file():
        raise stages.failed(f"there is no {model}", path=str(model))
    if kind not in _PHONEMES:
        raise stages.failed(
            f"{model.stem} takes {kind} phonemes, expected one of {', '.join(sorted(_PHONEMES))}"
        )
    if not isinstance(rate, int) or not 8000 <= rate <= 48_000:
        raise stages.failed(f"{path} says {rate} Hz, expected 8000 to 48000")
    return found
