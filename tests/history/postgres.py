"""A private PostgreSQL server from the machine's binaries, on a free port, gone afterwards."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.harness import free_port


def binaries() -> Path | None:
    """Where ``initdb`` and ``postgres`` are, newest version first."""
    for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True):
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    found = shutil.which("initdb")
    if found is not None and shutil.which("postgres") is not None:
        return Path(found).resolve().parent
    return None


def _user() -> int | None:
    """The server refuses to run as root: then somebody with fewer rights runs it."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_uid
        except KeyError:
            continue
    return 65534


@contextmanager
def server() -> Iterator[str]:
    """The URL of a running server's first database."""
    bin_folder = binaries()
    assert bin_folder is not None
    user, port = _user(), free_port()
    base = Path(tempfile.mkdtemp(prefix="forebay-pg-"))
    data = base / "data"
    data.mkdir()
    if user is not None:
        for path in (base, data):
            os.chown(path, user, -1)
    env = {"LC_ALL": "C", "PATH": os.environ.get("PATH", ""), "HOME": str(base)}
    how = {"user": user, "env": env, "cwd": base, "stdout": subprocess.DEVNULL}
    try:
        subprocess.run(
            [bin_folder / "initdb", "-D", data, "-U", "forebay", "-A", "trust", "-E", "UTF8", "-N"],
            check=True,
            **how,
        )
        process = subprocess.Popen(
            [bin_folder / "postgres", "-D", data, "-p", str(port), "-h", "127.0.0.1", "-k", ""]
            + ["-c", "fsync=off", "-c", "shared_buffers=16MB"],
            stderr=subprocess.DEVNULL,
            **how,
        )
        try:
            ready = bin_folder / "pg_isready"
            for _ in range(200):
                if (
                    subprocess.run([ready, "-q", "-h", "127.0.0.1", "-p", str(port)]).returncode
                    == 0
                ):
                    break
                subprocess.run(["sleep", "0.05"], check=True)
            yield f"postgresql://forebay@127.0.0.1:{port}/postgres"
        finally:
            process.terminate()
            process.wait(20)
    finally:
        shutil.rmtree(base, ignore_errors=True)
