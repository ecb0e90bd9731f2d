"""What a blob is called: whose it is, until when it is kept, and what nobody can guess.

32 hex digits: 8 of the owner (a digest, never the tenant's name), 7 of the minute after which
it may go, 17 random ones. Everything a store has to know of a blob beside its size stands in
its name, so that a plain folder and a bucket of objects are swept and counted alike, by
whoever looks, with no index that could be wrong.
"""

from __future__ import annotations

import hashlib
import re

__all__ = [
    "DEFAULT_LIFE_S",
    "NOBODY",
    "RANDOM_BITS",
    "expires_s",
    "is_name",
    "name_of",
    "owner_of",
    "tag_of",
]

DEFAULT_LIFE_S = 24 * 3600.0
NOBODY = "0" * 8
"""The owner of what belongs to no tenant."""

RANDOM_BITS = 68
_NAME = re.compile(r"[0-9a-f]{32}")
_MAX_MINUTE = 16**7 - 1


def is_name(name: str) -> bool:
    """Anything else is no blob's name, and never becomes a path."""
    return _NAME.fullmatch(name) is not None


def tag_of(tenant: str) -> str:
    return hashlib.sha256(tenant.encode()).hexdigest()[:8] if tenant else NOBODY


def name_of(tenant: str, until_s: float, random: int) -> str:
    """``until_s``: seconds since 1970. ``random``: `RANDOM_BITS` of them."""
    minute = min(_MAX_MINUTE, max(0, int(until_s // 60) + 1))
    return f"{tag_of(tenant)}{minute:07x}{random:017x}"


def owner_of(name: str) -> str:
    """The owner's tag, as `tag_of` gives it."""
    return name[:8]


def expires_s(name: str) -> float:
    """When it may go, in seconds since 1970."""
    return int(name[8:15], 16) * 60.0
