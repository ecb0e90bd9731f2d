"""Which instance of a model goes to which GPU: a pure plan from wishes and free memory.

An engine's options say ``device=cpu`` (the default), ``device=cuda:N`` (that one), or
``device=auto`` (the one with most memory free, the processor where there is none), and
``memory_mb``, what one instance needs. An instance that does not fit is refused with the
numbers before anything is started; a warm spare that does not fit is left out.

The child process gets ``device=cuda:N`` with the machine's own number, and
``CUDA_VISIBLE_DEVICES=N``: a CUDA library then sees that one GPU alone, as its device 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from forebay.errors import CannotBoot, ConfigError
from forebay.gpus import Gpu

__all__ = ["CPU", "Placement", "Want", "place"]

CPU = "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Want:
    """One instance. ``memory_mb`` 0: not said, so it fits wherever it is put."""

    name: str
    device: str
    memory_mb: int = 0
    spare: bool = False


@dataclass(frozen=True, slots=True)
class Placement:
    """``devices``: by instance, "cpu" or "cuda:N". ``left_out``: spares without room, with
    the numbers."""

    devices: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def env(self, name: str) -> dict[str, str]:
        """What the instance's process gets beside its options."""
        number = self.devices.get(name, CPU).partition(":")[2]
        if not number:
            return {}
        return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": number}


def place(wants: Iterable[Want], gpus: Sequence[Gpu]) -> Placement:
    """Places regular instances first, in order, each on the GPU with most memory left.

    Raises `ConfigError` for a device that is no device and `CannotBoot` (stage allocate) for
    one that is not here or has no room, with what is needed and what is free.
    """
    left = {gpu.index: gpu.free_mb for gpu in gpus}
    count = dict.fromkeys(left, 0)
    found = Placement()
    for want in sorted(wants, key=lambda want: want.spare):
        number = _number(want)
        if number is None and (want.device == CPU or not left):
            found.devices[want.name] = CPU
            continue
        among = list(left) if number is None else [number]
        best = max(among, key=lambda n: (left.get(n, -1), -count.get(n, 0)))
        if left.get(best, -1) < want.memory_mb or best not in left:
            reason = _reason(want, best, left, gpus)
            if not want.spare:
                raise CannotBoot(reason, stage="allocate")
            found.left_out[want.name] = reason
            continue
        left[best] -= want.memory_mb
        count[best] += 1
        found.devices[want.name] = f"cuda:{best}"
    return found


def _number(want: Want) -> int | None:
    """The GPU that is named; None for ``cpu`` and ``auto``."""
    name, colon, number = want.device.partition(":")
    if want.device in (CPU, "auto"):
        return None
    if name != "cuda" or not colon or not number.isdecimal():
        raise ConfigError(f"device of {want.name} is {want.device!r}, expected cpu, auto or cuda:N")
    return int(number)


def _reason(want: Want, best: int, left: dict[int, int], gpus: Sequence[Gpu]) -> str:
    if best not in left:
        return f"{want.name} is for GPU {best}, this machine has {len(gpus)}"
    state = ", ".join(
        f"GPU {gpu.index} has {left[gpu.index]} MB of {gpu.total_mb} MB left" for gpu in gpus
    )
    return f"{want.name} needs {want.memory_mb} MB on a GPU, {state}"
