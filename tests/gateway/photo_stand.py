"""A gateway with blobs, and an image worker that plays: tiles when it is let."""

from __future__ import annotations

import asyncio
import hashlib
import io
import struct
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from http_helpers import Player, Stand, stand
from PIL import Image

from forebay.blobs import Blobs, Limits, LocalBlobs
from forebay.core.events import OutputEvent, Progress, Result, Tile
from forebay.core.spec import Lease

__all__ = ["PhotoStand", "bomb", "jpeg", "photo_stand", "post"]


def jpeg(width: int = 40, height: int = 30, form: str = "JPEG", shade: int = 90) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), (shade, 120, 200)).save(out, form)
    return out.getvalue()


def bomb(side: int = 12000) -> bytes:
    """A small PNG of 144 million pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    rows = chunk(b"IDAT", zlib.compress(b"\0" * ((side // 8 + 1) * side), 9))
    return b"\x89PNG\r\n\x1a\n" + head + rows + chunk(b"IEND", b"")


@dataclass
class PhotoStand:
    at: Stand
    blobs: Blobs
    image: Player
    folder: Path
    go: asyncio.Event
    """The worker makes its second tile, and goes on, when this is set."""
    tiles: int = 4

    @property
    def url(self) -> str:
        return self.at.url

    async def script(self, lease: Lease) -> AsyncIterator[OutputEvent]:
        blobs = self.blobs.of(lease.spec.tenant)
        yield Progress(value=0.0, stage="decode")
        for index in range(self.tiles):
            if index == 1:
                await self.go.wait()
            blob = blobs.put([b"tile %d" % index])
            yield Tile(index=index, total=self.tiles, x=index * 20, y=0, width=20, height=60,
                       blob=blob, type="image/webp")  # fmt: skip
            yield Progress(value=(index + 1) / self.tiles * 0.95, stage="tiles", eta_s=1.0)
        data = jpeg(80, 60)
        yield Result(blob=blobs.put([data]), type="image/jpeg", size_bytes=len(data),
                     sha256=hashlib.sha256(data).hexdigest(), width=80, height=60)  # fmt: skip

    def files(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("*"))


@asynccontextmanager
async def photo_stand(
    tmp_path: Path,
    *,
    limits: Limits | None = None,
    slots: int = 1,
    worker: bool = True,
    **facts: Any,
) -> AsyncIterator[PhotoStand]:
    blobs = LocalBlobs(tmp_path / "blobs", limits)
    async with stand(blobs=blobs, **facts) as at:
        image = Player(at.broker, "image/synthetic" if worker else "text/other", slots)
        made = PhotoStand(at, blobs, image, tmp_path / "blobs", asyncio.Event())
        made.go.set()
        image.script = made.script
        try:
            yield made
        finally:
            made.go.set()
            await image.close()


async def post(
    client: aiohttp.ClientSession,
    at: PhotoStand,
    *files: bytes,
    path: str = "/api/v1/enhance",
    field: str = "file",
    name: str = "photo.jpg",
    kind: str | None = "image/jpeg",
    fields: dict[str, str] | None = None,
    query: dict[str, str] | None = None,
) -> aiohttp.ClientResponse:
    form = aiohttp.FormData()
    for key, value in (fields or {}).items():
        form.add_field(key, value)
    for data in files:
        form.add_field(field, data, filename=name, content_type=kind or "application/octet-stream")
    return await client.post(f"{at.url}{path}", data=form, params=query or {})
