"""Small drivers for engines: load, run one step, collect what it yields."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from forebay.core.events import Audio, InputItem, OutputEvent, Prompt, Text, TextDelta, Usage
from forebay.core.spec import LoadStage
from forebay.engines import Engine, EngineInfo, Resume, weights

__all__ = ["Loaded", "ask", "load", "need", "run", "said", "say", "spoken", "usage"]


class Loaded:
    def __init__(self, engine: Engine, info: EngineInfo, stages: list[LoadStage]) -> None:
        self.engine, self.info, self.stages = engine, info, stages


async def load(engine: Engine) -> Loaded:
    stages: list[LoadStage] = []
    info = await engine.load(stages.append)
    return Loaded(engine, info, stages)


async def run(
    engine: Engine,
    items: Sequence[InputItem],
    params: Mapping[str, Any] | None = None,
    resume: Resume | None = None,
) -> list[OutputEvent]:
    session = await engine.open(params or {}, resume or Resume())
    try:
        return [event async for event in engine.step(session, items)]
    finally:
        await engine.close(session)


def ask(text: str, system: str | None = None) -> list[InputItem]:
    head = [{"role": "system", "content": system}] if system else []
    return [Prompt(messages=[*head, {"role": "user", "content": text}])]


def say(text: str, unit: int = 0, seq: int = 0) -> list[InputItem]:
    return [Text(text=text, unit=unit, seq=seq)]


def said(events: Sequence[OutputEvent]) -> str:
    return "".join(e.text for e in events if isinstance(e, TextDelta))


def usage(events: Sequence[OutputEvent]) -> Usage:
    (found,) = [e for e in events if isinstance(e, Usage)]
    assert events[-1] is found
    return found


def spoken(events: Sequence[OutputEvent], text: str, unit: int = 0) -> bytes:
    """The audio, after checking that its units are those of ``text``, each exactly once."""
    pieces = [e for e in events if isinstance(e, Audio)]
    assert "".join(p.text for p in pieces) == text
    for piece in pieces:
        assert piece.unit == unit
        assert len(piece.data) == 2 * piece.frames
        unit += len(piece.text)
    return b"".join(p.data for p in pieces)


def need(name: str, models: Path, *modules: str) -> None:
    """Skip, with the command that would help, unless the weights and modules are there.

    With ``FOREBAY_TEST_MODELS`` set (as in CI after ``make models``) absence is a failure.
    """
    lacking = [m for m in modules if importlib.util.find_spec(m) is None]
    if not lacking and weights.locate(name, models) is not None:
        return
    reason = f"needs {', '.join(lacking) or name}: run make models"
    if os.environ.get("FOREBAY_TEST_MODELS"):
        pytest.fail(reason)
    pytest.skip(reason)
