"""Opening the history of a gateway process: its database, its recordings, its writer."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

from forebay.blobs import Blobs
from forebay.gateway.hub import Hub
from forebay.gateway.scribe import Scribe
from forebay.history import History, HistoryOptions, Recordings, sqlite_url

__all__ = ["open_history"]

DATABASE = "history.db"
RECORDINGS = "recordings"


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
    recordings and files need one. Raises `CannotBoot` when the database cannot be opened and
    `ConfigError` when its address cannot be meant."""
    if data_dir is None:
        return None
    url = options.url or sqlite_url(_below(data_dir, DATABASE))
    history = await stack.enter_async_context(History(url, create=options.create_database))
    scribe = Scribe(hub, history, Recordings(_below(data_dir, RECORDINGS)), options, blobs=blobs)
    return await stack.enter_async_context(scribe)
