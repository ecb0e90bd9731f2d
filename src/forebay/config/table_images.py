"""Settings of the image workers. Part of `config.table`."""

from __future__ import annotations

from forebay.config import declare

__all__ = ["IMAGE_ENGINES", "IMAGE_MEMORY_MIB", "IMAGE_WORKERS"]

IMAGE_WORKERS = declare.whole(
    "workers.image",
    1,
    "Worker processes for pictures; each has a model of its own and works on one picture at a "
    "time.",
    low=0,
    high=64,
    flag="--workers image=N",
)
IMAGE_ENGINES = declare.words(
    "image.engines",
    "Engines as NAME[:key=value,...]. Unset: `waifu2x`, which enlarges photos twofold and "
    "removes noise.",
    flag="--engine image=...",
)
IMAGE_MEMORY_MIB = declare.whole(
    "image.memory_mib",
    6144,
    "Address space of one image worker; what needs more is refused, and the worker lives on. "
    "0: no limit. Not used where the engine runs on a GPU.",
    unit="MiB",
    low=0,
    high=1 << 20,
)
