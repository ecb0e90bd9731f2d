"""Pools and workers as they stood a moment ago, for answers from memory.

`Picture` is filled from one function call, at most about once a second and after a push that
says that something changed. What must be exact (limits, positions of jobs) is decided by the
functions themselves.
"""

from __future__ import annotations

from bisect import bisect_left

from forebay.broker.redis_wire import PoolState, ShardState, WorkerState, info_of, stages_of
from forebay.core.admission import at_once
from forebay.core.fairness import head_start_s
from forebay.core.kinds import Kind
from forebay.core.spec import PoolView, QueuePlace, WorkerView, counts_of
from forebay.errors import ModelNotFound

__all__ = ["Picture"]


class Picture:
    """The shard in memory. Empty until the first `update`."""

    def __init__(self) -> None:
        self._pools: dict[str, PoolState] = {}
        self._pool_views: list[PoolView] = []
        self._worker_views: list[WorkerView] = []
        self.live = 0

    def update(self, state: ShardState) -> None:
        self._pools = {pool.name: pool for pool in state.pools}
        self._pool_views = [_pool_view(pool) for pool in state.pools]
        self._worker_views = [_worker_view(worker) for worker in state.workers]
        self.live = state.live

    def pools(self) -> list[PoolView]:
        return list(self._pool_views)

    def workers(self) -> list[WorkerView]:
        return list(self._worker_views)

    def names(self) -> list[str]:
        return sorted(self._pools)

    def place_for(self, pool: str, tenant: str, priority: int = 0) -> QueuePlace:
        """Where a new job would stand; exact while at most 64 wait, else to about a 64th."""
        state = self._pools.get(pool)
        if state is None:
            raise ModelNotFound(f"no pool is called {pool!r}", pools=self.names())
        if not state.queued and state.free > 0:
            return at_once(state.stats.place(1))
        tags = dict(zip(state.fair[::2], state.fair[1::2], strict=True))
        score = max(state.virtual_s, tags.get(tenant, 0.0)) - head_start_s(priority)
        before = bisect_left(state.scores, score)
        # Of equal scores those that came before are served before.
        while before < len(state.scores) and state.scores[before] == score:
            before += 1
        step = max(1, -(-state.queued // 64))
        return state.stats.place(min(state.queued, before * step) + 1)


def _number(value: float | bool) -> float | None:
    return None if isinstance(value, bool) else float(value)


def _pool_view(state: PoolState) -> PoolView:
    info = info_of(state.info)
    return PoolView(
        name=state.name,
        kind=Kind(state.name.partition("/")[0]),
        workers=state.workers,
        ready=state.active,
        slots=state.slots,
        free_credits=state.free,
        queued=state.queued,
        running=state.running,
        parked=state.parked,
        detached=state.detached,
        service_s=_number(state.model_s),
        rtf=_number(state.rtf),
        drain_rate=_number(state.drain_rate),
        synthetic=info.synthetic if info is not None else False,
        engine=info.engine if info is not None else "",
        model=info.model if info is not None else state.name.partition("/")[2],
        facts=info.facts if info is not None else {},
        stages=stages_of(state.stages),
    )


def _worker_view(state: WorkerState) -> WorkerView:
    load = state.load
    return WorkerView(
        id=state.id,
        pools=sorted(state.pools),
        slots=state.slots,
        sessions=state.sessions,
        held=state.held,
        standby=state.standby,
        silent=state.silent,
        pid=state.pid,
        busy=int(load.get("busy", 0)),
        busy_s=float(load.get("busy_s", 0.0)),
        cpu_s=float(load.get("cpu_s", 0.0)),
        resident_bytes=int(load.get("resident_bytes", 0)),
        gpu_bytes=int(load.get("gpu_bytes", 0)),
        gpu_busy=load.get("gpu_busy"),
        counts=counts_of(load),
        rtf=_number(state.rtf),
    )
