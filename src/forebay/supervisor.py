"""Spawn, reap, replace, roll, halt: the parent of gateways, workers and a private store.

It knows no kind and no engine. A `ProcessSpec` says what to run; for workers it adds who
they are (``--worker-id ID --steps-file FILE --supervised``, and ``--standby`` for a spare),
for gateways where to say that they are ready (``--steps-file FILE``).

* *spawn*: each child is in a process group of its own and dies with this process. Gateways
  and workers are copies of a warm fork server where there is one (`spawner`).
* *reap*: at once, by the child's pidfd (SIGCHLD where there is none). The broker is told of
  a worker's exit and of the jobs it was inside of.
* *replace*: at once after a crash, or once when it was killed while it started; after a boot
  failure (exit code 78, or death before it was ready) with a wait that doubles from
  `BACKOFF_FIRST_S` to `BACKOFF_MOST_S`.
* *roll* (SIGUSR2): every gateway and worker is replaced by a new process, one after
  another (`rolling`). SIGHUP is passed on to the gateways, which read their keys again.
* *halt*: gateways are told to drain first, because their clients still need the workers;
  then the workers, then the store; whoever stays past its limit is killed. A second signal
  kills at once.

A spare is started when all regular processes of its group are ready, where memory allows. A
spare worker gets its work from the broker; a spare gateway is told to accept (SIGUSR1) when it
takes the place of one that died.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

import psutil
import structlog

from forebay.broker import SupervisorBroker
from forebay.broker.link_client import SupervisorLink
from forebay.core.spec import PoolView
from forebay.errors import ForebayError
from forebay.process import EXIT_CANNOT_BOOT, available_bytes, describe_exit, oom_kills
from forebay.rolling import roll
from forebay.spawner import Process, Spawner
from forebay.worker.steps import StepsTable

__all__ = ["EXIT_CANNOT_BOOT", "Event", "Link", "ProcessSpec", "serve"]

BACKOFF_FIRST_S = 0.5
BACKOFF_MOST_S = 30.0
READY_CHECK_S = 0.1
READY_AFTER_S = 5.0  # where nothing tells that a process is ready, this long alive does
TAKEOVER_S = 0.5  # how long the others of a group have the machine to themselves
SPARE_RETRY_S = 30.0
SPARE_FREE_BYTES = 1 << 30
GATEWAY_DRAIN_S = 30.0
WORKER_DRAIN_S = 12.0
STORE_STOP_S = 10.0
KILL_WAIT_S = 5.0

log = structlog.get_logger(__name__)


class Link(SupervisorBroker, Protocol):
    """The supervisor's line to the broker: `SupervisorLink`, or its like for a store that
    several machines share."""

    async def open(self) -> None: ...

    def pools(self) -> AsyncIterator[list[PoolView]]:
        """Every pool, now and after each change."""

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec:
    """One process to keep running.

    ``env``: added to this process's own. ``pass_fds``: descriptors the child inherits under
    the same numbers (listening sockets). ``group``: processes that can stand in for each
    other. ``spare``: the group's warm spare. ``overlaps``: a successor may run beside it
    before it leaves. ``light``: it loads nothing of its own, so that a copy of the fork server
    is ready at once. ``probe``: whether it is ready, where the process cannot say so itself.
    """

    name: str
    argv: Sequence[str]
    role: Literal["gateway", "worker", "store"]
    group: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    pass_fds: tuple[int, ...] = ()
    spare: bool = False
    overlaps: bool = True
    light: bool = False
    probe: Callable[[], bool] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something the start screen may want to show. ``wait_s``: until the next try."""

    what: Literal["spawned", "ready", "exited", "waiting", "no_spare", "pools", "halting", "rolled"]
    name: str = ""
    pid: int = 0
    detail: str = ""
    wait_s: float = 0.0
    pools: tuple[PoolView, ...] = ()


@dataclass(slots=True, eq=False)
class Child:
    """A `ProcessSpec` and the process that carries it out now, if one does."""

    spec: ProcessSpec
    worker: str = ""
    process: Process | None = None
    pidfd: int | None = None
    steps: StepsTable | None = None
    spawned_s: float = 0.0
    ready: bool = False
    boot_failures: int = 0
    timer: asyncio.TimerHandle | None = None
    told: bool = False  # its lack of memory has been reported
    killed: bool = False  # by us
    leaving: bool = False  # told to go for good: nobody takes its name

    @property
    def alive(self) -> bool:
        return self.process is not None


async def serve(
    specs: Sequence[ProcessSpec],
    *,
    link_path: str | Path | None = None,
    link: Link | None = None,
    on_event: Callable[[Event], None] = lambda _: None,
    gateway_drain_s: float = GATEWAY_DRAIN_S,
    worker_drain_s: float = WORKER_DRAIN_S,
    preload: Sequence[str] = (),
) -> int:
    """Keep ``specs`` running until SIGTERM or SIGINT, then drain them; returns 0, or 1 where
    a process had to be killed. ``link_path``: the gateway's socket, to tell it of exits;
    ``link``: another line to the broker instead. ``preload``: what gateways and workers import,
    for a fork server that they are copies of. SIGUSR2 rolls, SIGHUP goes to the gateways.

    Cancelling it kills what still runs.
    """
    if link is None and link_path is not None:
        link = SupervisorLink(os.fspath(link_path))
    drains = {"gateway": gateway_drain_s, "worker": worker_drain_s, "store": STORE_STOP_S}
    supervisor = _Supervisor(specs, link, on_event, drains, preload)
    loop = asyncio.get_running_loop()
    handlers = {
        signal.SIGTERM: supervisor.on_signal,
        signal.SIGINT: supervisor.on_signal,
        signal.SIGHUP: supervisor.on_hangup,
        signal.SIGUSR2: supervisor.on_roll,
    }
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    try:
        async with asyncio.TaskGroup() as tasks:
            supervisor.start(tasks)
            await supervisor.stopping.wait()
            await supervisor.halt()
            supervisor.finish()
    finally:
        for number in handlers:
            loop.remove_signal_handler(number)
        await supervisor.close()
    return 1 if supervisor.forced else 0


class _Supervisor:
    def __init__(
        self,
        specs: Sequence[ProcessSpec],
        link: Link | None,
        on_event: Callable[[Event], None],
        drains_s: Mapping[str, float],
        preload: Sequence[str],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._children = [Child(spec) for spec in specs]
        self._on_event = on_event
        self._link = link
        self._drains_s = drains_s
        self._spawner = Spawner(preload)
        self._beginning: asyncio.Task[None] | None = None
        self._tasks: asyncio.TaskGroup | None = None
        self._rolling: asyncio.Task[None] | None = None
        self._folder = Path(tempfile.mkdtemp(prefix="forebay-steps-"))
        self._ready_timer: asyncio.TimerHandle | None = None
        self._listener: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._oom_kills = oom_kills()
        self._signals = 0
        self.stopping = asyncio.Event()
        self.forced = False

    # ---------------------------------------------------------------- beginning

    def start(self, tasks: asyncio.TaskGroup) -> None:
        self._tasks = tasks
        if not hasattr(os, "pidfd_open"):
            self._loop.add_signal_handler(signal.SIGCHLD, self._reap_all)
        if self._link is not None:
            self._listener = tasks.create_task(self._listen(self._link), name="pools")
        self._beginning = tasks.create_task(self._begin(), name="begin")

    async def _begin(self) -> None:
        """The store first: it needs nothing that is loaded."""
        regular = [child for child in self._children if not child.spec.spare]
        for child in regular:
            if child.spec.role == "store":
                self._spawn(child)
        await self._spawner.warm_up()
        for child in regular:
            if child.spec.role != "store":
                self._spawn(child)

    async def _listen(self, link: Link) -> None:
        while True:
            try:
                await link.open()
                break
            except ForebayError as error:  # the broker may be starting beside us
                log.debug("supervisor.no_broker", reason=error.message)
                await link.close()
                await asyncio.sleep(READY_CHECK_S)
        async for pools in link.pools():
            self._on_event(Event(what="pools", pools=tuple(pools)))

    def on_signal(self) -> None:
        self._signals += 1
        self.stopping.set()
        if self._signals > 1:
            self._kill(self._alive())

    def on_hangup(self) -> None:
        self._signal(self._alive("gateway"), signal.SIGHUP)

    def on_roll(self) -> None:
        if self._beginning is None or not self._beginning.done() or self.stopping.is_set():
            return
        if self._rolling is not None and not self._rolling.done():
            log.warning("supervisor.rolls_already")
            return
        assert self._tasks is not None
        self._rolling = self._tasks.create_task(self._roll(), name="roll")

    async def _roll(self) -> None:
        log.info("supervisor.rolling", processes=len(self._alive()))
        began = self._loop.time()
        await self._spawner.warm_up()  # what is on the disk now is what the new ones load
        told = await roll(self)
        took_s = round(self._loop.time() - began, 1)
        log.info("supervisor.rolled", replaced=told.replaced, kept=told.kept, took_s=took_s)
        self._on_event(Event(what="rolled", detail=told.words, wait_s=took_s))

    # ----------------------------------------------------- what `rolling` is given

    @property
    def children(self) -> list[Child]:
        return list(self._children)

    def add(self, spec: ProcessSpec) -> Child:
        """Start one more process."""
        child = Child(spec)
        self._children.append(child)
        self._spawn(child)
        return child

    def has_room_beside(self, child: Child) -> bool:
        """Whether a second process like ``child`` fits into memory."""
        return available_bytes() >= _rss_bytes(child) * 2 + SPARE_FREE_BYTES

    async def retire(self, child: Child) -> None:
        """Drain ``child`` for good; killed at its role's limit. Returns when it is gone."""
        child.leaving = True
        if child.timer is not None:
            child.timer.cancel()
        self._signal([child], signal.SIGTERM)
        await self._gone(lambda: [child] if child.alive else [], self._drains_s[child.spec.role])
        if child.alive:
            self._kill([child])
            await self._gone(lambda: [child] if child.alive else [], KILL_WAIT_S)
        if child in self._children:
            self._children.remove(child)

    async def change(self) -> None:
        """Return after the next exit, or soon: readiness is looked at, not told."""
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), READY_CHECK_S)

    # -------------------------------------------------------------------- spawn

    def _spawn(self, child: Child) -> None:
        child.timer = None
        if self.stopping.is_set():
            return
        spec = child.spec
        try:
            argv = [*spec.argv, *self._identity(child)]
            child.process = self._spawner.spawn(argv, spec.env, spec.pass_fds)
        except OSError as exc:
            self._drop_steps(child)
            self._wait(child, f"cannot be started: {exc.strerror or exc}")
            return
        child.spawned_s = self._loop.time()
        child.ready = child.killed = False
        pid = child.process.pid
        if hasattr(os, "pidfd_open"):
            child.pidfd = os.pidfd_open(pid)
            self._loop.add_reader(child.pidfd, self._reap, child)
        log.info("process.spawned", name=spec.name, pid=pid)
        self._on_event(Event(what="spawned", name=spec.name, pid=pid))
        self._watch_ready()

    def _identity(self, child: Child) -> list[str]:
        if child.spec.role == "store":
            return []
        child.worker = uuid.uuid4().hex[:12]
        child.steps = StepsTable.create(self._folder / child.worker)
        if child.spec.role == "gateway":
            standby = ["--standby"] if child.spec.spare else []
            return ["--steps-file", str(child.steps.path), *standby]
        words = ["--worker-id", child.worker, "--steps-file", str(child.steps.path)]
        return [*words, "--supervised", *(["--standby"] if child.spec.spare else [])]

    # -------------------------------------------------------------------- ready

    def _watch_ready(self) -> None:
        if self._ready_timer is None and any(c.alive and not c.ready for c in self._children):
            self._ready_timer = self._loop.call_later(READY_CHECK_S, self._check_ready)

    def _check_ready(self) -> None:
        self._ready_timer = None
        for child in self._children:
            if child.alive and not child.ready and self._is_ready(child):
                child.ready = True
                child.boot_failures = 0
                assert child.process is not None
                log.info("process.ready", name=child.spec.name, pid=child.process.pid)
                self._on_event(Event(what="ready", name=child.spec.name, pid=child.process.pid))
        self._start_spares()
        self._watch_ready()

    def _is_ready(self, child: Child) -> bool:
        if child.spec.probe is not None:
            return child.spec.probe()
        if child.steps is not None:
            return child.steps.ready
        return self._loop.time() - child.spawned_s > READY_AFTER_S

    def _start_spares(self) -> None:
        for child in self._children:
            if child.spec.spare and not child.alive and child.timer is None:
                self._start_spare(child)

    def _start_spare(self, child: Child) -> None:
        regular = [
            c for c in self._children if c.spec.group == child.spec.group and not c.spec.spare
        ]
        if self.stopping.is_set() or not all(c.alive and c.ready for c in regular):
            return
        needed = 2 * max((_rss_bytes(c) for c in regular), default=0) + SPARE_FREE_BYTES
        free = available_bytes()
        if free >= needed:
            child.told = False
            self._spawn(child)
            return
        child.timer = self._loop.call_later(SPARE_RETRY_S, self._retry_spare, child)
        if not child.told:
            child.told = True
            text = f"{free >> 20} MiB free, a warm spare needs {needed >> 20} MiB"
            log.warning("spare.skipped", name=child.spec.name, reason=text)
            self._on_event(Event(what="no_spare", name=child.spec.name, detail=text))

    def _retry_spare(self, child: Child) -> None:
        child.timer = None
        self._start_spare(child)

    # --------------------------------------------------------------------- reap

    def _reap_all(self) -> None:
        for child in self._alive():
            self._reap(child)

    def _reap(self, child: Child) -> None:
        process = child.process
        if process is None or process.poll() is None:
            return
        code = process.returncode
        assert code is not None
        if child.pidfd is not None:
            self._loop.remove_reader(child.pidfd)
            os.close(child.pidfd)
            child.pidfd = None
        child.process = None
        was_ready = child.ready or self._is_ready(child)
        failure = child.steps.failure if child.steps is not None else ""
        reason = self._why_killed() if child.killed else self._reason(code, failure)
        self._tell_broker(child, code, reason)
        self._drop_steps(child)
        child.ready = False
        self._changed.set()
        write = log.info if self.stopping.is_set() or code == 0 else log.warning
        write("process.exited", name=child.spec.name, pid=process.pid, reason=reason)
        self._on_event(Event(what="exited", name=child.spec.name, pid=process.pid, detail=reason))
        if not self.stopping.is_set() and not child.leaving:
            self._replace(child, code, was_ready, reason)

    def _why_killed(self) -> str:
        """Whoever tells a second time wants no wait: nobody was late then."""
        told = "told twice to stop" if self._signals > 1 else "did not leave in time"
        return f"killed: {told}"

    def _reason(self, code: int, failure: str) -> str:
        kills = oom_kills()
        oom, self._oom_kills = kills > self._oom_kills, kills
        reason = describe_exit(code, oom=oom)
        return f"{reason}: {failure}" if failure and code == EXIT_CANNOT_BOOT else reason

    def _tell_broker(self, child: Child, code: int, reason: str) -> None:
        if self._link is None or child.steps is None or child.spec.role != "worker":
            return
        abnormal = code not in (0, EXIT_CANNOT_BOOT) and not child.killed
        stepping = child.steps.stepping() if abnormal else []
        self._link.exited(child.worker, abnormal=abnormal, stepping=stepping, reason=reason)

    def _drop_steps(self, child: Child) -> None:
        if child.steps is not None:
            child.steps.remove()
            child.steps = None

    # ------------------------------------------------------------------ replace

    def _replace(self, child: Child, code: int, was_ready: bool, reason: str) -> None:
        if not was_ready and code == -signal.SIGKILL and not child.boot_failures:
            child.boot_failures = 1  # perhaps not its own fault; the next time is another matter
            self._retry_spare(child) if child.spec.spare else self._spawn(child)
        elif code == EXIT_CANNOT_BOOT or not was_ready:
            self._wait(child, reason)
        elif child.spec.spare:
            self._start_spare(child)
        elif self._promote(child):
            # It only stands by: whoever comes back to the others just now comes first.
            child.timer = self._loop.call_later(TAKEOVER_S, self._retry_spare, child)
        elif any(c.alive and c.ready and c.spec.group == child.spec.group for c in self._children):
            child.timer = self._loop.call_later(self._way_s(child), self._spawn, child)
        else:
            self._spawn(child)

    def _way_s(self, child: Child) -> float:
        """How long a successor stays out of the way: somebody takes over the sessions of the
        dead just now, and loading costs a whole core. A copy that loads nothing costs little."""
        return 0.0 if self._spawner.warm and child.spec.light else TAKEOVER_S

    def _promote(self, child: Child) -> bool:
        """Let a gateway that stands by take the place of ``child``, which becomes the spare.
        Workers need no such word: the broker gives a spare its work."""
        for spare in self._children:
            alike = spare.spec.role == "gateway" == child.spec.role
            if spare.spec.spare and spare.alive and spare.ready and alike:
                break
        else:
            return False
        spare.spec, child.spec = child.spec, spare.spec
        self._signal([spare], signal.SIGUSR1)
        assert spare.process is not None
        log.info("process.promoted", name=spare.spec.name, pid=spare.process.pid)
        self._on_event(Event(what="ready", name=spare.spec.name, pid=spare.process.pid))
        return True

    def _wait(self, child: Child, reason: str) -> None:
        wait_s = min(BACKOFF_FIRST_S * 2.0**child.boot_failures, BACKOFF_MOST_S)
        child.boot_failures = min(child.boot_failures + 1, 16)
        again = self._retry_spare if child.spec.spare else self._spawn
        child.timer = self._loop.call_later(wait_s, again, child)
        log.warning("process.waiting", name=child.spec.name, wait_s=wait_s, reason=reason)
        self._on_event(Event(what="waiting", name=child.spec.name, detail=reason, wait_s=wait_s))

    # --------------------------------------------------------------------- halt

    def _alive(self, role: str | None = None) -> list[Child]:
        return [c for c in self._children if c.alive and role in (None, c.spec.role)]

    async def halt(self) -> None:
        """Drain gateways, then workers; kill whoever is still there at its limit."""
        log.info("supervisor.halting", processes=len(self._alive()))
        self._on_event(Event(what="halting"))
        if self._rolling is not None:
            self._rolling.cancel()
            await asyncio.gather(self._rolling, return_exceptions=True)
        for child in self._children:
            if child.timer is not None:
                child.timer.cancel()
        for role, limit_s in self._drains_s.items():
            alive = partial(self._alive, role)
            self._signal(alive(), signal.SIGTERM)
            await self._gone(alive, limit_s)
            left = alive()
            if left:
                log.warning("supervisor.killing", names=[c.spec.name for c in left])
                self._kill(left)
                await self._gone(alive, KILL_WAIT_S)

    async def _gone(self, alive: Callable[[], Sequence[Child]], limit_s: float) -> None:
        try:
            async with asyncio.timeout(limit_s):
                while alive():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return  # the caller looks who is left

    def _signal(self, children: Iterable[Child], number: int) -> None:
        for child in children:
            if child.process is not None and child.process.poll() is None:
                child.process.send_signal(number)

    def _kill(self, children: Iterable[Child]) -> None:
        for child in children:
            self.forced = child.killed = True
            self._signal([child], signal.SIGKILL)

    def finish(self) -> None:
        for task in (self._listener, self._beginning):
            if task is not None:
                task.cancel()

    async def close(self) -> None:
        """Nothing of ours is left behind, whatever happened before."""
        self.stopping.set()  # so that nobody is replaced from here on
        if self._ready_timer is not None:
            self._ready_timer.cancel()
        for child in self._children:
            if child.timer is not None:
                child.timer.cancel()
        self._kill(self._alive())
        for child in self._alive():
            assert child.process is not None
            child.process.wait(KILL_WAIT_S)
            self._reap(child)
        self._spawner.close()
        if not hasattr(os, "pidfd_open"):
            self._loop.remove_signal_handler(signal.SIGCHLD)
        if self._link is not None:
            await self._link.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def _rss_bytes(child: Child) -> int:
    if child.process is None:
        return 0
    try:
        return int(psutil.Process(child.process.pid).memory_info().rss)
    except psutil.Error:
        return 0
