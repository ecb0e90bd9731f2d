"""What a session sent, in order, as it lies on disk until somebody decodes it.

A reel is a row of records, each a head and its bytes: headerless samples at a rate, or a
container, whole or in parts. Whoever writes one knows nothing of containers; whoever reads
one believes no length that the file does not hold.
"""

from __future__ import annotations

import struct

__all__ = ["FILE", "HEAD_BYTES", "PART", "SAMPLES", "head", "read_head"]

SAMPLES, FILE, PART = 1, 2, 3
"""Mono s16le samples; a container, or its last part; a part of a container."""

_HEAD = struct.Struct("<BIQ")
HEAD_BYTES = _HEAD.size


def head(kind: int, rate: int, size: int) -> bytes:
    """What stands before ``size`` bytes of this kind. ``rate`` counts for samples only."""
    return _HEAD.pack(kind, rate, size)


def read_head(data: bytes) -> tuple[int, int, int] | None:
    """(kind, rate, bytes), None where the reel ends or was cut."""
    if len(data) != HEAD_BYTES:
        return None
    kind, rate, size = _HEAD.unpack(data)
    return (kind, rate, size) if kind in (SAMPLES, FILE, PART) else None
