"""`forebay serve`: compose, show, supervise."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import structlog

from forebay import serve, supervisor, telemetry
from forebay.choice import kind_of
from forebay.commands.common import console, data_dir, settled
from forebay.commands.worker import run_loop
from forebay.config import Config, table, table_log
from forebay.errors import ConfigError
from forebay.node import link_to
from forebay.screen import Screen
from forebay.serve_log import log_place

__all__ = ["flags", "run"]

LOG_BYTES = 20 << 20
GATEWAY_GRACE_S = 5.0
"""Beyond its own drain limit, before a gateway that does not go is killed."""

log = structlog.get_logger(__name__)


def flags(
    *,
    host: str | None,
    port: int | None,
    compat: str | None,
    data_dir: Path | None,
    gateways: int | None,
    broker: str | None,
    engines: Sequence[str],
    workers: Sequence[str],
    insecure_no_auth: bool | None,
    log_file: Path | None = None,
) -> dict[str, Any]:
    """Command-line options as settings. Raises `ConfigError` for a malformed KIND=..."""
    found: dict[str, Any] = {
        table.HOST.name: host,
        table.PORT.name: port,
        table.COMPAT.name: compat,
        table.DATA_DIR.name: data_dir,
        table.GATEWAYS.name: gateways,
        table.BROKER.name: broker,
        table.INSECURE_NO_AUTH.name: insecure_no_auth,
        table_log.LOG_FILE.name: log_file,
    }
    for text in engines:
        kind, engine = _pair(text, "--engine", "KIND=NAME[:key=value,...]")
        found.setdefault(f"{kind}.engines", []).append(engine)
    for text in workers:
        kind, number = _pair(text, "--workers", "KIND=N")
        found[f"workers.{kind}"] = number
    return found


def _pair(text: str, flag: str, form: str) -> tuple[str, str]:
    kind, equals, value = text.partition("=")
    if not equals or not value:
        raise ConfigError(f"{flag} is {text!r}, expected {form}")
    return str(kind_of(kind)), value


def run(file: Path | None, flags: dict[str, Any]) -> int:
    """Serve until SIGTERM or SIGINT; the exit status."""
    config = settled(file, flags)
    folder = data_dir(config)
    serve.raise_open_files()
    with _log_to(_log_file(config, folder)) as log_file:
        telemetry.configure(
            level=config[table.LOG_LEVEL],
            form=config[table.LOG_FORMAT],
            file=log_place(config),
            process="supervisor",
        )
        plan = serve.compose(config, data_dir=folder, log_file=log_place(config).path or log_file)
        screen = Screen(plan.facts, console)

        def on_event(event: supervisor.Event) -> None:
            if event.what == "halting":
                plan.stop_listening()
            screen.on_event(event)

        try:
            return run_loop(
                supervisor.serve(
                    plan.specs,
                    link_path=None if plan.store.url else plan.link_path,
                    link=link_to(plan.store.url) if plan.store.url else None,
                    on_event=on_event,
                    gateway_drain_s=config[table.DRAIN_S] + GATEWAY_GRACE_S,
                    preload=plan.preload,
                )
            )
        finally:
            screen.close()
            plan.close()


def _log_file(config: Config, folder: Path) -> Path | None:
    """On a terminal the screen belongs to people and events go to a file, unless the
    operator has said in which form to log."""
    if not sys.stdout.isatty() or not sys.stderr.isatty() or config.is_set(table.LOG_FORMAT):
        return None
    return folder / "forebay.log"


@contextlib.contextmanager
def _log_to(path: Path | None) -> Iterator[str]:
    """Point standard error of this process and its children at ``path``."""
    if path is None:
        yield ""
        return
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > LOG_BYTES:
            path.replace(path.with_suffix(".log.1"))
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    kept = os.dup(2)
    os.dup2(handle, 2)
    os.close(handle)
    try:
        yield str(path)
    finally:
        os.dup2(kept, 2)
        os.close(kept)
