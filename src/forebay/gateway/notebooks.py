"""Notebooks in the gateway: which there are, their cells, and work for their kernels.

The list of a notebook's cells is kept in this process's memory, bounded, because what it
points at, the jobs' outputs, is in the store for an hour at most; after a restart a page
finds its notebook's files, not its cells. A cell's job is also found by the cell's name, by
any gateway.
"""

from __future__ import annotations

import asyncio
import base64
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from forebay.broker import GatewayPush, LeasePush
from forebay.broker.affinity import What
from forebay.core.events import Cell, Display, Ended, FileOp, InputItem, OutputEvent, Result
from forebay.core.kinds import Kind
from forebay.core.notebook import affinity_of
from forebay.core.spec import JobSpec, JobView
from forebay.dialects import error_of
from forebay.dialects.notebook import wanted_mime
from forebay.errors import ForebayError, NotFound, TooLarge
from forebay.gateway.held import NoWire

if TYPE_CHECKING:
    from forebay.gateway.context import GatewayContext

__all__ = [
    "DIALECT",
    "CellRecord",
    "NotebookRecord",
    "Notebooks",
    "Reading",
    "began_at",
    "control",
    "file_op",
    "filled",
    "is_known",
    "live_job",
    "run_cell",
]

DIALECT = "notebook"
RUNS = ("@1", "@2")
"""Names of runs whose client names no cell: by them any gateway finds what runs and waits."""

MAX_NOTEBOOKS = 1000
MAX_CELLS = 500
MAX_CODE_BYTES = 64 * 1024 * 1024
INLINE_BYTES = 64 * 1024
SHOWN_BLOB_BYTES = 16 * 1024 * 1024
"""A picture that goes into a JSON answer; a larger one is only named."""

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class CellRecord:
    """``job``: of its newest run. ``code``: what ran."""

    cell: str
    job: str
    code: str
    began: datetime


@dataclass(slots=True)
class NotebookRecord:
    created: datetime
    cells: OrderedDict[str, CellRecord] = field(default_factory=OrderedDict)
    last: CellRecord | None = None  # the newest run, named or not

    def code_bytes(self) -> int:
        return sum(len(cell.code) for cell in self.cells.values())


class Notebooks:
    """Those this gateway remembers, the longest unused forgotten first."""

    def __init__(self) -> None:
        self._all: OrderedDict[tuple[str, str], NotebookRecord] = OrderedDict()
        self._bytes = 0

    def get(self, tenant: str, notebook: str) -> NotebookRecord | None:
        found = self._all.get((tenant, notebook))
        if found is not None:
            self._all.move_to_end((tenant, notebook))
        return found

    def make(self, tenant: str, notebook: str) -> NotebookRecord:
        found = self.get(tenant, notebook)
        if found is None:
            found = self._all[tenant, notebook] = NotebookRecord(datetime.now(UTC))
            while len(self._all) > MAX_NOTEBOOKS:
                self._drop_oldest()
        return found

    def began(self, tenant: str, notebook: str, cell: CellRecord) -> None:
        record = self.make(tenant, notebook)
        record.last = cell
        if not cell.cell:
            return
        old = record.cells.get(cell.cell)
        self._bytes += len(cell.code) - (len(old.code) if old is not None else 0)
        record.cells[cell.cell] = cell
        while len(record.cells) > MAX_CELLS:
            _, gone = record.cells.popitem(last=False)
            self._bytes -= len(gone.code)
        while self._bytes > MAX_CODE_BYTES and len(self._all) > 1:
            self._drop_oldest()

    def forget_cell(self, tenant: str, notebook: str, cell: str) -> bool:
        record = self.get(tenant, notebook)
        gone = record.cells.pop(cell, None) if record is not None else None
        if gone is not None:
            self._bytes -= len(gone.code)
        return gone is not None

    def of(self, tenant: str) -> list[tuple[str, NotebookRecord]]:
        """A tenant's, newest use first."""
        return [(name, r) for (who, name), r in reversed(self._all.items()) if who == tenant]

    def _drop_oldest(self) -> None:
        _, gone = self._all.popitem(last=False)
        self._bytes -= gone.code_bytes()


# ------------------------------------------------------------------------------- work


def _spec(ctx: GatewayContext, tenant: str, notebook: str, *, name: str, beside: bool) -> JobSpec:
    affinity = affinity_of(tenant, notebook)
    row = ctx.rows[Kind.KERNEL]
    spec: JobSpec = ctx.spec(
        Kind.KERNEL,
        {"affinity": affinity},
        tenant=tenant,
        dialect=DIALECT,
        name=name,
        detach_s=row.queue_s + (row.run_s or 0.0) + 60,  # nobody need be there: a page comes back
    )
    return msgspec.structs.replace(spec, affinity=affinity, beside=beside)


async def run_cell(
    ctx: GatewayContext,
    tenant: str,
    notebook: str,
    code: str,
    *,
    cell: str = "",
    watched: bool = False,
) -> tuple[JobView, datetime]:
    """Submit a cell; its job, and when. A named cell that still runs is that job again.

    ``watched``: this gateway is pushed its output at once; then `Reading` must follow."""
    spec = _spec(ctx, tenant, notebook, name=f"{notebook}/{cell}", beside=False)
    item: InputItem = Cell(code=code)
    data = code.encode("utf-8", "replace")
    if len(data) > INLINE_BYTES:
        item = Cell(blob=await _beside(ctx, tenant, data))
    gateway = ctx.gateway_id if watched else ""
    view = await _submit(ctx, spec, item, gateway, [cell] if cell else [*RUNS, ""])
    began = datetime.now(UTC)
    ctx.notebooks.began(tenant, notebook, CellRecord(cell, view.spec.id, code, began))
    return view, began


async def _submit(
    ctx: GatewayContext, spec: JobSpec, item: InputItem, gateway: str, names: list[str]
) -> JobView:
    """Under the first of ``names`` that no live run has; under the last whatever has it."""
    notebook = spec.name.partition("/")[0]
    for name in names:
        named = msgspec.structs.replace(spec, name=f"{notebook}/{name}" if name else "")
        view: JobView = await ctx.broker.submit(named, [item], gateway=gateway)
        if view.spec.id == spec.id:
            break
    return view


async def _beside(ctx: GatewayContext, tenant: str, data: bytes) -> str:
    if ctx.blobs is None:
        raise TooLarge(f"{len(data)} bytes, expected no more than {INLINE_BYTES}")
    name: str = await asyncio.to_thread(ctx.blobs.of(tenant).put, [data])
    return name


async def control(ctx: GatewayContext, tenant: str, notebook: str, what: What) -> bool:
    """Tell the notebook's kernel; False where there is none."""
    pool = ctx.pool(Kind.KERNEL)
    told: bool = await ctx.broker.control(pool, affinity_of(tenant, notebook), what)
    return told


async def file_op(
    ctx: GatewayContext,
    tenant: str,
    notebook: str,
    op: str,
    *,
    data: bytes | None = None,
    blob: str = "",
    **args: Any,
) -> tuple[dict[str, Any], bytes]:
    """Work on the notebook's files; what it says, and content. Raises what it raised."""
    spec = _spec(ctx, tenant, notebook, name="", beside=True)
    if data is not None and len(data) > INLINE_BYTES:
        blob, data = await _beside(ctx, tenant, data), None
    if data is not None:
        args["data"] = data
    results: list[Result] = []

    def take(event: OutputEvent) -> None:
        if isinstance(event, Result):
            results.append(event)

    async with Reading.of(ctx, spec, [FileOp(op=op, args=args, blob=blob)], take) as reading:
        await reading.ended()
    if reading.failure is not None:
        raise reading.failure
    if not results:
        raise ForebayError("a file operation said nothing")
    return await _content(ctx, results[0])


async def _content(ctx: GatewayContext, result: Result) -> tuple[dict[str, Any], bytes]:
    value = dict(result.value)
    inline = value.pop("data", b"")
    if not result.blob:
        return value, inline if isinstance(inline, bytes) else b""
    data = await _read(ctx, result.blob)
    if result.type == "application/json":
        return msgspec.json.decode(data), b""
    return value, data


async def _read(ctx: GatewayContext, blob: str) -> bytes:
    if ctx.blobs is None:
        raise NotFound("what is too large for a stream has no place here")
    path = await asyncio.to_thread(ctx.blobs.path, blob)
    return await asyncio.to_thread(path.read_bytes)


class Reading:
    """One job read to its end by this process. Leaving before does not end the job."""

    def __init__(
        self, ctx: GatewayContext, view: JobView, take: Callable[[OutputEvent], None]
    ) -> None:
        self.view = view
        self.failure: ForebayError | None = None
        self.leased_s: float | None = None if view.state == "queued" else ctx.clock()
        self.first_s: float | None = None
        self.gone = False
        self._ctx = ctx
        self._take = take
        self._over = asyncio.Event()

    @classmethod
    @asynccontextmanager
    async def of(
        cls,
        ctx: GatewayContext,
        spec: JobSpec,
        items: list[InputItem],
        take: Callable[[OutputEvent], None],
    ) -> AsyncIterator[Reading]:
        """Submit and read."""
        view = await ctx.broker.submit(spec, items, gateway=ctx.gateway_id)
        async with cls.open(ctx, view, take) as reading:
            yield reading

    @classmethod
    @asynccontextmanager
    async def open(
        cls, ctx: GatewayContext, view: JobView, take: Callable[[OutputEvent], None]
    ) -> AsyncIterator[Reading]:
        held = await ctx.broker.attach(view.spec.id, gateway=ctx.gateway_id, write=False)
        reading = cls(ctx, view, take)
        reader = ctx.hub.open(
            view.spec.id,
            epoch=view.epoch,
            after=0,
            encode=reading._encode,
            wire=NoWire(),
            row=ctx.rows[Kind.KERNEL],
            on_end=reading._on_end,
            on_slow=lambda _: None,
            on_reset=reading._fail,
            on_push=reading._hear,
        )

        async def leave() -> None:
            await ctx.hub.flush_delivered()
            try:
                await ctx.broker.detach(held)
            except ForebayError as error:
                log.debug("notebook.not_detached", job=held.job, code=error.code)

        try:
            yield reading
        finally:
            reader.close()
            leaving = ctx.hub.spawn(leave())
            if leaving is not None:
                await asyncio.shield(leaving)

    async def ended(self) -> None:
        """Until the job is over, or `leave` was called."""
        await self._over.wait()

    def leave(self) -> None:
        self.gone = True
        self._over.set()

    def _encode(self, event: OutputEvent) -> tuple[()]:
        if self.first_s is None:
            self.first_s = self._ctx.clock()
        self._take(event)
        return ()

    def _hear(self, push: GatewayPush) -> None:
        if isinstance(push, LeasePush) and push.running and self.leased_s is None:
            self.leased_s = self._ctx.clock()

    def _on_end(self, ended: Ended) -> None:
        if ended.state != "completed":
            self.failure = error_of(ended)
        self._over.set()

    def _fail(self, error: ForebayError) -> None:
        self.failure = error
        self._over.set()


async def is_known(ctx: GatewayContext, tenant: str, notebook: str) -> bool:
    """Whether there is such a notebook: remembered here, run anywhere, or with files."""
    if ctx.notebooks.get(tenant, notebook) is not None:
        return True
    if await live_job(ctx, tenant, notebook) is not None:
        return True
    value, _ = await file_op(ctx, tenant, notebook, "exists")
    return bool(value.get("exists"))


async def live_job(ctx: GatewayContext, tenant: str, notebook: str) -> JobView | None:
    """The job of the notebook's newest run, on whichever gateway, while the store has it."""
    found: list[JobView] = []
    for name in RUNS:
        view = await ctx.broker.find(tenant, DIALECT, f"{notebook}/{name}")
        if view is not None:
            found.append(view)
    record = ctx.notebooks.get(tenant, notebook)
    last = record.last.job if record is not None and record.last is not None else ""
    if last and all(view.spec.id != last for view in found):
        with suppress(NotFound):
            found.append(await ctx.broker.status(last))
    return max(found, key=lambda view: (view.created_s, view.spec.id == last), default=None)


def began_at(ctx: GatewayContext, view: JobView, notebook: str) -> datetime:
    """When a run was asked for, in time of day."""
    record = ctx.notebooks.get(view.spec.tenant, notebook)
    if record is not None and record.last is not None and record.last.job == view.spec.id:
        return record.last.began
    return datetime.now(UTC) - timedelta(seconds=ctx.clock() - view.created_s)


async def filled(ctx: GatewayContext, events: list[OutputEvent]) -> list[OutputEvent]:
    """``events`` with what is shown of large displays put back where it was."""
    return [await _filled(ctx, e) if isinstance(e, Display) and e.blobs else e for e in events]


async def _filled(ctx: GatewayContext, event: Display) -> Display:
    mime = wanted_mime({**event.data, **event.blobs})
    if mime not in event.blobs:
        return event
    try:
        data = await _read(ctx, event.blobs[mime])
    except (ForebayError, OSError):
        return msgspec.structs.replace(event, data={"text/plain": f"[{mime}: no longer kept]"})
    if len(data) > SHOWN_BLOB_BYTES:
        size = len(data)
        return msgspec.structs.replace(event, data={"text/plain": f"[{mime}, {size} bytes]"})
    binary = mime.startswith("image/") and mime != "image/svg+xml"
    text = base64.b64encode(data).decode() if binary else data.decode("utf-8", "replace")
    return msgspec.structs.replace(event, data={**event.data, mime: text})
