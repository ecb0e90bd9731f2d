"""`forebay worker`: one engine in this process, attached to a gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import msgspec

from forebay import telemetry
from forebay.blobs import FOLDER
from forebay.choice import MEMORY, kind_of, models_dir, parse_engine, with_defaults
from forebay.commands.common import default_data_dir, settled
from forebay.config import Config, rows, table, table_photos
from forebay.core.kinds import Row
from forebay.errors import ConfigError
from forebay.process import limit_memory
from forebay.serve_log import log_place
from forebay.serve_store import PRIVATE, is_shared, with_options

__all__ = ["run", "run_loop"]


def run_loop(main: Coroutine[Any, Any, int]) -> int:
    """Run on uvloop where there is one, else on asyncio's own loop."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    return int(uvloop.run(main))


def run(
    *,
    broker: str | None,
    kind: str,
    engine: str,
    slots: int | None,
    processes: int | None,
    model: str | None,
    worker_id: str | None,
    standby: bool,
    supervised: bool,
    steps_file: str | None,
    row_file: Path | None,
    blobs_dir: str | None,
) -> int:
    from forebay.worker.main import run_worker

    config = settled(None, {table.BROKER.name: broker})
    telemetry.configure(
        level=config[table.LOG_LEVEL],
        form=config[table.LOG_FORMAT],
        file=log_place(config),
        process="worker",
    )
    broker = _place(config)
    blobs_dir = blobs_dir or _blobs(config)
    served = kind_of(kind)
    name, options = parse_engine(served, engine, check=not supervised)
    if processes is not None:
        from forebay.node import Node  # a supervisor: megabytes that each of its workers spares

        node = Node(config, broker, served, engine, slots=slots, model=model, blobs_dir=blobs_dir)
        return run_loop(node.serve(processes))
    row = _read_row(row_file) if row_file else rows(config)[served]
    if served in MEMORY and options.get("device", "cpu") == "cpu":
        limit_memory(config[MEMORY[served]])  # a GPU's driver maps more than it uses
    return run_loop(
        run_worker(
            broker_url=broker,
            kind=served,
            engine_name=name,
            # A supervisor has settled them already; by hand, the settings of this process count.
            engine_options=options
            if supervised
            else with_defaults(config, served, name, models_dir(config), options),
            model=model,
            slots=slots,
            worker_id=worker_id,
            standby=standby,
            supervised=supervised,
            steps_file=steps_file,
            row=row,
            blobs_dir=blobs_dir,
        )
    )


def _place(config: Config) -> str:
    """Where a worker can attach. Raises `ConfigError` where it cannot."""
    broker = config[table.BROKER]
    if broker.startswith("unix://"):
        return broker
    if broker in (*PRIVATE, "local") or not is_shared(broker):
        raise ConfigError(
            f"broker is {broker!r}, expected redis://HOST, or unix:///path of a gateway's link"
        )
    return with_options(broker, config)


def _blobs(config: Config) -> str | None:
    """Where large files are when no argument says it: as a gateway with these settings and
    this data folder has it. None where there is no such folder."""
    url = config[table_photos.BLOBS_URL]
    if url is not None:
        return url
    named = config[table.DATA_DIR]
    folder = (named or default_data_dir()).absolute() / FOLDER
    return str(folder) if named is not None or folder.is_dir() else None


def _read_row(path: Path) -> Row:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Row)
    except (OSError, msgspec.DecodeError) as exc:
        raise ConfigError(f"{path} holds no row: {exc}") from exc
