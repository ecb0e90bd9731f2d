"""The socket file of the Unix-socket link: where it goes, and taking it over safely."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from pathlib import Path

from forebay.errors import ConfigError

__all__ = ["PATH_BYTES", "bind", "socket_path"]

PATH_BYTES = 107
"""Longest path of a Unix socket (Linux; the last of 108 bytes is the terminator)."""


def socket_path(folder: Path) -> Path:
    """Where the link's socket goes for a data folder: inside it where the path is short
    enough for a Unix socket, otherwise in a fresh short folder under /tmp."""
    path = folder / "broker.sock"
    if len(os.fsencode(path)) <= PATH_BYTES:
        return path
    return Path(tempfile.mkdtemp(prefix="forebay-", dir="/tmp")) / "broker.sock"


def bind(path: Path) -> socket.socket:
    """A listening socket at ``path``, mode 0600, over a dead process's file if need be.

    Raises `ConfigError` when the path is too long, is no socket, or is being served.
    """
    length = len(os.fsencode(path))
    if length > PATH_BYTES:
        raise ConfigError(
            f"socket path of {length} bytes, expected no more than {PATH_BYTES}",
            actual=length,
            limit=PATH_BYTES,
        )
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)  # the file is never there with a wider mode, not for a moment
    try:
        sock.bind(os.fspath(path))
        sock.listen(128)
    except OSError as exc:
        sock.close()
        raise ConfigError(f"cannot listen on {path}: {exc.strerror}") from exc
    finally:
        os.umask(before)
    sock.setblocking(False)
    return sock


def _remove_stale(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{path} exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(0.5)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except OSError as exc:
            raise ConfigError(f"cannot use {path}: {exc}") from exc
    raise ConfigError(f"another gateway serves {path}")
