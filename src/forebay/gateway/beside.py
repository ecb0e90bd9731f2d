"""What is too large for a stream lies beside it, as a blob that the item names."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import msgspec

from forebay.blobs import Blobs
from forebay.core.events import InputItem, Picture, Sound
from forebay.errors import TooLarge

__all__ = ["FILE_BYTES", "drop_beside", "goes_beside", "set_beside"]

FILE_BYTES = 192 * 1024
"""A file up to this travels in the stream."""


def goes_beside(item: InputItem) -> bool:
    """Whether ``item`` is a file too large for a stream."""
    return isinstance(item, Sound) and item.form == "file" and len(item.data) > FILE_BYTES


async def set_beside(blobs: Blobs | None, item: InputItem, tenant: str) -> InputItem:
    """``item``, its file written to ``blobs`` where it is too large for a stream.

    Raises `TooLarge` where there is no such place, `StoreFull` where it is full, and
    `QuotaExceeded` where ``tenant`` has its share."""
    if not isinstance(item, Sound) or not goes_beside(item):
        return item
    if blobs is None:
        raise TooLarge(
            f"a file of {len(item.data)} bytes, expected no more than {FILE_BYTES}",
            limit_bytes=FILE_BYTES,
        )
    name = await asyncio.to_thread(blobs.of(tenant).put, [item.data])
    return msgspec.structs.replace(item, data=b"", blob=name)


def drop_beside(blobs: Blobs | None, items: Iterable[InputItem]) -> None:
    """Forget the blobs of ``items``: their job is over, or never was."""
    for item in items:
        if blobs is not None and isinstance(item, Sound | Picture) and item.blob:
            blobs.drop(item.blob)
