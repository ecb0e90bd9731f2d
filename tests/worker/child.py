"""A child process for tests of the supervisor: does what its first argument says."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from forebay.process import EXIT_CANNOT_BOOT, die_with_parent
from forebay.worker.steps import StepsTable


def main() -> int:
    how, log, *rest = sys.argv[1:]
    table = StepsTable.open(rest[rest.index("--steps-file") + 1]) if rest else None
    if table is not None:
        die_with_parent(table.supervisor_pid)
    with open(log, "a") as file:
        print(how, os.getpid(), "standby" if "--standby" in rest else "regular", file=file)
    if how == "cannot_boot":
        if table is not None:
            table.mark_failed("weights: no such file")
        return EXIT_CANNOT_BOOT
    if how == "dies":
        return 3
    if how == "ready_once" and len(Path(log).read_text().splitlines()) > 1:
        return EXIT_CANNOT_BOOT
    return live(how, log, table)


def live(how: str, log: str, table: StepsTable | None) -> int:
    stopping: list[int] = []
    signal.signal(signal.SIGUSR1, lambda *_: say(log, "promoted"))
    if how == "hangup":
        signal.signal(signal.SIGHUP, lambda *_: say(log, "hangup-heard"))
    if how != "stubborn":
        signal.signal(signal.SIGTERM, lambda *_: stopping.append(1))
    else:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if how == "starts":
        time.sleep(60)
    if table is not None:
        table.mark_ready()
        if how == "stepping":
            with table.inside("job-a", 2), table.inside("job-b", 5):
                time.sleep(60)
    while not stopping:
        time.sleep(0.01)
    say(log, "left", how)
    return 0


def say(log: str, what: str, *more: str) -> None:
    with open(log, "a") as file:
        print(what, os.getpid(), *more, file=file)


if __name__ == "__main__":
    sys.exit(main())
