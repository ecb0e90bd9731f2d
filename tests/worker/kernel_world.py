"""A broker, a runner and a kernel engine in one process, in real time."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from forebay.blobs import LocalBlobs
from forebay.broker import OutputPush
from forebay.broker.local import LocalBroker
from forebay.core.events import Cell, Display, Ended, FileOp, Notice, OutputEvent, Result
from forebay.core.kinds import KINDS, Kind
from forebay.core.spec import Deadlines, JobSpec, WorkerInfo
from forebay.engines import Engine
from forebay.engines.kernel import NotebookKernels
from forebay.engines.kernel_jail import probe
from forebay.worker.runner import Runner

JAIL, WHY_NO_JAIL = probe()
BOOK = "local/book"
WAIT_S = 60.0


class Port:
    """`WorkerBroker` by plain calls."""

    def __init__(self, broker: LocalBroker, worker: str) -> None:
        self._broker, self._worker = broker, worker

    def __getattr__(self, name: str) -> Callable[..., None]:
        call = getattr(self._broker, f"worker_{name}")
        return lambda *args, **more: call(*self._front(name), *args, **more)

    def _front(self, name: str) -> tuple[str, ...]:
        return () if name == "register" else (self._worker,)


class World:
    """`run` a cell, `op` on files, `control`; everything a gateway may do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.broker = LocalBroker()
        self.blobs = LocalBlobs(folder / "blobs")
        self.engine: Engine
        self._ids = itertools.count(1)
        self._seen: dict[str, list[OutputEvent]] = {}
        self._news = asyncio.Event()
        self.broker.open("g", self._take)

    def _take(self, push: Any) -> None:
        if isinstance(push, OutputPush):
            self._seen.setdefault(push.job, []).extend(push.events)
            self._news.set()

    async def serve(self, engine: Engine, tasks: contextlib.AsyncExitStack) -> None:
        self.engine = engine
        info = await engine.load(lambda stage: None)
        pool = f"kernel/{info.model}"
        worker = WorkerInfo(id="w", pools=[pool], slots=info.slots, sessions=info.slots)
        self.pool = pool
        port: Any = Port(self.broker, "w")
        runner = Runner(port, engine, info, worker, KINDS[Kind.KERNEL], blobs=self.blobs)
        self.broker.worker_connect("w", runner.sink)
        task = asyncio.create_task(runner.run())
        self.beats = asyncio.create_task(self._beat())

        async def stop() -> None:
            await self.broker.close()
            self.beats.cancel()
            task.cancel()
            await asyncio.gather(task, self.beats, return_exceptions=True)
            await engine.unload()

        tasks.push_async_callback(stop)
        await asyncio.sleep(0)

    async def _beat(self) -> None:
        while True:
            self.broker.worker_beat("w", {})
            await asyncio.sleep(0.25)

    async def submit(self, item: Any, *, book: str = BOOK, run_s: float = 300) -> str:
        spec = JobSpec(
            id=f"j{next(self._ids)}",
            kind=Kind.KERNEL,
            pool=self.pool,
            params={"affinity": book},
            affinity=book,
            beside=isinstance(item, FileOp),
            detach_s=600,
            deadlines=Deadlines(run_s=run_s),
        )
        await self.broker.submit(spec, [item], gateway="g")
        return spec.id

    async def until(self, job: str, what: Callable[[list[OutputEvent]], bool]) -> list[OutputEvent]:
        async with asyncio.timeout(WAIT_S):
            while not what(self._seen.get(job, [])):
                self._news.clear()
                await self._news.wait()
        return self._seen[job]

    async def ended(self, job: str) -> list[OutputEvent]:
        return await self.until(job, lambda seen: bool(seen) and isinstance(seen[-1], Ended))

    async def run(self, code: str, *, book: str = BOOK, run_s: float = 300) -> list[OutputEvent]:
        return await self.ended(await self.submit(Cell(code=code), book=book, run_s=run_s))

    async def op(self, op: str, *, book: str = BOOK, **args: Any) -> OutputEvent:
        events = await self.ended(await self.submit(FileOp(op=op, args=args), book=book))
        return events[0]

    async def control(self, what: Any, *, book: str = BOOK) -> bool:
        return await self.broker.control(self.pool, book, what)

    def free(self) -> int:
        return self.broker.pools()[0].free_credits


@contextlib.asynccontextmanager
async def world(folder: Path, **options: Any) -> AsyncIterator[World]:
    options = {"dir": str(folder / "notebooks"), "interrupt_s": 1.0, **options}
    if JAIL is None:
        options["confine"] = "never"
    made = World(folder)
    async with contextlib.AsyncExitStack() as tasks:
        await made.serve(NotebookKernels(**options), tasks)
        yield made


def text(events: list[OutputEvent], name: str = "stdout") -> str:
    return "".join(
        e.data["text/plain"]
        for e in events
        if isinstance(e, Display) and e.what == "stream" and e.name == name
    )


def result(events: list[OutputEvent]) -> dict[str, Any]:
    return next(e.value for e in events if isinstance(e, Result))


def error(events: list[OutputEvent]) -> dict[str, Any]:
    return next(e.data for e in events if isinstance(e, Display) and e.what == "error")


def ending(events: list[OutputEvent]) -> Ended:
    last = events[-1]
    assert isinstance(last, Ended)
    return last


def notices(events: list[OutputEvent]) -> list[str]:
    return [e.code for e in events if isinstance(e, Notice)]
