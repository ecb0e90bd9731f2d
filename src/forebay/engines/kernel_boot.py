"""The first lines of a kernel's process: limits, then Jupyter's own kernel, set to flush soon.

Run as a script by `kernel_process`, inside the jail where there is one: it imports nothing
of forebay. ``FOREBAY_KERNEL`` holds JSON: ``limits`` (resource name to bytes or count),
``flush_s``, ``nice``; it is gone from the environment before any user code runs.

Prints that do not flush wait in Jupyter's kernel, 200 ms by default, before they are sent;
here ``flush_s``. And where the reader falls behind, the kernel waits instead of dropping
what it printed.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Any

__all__ = ["main"]


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

    import zmq
    from ipykernel.iostream import OutStream
    from ipykernel.kernelapp import IPKernelApp

    OutStream.flush_interval = settings.get("flush_s", 0.01)

    class App(IPKernelApp):  # type: ignore[misc, unused-ignore]
        def init_iopub(self, context: Any) -> None:
            super().init_iopub(context)  # type: ignore[no-untyped-call, unused-ignore]
            self.iopub_thread.socket.setsockopt(zmq.XPUB_NODROP, 1)

    App.launch_instance()


if __name__ == "__main__":
    main()
