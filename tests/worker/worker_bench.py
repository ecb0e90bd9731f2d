"""A broker in memory and an engine that does as it is told, for tests of the runner."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from forebay.broker import Assign, CancelJob, Credit, InputPush, WorkerSink
from forebay.core.events import Audio, Consumed, Ended, Text, TextDelta, Usage, size_of
from forebay.core.kinds import KINDS, Kind
from forebay.core.spec import JobSpec, Lease, LoadStage, WorkerInfo
from forebay.engines import EngineInfo, Resume
from forebay.worker.runner import Runner

RATE = 16_000
UNIT_FRAMES = 640  # 40 ms


@dataclass
class Written:
    job: str
    attempt: int
    event: Any
    consumed: Consumed
    model_s: float
    at_s: float


@dataclass
class MemoryBroker:
    """Records what a worker writes, and checks the numbering and the byte credit."""

    sink: WorkerSink | None = None
    registered: list[WorkerInfo] = field(default_factory=list)
    written: list[Written] = field(default_factory=list)
    parked: list[tuple[str, int]] = field(default_factory=list)
    stages: list[LoadStage] = field(default_factory=list)
    heads: dict[str, int] = field(default_factory=dict)
    credit: dict[tuple[str, int], int] = field(default_factory=dict)
    refill: bool = True

    async def connect(self, sink: WorkerSink) -> None:
        self.sink = sink

    def stage(self, worker: str, pools: Sequence[str], stage: LoadStage) -> None:
        self.stages.append(stage)

    def register(self, info: WorkerInfo) -> None:
        self.registered.append(info)

    def commit(
        self,
        job: str,
        attempt: int,
        events: Sequence[Any],
        consumed: Consumed,
        *,
        model_s: float = 0.0,
    ) -> None:
        now = asyncio.get_running_loop().time()
        for event in events:
            assert event.offset == self.heads.get(job, 0) + 1, "gap or repeat in offsets"
            self.heads[job] = event.offset
            self.credit[job, attempt] -= size_of(event)
            assert self.credit[job, attempt] >= 0, "wrote past the byte credit"
            self.written.append(Written(job, attempt, event, consumed, model_s, now))
            if self.refill and not isinstance(event, Ended):
                asyncio.get_running_loop().call_soon(self.grant, job, attempt, size_of(event))

    def grant(self, job: str, attempt: int, add: int) -> None:
        self.credit[job, attempt] += add
        self.push(Credit(job=job, attempt=attempt, add=add))

    def park(self, job: str, attempt: int) -> None:
        self.parked.append((job, attempt))

    def hold(self, held: bool) -> None: ...

    def beat(self, worker: str, load: Any) -> None: ...

    async def drained(self) -> None: ...

    async def close(self) -> None: ...

    # ------------------------------------------------------------ what tests do

    def push(self, push: Any) -> None:
        assert self.sink is not None
        self.sink(push)

    def assign(self, job: str, *, kind: Kind = Kind.SPEECH, **lease: Any) -> Lease:
        spec = JobSpec(
            id=job,
            kind=kind,
            pool=f"{kind}/test",
            params=lease.pop("params", {"sample_rate": RATE, "channels": 1}),
            tenant=lease.pop("tenant", "local"),
        )
        made = Lease(spec=spec, attempt=lease.pop("attempt", 1), **lease)
        self.heads.setdefault(job, made.last_offset)
        self.credit[job, made.attempt] = made.credit_bytes
        self.push(Assign(lease=made))
        return made

    def feed(self, job: str, *items: Any, attempt: int = 1) -> None:
        self.push(InputPush(job=job, attempt=attempt, items=list(items)))

    def cancel(self, job: str, attempt: int = 1) -> None:
        self.push(CancelJob(job=job, attempt=attempt, ended=Ended(state="cancelled")))

    def events(self, job: str) -> list[Any]:
        return [w.event for w in self.written if w.job == job]

    def spoken(self, job: str) -> str:
        return "".join(e.text for e in self.events(job) if isinstance(e, Audio))

    def ended(self, job: str) -> Ended | None:
        last = self.events(job)[-1:]
        return last[0] if last and isinstance(last[0], Ended) else None


Step = Callable[[Any, Sequence[Any]], AsyncIterator[Any]]


class ScriptEngine:
    """Speaks 40 ms of silence a unit, or repeats text; ``step_s`` of waiting a piece."""

    name = "script"

    def __init__(
        self,
        kind: Kind = Kind.SPEECH,
        *,
        step_s: float = 0.0,
        piece_units: int = 10_000,
        script: Step | None = None,
    ) -> None:
        self.kind = kind
        self.step_s = step_s
        self.piece_units = piece_units
        self.script = script
        self.inside = 0
        self.most_inside = 0
        self.order: list[Any] = []
        self.opened: list[Resume] = []
        self.closed = 0
        self.left_at_s: list[float] = []

    async def load(self, report: Callable[[LoadStage], None]) -> EngineInfo:
        return EngineInfo(model="test", slots=1, rate=RATE)

    async def open(self, params: Any, resume: Resume) -> Any:
        self.opened.append(resume)
        return params.get("who", "")

    async def step(self, session: Any, items: Sequence[Any]) -> AsyncIterator[Any]:
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        self.order.append(session)
        try:
            make = self.script or (self._speak if self.kind is Kind.SPEECH else self._write)
            async for event in make(session, items):
                yield event
        finally:
            self.inside -= 1
            self.left_at_s.append(asyncio.get_running_loop().time())

    async def _speak(self, session: Any, items: Sequence[Any]) -> AsyncIterator[Any]:
        segment = items[0]
        for start in range(0, len(segment.text), self.piece_units):
            await asyncio.sleep(self.step_s)
            yield speech(segment, start, self.piece_units)

    async def _write(self, session: Any, items: Sequence[Any]) -> AsyncIterator[Any]:
        for word in ("one ", "two ", "three"):
            await asyncio.sleep(self.step_s)
            yield TextDelta(text=word)
        yield Usage(prompt_tokens=1, completion_tokens=3)

    async def close(self, session: Any) -> None:
        self.closed += 1

    async def unload(self) -> None: ...


def speech(segment: Text, start: int = 0, units: int = 10_000) -> Audio:
    text = segment.text[start : start + units]
    frames = UNIT_FRAMES * len(text)
    return Audio(data=bytes(2 * frames), text=text, unit=segment.unit + start, frames=frames)


@asynccontextmanager
async def running(engine: ScriptEngine, *, slots: int = 1, **options: Any) -> AsyncIterator[Any]:
    """A runner at work with a `MemoryBroker`; yields (broker, runner)."""
    broker = MemoryBroker(**options)
    kind = engine.kind
    info = await engine.load(lambda stage: None)
    worker = WorkerInfo(id="w1", pools=[f"{kind}/test"], slots=slots, sessions=100)
    runner = Runner(broker, engine, info, worker, KINDS[kind])
    await broker.connect(runner.sink)
    task = asyncio.create_task(runner.run())
    await asyncio.sleep(0)
    try:
        yield broker, runner
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def passes(seconds: float) -> None:
    await asyncio.sleep(seconds)


def text(words: str, *, offset: int = 1, unit: int = 0, seq: int = 0) -> Text:
    return Text(text=words, unit=unit, seq=seq, offset=offset)
