"""Whether notebooks run code here, and how their kernels are kept: what settings decide."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

from forebay.config import Config, Setting, table, table_kernel
from forebay.gateway.personality import is_loopback

__all__ = ["OPTIONS", "by_default", "placed"]

OPTIONS: dict[str, Setting[Any]] = {
    "slots": table_kernel.NOTEBOOKS,
    "memory_mib": table_kernel.MEMORY_MIB,
    "processes": table_kernel.PROCESSES,
    "cpus": table_kernel.CPUS,
    "disk_mib": table_kernel.DISK_MIB,
    "output_mib": table_kernel.OUTPUT_MIB,
    "interrupt_s": table_kernel.INTERRUPT_S,
    "flush_ms": table_kernel.FLUSH_MS,
    "network": table_kernel.NETWORK,
    "confine": table_kernel.CONFINE,
}
"""Option of the engine to the setting behind it."""

FOLDER = "notebooks"


def by_default(config: Config) -> list[str]:
    """The engine where the operator names none: none at all off loopback, and none where it
    would refuse to start."""
    enabled = config[table_kernel.ENABLED]
    packages = all(importlib.util.find_spec(m) for m in ("jupyter_client", "ipykernel"))
    if enabled == "yes":
        return ["python"]
    if enabled == "no" or not packages or not is_loopback(config[table.HOST]):
        return []
    as_root = os.geteuid() == 0 and config[table_kernel.CONFINE] != "never"
    if as_root or config[table_kernel.CONFINE] == "always":
        from forebay.engines.kernel_jail import probe

        return ["python"] if probe()[0] is not None else []
    return ["python"]


def placed(config: Config, options: dict[str, str], data: Path) -> dict[str, str]:
    """What an engine for notebooks must be told beside its own ``options``."""
    found: dict[str, str] = {}
    if "dir" not in options:
        found["dir"] = str(config[table_kernel.FOLDER] or data.absolute() / FOLDER)
    if "confine" in options:
        if not is_loopback(config[table.HOST]):
            found["confine"] = "always"  # whoever has a key runs code: nothing else will do
        found["idle_s"] = f"{config[table_kernel.IDLE_H] * 3600:g}"
    return found
