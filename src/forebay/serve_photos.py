"""What the settings say about photos and stored files."""

from __future__ import annotations

from pathlib import Path

from forebay.blobs import FOLDER
from forebay.config import Config, table_photos
from forebay.gateway.context import PhotoOptions
from forebay.gateway.keeping import BlobPlace

__all__ = ["BLOBS_ENV", "blob_place", "photo_options", "worker_blobs"]

MiB = 1 << 20
BLOBS_ENV = table_photos.BLOBS_URL.env
"""How workers are told of a URL, which may hold a key and is not for a command line."""


def photo_options(config: Config) -> PhotoOptions:
    """Limits of the photo paths, as settled."""
    return PhotoOptions(
        max_tasks=config[table_photos.MAX_TASKS],
        max_mpx=config[table_photos.MAX_MPX],
        max_side=config[table_photos.MAX_SIDE],
    )


def blob_place(config: Config) -> BlobPlace:
    """Where large files are kept, and how many. A limit of 0 is none."""
    total, tenant = config[table_photos.BLOBS_MIB], config[table_photos.BLOBS_TENANT_MIB]
    return BlobPlace(
        url=config[table_photos.BLOBS_URL],
        total_bytes=total * MiB or None,
        tenant_bytes=tenant * MiB or None,
    )


def worker_blobs(config: Config, data_dir: Path) -> tuple[list[str], dict[str, str]]:
    """The same for a worker's process: arguments and environment."""
    url = config[table_photos.BLOBS_URL]
    if url is not None:
        return [], {BLOBS_ENV: url}
    return ["--blobs-dir", str(data_dir.absolute() / FOLDER)], {}
