"""What a child process of the supervisor does first: tie its life to its parent's.

A supervisor that is killed with SIGKILL can clean up nothing; so each child asks the kernel
to end it when its parent is gone (``PR_SET_PDEATHSIG`` on Linux, a watching thread on
systems with kqueue).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import select
import signal
import sys
import threading
from typing import Any

import psutil

__all__ = [
    "EXIT_CANNOT_BOOT",
    "available_bytes",
    "describe_exit",
    "die_with_parent",
    "limit_memory",
    "oom_kills",
    "settle_heap",
]

EXIT_CANNOT_BOOT = 78
"""Exit code of a process that cannot start and says so; restarting at once is useless."""

COLLECT_AFTER = (10_000, 20, 20)
"""New objects before a collection of the youngest, and collections of each age before one of the
next. Python's own (700, 10, 10) walk all sessions every few hundred of new ones: measured at 5 %
of a busy gateway's time, in pauses of up to 60 ms. What is waiting to be collected stays small:
10,000 objects are about 2 MB, and only what refers to itself needs collecting at all."""

_PR_SET_PDEATHSIG = 1
_settled_pid = 0


def die_with_parent(parent_pid: int, *, sig: int = signal.SIGKILL) -> None:
    """From now on, ``sig`` reaches this process when the process ``parent_pid`` is gone.

    Call it first, from the main thread. If the parent is gone already (it died while this
    process was starting), ``sig`` is raised at once. On systems with neither mechanism it
    does nothing.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_PDEATHSIG, int(sig), 0, 0, 0)
    elif hasattr(select, "kqueue"):
        threading.Thread(
            target=_watch, args=(parent_pid, sig), name="parent watch", daemon=True
        ).start()
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), sig)


def _watch(parent_pid: int, sig: int) -> None:
    sel: Any = select  # kqueue is not in the stubs on Linux
    event = sel.kevent(
        parent_pid,
        filter=sel.KQ_FILTER_PROC,
        flags=sel.KQ_EV_ADD | sel.KQ_EV_ONESHOT,
        fflags=sel.KQ_NOTE_EXIT,
    )
    try:
        sel.kqueue().control([event], 1, None)
    except ProcessLookupError:
        pass  # gone before we could watch it: the same thing
    os.kill(os.getpid(), sig)


def oom_kills(root: str = "/sys/fs/cgroup", own: str = "/proc/self/cgroup") -> int:
    """How many processes of this control group the kernel has killed for want of memory. A
    container sees its group as the ``root`` of all; a service is in one that ``own`` names."""
    found = [f"{root}/memory.events", f"{root}/memory/memory.oom_control"]
    with contextlib.suppress(OSError), open(own) as file:
        for line in file:
            _, controllers, group = line.rstrip("\n").split(":", 2)
            if not controllers:
                found.insert(0, f"{root}{group}/memory.events")
            elif "memory" in controllers.split(","):
                found.insert(0, f"{root}/memory{group}/memory.oom_control")
    for path in found:
        try:
            with open(path) as file:
                facts = dict(line.split(maxsplit=1) for line in file if " " in line)
        except OSError:
            continue
        return int(facts.get("oom_kill", 0))
    return 0


def limit_memory(mib: int) -> None:
    """This process may have so much address space from now on; what needs more gets a
    `MemoryError` instead of the kernel's killer. 0, or a system without the limit: nothing."""
    try:
        import resource
    except ImportError:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = mib << 20
    if wanted and (hard == resource.RLIM_INFINITY or wanted < hard):
        with contextlib.suppress(ValueError, OSError):  # macOS knows the name and refuses it
            resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))


def available_bytes() -> int:
    """Memory that may still be used: the machine's, or what the control group allows."""
    free = int(psutil.virtual_memory().available)
    limits = (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    )
    for limit_path, used_path in limits:
        try:
            with open(limit_path) as limit, open(used_path) as used:
                allowed = limit.read().strip()
                if allowed.isdigit():
                    free = min(free, max(0, int(allowed) - int(used.read())))
        except OSError:
            continue
    return free


def describe_exit(code: int, *, oom: bool = False) -> str:
    """A process's end in words, with the likely cause. Negative: the signal that killed it."""
    if code == 0:
        return "left by itself with exit code 0"
    if code == EXIT_CANNOT_BOOT:
        return "cannot boot"
    if code > 0:
        return f"exited with code {code}"
    name = signal.Signals(-code).name if -code in signal.valid_signals() else "unknown"
    if -code == signal.SIGKILL:
        if oom:
            return "killed by signal 9 (SIGKILL): the kernel ran out of memory for it"
        return "killed by signal 9 (SIGKILL), out of memory?"
    return f"killed by signal {-code} ({name})"


def settle_heap() -> None:
    """Take what this process has loaded out of the garbage collector's rounds, once.

    Modules, tables and models stay until the end. A collection that walks all of them finds
    nothing and holds everything up, a tenth of a second at a time; from now on it looks only
    at what came later, and less often (`COLLECT_AFTER`). Call it when the process is ready and
    nothing waits for it yet.
    """
    global _settled_pid
    if _settled_pid != os.getpid():  # a copy of a process that did it has loaded more since
        _settled_pid = os.getpid()
        gc.collect()
        gc.freeze()
        gc.set_threshold(*COLLECT_AFTER)
