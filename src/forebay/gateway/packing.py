"""Compressed streams: every piece is whole for its reader in the moment it is sent.

A compressor that waits for more text delays it. This one is flushed with every piece and
keeps its memory of those before it, of which the next is nearly a repeat: that is where the
saving comes from, and it holds no byte back.
"""

from __future__ import annotations

import zlib

from forebay.gateway.access import header
from forebay.gateway.responses import Headers, Scope
from forebay.gateway.wire import Wire
from forebay.gateway.wires import HttpWire

__all__ = ["Packer", "packed"]

LEVEL = 1
"""Higher ones save two bytes in a hundred more for five times the work."""
WINDOW_BITS = 12
"""4 KiB, a dozen lines: more saves little, and every open stream has one."""
MEMORY_LEVEL = 5
_GZIP = 16  # added to the window's bits: zlib's way to say that it wants gzip's head and end

_TEXT = (b"text/event-stream", b"application/json")


class Packer:
    """One body's compressor, some 32 KiB of memory."""

    __slots__ = ("_deflate",)

    def __init__(self) -> None:
        self._deflate = zlib.compressobj(LEVEL, zlib.DEFLATED, WINDOW_BITS + _GZIP, MEMORY_LEVEL)

    def pack(self, piece: bytes) -> bytes:
        """``piece``, so that a reader who has it all so far can read it to its last byte."""
        return self._deflate.compress(piece) + self._deflate.flush(zlib.Z_SYNC_FLUSH)

    def end(self) -> bytes:
        """What ends the body. Without it a reader knows that the body was cut."""
        return self._deflate.flush(zlib.Z_FINISH)


def packed(scope: Scope, wire: Wire | None, head: Headers) -> Headers:
    """``head`` as it has to be sent, ``wire`` told to compress where the client asked for it
    and the body is text. Call it right before the head leaves."""
    if not any(name == b"content-type" and value.startswith(_TEXT) for name, value in head):
        return head
    more: Headers = [(b"vary", b"accept-encoding")]
    asked = scope.get("method") != "HEAD" and _takes_gzip(header(scope, b"accept-encoding"))
    if asked and isinstance(wire, HttpWire) and scope.get("http_version") == "1.1":
        wire.pack(Packer())
        more.append((b"content-encoding", b"gzip"))
    return [*head, *more]


def _takes_gzip(said: str | None) -> bool:
    """Whether an ``Accept-Encoding`` names gzip, and not to refuse it."""
    for part in (said or "").lower().split(","):
        name, _, weight = part.partition(";")
        if name.strip() == "gzip":
            quality = weight.strip().removeprefix("q=").strip()
            return not quality or bool(quality.strip("0."))
    return False
