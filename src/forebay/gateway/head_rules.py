"""What a request head may look like, beyond what the parser already insists on.

Pure: bytes in, `Broken` out. Everything here is something a parser accepts and two servers
in a row might read differently, or that no honest client sends.
"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass

from forebay.errors import BadRequest, ForebayError, TooLarge
from forebay.gateway.options import GatewayOptions

__all__ = ["METHODS", "Broken", "Head", "check_head", "over"]

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
ONCE = (b"content-type", b"authorization", b"origin", b"upgrade")
LOOKED_AT = frozenset({b"host", b"transfer-encoding", b"content-length", *ONCE})
PLAIN = re.compile(rb"/(?!/)[A-Za-z0-9_.~!$&'()*+,;=:@/-]*(?:\?[!\"$-~]*)?")
"""A target in which nothing is escaped and nothing odd: the usual one, checked in one go."""
HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~-]+)(:[0-9]{1,5})?")


class Broken(Exception):
    """A rule was broken: what to answer, as ``status`` and ``error``."""

    def __init__(self, status: int, error: ForebayError) -> None:
        super().__init__(error.message)
        self.status = status
        self.error = error


@dataclass(frozen=True, slots=True)
class Head:
    """A request head as parsed. ``upgrade``: it asks for a WebSocket."""

    method: str
    version: str
    url: bytes
    headers: Sequence[tuple[bytes, bytes]]
    upgrade: bool


def over(what: str, size: int, limit: int, unit: str = " bytes") -> TooLarge:
    return TooLarge(f"read {size}{unit} of {what}, expected no more than {limit}")


def check_head(head: Head, options: GatewayOptions) -> None:
    """Raise `Broken` for a head that is legal to the parser but not to us."""
    _check_line(head, options)
    fields: dict[bytes, list[bytes]] = {}
    size = len(head.url)
    for name, value in head.headers:
        size += len(name) + len(value) + 4
        if name in LOOKED_AT:
            fields.setdefault(name, []).append(value)
    if size > options.head_bytes:
        raise Broken(431, over("request head", size, options.head_bytes))
    _check_host(head, fields.get(b"host", []))
    coding, lengths = fields.get(b"transfer-encoding", []), fields.get(b"content-length", [])
    if head.upgrade or coding or lengths:
        _check_framing(head, coding, lengths)
    for name in ONCE:
        if len(fields.get(name, ())) > 1:
            raise _bad(f"{name.decode()} header appears more than once")


def _check_line(head: Head, options: GatewayOptions) -> None:
    if head.method not in METHODS:
        raise Broken(501, BadRequest(f"method {head.method} is not served"))
    if head.version not in ("1.0", "1.1"):
        raise Broken(505, BadRequest("expected HTTP/1.0 or HTTP/1.1"))
    path = head.url.partition(b"?")[0]
    if len(path) > options.path_bytes:
        raise Broken(414, over("path", len(path), options.path_bytes))
    if PLAIN.fullmatch(head.url) is None or b".." in path:
        _check_target(head.url, path)


def _bad(message: str) -> Broken:
    return Broken(400, BadRequest(message))


def _check_target(url: bytes, path: bytes) -> None:
    """What is not plainly harmless: escapes, odd characters, dots."""
    if not url.startswith(b"/") or url.startswith(b"//"):
        raise _bad("expected a request target that begins with one slash")
    if b"#" in url or any(byte <= 0x20 or byte >= 0x7F for byte in url):
        raise _bad("request target has characters that must be escaped")
    decoded = urllib.parse.unquote_to_bytes(path)
    if b"\\" in decoded or any(byte < 0x20 or byte == 0x7F for byte in decoded):
        raise _bad("path contains a control character or a backslash")
    if b".." in decoded.split(b"/") or b"..;" in decoded:
        raise _bad("path climbs out of its root")
    try:
        decoded.decode("utf-8")
    except UnicodeDecodeError:
        raise _bad("path is not utf-8") from None


def _check_host(head: Head, hosts: list[bytes]) -> None:
    if len(hosts) > 1 or (not hosts and head.version == "1.1"):
        raise _bad(f"read {len(hosts)} host headers, expected one")
    if hosts and HOST.fullmatch(hosts[0]) is None:
        raise _bad("host header is malformed")


def _check_framing(head: Head, coding: list[bytes], lengths: list[bytes]) -> None:
    """Where the body ends must be beyond doubt."""
    if len(lengths) > 1 or (lengths and not lengths[0].isdigit()):
        raise _bad("content-length is not one decimal number")
    if coding and (lengths or head.version != "1.1"):
        raise _bad("transfer-encoding does not go with this request")
    if coding and [value.strip().lower() for value in coding] != [b"chunked"]:
        raise Broken(501, BadRequest("expected transfer-encoding chunked, once"))
    if not head.upgrade:
        return
    if coding or lengths not in ([], [b"0"]):
        raise _bad("websocket request with a body")
    if head.version != "1.1":
        raise Broken(505, BadRequest("expected a websocket request in HTTP/1.1"))
