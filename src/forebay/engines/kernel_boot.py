"""The first lines of a kernel's process: limits, then Jupyter's own kernel, set to flush soon.

Run as a script by `kernel_process`, inside the jail where there is one: it imports nothing
of forebay but `kernel_inside` and `kernel_quick`, the files beside it. ``FOREBAY_KERNEL``
holds JSON: ``limits`` (resource name to bytes or count), ``flush_s``, ``nice``; it is gone
from the environment before any user code runs.
"""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

__all__ = ["main"]

INSIDE = ("kernel_quick", "kernel_inside")
"""The second needs the first."""


def _limit(limits: dict[str, int]) -> None:
    for name, value in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}", None)
        if kind is None:
            continue
        _, hard = resource.getrlimit(kind)
        most = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (most, most))


def main() -> None:
    # The script's own folder came first: a notebook must not import our modules from it.
    sys.path[0] = ""
    settings: dict[str, Any] = json.loads(os.environ.pop("FOREBAY_KERNEL", "{}"))
    _limit(settings.get("limits", {}))
    if settings.get("nice"):
        os.nice(settings["nice"])

    # Only now: what it loads counts against the limits.
    for name in INSIDE:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None and spec.loader is not None
        inside = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(inside)
    inside.launch(settings.get("flush_s", 0.01))


if __name__ == "__main__":
    main()
