"""A worker process from its first line to its exit code: boot, work, drain."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import math
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import psutil
import structlog

from forebay import __version__, engines
from forebay.blobs import Blobs, open_blobs
from forebay.broker import WorkerBroker
from forebay.broker.link_client import LinkClient, path_of
from forebay.core.kinds import KINDS, Cut, Kind, Row
from forebay.core.spec import LoadStage, WorkerInfo
from forebay.engines import Engine, EngineInfo
from forebay.errors import CannotBoot, ForebayError
from forebay.gpus import use_of
from forebay.process import EXIT_CANNOT_BOOT, die_with_parent, settle_heap
from forebay.worker.handler import load_handler
from forebay.worker.heartbeat import Heartbeat
from forebay.worker.runner import Runner
from forebay.worker.steps import StepsTable

__all__ = ["run_worker"]

DRAIN_S = 10.0
NICE = 5
"""Workers give way to their gateway where both want a processor: what it has to do is short,
and acknowledgements, places and refusals must not queue behind models."""
COSTS_EVERY_S = 2.0
"""Reading what a process uses costs more than a beat: not with every beat."""

LAST_WORDS_S = 2.0
MIN_RTF = 1e-4
"""A model said to take no time at all is given this many sessions' worth of it."""

log = structlog.get_logger(__name__)


async def run_worker(
    *,
    broker_url: str,
    kind: Kind | str,
    engine_name: str,
    engine_options: Mapping[str, Any] | None = None,
    model: str | None = None,
    slots: int | None = None,
    worker_id: str | None = None,
    standby: bool = False,
    supervised: bool = False,
    steps_file: str | Path | None = None,
    row: Row | None = None,
    drain_s: float = DRAIN_S,
    blobs_dir: str | None = None,
) -> int:
    """Load the engine, attach to the broker, work until SIGTERM, drain; the exit code.

    0 after a drain; `EXIT_CANNOT_BOOT` (78) when the engine cannot be loaded or the broker
    refuses to speak with us: stage and reason are in the log, at the broker and in the steps
    file. ``model``: the pool is ``kind/model``; without it the engine's own name for its
    model. ``slots``: overrules the engine's. ``row``: the kind's row where the operator has
    altered it. ``blobs_dir``: the folder shared with the gateway, or an fsspec
    URL. Cancelling it stops all steps at once; their jobs go to other workers.
    """
    worker = worker_id or uuid.uuid4().hex[:12]
    structlog.contextvars.bind_contextvars(worker=worker)
    steps = StepsTable.open(steps_file) if steps_file is not None else None
    if supervised:
        if Kind(kind) is not Kind.KERNEL:  # its kernels give way by themselves: it passes on
            os.nice(NICE)
        die_with_parent(steps.supervisor_pid if steps is not None else os.getppid())
    broker = _broker_at(broker_url, worker)
    boot = _Boot(
        broker=broker,
        kind=Kind(kind),
        engine_name=engine_name,
        options=dict(engine_options or {}),
        model=model,
        worker=worker,
        steps=steps,
        blobs=open_blobs(blobs_dir) if blobs_dir else None,
    )
    try:
        return await _Worker(boot, row or KINDS[Kind(kind)], slots, standby, supervised).run(
            drain_s
        )
    except ForebayError as exc:
        boot.failed(exc)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(broker.drained(), LAST_WORDS_S)
        return EXIT_CANNOT_BOOT
    finally:
        await broker.close()
        if steps is not None:
            steps.close()


def _broker_at(url: str, worker: str) -> WorkerBroker:
    """A gateway's link (``unix://``), or a broker that many gateways share."""
    if url.startswith("unix://"):
        return LinkClient(path_of(url), worker)
    from forebay.broker.redis_worker import worker_broker

    return worker_broker(url, worker)


class _Boot:
    """Loading, as it is told to everybody who should know."""

    def __init__(
        self,
        *,
        broker: WorkerBroker,
        kind: Kind,
        engine_name: str,
        options: dict[str, Any],
        model: str | None,
        worker: str,
        steps: StepsTable | None,
        blobs: Blobs | None,
    ) -> None:
        self.broker = broker
        self.kind = kind
        self.engine_name = engine_name
        self.options = options
        self.model = model
        self.worker = worker
        self.steps = steps
        self.blobs = blobs
        self._began = time.monotonic()
        self._thread = threading.get_ident()
        self._loop = asyncio.get_running_loop()
        self._stage = "locate"
        self._named: str | None = model

    @property
    def pool(self) -> str:
        return f"{self.kind}/{self._named or self.options.get('model') or self.engine_name}"

    async def load(self) -> tuple[Engine, EngineInfo]:
        """The loaded engine. Raises `CannotBoot` with the stage for whatever goes wrong."""
        try:
            engine = engines.create(self.kind, self.engine_name, self.options)
            own_name = getattr(engine, "model", None)
            if self._named is None and isinstance(own_name, str) and own_name:
                self._named = own_name
            info = await engine.load(self.report)
        except ForebayError:
            raise
        except Exception as exc:
            raise CannotBoot(
                f"engine {self.engine_name} could not be loaded: {type(exc).__name__}: {exc}",
                stage=self._stage,
            ) from exc
        if self.model is None:
            self._named = info.model
        return engine, info

    def report(self, stage: LoadStage) -> None:
        """An engine's word on how far it is; may come from a thread of the engine."""
        if threading.get_ident() != self._thread:
            self._loop.call_soon_threadsafe(self.report, stage)
            return
        if stage.stage == "ready":
            return  # said by `ready`, when the worker can take a job
        self._stage = stage.stage
        self._say(stage)

    def ready(self, info: WorkerInfo) -> None:
        self._say(LoadStage(stage="ready", detail=info.model))
        if self.steps is not None:
            self.steps.mark_ready()

    def failed(self, error: ForebayError) -> None:
        stage = str(error.details.get("stage", self._stage))
        self._say(LoadStage(stage="failed", detail=f"{stage}: {error.message}"))
        if self.steps is not None:
            self.steps.mark_failed(f"{stage}: {error.message}")

    def _say(self, stage: LoadStage) -> None:
        stage = msgspec.structs.replace(
            stage, memory_mb=round(_memory_mb(), 1), elapsed_s=round(self._elapsed_s(), 3)
        )
        write = log.error if stage.stage == "failed" else log.info
        write(
            "worker.stage",
            stage=stage.stage,
            detail=stage.detail,
            done=stage.done,
            total=stage.total,
            memory_mb=stage.memory_mb,
            elapsed_s=stage.elapsed_s,
        )
        self.broker.stage(self.worker, [self.pool], stage)

    def _elapsed_s(self) -> float:
        return time.monotonic() - self._began


class _Worker:
    """Boot, then a runner, with signals wired to it."""

    def __init__(
        self, boot: _Boot, row: Row, slots: int | None, standby: bool, supervised: bool
    ) -> None:
        self._boot = boot
        self._row = row
        self._slots = slots
        self._standby = standby
        self._supervised = supervised
        self._process = psutil.Process()
        self._costs: dict[str, float] = {}  # what the process uses, read now and then
        self._costs_until = 0.0
        self._runner: Runner | None = None
        self._engine: Engine | None = None
        self._signals = 0

    async def run(self, drain_s: float) -> int:
        task = asyncio.create_task(self._work(), name="worker")
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, task, drain_s)
        try:
            await task
        except asyncio.CancelledError:
            if not self._signals:
                raise
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        return 0

    def _on_signal(self, task: asyncio.Task[None], drain_s: float) -> None:
        self._signals += 1
        if self._runner is not None and self._signals == 1:
            self._runner.drain(drain_s)
        else:
            task.cancel()  # still loading, or told twice

    async def _work(self) -> None:
        boot = self._boot
        beat = Heartbeat(boot.broker, boot.worker, self._load)
        connecting = asyncio.create_task(boot.broker.connect(self._sink), name="connect")
        try:
            self._engine, info = await self._load_engine(connecting)
            await connecting
            beat.start()
            worker = self._info(info)
            self._runner = Runner(
                boot.broker,
                self._engine,
                info,
                worker,
                self._row,
                steps=boot.steps,
                find_blob=boot.blobs.path if boot.blobs is not None else None,
                blobs=boot.blobs,
            )
            settle_heap()
            boot.ready(worker)
            await self._runner.run()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(boot.broker.drained(), LAST_WORDS_S)
        finally:
            beat.stop()
            connecting.cancel()
            await asyncio.gather(connecting, return_exceptions=True)
            if self._engine is not None:
                await self._engine.unload()

    async def _load_engine(self, connecting: asyncio.Task[None]) -> tuple[Engine, EngineInfo]:
        module = {Cut.SEGMENTS: "speech", Cut.SPAN: "listen"}.get(self._row.cut)
        if module is not None:
            importlib.import_module(f"forebay.worker.{module}")  # not during the first sentence
        load_handler(self._row)
        try:
            return await self._boot.load()
        except ForebayError:
            # A boot that fails at once should still be heard of: wait for somebody to tell.
            await asyncio.wait([connecting], timeout=LAST_WORDS_S)
            raise

    def _sink(self, push: Any) -> None:
        if self._runner is not None:
            self._runner.sink(push)

    def _load(self) -> Mapping[str, Any]:
        """Called by the heartbeat's thread."""
        now = time.monotonic()
        if now >= self._costs_until:
            used = self._process.cpu_times()
            rss = self._process.memory_info().rss
            self._costs = {"cpu_s": used.user + used.system, "resident_bytes": rss}
            self._costs |= _gpu_costs(self._boot.options.get("device"))
            self._costs_until = now + COSTS_EVERY_S
        return self._costs if self._runner is None else self._costs | self._runner.load()

    def _info(self, info: EngineInfo) -> WorkerInfo:
        slots = self._slots or info.slots
        return WorkerInfo(
            id=self._boot.worker,
            pools=[self._boot.pool],
            slots=slots,
            sessions=_sessions(self._row, info, slots),
            engine=self._boot.engine_name,
            model=info.model,
            version=info.version or __version__,
            synthetic=info.synthetic,
            capabilities=sorted(info.capabilities),
            facts=dict(info.facts),
            pid=os.getpid(),
            host=socket.gethostname(),
            standby=self._standby,
            supervised=self._supervised,
        )


def _gpu_costs(device: Any) -> dict[str, float]:
    """What this process uses of the GPU it was put on; nothing on the processor."""
    number = str(device or "").partition(":")[2]
    use = use_of(int(number), os.getpid()) if number.isdecimal() else None
    if use is None:
        return {}
    return {"gpu_bytes": use.memory_bytes, "gpu_busy": use.busy or 0.0}


def _sessions(row: Row, info: EngineInfo, slots: int) -> int:
    """Open jobs a worker holds: credits per slot, divided by the measured real-time factor
    where the row gives less than one (live recognition)."""
    if row.credits_per_slot >= 1:
        return int(slots * row.credits_per_slot)
    rtf = info.facts.get("rtf")
    share = row.credits_per_slot * slots / max(1.0 if rtf is None else float(rtf), MIN_RTF)
    return max(1, math.floor(share))


def _memory_mb() -> float:
    return float(psutil.Process().memory_info().rss) / 1e6
