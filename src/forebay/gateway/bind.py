"""Listening sockets, bound before anything is started that would need them."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

import psutil

from forebay.errors import CannotBoot

__all__ = ["BACKLOG", "PortTaken", "bind", "owner_of"]

BACKLOG = 2048
SNDBUF_BYTES = 64 * 1024


class PortTaken(CannotBoot):
    """``details``: ``port``, and ``pid`` and ``process`` of whoever listens there, where this
    user may know."""

    code = "port_taken"


def bind(host: str, port: int, *, sndbuf_bytes: int = SNDBUF_BYTES) -> socket.socket:
    """A listening TCP socket, non-blocking, not inheritable until its owner says so.

    Buffer size and TCP_NODELAY are set before `listen`, so that every accepted connection
    has them from its first byte. ``sndbuf_bytes`` 0 leaves the kernel's own. Raises
    `PortTaken` naming the owner, or `CannotBoot` when the address cannot be bound at all."""
    family, address = _resolve(host, port)
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if sndbuf_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, sndbuf_bytes)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise _translated(error, host, port) from error
    sock.setblocking(False)
    return sock


def owner_of(port: int) -> tuple[int, str] | None:
    """Process id and name of whoever listens on TCP ``port``, if this user may know."""
    try:
        listening = psutil.net_connections(kind="tcp")
    except (psutil.Error, OSError):
        return _owner_among_own(port)
    for found in listening:
        if _listens(found, port) and found.pid:
            return found.pid, _name(found.pid)
    return None


def _listens(found: Any, port: int) -> bool:
    return bool(found.status == psutil.CONN_LISTEN and found.laddr and found.laddr.port == port)


def _owner_among_own(port: int) -> tuple[int, str] | None:
    for process in psutil.process_iter():
        try:
            held = process.net_connections(kind="tcp")
        except (psutil.Error, OSError):
            continue
        if any(_listens(one, port) for one in held):
            return process.pid, _name(process.pid)
    return None


def _name(pid: int) -> str:
    try:
        return str(psutil.Process(pid).name())
    except psutil.Error:
        return "unknown"


def _resolve(host: str, port: int) -> tuple[int, tuple[str, int]]:
    try:
        found = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (OSError, OverflowError) as error:
        raise CannotBoot(f"cannot resolve the address {host!r}: {error}", stage="bind") from error
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)
    family, _, _, _, address = found[0]
    return family, (str(address[0]), int(address[1]))


def _translated(error: OSError, host: str, port: int) -> CannotBoot:
    if error.errno == errno.EADDRINUSE:
        owner = owner_of(port)
        if owner is None:
            return PortTaken(f"port {port} on {host} is in use", stage="bind", port=port)
        pid, name = owner
        text = f"port {port} on {host} is in use by process {pid} ({name})"
        return PortTaken(text, stage="bind", port=port, pid=pid, process=name)
    if error.errno == errno.EACCES:
        text = f"port {port} may not be bound by user {os.getuid()}, choose one above 1023"
        return CannotBoot(text, stage="bind", port=port)
    return CannotBoot(f"cannot listen on {host}:{port}: {error.strerror}", stage="bind", port=port)
