"""Start a real Forebay on free loopback ports, look at its processes, stop it again."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from forebay.lab.stats import machine

FOREBAY = Path(sys.executable).parent / "forebay"
console = Console()
_BEGAN = psutil.cpu_times()


_held: list[socket.socket] = []


def free_port() -> int:
    """A port that nobody else is given while this process lives: the socket that found it
    stays bound, which a server that reuses addresses may listen beside."""
    probe = socket.socket()
    probe.bind(("127.0.0.1", 0))
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    _held.append(probe)
    port: int = probe.getsockname()[1]
    return port


@atexit.register
def _let_go() -> None:
    for probe in _held:
        probe.close()


class Server:
    """One `forebay serve` and the tree of processes below it."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self.log = log

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def tts(self) -> str:
        return f"ws://127.0.0.1:{self.port}/tts"

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.http + path, timeout=60) as answer:
            return json.load(answer)

    def tree(self) -> list[psutil.Process]:
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def role(self, *words: str) -> list[psutil.Process]:
        """Processes whose command line holds all ``words``, such as ("worker", "speech")."""
        found = []
        for process in self.tree():
            with contextlib.suppress(psutil.Error):
                line = process.cmdline()
                if all(word in line for word in words):
                    found.append(process)
        return found

    def gateway(self) -> psutil.Process:
        return self.role("_gateway")[0]

    def workers(self, kind: str) -> list[psutil.Process]:
        return self.role("worker", kind)

    def regular_worker(self, kind: str) -> psutil.Process:
        """A worker that serves, not a warm spare."""
        return next(p for p in self.workers(kind) if "--standby" not in p.cmdline())

    def cpu_s(self) -> float:
        total = 0.0
        for process in self.tree():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def wait_spares(self, limit_s: float = 240.0) -> None:
        """Until no worker is loading any more: a spare that loads takes half a small machine."""
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            pools = self.get("/api/status")["pools"]
            ready = [sum(s["stage"] == "ready" for s in p["stages"].values()) for p in pools]
            if all(count >= 2 for count in ready):
                break
            time.sleep(0.2)
        time.sleep(1)

    def wait_ready(self, limit_s: float, path: str = "/readyz") -> None:
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            if self.process.poll() is not None:
                break
            with contextlib.suppress(urllib.error.URLError, OSError):
                with urllib.request.urlopen(self.http + path, timeout=20) as answer:
                    if answer.status == 200:
                        return
            time.sleep(0.1)
        raise RuntimeError(f"not ready in {limit_s} s:\n{self.log.read_text()[-3000:]}")


@contextlib.contextmanager
def serving(
    *arguments: str,
    ready_s: float = 240.0,
    env: dict[str, str] | None = None,
    wait: str = "/readyz",
) -> Iterator[Server]:
    """`forebay serve` with ``arguments``; killed with everything below it at the end. No
    recogniser, enhancer or kernel runs beside what is measured unless ``arguments`` speak of
    one. ``wait``: the path that answers 200 once it is ready."""
    for kind in ("recognition", "image", "kernel"):
        if not any(kind in word for word in arguments):
            arguments += ("--workers", f"{kind}=0")
    with tempfile.TemporaryDirectory(prefix="fb-") as folder:
        port = free_port()
        log = Path(folder) / "serve.log"
        command = [str(FOREBAY), "serve", "--port", str(port), "--data-dir", folder, *arguments]
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=env
            )
            server = Server(process, port, log)
            try:
                server.wait_ready(ready_s, wait)
                with contextlib.suppress(OSError):
                    server.get("/api/v1/history")  # it loads late; nobody is to be blamed for it
                yield server
            finally:
                stop(server)


def stop(server: Server) -> None:
    tree = []
    with contextlib.suppress(psutil.Error):
        tree = server.tree()
    with contextlib.suppress(ProcessLookupError):
        server.process.send_signal(signal.SIGINT)
    try:
        server.process.wait(60)
    except subprocess.TimeoutExpired:
        server.process.kill()
        server.process.wait()
    for process in tree:
        with contextlib.suppress(psutil.Error):
            process.kill()


def options(description: str, **defaults: float | int | str) -> argparse.Namespace:
    """The arguments every benchmark takes, plus ``defaults`` as --name value."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--output-json", type=Path)
    for name, value in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    return parser.parse_args()


def stolen_percent() -> float:
    """Of the processors' time since this module was loaded: what the host of a virtual machine
    gave to others although somebody here waited for it. It is not in the product's hands, and it
    is what tails are made of: a few per cent double a p99. 0 where the system does not say."""
    now = psutil.cpu_times()
    spent = sum(now) - sum(_BEGAN)
    return round(100 * (getattr(now, "steal", 0.0) - getattr(_BEGAN, "steal", 0.0)) / spent, 1)


def report(
    title: str, rows: Sequence[tuple[str, str, str, bool | None]], output: Path | None, **raw: Any
) -> int:
    """Rows of (what, seen, wanted, held). Returns the exit status: 1 when one did not hold."""
    table = Table("what", "seen", "wanted", "", title=title, title_justify="left")
    for what, seen, wanted, held in rows:
        mark = "" if held is None else "[green]held[/]" if held else "[red]missed[/]"
        table.add_row(what, seen, wanted, mark)
    console.print(table)
    facts = machine() | {"stolen_percent": stolen_percent()}
    console.print(f"machine: {facts}")
    if output is not None:
        plain = [dict(zip(("what", "seen", "wanted", "held"), row, strict=True)) for row in rows]
        output.write_text(
            json.dumps({"title": title, "machine": facts, "rows": plain, "raw": raw}, indent=2)
        )
    return 0 if all(held is not False for *_, held in rows) else 1


def run(main: Any) -> None:
    import uvloop

    raise SystemExit(uvloop.run(main()))
