"""Processor time and memory of this gateway and of what was started with it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import psutil

__all__ = ["process_costs"]

KEEP_S = 0.5


class _Costs:
    """Sums by role, looked up at most twice a second."""

    def __init__(self, supervisor_pid: int | None) -> None:
        self._supervisor_pid = supervisor_pid
        self._at = float("-inf")
        self._sums: dict[str, tuple[float, float]] = {}
        self._seen: dict[int, tuple[str, float]] = {}
        self._gone: dict[str, float] = {}
        self._workers: set[int] = set()

    def __call__(self) -> dict[str, tuple[float, float]]:
        now = time.monotonic()
        if now - self._at >= KEEP_S:
            self._at = now
            self._sums = self._look()
        return self._sums

    def _look(self) -> dict[str, tuple[float, float]]:
        alive: dict[int, tuple[str, float]] = {}
        memory: dict[str, float] = {}
        for role, process in self._processes():
            try:
                with process.oneshot():
                    used = process.cpu_times()
                    resident = process.memory_info().rss
            except psutil.Error:
                continue
            alive[process.pid] = (role, used.user + used.system)
            memory[role] = memory.get(role, 0.0) + resident
        for pid, (role, seconds) in self._seen.items():
            if pid not in alive:  # its time was spent: a counter must not fall
                self._gone[role] = self._gone.get(role, 0.0) + seconds
        self._seen = alive
        cpu = dict(self._gone)
        for role, seconds in alive.values():
            cpu[role] = cpu.get(role, 0.0) + seconds
        return {role: (seconds, memory.get(role, 0.0)) for role, seconds in cpu.items()}

    def _processes(self) -> list[tuple[str, psutil.Process]]:
        own = os.getpid()
        found = [("gateway", psutil.Process(own))]
        if self._supervisor_pid is None:
            return found
        try:
            supervisor = psutil.Process(self._supervisor_pid)
            children = supervisor.children()
        except psutil.Error:
            return found
        found.append(("supervisor", supervisor))
        self._workers &= {child.pid for child in children}
        found += [(self._role(child), child) for child in children if child.pid != own]
        return found

    def _role(self, child: psutil.Process) -> str:
        """The supervisor's fork server is part of the supervisor. A copy of it that has just
        been made still looks like it, so only the answer for others is kept."""
        if child.pid not in self._workers:
            try:
                if "forebay.fork_server" in child.cmdline():
                    return "supervisor"
            except psutil.Error:
                return "worker"
            self._workers.add(child.pid)
        return "worker"


def process_costs(
    supervisor_pid: int | None,
) -> Callable[[], dict[str, tuple[float, float]]]:
    """A function ``() -> {role: (cpu seconds, resident bytes)}`` for `GatewayMetrics`.

    Everything the supervisor started beside this process counts as a worker. Without a
    supervisor only this process is looked at."""
    return _Costs(supervisor_pid)
