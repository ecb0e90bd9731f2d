"""A notebook's folder: list, read, write, look at and delete its files.

Whoever runs code in a notebook may put links, pipes and devices into its folder, and this
code runs outside the jail. So no path is ever followed: each part is opened below the one
before it, never through a link, and only plain files are read or written. All calls block.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forebay.core.events import FileOp, Result
from forebay.core.notebook import FileInUse, check_path
from forebay.errors import BadRequest, ForebayError, NotFound, QuotaExceeded, StoreFull, TooLarge

__all__ = ["Files", "file_result"]

MAX_LISTED = 10_000
MAX_DEPTH = 32
MAX_READ_BYTES = 256 * 1024 * 1024
SHOWN_DOTS = frozenset({".sandbox", ".assets"})

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Files:
    """The files below ``folder``. ``limit_bytes``: of all of them together."""

    folder: Path
    limit_bytes: int

    def exists(self) -> bool:
        return self.folder.is_dir()

    def make(self) -> None:
        """The folder itself, for its owner only."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    # ----------------------------------------------------------------------- looking

    def tree(self) -> list[dict[str, Any]]:
        """Every file: folders first, then by name. Links and devices are left out."""
        with self._walk([]) as top:
            return _tree(top, "", [MAX_LISTED], 0)

    def info(self, name: str) -> dict[str, Any]:
        *where, last = check_path(name)
        with self._walk(where) as parent:
            found = _translated(lambda: os.stat(last, dir_fd=parent, follow_symlinks=False), name)
        kind = _kind(found.st_mode)
        if kind is None:
            raise NotFound(f"no file is called {name[:200]}")
        return _facts(last, name, kind, found)

    def read(self, name: str) -> tuple[dict[str, Any], bytes]:
        *where, last = check_path(name)
        with self._walk(where) as parent:
            handle = _translated(lambda: os.open(last, _FILE, dir_fd=parent), name)
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):  # before fdopen, which refuses a folder itself
            os.close(handle)
            kind = "is a folder" if stat.S_ISDIR(found.st_mode) else "is no file"
            raise NotFound(f"{name[:200]} {kind}")
        with os.fdopen(handle, "rb") as file:
            if found.st_size > MAX_READ_BYTES:
                raise TooLarge(
                    f"the file has {found.st_size} bytes, expected no more than {MAX_READ_BYTES}"
                )
            data = file.read(MAX_READ_BYTES)
        return _facts(last, name, "file", found), data

    # ---------------------------------------------------------------------- changing

    def write(
        self, name: str, data: bytes, *, overwrite: bool = True, make_dirs: bool = True
    ) -> dict[str, Any]:
        """Write a file whole: under another name first, so that nobody reads half of it."""
        *where, last = check_path(name)
        self.make()
        self._check_room(len(data))
        with self._walk(where, make=make_dirs) as parent:
            with contextlib.suppress(FileNotFoundError):
                there = os.stat(last, dir_fd=parent, follow_symlinks=False)
                if stat.S_ISDIR(there.st_mode):
                    raise BadRequest(f"{name[:200]} is a folder")
                if not overwrite:
                    raise FileInUse(
                        f"a file called {name[:200]} exists", word="File already exists"
                    )
            part = f".{secrets.token_hex(8)}.part"
            try:
                _put(part, data, parent)
                os.replace(part, last, src_dir_fd=parent, dst_dir_fd=parent)
            except OSError as error:
                with contextlib.suppress(OSError):
                    os.unlink(part, dir_fd=parent)
                raise _error(error, name) from error
            found = os.stat(last, dir_fd=parent, follow_symlinks=False)
        return _facts(last, name, "file", found)

    def delete(self, name: str) -> None:
        """A file or a link, or a folder with everything in it."""
        *where, last = check_path(name)
        with self._walk(where) as parent:
            _translated(lambda: _delete(last, parent, 0), name)

    # ------------------------------------------------------------------------- inside

    @contextlib.contextmanager
    def _walk(self, parts: Sequence[str], *, make: bool = False) -> Iterator[int]:
        """The folder ``parts`` below ours, opened part by part."""
        shown = "/".join(parts)[:200]
        try:
            handle = os.open(self.folder, _DIRECTORY)
        except FileNotFoundError:
            raise NotFound("no notebook of that id has files") from None
        try:
            for part in parts:
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, mode=0o755, dir_fd=handle)
                below = os.open(part, _DIRECTORY, dir_fd=handle)
                os.close(handle)
                handle = below
            yield handle
        except OSError as error:
            raise _error(error, shown) from error
        finally:
            os.close(handle)

    def _check_room(self, more: int) -> None:
        used = _size(self.folder)
        if used + more > self.limit_bytes:
            raise QuotaExceeded(
                f"the notebook's files would have {used + more} bytes, expected no more than "
                f"{self.limit_bytes}",
                limit_bytes=self.limit_bytes,
            )


def _put(name: str, data: bytes, parent: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(name, flags, 0o644, dir_fd=parent), "wb") as file:
        file.write(data)


def _translated(call: Any, name: str) -> Any:
    try:
        return call()
    except OSError as error:
        raise _error(error, name) from error


def _error(error: OSError, name: str) -> ForebayError:
    """An OSError in words that say nothing of this machine's paths."""
    shown = name[:200]
    if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
        return NotFound(f"no file is called {shown}")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFull("the disk is full")
    return BadRequest(f"{shown} cannot be used: {error.strerror}")


def _kind(mode: int) -> str | None:
    if stat.S_ISREG(mode):
        return "file"
    return "directory" if stat.S_ISDIR(mode) else None


def _facts(name: str, path: str, kind: str, found: os.stat_result) -> dict[str, Any]:
    return {
        "name": name,
        "path": path,
        "type": kind,
        "size": found.st_size if kind == "file" else 0,
        "modified_s": found.st_mtime,
    }


def _tree(handle: int, prefix: str, left: list[int], depth: int) -> list[dict[str, Any]]:
    nodes = []
    with os.scandir(handle) as found:
        entries = list(found)
    for entry in entries:
        if entry.name.startswith(".") and entry.name not in SHOWN_DOTS:
            continue
        status = entry.stat(follow_symlinks=False)
        kind = _kind(status.st_mode)
        if kind is None or left[0] <= 0 or not entry.name.isprintable():
            continue
        left[0] -= 1
        node = _facts(entry.name, prefix + entry.name, kind, status)
        if kind == "directory":
            node["children"] = []
            if depth < MAX_DEPTH:
                with contextlib.suppress(OSError):  # it went away, or became a link
                    node["children"] = _below(handle, entry.name, prefix, left, depth)
        nodes.append(node)
    return sorted(nodes, key=lambda n: (n["type"] != "directory", n["name"]))


def _below(
    handle: int, name: str, prefix: str, left: list[int], depth: int
) -> list[dict[str, Any]]:
    below = os.open(name, _DIRECTORY, dir_fd=handle)
    try:
        return _tree(below, f"{prefix}{name}/", left, depth + 1)
    finally:
        os.close(below)


def _delete(name: str, parent: int, depth: int) -> None:
    there = os.stat(name, dir_fd=parent, follow_symlinks=False)
    if not stat.S_ISDIR(there.st_mode):
        os.unlink(name, dir_fd=parent)
        return
    if depth > 4 * MAX_DEPTH:
        raise OSError(errno.ENAMETOOLONG, "folders are nested too deeply")
    handle = os.open(name, _DIRECTORY, dir_fd=parent)
    try:
        with os.scandir(handle) as found:
            names = [entry.name for entry in found]
        for below in names:
            _delete(below, handle, depth + 1)
    finally:
        os.close(handle)
    os.rmdir(name, dir_fd=parent)


def _size(folder: Path) -> int:
    total = 0
    left = [str(folder)]
    while left:
        with contextlib.suppress(OSError), os.scandir(left.pop()) as found:
            for entry in found:
                if entry.is_dir(follow_symlinks=False):
                    left.append(entry.path)
                else:
                    total += entry.stat(follow_symlinks=False).st_size
    return total


def file_result(files: Files, op: FileOp) -> Result:
    """Do ``op`` on a notebook's files. Its content comes as ``args["data"]`` and leaves as
    ``value["data"]``; `worker.cells` makes blobs of what is large."""
    args = op.args
    match op.op:
        case "exists":
            return Result(value={"exists": files.exists()})
        case "make":
            files.make()
            return Result(value={"exists": True})
        case "list":
            return Result(value={"files": files.tree()})
        case "info":
            return Result(value={"file": files.info(args.get("name", ""))})
        case "read":
            facts, data = files.read(args.get("name", ""))
            return Result(value={"file": facts, "data": data})
        case "write":
            facts = files.write(
                args.get("name", ""),
                bytes(args.get("data", b"")),
                overwrite=bool(args.get("overwrite", True)),
                make_dirs=bool(args.get("make_dirs", True)),
            )
            return Result(value={"file": facts})
        case "delete":
            files.delete(args.get("name", ""))
            return Result(value={"deleted": True})
        case "forget":
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(files.folder)
            return Result(value={"exists": False})
    raise BadRequest(f"no file operation is called {op.op[:40]!r}")
