"""A recogniser that is no model: it reads the words that `core.tones` has put into the sound.

What it says is a function of the sound alone, so a lost, doubled or damaged piece shows in
the words. It holds its slot by waiting ``rtf`` times the length of the sound, as a model on
an accelerator does; timers that fire late are made up for in the next waits, so that the
capacity of a slot is what the option says.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from forebay.core.events import Final, InputItem, OutputEvent, Partial, Sound
from forebay.core.kinds import Kind
from forebay.core.tones import RATE, Reader, Word
from forebay.engines import EngineInfo, Report, Resume
from forebay.engines.chance import COMMON, Chance, ready, strike
from forebay.engines.options import Option, parse

__all__ = ["SyntheticRecognition"]

Events = Sequence[OutputEvent] | Exception

_LATE_S = 0.02  # what one late timer may give back to later waits


@dataclass(slots=True)
class _Session:
    partials: bool
    reader: Reader = field(default_factory=Reader)
    open: list[Word] = field(default_factory=list)


class SyntheticRecognition:
    """Finals of ``words`` words each, and after every step a partial of what is open."""

    name = "synthetic"
    kind = Kind.RECOGNITION
    OPTIONS = (
        Option("rtf", float, 0.1, "seconds of waiting per second of audio", 0, 1000),
        Option("words", int, 10, "words in a final; one word is 0.1 s", 1, 1000),
        Option("partials", bool, True, "whether unfinished text is told"),
        Option("slots", int, 1, "steps at once", 1, 10_000),
        *(option for option in COMMON if option.name != "slots"),
    )

    def __init__(self, **options: Any) -> None:
        values = parse(self.name, self.OPTIONS, options)
        self._rtf: float = values["rtf"]
        self._latency_s: float = values["latency_ms"] / 1000
        self._words: int = values["words"]
        self._partials: bool = values["partials"]
        self._slots: int = values["slots"]
        self._chance = Chance(values)
        self._late_s = 0.0

    async def load(self, report: Report) -> EngineInfo:
        ready(report)
        return EngineInfo(
            model="synthetic",
            version="1",
            slots=self._slots,
            synthetic=True,
            capabilities=frozenset({"abortable"}),
            facts={"rtf": self._rtf, "languages": ["any"], "partials": self._partials},
        )

    async def open(self, params: Mapping[str, Any], resume: Resume) -> _Session:
        return _Session(self._partials and params.get("partials") is not False)

    async def step(
        self, session: _Session, items: Sequence[InputItem]
    ) -> AsyncIterator[OutputEvent]:
        loop = asyncio.get_running_loop()
        over: asyncio.Future[Events] = loop.create_future()
        stop = self.begin(session, items, partial(_settle, over))
        try:
            events = await over
        finally:
            stop()
        if isinstance(events, Exception):
            raise events
        for event in events:
            yield event

    def begin(
        self, session: _Session, items: Sequence[InputItem], done: Callable[[Events], None]
    ) -> Callable[[], None]:
        """See `forebay.engines`, recognition."""
        data, last = b"", False
        for item in items:
            if isinstance(item, Sound):
                data = data + item.data if data else item.data
            else:
                last = True
        plan = self._chance.plan(1)
        seconds = self._latency_s + self._rtf * len(data) / 2 / RATE
        seconds = self._chance.vary(seconds) - self._late_s
        if seconds <= 0:
            self._late_s = -seconds
            self._over(session, data, last, plan, done, None)
            return _nothing
        self._late_s = 0.0
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        timer = loop.call_later(seconds, self._over, session, data, last, plan, done, due)
        return timer.cancel

    def _over(
        self,
        session: _Session,
        data: bytes,
        last: bool,
        plan: tuple[int | None, int | None],
        done: Callable[[Events], None],
        due: float | None,
    ) -> None:
        """The wait is over that was to end at ``due``."""
        if due is not None:
            late_s = min(asyncio.get_running_loop().time() - due, _LATE_S)
            self._late_s = min(self._late_s + max(0.0, late_s), _LATE_S * self._slots)
        try:
            strike(0, plan)
            events = self._hear(session, data, last)
        except Exception as exc:  # noqa: BLE001 - carried to whoever began the step
            done(exc)
        else:
            done(events)

    def _hear(self, session: _Session, data: bytes, last: bool) -> list[OutputEvent]:
        words = session.open
        words += session.reader.feed(data)
        found: list[OutputEvent] = []
        while len(words) >= self._words:
            found.append(_final(words[: self._words]))
            del words[: self._words]
        if last and words:
            found.append(_final(words))
            words.clear()
        if not words:  # silence is done with at once
            found.append(Final(text="", start=session.reader.at, end=session.reader.at))
        elif session.partials:
            found.append(Partial(text=_text(words), start=words[0].start, end=words[-1].end))
        return found

    async def close(self, session: _Session) -> None:
        return None

    async def unload(self) -> None:
        return None


def _settle(future: asyncio.Future[Events], events: Events) -> None:
    if not future.done():
        future.set_result(events)


def _nothing() -> None:
    """The step is over: there is nothing to stop."""


def _text(words: Sequence[Word]) -> str:
    return " ".join(word.text for word in words)


def _final(words: Sequence[Word]) -> Final:
    return Final(text=_text(words), start=words[0].start, end=words[-1].end)
