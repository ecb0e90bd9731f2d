"""Notebooks without Python: numbered lines at a steady pace. For tests and load only.

A cell says what it prints: ``lines=100 every_ms=10``; what it leaves out comes from the
options. Any other text is passed over. Files are kept as the real engine keeps them.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from forebay.core.events import Cell, Display, FileOp, InputItem, OutputEvent, Result
from forebay.core.kinds import Kind
from forebay.core.notebook import folder_of
from forebay.engines import EngineInfo, Report, Resume
from forebay.engines.chance import COMMON, Chance, Clock, ready, strike
from forebay.engines.notebook_files import Files, file_result
from forebay.engines.options import Option, parse

__all__ = ["SyntheticKernels"]

_SAID = re.compile(r"(lines|every_ms)=(\d{1,7})")
DISK_BYTES = 64 * 1024 * 1024


class SyntheticKernels:
    """``line N`` for every line a cell asks for."""

    name = "synthetic"
    kind = Kind.KERNEL
    OPTIONS = (
        Option("lines", int, 10, "lines of a cell that says no number", 0, 1_000_000),
        Option("every_ms", float, 0.0, "time between two lines", 0, 60_000),
        Option("dir", str, None, "folder of all notebooks' files"),
        *COMMON,
    )

    def __init__(self, **options: Any) -> None:
        values = parse(self.name, self.OPTIONS, options)
        self._values = values
        self._chance = Chance(values)
        self._root = Path(values["dir"] or "notebooks").absolute()
        self._stops: dict[str, asyncio.Event] = {}
        self._counts: dict[str, int] = {}
        self.keeps: Callable[[str, bool], None] = lambda affinity, held: None

    async def load(self, report: Report) -> EngineInfo:
        ready(report)
        return EngineInfo(
            model="synthetic",
            version="1",
            slots=self._values["slots"],
            synthetic=True,
            capabilities=frozenset({"abortable"}),
            facts={"language": "lines"},
        )

    async def open(self, params: Mapping[str, Any], resume: Resume) -> str:
        return str(params.get("affinity", ""))

    async def step(self, session: str, items: Sequence[InputItem]) -> AsyncIterator[OutputEvent]:
        for item in items:
            if isinstance(item, FileOp):
                files = Files(self._root / folder_of(session), DISK_BYTES)
                yield await asyncio.to_thread(file_result, files, item)
            elif isinstance(item, Cell):
                async for event in self._print(session, item.code):
                    yield event

    async def _print(self, notebook: str, code: str) -> AsyncIterator[OutputEvent]:
        said = {name: float(value) for name, value in _SAID.findall(code)}
        lines = int(said.get("lines", self._values["lines"]))
        every_s = said.get("every_ms", self._values["every_ms"]) / 1000
        stop = self._stops[notebook] = asyncio.Event()
        self._counts[notebook] = self._counts.get(notebook, 0) + 1
        plan = self._chance.plan(lines)
        clock = Clock()
        await clock.wait(self._chance.vary(self._values["latency_ms"] / 1000))
        for index in range(lines):
            strike(index, plan)
            await clock.wait(self._chance.vary(every_s))
            if stop.is_set():
                break
            text = f"line {index + 1}\n"
            yield Display(what="stream", name="stdout", data={"text/plain": text})
        status = "interrupted" if stop.is_set() else "ok"
        yield Result(value={"status": status, "execution_count": self._counts[notebook]})

    async def control(self, affinity: str, what: str, args: Mapping[str, Any]) -> None:
        if affinity in self._stops:
            self._stops[affinity].set()
        if what == "shutdown":
            self._forget(affinity)

    async def close(self, session: str) -> None:
        if session not in self._counts:
            self.keeps(session, False)

    async def unload(self) -> None:
        for affinity in list(self._counts):
            self._forget(affinity)

    def _forget(self, affinity: str) -> None:
        self._stops.pop(affinity, None)
        self._counts.pop(affinity, None)
        self.keeps(affinity, False)
