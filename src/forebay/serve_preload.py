"""What the fork server loads before it is copied: all that gateways and workers import, and
nothing that starts a thread, opens a file or belongs to a model."""

from __future__ import annotations

from collections.abc import Iterable

from forebay.config import Config, table_process
from forebay.core.kinds import KINDS, Cut, Kind
from forebay.engines import REGISTRY

__all__ = ["is_light", "preload"]

COMMAND_LINE = ("uvloop", "encodings.idna", "forebay.cli:prepare")
GATEWAY = ("forebay.gateway.main", "forebay.commands.processes")
GATEWAY_LATER = ("sqlalchemy.ext.asyncio", "aiosqlite", "forebay.history.store")
"""The history's database: no gateway serves later for want of it, but each comes to need it."""
WORKER = ("forebay.worker.main", "forebay.commands.worker")
GATEWAY_SHARED = ("forebay.gateway.shared",)
WORKER_SHARED = ("forebay.broker.redis_worker",)
CUTTERS = {Cut.SEGMENTS: "forebay.worker.speech", Cut.SPAN: "forebay.worker.listen"}


def preload(
    config: Config, workers: Iterable[tuple[Kind, str]], *, gateways: bool, shared: bool
) -> list[str]:
    """Names for `supervisor.serve`; none where the operator wants no fork server.
    ``workers``: kind and engine of each; ``shared``: the broker is one that machines share."""
    if not config[table_process.FORK_SERVER]:
        return []
    found = list(COMMAND_LINE)
    if gateways:
        found += [*GATEWAY, *(GATEWAY_SHARED if shared else ())]
    served = sorted(set(workers))
    if served:
        found += [*WORKER, *(WORKER_SHARED if shared else ())]
    for kind, engine in served:
        row = KINDS[kind]
        found += [CUTTERS[row.cut]] if row.cut in CUTTERS else []
        found += [f"forebay.worker.{row.handler}"] if row.handler else []
        if is_light(kind, engine):
            found.append(REGISTRY[kind, engine].target.partition(":")[0])
    found = list(dict.fromkeys(found))
    return [*found, "--", *GATEWAY_LATER] if gateways else found


def is_light(kind: Kind, engine: str) -> bool:
    """Whether an engine brings no library of its own, which it would load in each process."""
    return not REGISTRY[kind, engine].modules
