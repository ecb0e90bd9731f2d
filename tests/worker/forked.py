"""A program for tests of forking: writes what it finds about itself, then does as told."""

from __future__ import annotations

import json
import os
import random
import secrets
import signal
import sys
import time
import uuid
from pathlib import Path


def facts() -> dict[str, object]:
    fds = {}
    for name in sorted(os.listdir("/proc/self/fd"), key=int):
        try:
            fds[name] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue  # the listing's own
    shown = Path("/proc/self/cmdline").read_bytes().rstrip(b"\0").decode()
    return {
        "argv": sys.argv,
        "env": dict(os.environ),
        "fds": fds,
        "shown": shown.split("\0"),
        "group_of_its_own": os.getpgid(0) == os.getpid(),
        "parent": os.getppid(),
        "folder": os.getcwd(),
        "nice": os.nice(0),
        "stdin": sys.stdin.read(),
        "signals": [str(signal.getsignal(n)) for n in (signal.SIGTERM, signal.SIGUSR1)],
        "interrupts": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
        "name": __name__,
    }


def main() -> int:
    out, how = Path(sys.argv[1]), sys.argv[2]
    found = facts() | {
        "pid": os.getpid(),
        "chances": [random.random(), uuid.uuid4().hex, secrets.token_hex(8)],
    }
    out.with_suffix(".part").write_text(json.dumps(found))
    out.with_suffix(".part").rename(out)
    if how == "stay":
        time.sleep(60)
    if how == "raise":
        raise ValueError("as told")
    return int(how)


if __name__ == "__main__":
    sys.exit(main())
