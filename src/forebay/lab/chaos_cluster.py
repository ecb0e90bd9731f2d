"""Servers of one's own to break: started through the command line, on free loopback ports.

A `Cluster` owns every process it starts and leaves none behind. Victims are found among the
children of its servers, so that nothing else on the machine can be hit.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import msgspec
import psutil

from forebay.lab.chaos import NotRun
from forebay.store import StoreFiles, find_server, is_up, write_store

__all__ = ["SPEECH", "Cluster", "Server", "Store", "around", "commands", "until"]

FOREBAY = (sys.executable, "-m", "forebay")
START_S = 60.0
STOP_S = 20.0
SPEECH = "synthetic:rtf=0.1,unit_ms=10,latency_ms=5,slots=400"
"""A voice that is always ahead of its typist: what is heard is what the machinery delays."""
_BECOME = (
    *(sys.executable, "-S", "-E", "-c"),
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execv(sys.argv[1], sys.argv[1:])",
)
"""A program that ends with us, whatever happens to us (Linux), and starts without delay."""
_JOIN = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
"""A program in the control group of this folder (shell)."""
_STARTED = re.compile(r"starting on (http://[^/\s]+)/")


async def until(ready: Callable[[], Any], limit_s: float, what: str = "") -> Any:
    """Wait until ``ready`` gives something true, and return that. Raises `RuntimeError`."""
    end = time.monotonic() + limit_s
    while True:
        found = ready()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return found
        if time.monotonic() >= end:
            raise RuntimeError(f"{what or 'what was waited for'} did not come in {limit_s:g} s")
        await asyncio.sleep(0.02)


def around(broker: str) -> dict[str, str]:
    """The environment of a process around this broker: its password is no argument."""
    return {"FOREBAY_SERVER_BROKER": broker}


class Server:
    """One `forebay serve` or `forebay worker --processes`, and its children."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log
        self.http = ""

    @property
    def tts(self) -> str:
        return self.http.replace("http", "ws", 1) + "/tts"

    def _children(self) -> list[tuple[psutil.Process, list[str]]]:
        found = []
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self.process.pid).children():
                with contextlib.suppress(psutil.Error):
                    if child.status() != psutil.STATUS_ZOMBIE:
                        found.append((child, child.cmdline()))
        return found

    def gateways(self) -> list[psutil.Process]:
        """Those that accept connections: not one that stands by or still starts."""
        serving = self._serving()
        found = [child for child, words in self._children() if "_gateway" in words]
        return [child for child in found if child.pid in serving]

    def workers(self, kind: str = "") -> list[psutil.Process]:
        """Those that serve; no warm spare."""
        return [
            child
            for child, words in self._children()
            if "worker" in words and "--standby" not in words and (not kind or kind in words)
        ]

    def _serving(self) -> set[int]:
        """Processes that the supervisor has called ready, or promoted from standing by."""
        found = set()
        for line in self.text('"process.').splitlines():
            with contextlib.suppress(ValueError):
                entry = msgspec.json.decode(line)
                spare = str(entry.get("name", "")).endswith("spare")
                if entry["event"] == "process.promoted":
                    found.add(entry["pid"])
                elif entry["event"] == "process.ready" and not spare:
                    found.add(entry["pid"])
        return found

    def text(self, event: str = "") -> str:
        """The log so far, or its lines about ``event``."""
        text = self.log.read_text(errors="replace")
        return "\n".join(line for line in text.splitlines() if event in line) if event else text

    def send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)


class Store:
    """A private Valkey that may be hurt: killed, frozen, filled, started again."""

    def __init__(self, folder: Path, *, persist: bool, settings: dict[str, str]) -> None:
        self._folder = folder
        self._persist = persist
        self._settings = settings
        self.files: StoreFiles | None = None
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        assert self.files is not None  # noqa: S101 - set by start
        return self.files.url

    async def start(self) -> None:
        """Start, or start again with the same files and the same port."""
        if self.files is None:
            self.files = write_store(self._folder, persist=self._persist, settings=self._settings)
        files = self.files
        self.process = subprocess.Popen(  # noqa: ASYNC220 - forks at once, waits for nothing
            [*_BECOME, str(find_server()), str(files.config)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        await until(lambda: is_up(files.port), START_S, "the store")

    def send(self, number: int) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def forget(self) -> None:
        """Remove what it kept on disk."""
        shutil.rmtree(self._folder / "appendonlydir", ignore_errors=True)


class Cluster:
    """Processes that die with this object. Use with ``async with``."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="forebay-chaos-"))
        self.servers: list[Server] = []
        self.stores: list[Store] = []
        self.http: aiohttp.ClientSession
        self._count = 0

    async def __aenter__(self) -> Self:
        self.http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.http.close()
        for server in self.servers:
            server.send(signal.SIGCONT)
            server.send(signal.SIGTERM)
        await asyncio.to_thread(self._reap)
        for store in self.stores:
            store.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _reap(self) -> None:
        for server in self.servers:
            try:
                server.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                server.process.kill()  # its children die with it
                server.process.wait()

    async def store(self, *, persist: bool = True, **settings: str) -> Store:
        """A Valkey of one's own, started. ``settings``: lines of its configuration, with
        ``_`` for ``-``."""
        self._count += 1
        lines = {name.replace("_", "-"): value for name, value in settings.items()}
        store = Store(self.folder / f"store-{self._count}", persist=persist, settings=lines)
        self.stores.append(store)
        await store.start()
        return store

    async def serve(
        self,
        *words: str,
        ready: bool = True,
        env: Mapping[str, str] | None = None,
        group: Path | None = None,
    ) -> Server:
        """`forebay serve` on a free port, with synthetic speech unless ``words`` name an
        engine; ready when this returns. ``group``: the control group that it starts in."""
        if "--engine" not in words:
            words += ("--engine", f"speech={SPEECH}")
        shared = env is not None and "FOREBAY_SERVER_BROKER" in env
        for other in ("text", "speech", "recognition", "image", "kernel"):
            if not shared and not any(word.startswith(f"{other}=") for word in words):
                words += ("--workers", f"{other}=0")
        self._count += 1
        folder = self.folder / f"serve-{self._count}"
        server = self._spawn(
            folder,
            *("serve", "--port", "0", "--data-dir", str(folder), *words),
            env=env,
            before=("sh", "-c", _JOIN, str(group)) if group else (),
        )

        def address() -> re.Match[str] | None:
            if server.process.poll() is not None:
                raise RuntimeError(f"the server did not start: {server.text()[-2000:]}")
            return _STARTED.search(server.text())

        server.http = (await until(address, START_S, "the server"))[1]
        if ready:
            count = int(words[words.index("--gateways") + 1]) if "--gateways" in words else 1
            await until(lambda: len(server.gateways()) >= count, START_S, "the gateways")
            await self.ready(server, kind=words[words.index("--engine") + 1].partition("=")[0])
        return server

    async def work(
        self, broker: str, processes: int, engine: str = SPEECH, inside: str = ""
    ) -> Server:
        """`forebay worker --processes N`: a machine that only works. ``inside``: the network
        namespace that is its machine."""
        self._count += 1
        words = ("--kind", "speech", "--engine", engine, "--processes", str(processes))
        folder = self.folder / f"work-{self._count}"
        before = ("ip", "netns", "exec", inside) if inside else ()
        return self._spawn(folder, "worker", *words, before=before, env=around(broker))

    def _spawn(
        self,
        folder: Path,
        *words: str,
        before: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> Server:
        folder.mkdir()
        log = folder / "log"
        quiet = {"FOREBAY_LOG_FORMAT": "json", "FOREBAY_WORKERS_SPARES": "never"}
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*before, *FOREBAY, *words],
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **quiet, **(env or {})},
                cwd=folder,
            )
        server = Server(process, log)
        self.servers.append(server)
        return server

    async def ready(
        self, server: Server, workers: int = 1, limit_s: float = START_S, kind: str = "speech"
    ) -> None:
        """Until so many workers of the kind are ready as the server sees it."""

        async def look() -> bool:
            facts = await self.status(server, "/readyz")
            ready = sum(p["ready"] for p in facts.get("pools", ()) if kind in p["name"])
            return bool(ready >= workers)

        await until(look, limit_s, f"{workers} ready workers ({server.text()[-800:]})")

    async def status(self, server: Server, path: str = "/api/status") -> dict[str, Any]:
        """What the server says there; {} where it does not answer."""
        try:
            async with self.http.get(
                server.http + path, timeout=aiohttp.ClientTimeout(total=5)
            ) as answer:
                found: dict[str, Any] = await answer.json()
                return found
        except (aiohttp.ClientError, OSError, ValueError):
            return {}


def commands(name: str, sequence: Sequence[Sequence[str]]) -> None:
    """Run system commands in order. Raises `NotRun` at the first that fails."""
    for words in sequence:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            raise NotRun(f"{name}: {' '.join(words)} failed: {done.stderr.strip()[:200]}")
