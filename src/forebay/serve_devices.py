"""Worker processes put on this machine's GPUs, where their engines ask for one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from forebay.choice import parse_engine
from forebay.core.kinds import Kind
from forebay.gpus import Gpu, read_gpus
from forebay.placement import CPU, Placement, Want, place
from forebay.supervisor import ProcessSpec

__all__ = ["on_devices"]


def on_devices(
    specs: Sequence[ProcessSpec], read: Callable[[], Sequence[Gpu]] = read_gpus
) -> tuple[list[ProcessSpec], list[str]]:
    """The workers with their devices settled, and a note for each spare that is left out.

    Nothing changes, and no driver is asked, where no engine names a device. Raises as
    `placement.place`.
    """
    wants = [want for want in map(_want, specs) if want is not None]
    if not wants:
        return list(specs), []
    placed = place(wants, read())
    kept = [_settled(spec, placed) for spec in specs if spec.name not in placed.left_out]
    return kept, [f"no warm spare: {reason}" for reason in placed.left_out.values()]


def _want(spec: ProcessSpec) -> Want | None:
    _, options = _engine(spec)
    device = options.get("device") or CPU
    if device == CPU:
        return None
    needed = int(options.get("memory_mb") or 0)
    return Want(name=spec.name, device=device, memory_mb=needed, spare=spec.spare)


def _engine(spec: ProcessSpec) -> tuple[str, dict[str, str]]:
    """The engine on a worker's command line; no options where it has none."""
    argv = list(spec.argv)
    if "--engine" not in argv:
        return "", {}
    kind = Kind(argv[argv.index("--kind") + 1])
    return parse_engine(kind, argv[argv.index("--engine") + 1])


def _settled(spec: ProcessSpec, placed: Placement) -> ProcessSpec:
    device = placed.devices.get(spec.name)
    if device is None:
        return spec
    name, options = _engine(spec)
    listed = ",".join(f"{key}={value}" for key, value in (options | {"device": device}).items())
    argv = list(spec.argv)
    argv[argv.index("--engine") + 1] = f"{name}:{listed}"
    return replace(spec, argv=argv, env={**spec.env, **placed.env(spec.name)})
