"""Notebooks by name: what ids and file names may be, and what a notebook's jobs belong to.

A file's name comes from a client and is hostile until it was here: it is relative, has no
empty, ``.`` or ``..`` part, no NUL and no backslash, and a bounded length and depth. That
it does not leave the notebook's folder through a link either is for who opens it.
"""

from __future__ import annotations

import re

from forebay.errors import BadRequest

__all__ = [
    "MAX_DEPTH",
    "FileInUse",
    "MAX_PATH",
    "affinity_of",
    "check_id",
    "check_path",
    "folder_of",
]

MAX_ID = 128
MAX_PATH = 1024
MAX_PART = 255
MAX_DEPTH = 32


class FileInUse(BadRequest):
    """A file of that name is there, and was not to be overwritten."""

    code = "file_exists"
    http_status = 409


_ID = re.compile(r"[\w-]+", re.ASCII)


def check_id(notebook: object) -> str:
    """The id, if it is one: letters, digits, ``_`` and ``-``. Raises `BadRequest`."""
    if not isinstance(notebook, str) or not _ID.fullmatch(notebook):
        raise BadRequest("notebook_id is not letters, digits, _ and -", param="notebook_id")
    if len(notebook) > MAX_ID:
        raise BadRequest(
            f"notebook_id has {len(notebook)} characters, expected no more than {MAX_ID}",
            param="notebook_id",
        )
    return notebook


def affinity_of(tenant: str, notebook: str) -> str:
    """What all jobs of one notebook share. A tenant's name may hold anything, an id no ``/``:
    no two pairs are the same."""
    return f"{tenant}/{notebook}"


def folder_of(affinity: str) -> str:
    """The notebook's folder below that of all notebooks, safe on any file system."""
    tenant, _, notebook = affinity.rpartition("/")
    safe = "".join(
        c if c.isascii() and (c.isalnum() or c in "_-") else f"%{ord(c):x}." for c in tenant
    )
    return f"{safe or '%'}/{notebook}"


def check_path(name: object) -> list[str]:
    """The parts of a file's path inside its notebook. Raises `BadRequest`."""
    if not isinstance(name, str) or not name or len(name.encode("utf-8", "replace")) > MAX_PATH:
        raise BadRequest(f"a file name has 1 to {MAX_PATH} bytes", param="filename")
    if "\0" in name or "\\" in name or name.startswith("/"):
        raise BadRequest("the file name leaves the notebook's folder", param="filename")
    if not name.isprintable():
        raise BadRequest("the file name holds characters that cannot be shown", param="filename")
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise BadRequest("the file name leaves the notebook's folder", param="filename")
    if len(parts) > MAX_DEPTH or any(len(part.encode("utf-8")) > MAX_PART for part in parts):
        raise BadRequest(
            f"a file name has at most {MAX_DEPTH} parts of at most {MAX_PART} bytes",
            param="filename",
        )
    return parts
