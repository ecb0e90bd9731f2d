"""Claim: one speaker, 1000 displays, 10 captions a second: every display shows each within
50 ms (p99 of the last of them), at a cost near nchan's and below socket.io's.

Displays are the same cheap readers for all servers, on another core than the server where
there are two. Peers: nginx with nchan, Node socket.io and python-socketio, which are fetched
into ``--peers DIR`` (`apt-get download`, npm, pip) and left out where that fails. Cost: all
processor time of all processes of a server while captions flow.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from benchmarks.harness import free_port, options, report, run, serving
from benchmarks.peers.watchers import Crowd
from forebay.lab.stats import percentile

HERE = Path(__file__).parent / "peers"
NO_WORKERS = [w for k in ("speech", "text", "recognition", "image", "kernel")
              for w in ("--workers", f"{k}=0")]  # fmt: skip


@dataclass
class Peer:
    """``first``, ``steps``: what a reader says, hears and says until it counts. ``body``: of
    one publish."""

    name: str
    port: int
    path: str
    first: list[str]
    steps: list[tuple[bytes, str]]
    publish: str
    body: Callable[[str], Any]
    processes: Callable[[], list[psutil.Process]]

    def cpu_s(self) -> float:
        times = [process.cpu_times() for process in self.processes()]
        return sum(each.user + each.system for each in times)


def _text(number: int, size: int) -> str:
    return f"#{number}# ".ljust(size, "x")


async def measure(
    peer: Peer, readers: int, rate: float, seconds: float, size: int
) -> dict[str, Any]:
    crowd = Crowd(peer.first, peer.steps)
    await crowd.join(f"ws://127.0.0.1:{peer.port}{peer.path}", readers)
    seen = crowd.arrivals
    sent: dict[int, float] = {}
    async with aiohttp.ClientSession() as http:
        url = f"http://127.0.0.1:{peer.port}{peer.publish}"

        async def say(number: int) -> None:
            sent[number] = time.monotonic()
            async with http.post(url, json=peer.body(_text(number, size))) as answer:
                await answer.read()
                assert answer.status < 300, answer.status

        for number in range(10):  # connections, caches
            await say(number)
            await asyncio.sleep(0.05)
        before = peer.cpu_s()
        began = time.monotonic()
        count = round(rate * seconds)
        for number in range(100, 100 + count):
            await asyncio.sleep(max(0.0, began + (number - 100) / rate - time.monotonic()))
            await say(number)
        await asyncio.sleep(1)
        cpu = peer.cpu_s() - before
    numbers = range(100, 100 + count)
    lags = [(seen.last[n] - sent[n]) * 1000 for n in numbers if n in seen.last]
    crowd.leave()
    delivered = sum(seen.count[n] for n in numbers)
    return {
        "name": peer.name,
        "p50_ms": percentile(lags, 50),
        "p99_ms": percentile(lags, 99),
        "delivered": delivered,
        "wanted": count * readers,
        "cpu_s": cpu,
        "per_cpu_s": delivered / max(cpu, 0.01),
        "lost": crowd.lost,
    }


def _pin(process: psutil.Process, core: int) -> None:
    if hasattr(process, "cpu_affinity") and (os.cpu_count() or 1) > 1:
        for each in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                each.cpu_affinity([core])


@contextlib.contextmanager
def forebay() -> Iterator[Peer]:
    with serving(*NO_WORKERS, ready_s=30, wait="/healthz") as server:
        _pin(psutil.Process(server.process.pid), 0)
        subscribe = '{"id":1,"connect":{}}\n{"id":2,"subscribe":{"channel":"bench"}}'
        access = {"room": "bench", "passphrase": "bench", "user_name": "Ann"}
        yield Peer(
            "forebay", server.port, "/connection/websocket",
            [subscribe], [(b'"subscribe"', "")],
            "/api/send", lambda text: {**access, "text": text}, server.tree,
        )  # fmt: skip


@contextlib.contextmanager
def child(command: list[str], port: int, cwd: Path | None = None) -> Iterator[psutil.Process]:
    process = subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(200):
            with (
                contextlib.suppress(OSError),
                __import__("socket").create_connection(("127.0.0.1", port), 0.2),
            ):
                break
            time.sleep(0.05)
        found = psutil.Process(process.pid)
        _pin(found, 0)
        yield found
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()


def _tree(process: psutil.Process) -> Callable[[], list[psutil.Process]]:
    return lambda: [process, *process.children(recursive=True)]


@contextlib.contextmanager
def nchan(folder: Path) -> Iterator[Peer]:
    module = next(folder.rglob("ngx_nchan_module.so"))
    port = free_port()
    work = folder / "nginx"
    work.mkdir(exist_ok=True)
    temporary = "".join(f"{name}_temp_path {work};" for name in
                        ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))  # fmt: skip
    (work / "nginx.conf").write_text(
        f"load_module {module}; daemon off; pid {work}/pid; error_log {work}/error.log;\n"
        f"worker_processes 1; events {{ worker_connections 20000; }}\n"
        f"http {{ access_log off; {temporary}\n"
        f"server {{ listen 127.0.0.1:{port};\n"
        "location /pub { nchan_publisher; nchan_channel_id bench; }\n"
        "location /sub { nchan_subscriber websocket; nchan_channel_id bench;\n"
        " nchan_subscriber_first_message newest; } } }\n"
    )
    nginx = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin") or "nginx"
    with child([nginx, "-c", str(work / "nginx.conf")], port) as process:
        yield Peer(
            "nchan", port, "/sub", [], [], "/pub", lambda text: {"text": text},
            _tree(process),
        )  # fmt: skip


SOCKET_IO = [(b'"pingInterval"', "40"), (b"40{", "")]


@contextlib.contextmanager
def node_socketio(folder: Path) -> Iterator[Peer]:
    port = free_port()
    with child(["node", "server.js", str(port)], port, cwd=folder) as process:
        yield Peer(
            "socket.io", port, "/socket.io/?EIO=4&transport=websocket", [], SOCKET_IO, "/pub",
            lambda text: {"text": text}, _tree(process),
        )  # fmt: skip


@contextlib.contextmanager
def python_socketio(python: Path) -> Iterator[Peer]:
    port = free_port()
    command = [str(python), str(HERE / "python_socketio.py"), str(port)]
    with child(command, port) as process:
        yield Peer(
            "python-socketio", port, "/socket.io/?EIO=4&transport=websocket", [], SOCKET_IO,
            "/pub", lambda text: {"text": text}, _tree(process),
        )  # fmt: skip


def fetch(folder: Path) -> dict[str, Any]:
    """The peers that could be had, ready to be started."""
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}

    def attempt(name: str, work: Callable[[], Any]) -> None:
        try:
            found[name] = work()
        except (OSError, subprocess.SubprocessError, StopIteration) as exc:
            print(f"{name} is left out: {exc}", file=sys.stderr)  # noqa: T201

    def call(*words: str, cwd: Path) -> None:
        subprocess.run(words, cwd=cwd, check=True, capture_output=True, timeout=300)

    def get_nchan() -> Any:
        place = folder / "nchan"
        if not place.is_dir():
            place.mkdir()
            call("apt-get", "download", "libnginx-mod-nchan", cwd=place)
            call("dpkg-deb", "-x", next(place.glob("*.deb")).name, ".", cwd=place)
        return lambda: nchan(place)

    def get_node() -> Any:
        place = folder / "socketio"
        if not (place / "node_modules").is_dir():
            shutil.copytree(HERE / "socketio", place, dirs_exist_ok=True)
            call("npm", "install", "--no-audit", "--no-fund", cwd=place)
        return lambda: node_socketio(place)

    def get_python() -> Any:
        place = folder / "python"
        if not place.is_dir():
            call(sys.executable, "-m", "venv", str(place), cwd=folder)
            call(str(place / "bin/pip"), "install", "-q", "python-socketio", "aiohttp", cwd=folder)
        return lambda: python_socketio(place / "bin/python")

    attempt("nchan", get_nchan)
    attempt("socket.io", get_node)
    attempt("python-socketio", get_python)
    return found


async def main() -> int:
    wanted = options(
        __doc__ or "", readers=1000, rate=10.0, seconds=20.0, size=100,
        peers=str(Path.home() / ".cache/forebay/peers"),
    )  # fmt: skip
    peers = await asyncio.to_thread(fetch, Path(wanted.peers))
    _pin(psutil.Process(), (os.cpu_count() or 2) - 1)
    found = {}
    for name, start in {"forebay": forebay, **peers}.items():
        with start() as peer:
            found[name] = await measure(
                peer, wanted.readers, wanted.rate, wanted.seconds, wanted.size
            )
    ours = found["forebay"]
    rows: list[tuple[str, str, str, bool | None]] = [
        ("delivered", f"{ours['delivered']} of {ours['wanted']}", "all",
         ours["delivered"] == ours["wanted"]),
        ("publish to last display, p50 / p99", f"{ours['p50_ms']:.1f} / {ours['p99_ms']:.1f} ms",
         "p99 <= 50 ms", ours["p99_ms"] <= 50),
        ("deliveries per CPU second", f"{ours['per_cpu_s']:,.0f}", "", None),
    ]  # fmt: skip
    limits = {"nchan": 0.5, "socket.io": 1.0, "python-socketio": 1.0}
    for name, limit in limits.items():
        if name in found:
            peer_found = found[name]
            ratio = ours["per_cpu_s"] / peer_found["per_cpu_s"]
            rows.append(
                (f"beside {name}: {peer_found['per_cpu_s']:,.0f} a CPU second, "
                 f"p99 {peer_found['p99_ms']:.1f} ms", f"{ratio:.2f} x", f">= {limit}",
                 ratio >= limit)
            )  # fmt: skip
    return report("captions: fan-out", rows, wanted.output_json, found=found)


if __name__ == "__main__":
    run(main)
