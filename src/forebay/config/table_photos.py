"""Settings of the photo paths and of stored files. Part of `config.table`."""

from __future__ import annotations

from forebay.config import declare
from forebay.config.declare import aliases

__all__ = [
    "BLOBS_MIB",
    "BLOBS_TENANT_MIB",
    "BLOBS_URL",
    "CLEANUP_H",
    "MAX_MPX",
    "MAX_SIDE",
    "MAX_TASKS",
]

CLEANUP_H = declare.number(
    "photos.cleanup_h",
    24.0,
    "A finished task, its tiles and its result are kept so long.",
    unit="h",
    low=0.001,
    high=10_000,
    aliases=aliases("TASK_CLEANUP_HOURS"),
)
MAX_TASKS = declare.maybe_whole(
    "photos.max_tasks",
    "Photos waiting or worked on; past it a request is answered with 503. A batch that begins "
    "below it is taken whole. Unset: what the queue takes (`limits.queue_jobs`).",
    low=1,
    high=1_000_000,
    aliases=aliases("MAX_CONCURRENT_TASKS"),
)
MAX_MPX = declare.number(
    "photos.max_mpx",
    40.0,
    "Largest photo taken, in millions of pixels. An engine may take less.",
    low=0.01,
    high=1000,
)
MAX_SIDE = declare.whole(
    "photos.max_side",
    12_000,
    "Longest side of a photo, in pixels. An engine may take less.",
    low=16,
    high=65_535,
)

BLOBS_URL = declare.maybe_text(
    "blobs.url",
    "Where large files are kept: any fsspec URL, such as `s3://BUCKET/FOLDER`, that every "
    "gateway and worker reaches. Unset: a folder in the data folder, for one machine.",
    secret=True,
)
BLOBS_MIB = declare.whole(
    "blobs.total_mib",
    8192,
    "Large files kept at once, of all tenants; past it new ones are refused with 503. 0: no limit.",
    unit="MiB",
    low=0,
    high=1 << 30,
)
BLOBS_TENANT_MIB = declare.whole(
    "blobs.tenant_mib",
    4096,
    "The same of one tenant, refused with 429.",
    unit="MiB",
    low=0,
    high=1 << 30,
)
