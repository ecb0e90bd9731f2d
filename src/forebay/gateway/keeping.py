"""Opening the history of a gateway process: its database, its recordings, its writer."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from forebay.blobs import FOLDER, Blobs, Limits, open_blobs
from forebay.gateway.hub import Hub
from forebay.gateway.scribe import Scribe
from forebay.history import HistoryOptions, LateHistory, Recordings, sqlite_url

__all__ = ["BlobPlace", "open_history", "open_place"]

DATABASE = "history.db"
RECORDINGS = "recordings"


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobPlace:
    """Where large files are kept. ``url``: None for a folder in the data folder. The limits
    count bytes, of all tenants and of each; None: no limit."""

    url: str | None = None
    total_bytes: int | None = None
    tenant_bytes: int | None = None


def open_place(place: BlobPlace, data_dir: str | None) -> Blobs | None:
    """The store of large files, without what is past its time; None where there is none.
    Blocks. Raises `ConfigError` and `MissingEngine` for a URL that cannot be meant."""
    where = place.url or (None if data_dir is None else _below(data_dir, FOLDER))
    if where is None:
        return None
    limits = Limits(total_bytes=place.total_bytes, tenant_bytes=place.tenant_bytes)
    blobs = open_blobs(where, limits)
    blobs.sweep()
    return blobs


def _below(data_dir: str, name: str) -> Path:
    return Path(data_dir).absolute() / name


async def open_history(
    stack: AsyncExitStack,
    hub: Hub,
    options: HistoryOptions,
    data_dir: str | None,
    blobs: Blobs | None,
) -> Scribe | None:
    """The history's writer, closed by ``stack``; None without a data folder, because
    recordings and files need one. The database itself is opened when it is first needed. Raises
    `ConfigError` when its address cannot be meant, and `CannotBoot` when a package lacks."""
    if data_dir is None:
        return None
    url = options.url or sqlite_url(_below(data_dir, DATABASE))
    history = await stack.enter_async_context(LateHistory(url, create=options.create_database))
    scribe = Scribe(hub, history, Recordings(_below(data_dir, RECORDINGS)), options, blobs=blobs)
    return await stack.enter_async_context(scribe)
