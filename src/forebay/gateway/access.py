"""Who is this Host, who is this Origin: the two questions a browser's requests raise.

A page from anywhere can make a browser connect to a server on its user's own machine. What
stands in its way is the ``Origin`` the browser adds (checked against the gateway's own and
a list) and the ``Host`` it was asked for (checked so that a name which an attacker points
at 127.0.0.1 is not answered).
"""

from __future__ import annotations

import ipaddress
import re
import socket
from functools import lru_cache

from forebay.errors import Forbidden
from forebay.gateway.options import GatewayOptions
from forebay.gateway.personality import Port
from forebay.gateway.responses import Scope

__all__ = [
    "check_host",
    "check_origin",
    "header",
    "is_ip",
    "listed_origin",
    "split_host",
    "split_origin",
]

DEFAULT_PORTS = {"http": 80, "https": 443}
_AUTHORITY = r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:(?P<port>[0-9]{1,5}))?"
AUTHORITY = re.compile(_AUTHORITY)
ORIGIN = re.compile(r"(?P<scheme>https?)://" + _AUTHORITY)


def header(scope: Scope, name: bytes) -> str | None:
    """The first header of that lower-case name, or None."""
    for key, value in scope["headers"]:
        if key == name:
            text: str = value.decode("latin-1")
            return text
    return None


def split_host(host: str) -> tuple[str, int | None]:
    """``name`` (lower case, no brackets) and port of a Host header; ``""`` if malformed."""
    found = AUTHORITY.fullmatch(host.strip().lower())
    return ("", None) if found is None else _parts(found)


def split_origin(origin: str) -> tuple[str, str, int] | None:
    """Scheme, name and port of a web page's Origin; None for anything else (``null``,
    ``file://``, extensions, something with a path or a user in it)."""
    found = ORIGIN.fullmatch(origin.lower())
    if found is None:
        return None
    scheme = found["scheme"]
    name, port = _parts(found)
    return scheme, name, DEFAULT_PORTS[scheme] if port is None else port


def _parts(found: re.Match[str]) -> tuple[str, int | None]:
    port = int(found["port"]) if found["port"] else None
    if port is not None and port > 65535:
        return "", None
    return found["name"].strip("[]").rstrip("."), port


def is_ip(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


@lru_cache(maxsize=64)
def is_this_machine(name: str) -> bool:
    """Whether a name can only mean this machine, whatever any DNS server says."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def check_host(scope: Scope, port: Port, options: GatewayOptions, *, keyed: bool) -> None:
    """Raise `Forbidden` for a Host this gateway does not answer to.

    ``keyed``: a key is demanded of everyone here; then nothing is gained by rebinding a
    name, and any name will do unless a list is given."""
    name, _ = split_host(header(scope, b"host") or "")
    listed = options.allowed_hosts
    if is_this_machine(name) or "*" in listed or name in listed:
        return
    if not port.loopback:
        if keyed and not listed:
            return
        if is_ip(name) or (name and name == socket.gethostname().lower()):
            return
    raise Forbidden("host is not one this gateway answers to (setting allowed_hosts)")


def listed_origin(origin: str, options: GatewayOptions) -> bool:
    return "*" in options.allowed_origins or origin.lower().rstrip("/") in {
        item.lower().rstrip("/") for item in options.allowed_origins
    }


def check_origin(scope: Scope, port: Port, options: GatewayOptions) -> None:
    """Raise `Forbidden` for a browser page that has no business here.

    Allowed: no Origin (not a browser), the gateway's own, those listed; on loopback also
    pages served from this machine; on a compat port any, as the originals had it."""
    origin = header(scope, b"origin")
    if origin is None or port.personality.compat or listed_origin(origin, options):
        return
    parts = split_origin(origin)
    if parts is not None and parts[1]:
        scheme, name, number = parts
        if port.loopback and is_this_machine(name):
            return
        host, host_port = split_host(header(scope, b"host") or "")
        if (name, number) == (host, host_port or DEFAULT_PORTS[scheme]):
            return
    raise Forbidden("origin is not allowed here (setting allowed_origins)")
