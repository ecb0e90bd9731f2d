"""``GET /v1/models``: every pool as a model, with what it is beside OpenAI's four fields."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from forebay.core.kinds import Kind
from forebay.core.spec import PoolView
from forebay.errors import ModelNotFound, NoWorkers

__all__ = ["find", "model_name", "models", "one_model", "pool_for"]

ANY = frozenset({"", "default"})
"""Words for: whatever the kind's first model is."""


def model_name(pool: PoolView) -> str:
    """What clients call it: the pool's name without its kind."""
    return pool.name.partition("/")[2] or pool.name


def models(pools: Sequence[PoolView], created: int) -> dict[str, Any]:
    return {"object": "list", "data": [_entry(pool, created) for pool in pools]}


def one_model(pools: Sequence[PoolView], name: str, created: int) -> dict[str, Any]:
    """Raises `ModelNotFound`."""
    found = find(pools, name)
    if found is None:
        raise _unknown(name, pools)
    return _entry(found, created)


def find(pools: Sequence[PoolView], name: str) -> PoolView | None:
    """The pool a client means by ``name``: its model, or "kind/model"."""
    for pool in pools:
        if name in (model_name(pool), pool.name):
            return pool
    return next((pool for pool in pools if name == pool.model), None)


def pool_for(pools: Sequence[PoolView], kind: Kind, name: str | None) -> PoolView:
    """The pool for a call. Raises `ModelNotFound`, or `NoWorkers` where nothing of the kind
    is served yet."""
    mine = [pool for pool in pools if pool.kind == kind]
    if name is None or name in ANY:
        if not mine:
            raise NoWorkers(f"no {kind} model is served now", retry_after_s=5)
        return next((pool for pool in mine if pool.ready), mine[0])
    found = find(mine, name)
    if found is None:
        raise _unknown(name, mine)
    return found


def _unknown(name: str, pools: Sequence[PoolView]) -> ModelNotFound:
    known = ", ".join(model_name(pool) for pool in pools) or "none"
    return ModelNotFound(
        f"no model is called {name[:200]!r}, expected one of: {known}", param="model"
    )


def _entry(pool: PoolView, created: int) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "id": model_name(pool),
        "object": "model",
        "created": created,
        "owned_by": "forebay",
        "kind": str(pool.kind),
        "engine": pool.engine,
        "ready": pool.ready > 0,
        "synthetic": pool.synthetic,
    }
    context = pool.facts.get("context")
    if isinstance(context, int):
        entry["max_model_len"] = context
    return entry
