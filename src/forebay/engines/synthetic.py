"""Engines that are no models: for tests, load and fault drills, and labelled so everywhere.

`SyntheticSpeech` speaks a 440 Hz tone, `SyntheticText` repeats the prompt's own words with
running numbers. Both hold their slot by *waiting* (latency, then a time for each piece), as
a job on an accelerator does, so thousands of them cost no processor. With ``rtf=0`` and
``latency_ms=0`` they never wait at all.

What they say is a function of the input alone: a unit sounds the same in every attempt,
whichever way the text was cut, and a word carries its number, so a loss or a doubling
shows. Chance (jitter, faults) comes from ``seed`` only; without one each process differs.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from forebay.core.events import Audio, InputItem, OutputEvent, Prompt, Text, TextDelta, Usage
from forebay.core.kinds import Kind
from forebay.engines import EngineInfo, Report, Resume
from forebay.engines.chance import COMMON, Chance, Clock, ready, strike
from forebay.engines.options import Option, parse
from forebay.errors import EngineFailed, PromptTooLong

__all__ = ["SyntheticSpeech", "SyntheticText"]

TONE_HZ = 440
AMPLITUDE = 8000  # of 32767: audible, far from clipping


class SyntheticSpeech:
    """A tone of ``unit_ms`` for every unit, in pieces of at most ``piece_ms``."""

    name = "synthetic"
    kind = Kind.SPEECH
    OPTIONS = (
        Option("rtf", float, 0.1, "seconds of waiting per second of audio", 0, 1000),
        Option("unit_ms", float, 40.0, "length of the tone for one unit", 1, 10_000),
        Option("rate", int, 16_000, "sample rate in Hz", 8000, 48_000),
        Option("piece_ms", float, 1000.0, "longest piece of audio yielded at once", 1, 60_000),
        *COMMON,
    )

    def __init__(self, **options: Any) -> None:
        values = parse(self.name, self.OPTIONS, options)
        self._rtf: float = values["rtf"]
        self._latency_s: float = values["latency_ms"] / 1000
        self._unit_s: float = values["unit_ms"] / 1000
        self._rate: int = values["rate"]
        self._slots: int = values["slots"]
        self._piece_units = max(1, int(values["piece_ms"] / values["unit_ms"]))
        self._chance = Chance(values)
        self._tone = b""

    async def load(self, report: Report) -> EngineInfo:
        # One second holds a whole number of periods; the rest lets any piece be one slice.
        frames = self._rate + self._frame(self._piece_units) + 2
        step = 2 * math.pi * TONE_HZ / self._rate
        wave = array("h", (round(AMPLITUDE * math.sin(step * i)) for i in range(frames)))
        self._tone = wave.tobytes()
        ready(report)
        return EngineInfo(
            model="synthetic",
            version="1",
            slots=self._slots,
            rate=self._rate,
            synthetic=True,
            capabilities=frozenset({"abortable"}),
            facts={
                "sample_rate": self._rate,
                "unit_ms": self._unit_s * 1000,
                "rtf": self._rtf,
                "voices": ["tone"],
                "languages": ["any"],
            },
        )

    async def open(self, params: Mapping[str, Any], resume: Resume) -> None:
        return None

    async def step(self, session: None, items: Sequence[InputItem]) -> AsyncIterator[OutputEvent]:
        segments = [item for item in items if isinstance(item, Text) and item.text]
        pieces = [piece for segment in segments for piece in self._cut(segment)]
        plan = self._chance.plan(len(pieces))
        clock = Clock()
        await clock.wait(self._chance.vary(self._latency_s))
        for index, piece in enumerate(pieces):
            strike(index, plan)
            await clock.wait(self._chance.vary(self._rtf * piece.frames / self._rate))
            yield piece

    async def close(self, session: None) -> None:
        return None

    async def unload(self) -> None:
        return None

    def _frame(self, unit: int) -> int:
        """Where ``unit`` begins, in sample frames since unit 0."""
        return round(unit * self._unit_s * self._rate)

    def _cut(self, segment: Text) -> list[Audio]:
        size = self._piece_units
        found = []
        for start in range(0, len(segment.text), size):
            text = segment.text[start : start + size]
            unit = segment.unit + start
            begin = self._frame(unit)
            frames = self._frame(unit + len(text)) - begin
            at = begin % self._rate  # the tone goes on in phase from unit to unit
            data = self._tone[2 * at : 2 * (at + frames)]
            found.append(Audio(data=data, text=text, unit=unit, frames=frames, seq=segment.seq))
        return found


@dataclass(frozen=True, slots=True)
class _Answer:
    """What one text job asked for."""

    limit: int
    stops: tuple[str, ...]
    prefix: str


class SyntheticText:
    """The words of the newest user message over and over, each with its running number.

    "say hello" is answered ``say1 hello2 say3 hello4 ...``, one word a token.
    """

    name = "synthetic"
    kind = Kind.TEXT
    OPTIONS = (
        Option("tokens", int, 64, "words in an answer", 0, 1_000_000),
        Option("token_ms", float, 10.0, "time between two words", 0, 60_000),
        Option("rtf", float, 1.0, "multiplies token_ms; 0 never waits", 0, 1000),
        Option("context", int, 4096, "longest prompt, in words", 1, 10_000_000),
        *COMMON,
    )

    def __init__(self, **options: Any) -> None:
        values = parse(self.name, self.OPTIONS, options)
        self._tokens: int = values["tokens"]
        self._token_s: float = values["token_ms"] / 1000 * values["rtf"]
        self._latency_s: float = values["latency_ms"] / 1000
        self._context: int = values["context"]
        self._slots: int = values["slots"]
        self._chance = Chance(values)

    async def load(self, report: Report) -> EngineInfo:
        ready(report)
        return EngineInfo(
            model="synthetic",
            version="1",
            slots=self._slots,
            synthetic=True,
            capabilities=frozenset({"abortable", "prefix"}),
            facts={"context": self._context, "languages": ["any"]},
        )

    async def open(self, params: Mapping[str, Any], resume: Resume) -> _Answer:
        limit = params.get("max_tokens")
        stops = params.get("stop") or ()
        return _Answer(
            limit=self._tokens if limit is None else min(self._tokens, limit),
            stops=(stops,) if isinstance(stops, str) else tuple(stops),
            prefix=resume.text,
        )

    async def step(
        self, session: _Answer, items: Sequence[InputItem]
    ) -> AsyncIterator[OutputEvent]:
        words, prompt_tokens = self._prompt(items)
        done, skip = _position(words, session.prefix)
        todo, stopped = _until_stop(words, done, session)
        plan = self._chance.plan(len(todo))
        clock = Clock()
        await clock.wait(self._chance.vary(self._latency_s))
        for index, text in enumerate(todo):
            strike(index, plan)
            await clock.wait(self._chance.vary(self._token_s))
            fresh = text[skip:] if index == 0 else text
            if fresh:
                yield TextDelta(text=fresh)
        total = done + len(todo)
        cut = not stopped and session.limit < self._tokens
        yield Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=total,
            finish="length" if cut else "stop",
        )

    async def close(self, session: _Answer) -> None:
        return None

    async def unload(self) -> None:
        return None

    def _prompt(self, items: Sequence[InputItem]) -> tuple[list[str], int]:
        prompt = next((item for item in items if isinstance(item, Prompt)), None)
        messages = prompt.messages if prompt else []
        tokens = sum(len(_content(message).split()) for message in messages)
        if tokens > self._context:
            raise PromptTooLong(
                f"prompt has {tokens} tokens, expected no more than {self._context}",
                tokens=tokens,
                limit=self._context,
            )
        asked = [_content(m) for m in messages if m.get("role") == "user"]
        return (asked[-1].split() if asked else []) or ["word"], tokens


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return " ".join(str(part.get("text", "")) for part in content)


def _token(words: Sequence[str], index: int) -> str:
    word = f"{words[index % len(words)]}{index + 1}"
    return word if index == 0 else f" {word}"


def _position(words: Sequence[str], prefix: str) -> tuple[int, int]:
    """Tokens wholly inside ``prefix``, and characters of the next one it also holds."""
    at = index = 0
    while True:
        token = _token(words, index)
        rest = prefix[at : at + len(token)]
        if not token.startswith(rest):
            raise EngineFailed(f"cannot continue: the prefix differs after character {at}", at=at)
        if len(rest) < len(token):
            return index, len(rest)
        at += len(token)
        index += 1


def _until_stop(words: Sequence[str], done: int, answer: _Answer) -> tuple[list[str], bool]:
    """The tokens still to be said, and whether a stop string ends them.

    Stop strings are looked for in the whole answer, so they match across a seam too.
    """
    todo = [_token(words, index) for index in range(done, answer.limit)]
    start = sum(len(_token(words, index)) for index in range(done))
    whole = answer.prefix[:start] + "".join(todo)
    ends = [at for at in (whole.find(stop) for stop in answer.stops if stop) if at >= 0]
    if not ends:
        return todo, False
    kept, end = [], max(start, min(ends))
    for token in todo:
        if start >= end:
            break
        kept.append(token[: end - start])
        start += len(token)
    return kept, True
