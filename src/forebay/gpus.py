"""What the GPUs of this machine have free and what a process uses of one, through NVML.

NVML comes with NVIDIA's driver. Without the driver, or without the package nvidia-ml-py
(``pip install 'forebay[gpu]'``), there are no GPUs here and nothing else changes.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

__all__ = ["Gpu", "GpuUse", "read_gpus", "use_of"]

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Gpu:
    """``index``: NVML's number, in the order of the PCI bus."""

    index: int
    name: str
    total_mb: int
    free_mb: int


@dataclass(frozen=True, slots=True)
class GpuUse:
    """``memory_bytes``: of this process. ``busy``: share of time that the GPU worked lately,
    for whoever; None where the driver does not tell."""

    memory_bytes: int
    busy: float | None


def read_gpus() -> list[Gpu]:
    """All GPUs; none where there is no driver."""
    with _nvml() as nvml:
        return [] if nvml is None else [_gpu(nvml, n) for n in range(nvml.nvmlDeviceGetCount())]
    return []


def _gpu(nvml: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory, name = nvml.nvmlDeviceGetMemoryInfo(handle), nvml.nvmlDeviceGetName(handle)
    return Gpu(
        index=index,
        name=name.decode() if isinstance(name, bytes) else str(name),
        total_mb=int(memory.total) // MIB,
        free_mb=int(memory.free) // MIB,
    )


def use_of(index: int, pid: int) -> GpuUse | None:
    """What process ``pid`` uses of GPU ``index``; None where that cannot be known."""
    with _nvml() as nvml:
        if nvml is None:
            return None
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        memory = sum(
            int(one.usedGpuMemory or 0)
            for one in nvml.nvmlDeviceGetComputeRunningProcesses(handle)
            if one.pid == pid
        )
        busy: float | None = None
        with contextlib.suppress(nvml.NVMLError):
            busy = nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
        return GpuUse(memory, busy)
    return None


@contextlib.contextmanager
def _nvml() -> Iterator[Any]:
    """The library, open; None without driver or package. A driver that fails meanwhile (a GPU
    that fell off the bus) ends the block, and the caller returns what it returns then."""
    try:
        nvml: Any = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception:  # noqa: BLE001 - NVML's own error class may be what is missing
        yield None
        return
    try:
        with contextlib.suppress(nvml.NVMLError):
            yield nvml
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()
