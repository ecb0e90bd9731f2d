"""Python for notebooks: one Jupyter kernel for each, begun by its first cell.

A kernel belongs to one notebook of one tenant and is never parked or shared. It lives until
it is shut down, has been idle too long, or dies; then its worker says that it keeps it no
more. What it held in memory is gone then, which the next cell says first (`Notice`
``kernel_lost``, ``kernel_reaped``); the notebook's files stay.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forebay.core.events import Cell, FileOp, InputItem, Notice, OutputEvent, Result
from forebay.core.kinds import Kind
from forebay.core.notebook import check_id, folder_of
from forebay.engines import EngineInfo, Report, Resume
from forebay.engines.kernel_jail import Limits, probe, sweep
from forebay.engines.kernel_output import CellOutput
from forebay.engines.kernel_process import Housing, Kernel
from forebay.engines.notebook_files import Files, file_result
from forebay.engines.options import Option, parse
from forebay.engines.stages import Stages
from forebay.errors import BadRequest, EngineFailed, KernelLost

__all__ = ["NotebookKernels"]

MiB = 1024 * 1024
INTERRUPTS = ("KeyboardInterrupt", "CancelledError")
"""What an interrupt raises in a cell; the second where it awaits."""
GONE = {
    "running": (
        "kernel_lost",
        "the kernel was lost: variables and imports are gone, files are not",
    ),
    "reaped": (
        "kernel_reaped",
        "the kernel was idle for too long and was ended: variables and imports are gone, files "
        "are not",
    ),
}


@dataclass(slots=True)
class _Book:
    """One notebook's kernel and what is to become of it."""

    affinity: str
    files: Files
    mark: Path
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)  # while its kernel starts or ends
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)  # while a cell runs or is left
    kernel: Kernel | None = None
    interrupted: bool = False
    reap: asyncio.TimerHandle | None = None


class NotebookKernels:
    """The engine ``python`` of kind kernel. ``keeps`` is told whether a kernel is held for
    an affinity; the runner sets it."""

    name = "python"
    kind = Kind.KERNEL
    OPTIONS = (
        Option("dir", str, None, "folder of all notebooks' files"),
        Option("slots", int, 8, "notebooks with a kernel on this worker", 1, 1000),
        Option("memory_mib", int, 1024, "memory of one kernel", 64, 1_000_000),
        Option("processes", int, 128, "processes and threads of one kernel", 16, 100_000),
        Option("cpus", float, 1.0, "processors of one kernel", 0.05, 1024),
        Option("disk_mib", int, 1024, "files of one notebook", 1, 10_000_000),
        Option("output_mib", float, 10.0, "output of one cell", 0.5, 10),
        Option("idle_s", float, 24 * 3600.0, "idle time after which a kernel is ended", 1, 1e9),
        Option("start_s", float, 60.0, "longest start of a kernel", 1, 600),
        Option("interrupt_s", float, 5.0, "after an interrupt, until the kernel is ended", 0.1, 60),
        Option("flush_ms", float, 10.0, "longest wait of what was printed", 1, 1000),
        Option("network", bool, False, "whether kernels reach the network"),
        Option("confine", str, "auto", "with bubblewrap", choices=("auto", "always", "never")),
    )

    def __init__(self, **options: Any) -> None:
        values = parse(self.name, self.OPTIONS, options)
        self._values = values
        self._root = Path(values["dir"] or "notebooks").absolute()
        self._housing: Housing | None = None
        self._books: dict[str, _Book] = {}
        self._limit_bytes = int(values["output_mib"] * MiB)
        self._serial = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.keeps: Callable[[str, bool], None] = lambda affinity, held: None

    async def load(self, report: Report) -> EngineInfo:
        """Find out how kernels can be confined here. Raises `CannotBoot` where they cannot be
        and may not run without."""
        values, stages = self._values, Stages(report)
        stages.at("locate", "bubblewrap")
        jail, why = (None, "it was switched off")
        if values["confine"] != "never":
            jail, why = await asyncio.to_thread(probe)
        if jail is None and values["confine"] == "always":
            raise stages.failed(f"kernels must be confined, and {why} (kernel.confine)")
        if jail is None and values["confine"] == "auto" and os.geteuid() == 0:
            raise stages.failed(
                f"as root kernels run confined only, and {why}; run as another user, install "
                "bubblewrap, or set kernel.confine to never, which lets notebooks do anything"
            )
        limits = Limits(
            memory_bytes=values["memory_mib"] * MiB,
            disk_bytes=values["disk_mib"] * MiB,
            processes=values["processes"],
            cpus=values["cpus"],
            network=values["network"],
        )
        self._housing = Housing(
            jail=jail,
            limits=limits,
            flush_s=values["flush_ms"] / 1000,
            start_s=values["start_s"],
            interrupt_s=values["interrupt_s"],
        )
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        await asyncio.to_thread(sweep, Path(tempfile.gettempdir()))
        stages.at("ready", "confined" if jail is not None else f"not confined: {why}")
        return EngineInfo(
            model="python",
            version="1",
            slots=values["slots"],
            capabilities=frozenset({"abortable"}),
            facts={
                "language": "python",
                "confined": jail is not None,
                "network": jail is None or limits.network,
                "memory_mib": values["memory_mib"],
            },
        )

    async def open(self, params: Mapping[str, Any], resume: Resume) -> _Book:
        """The notebook that ``params["affinity"]`` names."""
        affinity = params.get("affinity")
        if not isinstance(affinity, str) or "/" not in affinity:
            raise BadRequest("a kernel job says no notebook", param="affinity")
        check_id(affinity.rpartition("/")[2])
        return self._book(affinity)

    def _book(self, affinity: str) -> _Book:
        book = self._books.get(affinity)
        if book is None:
            folder = self._root / folder_of(affinity)
            mark = folder.with_name(f".{folder.name}.kernel")
            files = Files(folder, self._values["disk_mib"] * MiB)
            book = _Book(affinity, files, mark)
        return book

    async def close(self, session: _Book) -> None:
        """A job of the notebook is over. One without a kernel holds no credit."""
        book = self._books.get(session.affinity)
        if book is None:
            self.keeps(session.affinity, False)
        else:
            self._drop(book)

    async def unload(self) -> None:
        """End every kernel: on purpose, so that its notebook is told it was lost."""
        books = list(self._books.values())
        await asyncio.gather(*(self._end(book, "the worker was stopped") for book in books))
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --------------------------------------------------------------------------- work

    async def step(self, session: _Book, items: Sequence[InputItem]) -> AsyncIterator[OutputEvent]:
        for item in items:
            if isinstance(item, FileOp):
                yield await asyncio.to_thread(file_result, session.files, item)
            elif isinstance(item, Cell):
                book = self._books.setdefault(session.affinity, session)
                # The cell before may have ended for its client, and not yet for its kernel.
                async with book.turn, aclosing(self._run(book, item.code)) as events:
                    async for event in events:
                        yield event

    async def _run(self, book: _Book, code: str) -> AsyncGenerator[OutputEvent, None]:
        began = time.monotonic()
        self._disarm(book)
        book.interrupted = False
        notice: Notice | None = None
        async with book.lock:
            if book.kernel is None:
                notice = self._what_was_lost(book)
                await self._start(book)
        if notice is not None:
            yield notice
        kernel = book.kernel
        if kernel is None:
            raise KernelLost("the kernel was shut down", reason="shutdown")
        output = CellOutput(self._limit_bytes)
        if book.interrupted:  # while the kernel was starting
            output.status = "interrupted"
            yield Result(value=_summary(output, True, began, began, None))
            return
        started = time.monotonic()
        first: float | None = None
        kernel.begin(code, output)
        try:
            while not (output.over or output.failure):
                await output.wait()
                while (event := output.take()) is not None:
                    first = time.monotonic() if first is None else first
                    yield event
            while (event := output.take()) is not None:
                yield event
        finally:
            await kernel.leave(output)
            self._arm(book)
        if output.failure is not None:
            raise output.failure
        yield Result(value=_summary(output, book.interrupted, began, started, first))

    async def _start(self, book: _Book) -> None:
        assert self._housing is not None
        await asyncio.to_thread(book.files.make)
        self._serial += 1
        name = f"forebay-{os.getpid()}-{self._serial}"
        kernel = Kernel(name, book.files.folder, self._housing, lambda k: self._ended(book, k))
        await kernel.start()
        if not kernel.alive:
            await kernel.stop(now=True)  # it belongs to no notebook yet: nobody else would
            raise EngineFailed("the kernel ended as soon as it had started")
        book.kernel = kernel
        self._books[book.affinity] = book  # it may have been let go while this cell waited
        await asyncio.to_thread(book.mark.write_text, json.dumps({"state": "running"}))

    def _what_was_lost(self, book: _Book) -> Notice | None:
        try:
            state = json.loads(book.mark.read_text()).get("state", "")
        except (OSError, ValueError):
            return None
        code, message = GONE.get(state, ("", ""))
        return Notice(code=code, message=message) if code else None

    # ------------------------------------------------------------------------ control

    async def control(self, affinity: str, what: str, args: Mapping[str, Any]) -> None:
        """Interrupt, restart or shut down a notebook's kernel; nothing where there is none."""
        book = self._books.get(affinity)
        if book is None:
            return
        match what:
            case "interrupt":
                book.interrupted = True
                if book.kernel is not None:
                    book.kernel.interrupt()
            case "restart":
                await self._end(book, "it was restarted", restart=True)
            case "shutdown":
                await self._end(book, "it was shut down", state="")
            case _:
                raise EngineFailed(f"no control is called {what!r}")

    async def _end(
        self, book: _Book, why: str, *, state: str = "running", restart: bool = False
    ) -> None:
        """End the kernel of a notebook; with ``restart`` begin a new one in its place.
        ``state``: what the next cell will be told of it; empty: nothing."""
        self._disarm(book)
        async with self._alone(book):
            kernel, book.kernel = book.kernel, None
            if kernel is not None:
                kernel.why = why
                await kernel.stop()
            if not state or restart:
                await asyncio.to_thread(book.mark.unlink, missing_ok=True)
            elif kernel is not None:
                await asyncio.to_thread(book.mark.write_text, json.dumps({"state": state}))
            if restart:
                await self._start(book)
                self._arm(book)

    @contextlib.asynccontextmanager
    async def _alone(self, book: _Book) -> AsyncIterator[None]:
        """Hold the notebook's lock; afterwards say whether a kernel is there."""
        try:
            async with book.lock:
                yield
        finally:
            self._drop(book)

    def _ended(self, book: _Book, kernel: Kernel) -> None:
        """A kernel's process is gone, by itself or because we ended it."""
        if book.kernel is not kernel:
            return  # whoever ended it sees to the rest
        book.kernel = None
        self._disarm(book)
        self._spawn(kernel.stop(now=True))
        self._drop(book)

    def _drop(self, book: _Book) -> None:
        """Say whether a kernel is held for it. While one starts or ends that is not known."""
        if book.lock.locked():
            return
        if book.kernel is None and self._books.get(book.affinity) is book:
            del self._books[book.affinity]
        self.keeps(book.affinity, book.kernel is not None)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _arm(self, book: _Book) -> None:
        if book.kernel is not None:
            self._disarm(book)
            loop = asyncio.get_running_loop()
            book.reap = loop.call_later(self._values["idle_s"], self._reap, book)

    def _disarm(self, book: _Book) -> None:
        if book.reap is not None:
            book.reap.cancel()
            book.reap = None

    def _reap(self, book: _Book) -> None:
        book.reap = None
        self._spawn(self._end(book, "it was idle", state="reaped"))


def _summary(
    output: CellOutput, interrupted: bool, began: float, started: float, first: float | None
) -> dict[str, Any]:
    """How a cell ended, as its last event says it. Times in milliseconds."""
    ended = time.monotonic()
    status = output.status
    if status != "ok" and interrupted and output.error.get("ename") in INTERRUPTS:
        status = "interrupted"
    return {
        "status": status,
        "execution_count": output.count,
        "dropped_bytes": output.dropped_bytes,
        "timing_ms": {
            "kernel": round((started - began) * 1000, 2),
            "first": None if first is None else round((first - started) * 1000, 2),
            "run": round((ended - started) * 1000, 2),
        },
    }
