"""Recognition from submit to the last event, in one process and in virtual time: the real
broker, real runners with the synthetic engine, and nothing between them but plain calls."""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import wave
from collections.abc import Mapping, Sequence
from typing import Any

from forebay.broker import Attachment, GatewayPush, WorkerSink
from forebay.broker.local import LocalBroker, Settings
from forebay.core.events import Consumed, End, Ended, Final, Heard, OutputEvent, Partial, Sound
from forebay.core.kinds import KINDS, Kind
from forebay.core.spec import JobSpec, LoadStage, WorkerInfo
from forebay.engines import Engine
from forebay.engines.synthetic_asr import SyntheticRecognition
from forebay.errors import Fenced
from forebay.worker.runner import Runner

POOL = "recognition/test"


def wav(pcm: bytes, rate: int = 16_000, channels: int = 1) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(pcm)
    return file.getvalue()


class Near:
    """`WorkerBroker` by plain calls. Once dead, nothing it says arrives."""

    def __init__(self, broker: LocalBroker, worker: str) -> None:
        self._broker = broker
        self._worker = worker
        self.dead = False
        self.holds: list[bool] = []

    async def connect(self, sink: WorkerSink) -> None:
        self._broker.worker_connect(self._worker, sink)

    def stage(self, worker: str, pools: Sequence[str], stage: LoadStage) -> None: ...

    def register(self, info: WorkerInfo) -> None:
        if not self.dead:
            self._broker.worker_register(info)

    def commit(
        self,
        job: str,
        attempt: int,
        events: Sequence[OutputEvent],
        consumed: Consumed,
        *,
        model_s: float = 0.0,
    ) -> None:
        if not self.dead:
            with contextlib.suppress(Fenced):
                self._broker.worker_commit(
                    self._worker, job, attempt, events, consumed, model_s=model_s
                )

    def park(self, job: str, attempt: int) -> None:
        if not self.dead:
            self._broker.worker_park(self._worker, job, attempt)

    def hold(self, held: bool) -> None:
        self.holds.append(held)

    def beat(self, worker: str, load: Mapping[str, Any]) -> None:
        if not self.dead:
            self._broker.worker_beat(worker, load)

    async def drained(self) -> None: ...

    async def close(self) -> None: ...


class World:
    def __init__(self, **rows: Any) -> None:
        self.broker = LocalBroker(Settings(), clock=asyncio.get_running_loop().time)
        self.pushed: list[GatewayPush] = []
        self.broker.open("g", self.pushed.append)
        self.broker.expect([POOL])
        self._names = (f"w{n}" for n in itertools.count(1))
        self._workers: dict[str, tuple[Near, asyncio.Task[None], asyncio.Task[None]]] = {}

    async def worker(
        self, engine: Engine | None = None, *, slots: int = 1, sessions: int = 9, **options: Any
    ) -> str:
        engine = engine or SyntheticRecognition(**options)
        name = next(self._names)
        near = Near(self.broker, name)
        info = await engine.load(lambda stage: None)
        worker = WorkerInfo(id=name, pools=[POOL], slots=slots, sessions=sessions)
        runner = Runner(near, engine, info, worker, KINDS[Kind.RECOGNITION])
        await near.connect(runner.sink)
        task = asyncio.create_task(runner.run())
        self._workers[name] = (near, task, asyncio.create_task(_beat(near, name)))
        await asyncio.sleep(0)
        return name

    async def kill(self, name: str) -> None:
        near, task, beat = self._workers.pop(name)
        near.dead = True
        for one in (task, beat):
            one.cancel()
        await asyncio.gather(task, beat, return_exceptions=True)
        self.broker.worker_gone(name, "killed")

    async def close(self) -> None:
        for name in list(self._workers):
            await self.kill(name)
        await self.broker.close()

    async def job(self, name: str = "j", **params: Any) -> Attachment:
        spec = JobSpec(id=name, kind=Kind.RECOGNITION, pool=POOL, params=params, detach_s=120)
        await self.broker.submit(spec, gateway="g")
        return await self.broker.attach(name, gateway="g", write=True)

    async def say(self, at: Attachment, *items: Sound | End) -> None:
        await self.broker.input_room(at.job)
        assert at.number is not None
        await self.broker.append(at.job, list(items), attachment=at.number)

    async def over(self, job: str = "j") -> Ended:
        while not (await self.broker.status(job)).ended_s:  # noqa: ASYNC110 - time is virtual
            await asyncio.sleep(0.05)
        last = (await self.events(job))[-1]
        assert isinstance(last, Ended)
        return last

    async def events(self, job: str = "j") -> list[OutputEvent]:
        events = await self.broker.read_after(job, 0, limit=100_000)
        assert [e.offset for e in events] == list(range(1, len(events) + 1))
        return events

    async def finals(self, job: str = "j") -> list[Final]:
        return [e for e in await self.events(job) if isinstance(e, Final)]

    async def heard(self, job: str = "j") -> list[Heard]:
        return [e for e in await self.events(job) if isinstance(e, Heard)]

    async def partials(self, job: str = "j") -> list[Partial]:
        return [e for e in await self.events(job) if isinstance(e, Partial)]


async def _beat(near: Near, name: str) -> None:
    while True:
        near.beat(name, {})
        await asyncio.sleep(0.25)
