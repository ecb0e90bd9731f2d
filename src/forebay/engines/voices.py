"""Real voices: hibari for English, Kokoro for Mandarin, chosen for each stretch of text.

Both speak at 24 kHz and are brought to one loudness, so a sentence may change language.
hibari answers in milliseconds; Kokoro needs about as long as the audio lasts, so Chinese is
spoken clause by clause (see `kokoro`). Neither call can be stopped inside: cancel takes
effect between pieces.

Without Kokoro's packages and weights English works alone, and Chinese is refused with the
command that installs it. Text mostly in another script is refused by name; single letters
of one are passed over. Text with nothing to say in it becomes a short silence.

hibari can download further voices by itself; this engine never lets it: a voice is the one
in the package, or one that is already in hibari's own cache.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from forebay.core.events import Audio, InputItem, OutputEvent, Text
from forebay.core.kinds import Kind
from forebay.engines import EngineInfo, Report, Resume, ThreadedEngine, weights
from forebay.engines import kokoro as zh
from forebay.engines.options import Option, parse
from forebay.engines.script import foreign, pieces, runs, speakable
from forebay.engines.sound import pause_s, pcm16, shape, silence
from forebay.engines.stages import Stages
from forebay.errors import Unsupported

__all__ = ["Voices"]

RATE = 24_000
INSTALL_ZH = "pip install 'forebay[tts-zh]' && forebay models fetch kokoro-zh"
if sys.version_info >= (3, 13):  # misaki, which reads Chinese, allows no newer one
    INSTALL_ZH += "  # with Python 3.11 or 3.12"

_ZH_MODULES = ("onnxruntime", "misaki", "pypinyin", "jieba", "cn2an")
_EN_GAIN, _ZH_GAIN = 2.0, 0.65  # both to about 0.088 RMS: measured on the test sentences
_PIECE_WISH, _PIECE_LIMIT = 10, 40  # characters of Chinese in one call
_EN_LIMIT = 400
_G2P_ERRORS = (ValueError, KeyError, IndexError, AssertionError, TypeError)
_SPEEDS = (0.5, 2.0)
# Names that OpenAI clients send by habit; here each means "the default voice".
_ANY_VOICE = frozenset(
    ("", "default", "auto", "alloy", "ash", "ballad", "coral", "echo", "fable", "nova")
    + ("onyx", "sage", "shimmer", "verse", "marin", "cedar")
)


@dataclass(slots=True)
class _Session:
    """What one job asked for, and the language its digits are read in."""

    zh_voice: str
    speed: float
    language: str


class Voices(ThreadedEngine):
    name = "voices"
    kind = Kind.SPEECH
    OPTIONS = (
        Option("slots", int, 4, "segments at once", 1, 64),
        Option("threads", int, 1, "threads of one hibari call", 1, 64),
        Option("zh", str, "auto", "Chinese voice", choices=("auto", "yes", "no")),
        Option("zh_threads", int, None, "threads of one Kokoro call; unset: up to 4", 1, 64),
        Option("zh_lanes", int, 1, "Kokoro calls at once", 1, 64),
        Option("en_voice", str, "heart", "hibari voice, present on this machine"),
        Option("zh_voice", str, zh.VOICES[0], "Kokoro voice", choices=zh.VOICES),
        Option("models_dir", str, None, "where catalogued weights lie"),
    )

    def __init__(self, **options: Any) -> None:
        self._options = parse(self.name, self.OPTIONS, options)
        self._en: Any = None
        self._zh: zh.Kokoro | None = None

    # ------------------------------------------------------------------ loading

    async def load(self, report: Report) -> EngineInfo:
        stages = Stages(report)
        stages.at("locate", "hibari")
        model = self._en_model(stages)
        folder = self._zh_folder(stages)
        total = 1 if folder is None else 2
        stages.at("weights", model.name, 0, total)
        self._en = await asyncio.to_thread(self._load_en, model)
        if folder is not None:
            stages.at("weights", "kokoro-v1.0.int8.onnx", 1, total)
            self._zh = await asyncio.to_thread(self._load_zh, folder)
        stages.at("weights", "", total, total)
        stages.at("allocate", f"{self._options['slots']} threads")
        self.start_threads(self._options["slots"])
        stages.at("warm_up", "one word in each language")
        await asyncio.to_thread(self._warm)
        stages.at("ready", "hibari" if self._zh is None else "hibari, kokoro")
        return self._describe()

    def _en_model(self, stages: Stages) -> Path:
        from hibari.voices import VOICES, voice_path

        voice: str = self._options["en_voice"]
        if voice not in VOICES:
            raise stages.failed(
                f"hibari has no voice {voice!r}, expected one of {', '.join(VOICES)}"
            )
        try:
            return Path(voice_path(voice, download_missing=False))
        except FileNotFoundError as exc:
            raise stages.failed(
                f"the hibari voice {voice!r} is not at {exc}, put it there or use 'heart'"
            ) from exc

    def _zh_folder(self, stages: Stages) -> Path | None:
        if self._options["zh"] == "no":
            return None
        given = self._options["models_dir"]
        models = Path(given) if given else weights.default_dir({})
        lacking = [m for m in _ZH_MODULES if importlib.util.find_spec(m) is None]
        folder = None if lacking else weights.locate("kokoro-zh", models)
        if folder is None and self._options["zh"] == "yes":
            what = f"packages {', '.join(lacking)}" if lacking else f"kokoro-zh in {models}"
            raise stages.failed(
                f"the Chinese voice lacks {what}, run: {INSTALL_ZH}", install=INSTALL_ZH
            )
        return folder

    def _load_en(self, model: Path) -> Any:
        from hibari import Hibari

        return Hibari(
            voice=self._options["en_voice"], model=str(model), threads=self._options["threads"]
        )

    def _load_zh(self, folder: Path) -> zh.Kokoro:
        return zh.Kokoro(
            folder,
            threads=self._options["zh_threads"] or min(4, os.cpu_count() or 1),
            lanes=self._options["zh_lanes"],
            english=lambda phrase: " ".join(self._en.phonemize(self._plain(phrase))),
        )

    def _warm(self) -> None:
        self._en("Ready.", seed=0)
        if self._zh is not None:
            self._zh.speak("好。", zh.VOICES[0], 1.0, lambda: False)

    def _describe(self) -> EngineInfo:
        both = self._zh is not None
        return EngineInfo(
            model="hibari+kokoro" if both else "hibari",
            version=version("hibari-tts"),
            slots=self._options["slots"],
            rate=RATE,
            facts={
                "sample_rate": RATE,
                "languages": ["en", "zh"] if both else ["en"],
                "voices": [self._options["en_voice"], *(zh.VOICES if both else ())],
                "default_voices": {
                    "en": self._options["en_voice"],
                    **({"zh": self._options["zh_voice"]} if both else {}),
                },
                "missing": {} if both else {"zh": INSTALL_ZH},
                "other_scripts": "refused when most of a segment, else passed over",
                "real_time": {"en": "about 100x", **({"zh": "about 1x"} if both else {})},
                "device": "cpu",
                "licence": "Apache-2.0",
            },
        )

    # ------------------------------------------------------------------ working

    async def open(self, params: Mapping[str, Any], resume: Resume) -> _Session:
        voice = params.get("voice") or ""
        known = {self._options["en_voice"], *(zh.VOICES if self._zh else ())}
        if voice not in known and voice.lower() not in _ANY_VOICE:
            raise Unsupported(
                f"no voice is called {voice[:40]!r}, expected one of {', '.join(sorted(known))}"
            )
        low, high = _SPEEDS
        return _Session(
            zh_voice=voice if voice in zh.VOICES else self._options["zh_voice"],
            speed=min(high, max(low, float(params.get("speed") or 1.0))),
            language="zh" if str(params.get("language") or "").lower().startswith("zh") else "en",
        )

    def run(
        self, session: _Session, items: Sequence[InputItem], stopped: Callable[[], bool]
    ) -> Iterator[OutputEvent]:
        for item in items:
            if isinstance(item, Text) and item.text:
                yield from self._segment(session, item, stopped)

    def _segment(
        self, session: _Session, item: Text, stopped: Callable[[], bool]
    ) -> Iterator[OutputEvent]:
        script = foreign(item.text)
        if script:
            raise Unsupported(
                f"no voice here speaks {script} script, expected "
                f"{'Latin or Han' if self._zh else 'Latin'}",
                script=script,
            )
        unit = item.unit
        for run in runs(item.text, session.language):
            session.language = run.language
            wish = (_PIECE_WISH, _PIECE_LIMIT) if run.language == "zh" else (_EN_LIMIT, _EN_LIMIT)
            for text in pieces(run.text, *wish):
                if stopped():
                    return
                data = self._speak(session, run.language, text, unit, stopped)
                if data is None:
                    return
                yield Audio(data=data, text=text, unit=unit, frames=len(data) // 2, seq=item.seq)
                unit += len(text)

    def _speak(
        self,
        session: _Session,
        language: str,
        text: str,
        unit: int,
        stopped: Callable[[], bool],
    ) -> bytes | None:
        """PCM of ``text``, never empty; None when stopped before the model began."""
        if not speakable(text):
            return pcm16(silence(pause_s(text), RATE))
        if language == "en":
            # Seeded by position: a new attempt makes the very same sound.
            audio = self._en(self._plain(text), speed=session.speed, seed=unit)
            return pcm16(shape(audio, text, RATE, _EN_GAIN))
        if self._zh is None:
            raise Unsupported(
                f"the Chinese voice is not installed here, run: {INSTALL_ZH}", install=INSTALL_ZH
            )
        made = self._zh.speak(text, session.zh_voice, session.speed, stopped)
        return None if made is None else pcm16(shape(made, text, RATE, _ZH_GAIN))

    def _plain(self, text: str) -> str:
        """``text`` as hibari can read it. It fails on digits such as ² and ①, so they become
        plain ones; words it fails on even so are left out rather than failing the segment."""
        text = "".join(str(unicodedata.digit(c)) if c.isdigit() else c for c in text)
        if self._reads(text):
            return text
        return " ".join(word for word in text.split() if self._reads(word))

    def _reads(self, text: str) -> bool:
        try:
            self._en.phonemize(text)
        except _G2P_ERRORS:
            return False
        return True

    async def close(self, session: _Session) -> None:
        return None

    async def unload(self) -> None:
        self.stop_threads()
        self._en = self._zh = None
