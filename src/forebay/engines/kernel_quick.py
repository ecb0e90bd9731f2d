"""What Jupyter and IPython do twice, or slowly, between a request and a cell's first line.

Loaded by `kernel_inside`, inside the jail where there is one: it imports nothing of forebay.
Nothing here changes what a cell means. Each step is the library's own with what it has found
out before, or gives the same answer by a shorter way, and falls back on the library's where
it was changed: what a user puts in its place is used.
"""

# mypy: allow-untyped-calls
# (Jupyter's kernel is not typed.)

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import zmq
from ipykernel import compiler, ipkernel
from jupyter_client import jsonutil
from jupyter_client import session as sessions

__all__ = ["quicken", "send"]

MORE = int(zmq.SNDMORE)
PLAIN_BYTES = 64 * 1024
"""Larger frames are not copied: that is for the library to do."""

_SPECIAL = re.compile(r"[%!?]|^\s*[,;/]", re.MULTILINE)
"""Without one of these no line of a cell is anything but Python."""
_JSON = json.JSONEncoder(
    default=jsonutil.json_default, ensure_ascii=False, allow_nan=False
).encode  # as the library's packer makes it anew for each part of each message


def quicken(session: Any, shell: Any) -> None:
    """Do it for the kernel of this process."""
    ipkernel._accepts_parameters = _Accepts(  # type: ignore[attr-defined, unused-ignore]
        ipkernel._accepts_parameters  # type: ignore[attr-defined, unused-ignore]
    )
    jsonutil._dateutil_parse = datetime.fromisoformat  # type: ignore[attr-defined, unused-ignore]
    compiler.murmur2_x86 = _crc  # type: ignore[attr-defined, unused-ignore]
    if session.pack is sessions.json_packer:
        session.pack = _pack
    shell.transform_cell = _Once(shell.transform_cell)
    shell.should_run_async = _Awaits(shell.should_run_async)
    manager = shell.input_transformer_manager
    manager.do_token_transforms = _Tokens(manager)


def send(socket: Any, parts: Sequence[bytes]) -> None:
    """A message of small frames, as ``socket.send_multipart`` sends it."""
    if max(map(len, parts)) > PLAIN_BYTES:
        socket.send_multipart(parts)
        return
    say = super(zmq.Socket, socket).send
    last = len(parts) - 1
    for at, part in enumerate(parts):
        say(part, MORE if at < last else 0, True, False)


def _pack(what: Any) -> bytes:
    try:
        return _JSON(what).encode("utf8", errors="surrogateescape")
    except (TypeError, ValueError):
        return sessions.json_packer(what)


def _crc(data: str, seed: int) -> int:
    """Names a cell's file. What it replaces goes through the code byte by byte in Python."""
    return zlib.crc32(data.encode("utf8", "surrogatepass"), seed)


class _Accepts:
    """Which parameters a method takes: looked up once for each, not for each cell."""

    def __init__(self, ask: Callable[[Any, Sequence[str]], dict[str, Any]]) -> None:
        self._ask = ask
        self._known: tuple[Any, tuple[str, ...]] | None = None
        self._answer: dict[str, Any] = {}

    def __call__(self, method: Any, names: Sequence[str]) -> dict[str, Any]:
        key = (getattr(method, "__func__", method), tuple(names))
        if key != self._known:
            self._answer, self._known = self._ask(method, names), key
        return self._answer


class _Once:
    """Transforms a request's code once. As it comes, it is done to see whether the cell awaits,
    and, where it does not, again to run it."""

    def __init__(self, transform: Callable[[str], str]) -> None:
        self._transform = transform
        self._code: str | None = None  # of the request that begins
        self._found: str | None = None

    def expect(self, code: str | None) -> None:
        """``code`` is about to be asked for, perhaps twice; None: no more."""
        self._code, self._found = code, None

    def __call__(self, raw_cell: str) -> str:
        if raw_cell is not self._code:
            return self._transform(raw_cell)
        if self._found is None:
            self._found = found = self._transform(raw_cell)
            return found
        found = self._found
        self.expect(None)  # what the cell itself asks for is another matter
        return found


class _Awaits:
    """Whether a cell awaits: without the words it cannot. As it comes, it is compiled to see,
    twice."""

    def __init__(self, ask: Callable[..., bool]) -> None:
        self._ask = ask

    def __call__(self, raw_cell: str, **how: Any) -> bool:
        code = how.get("transformed_cell")
        if isinstance(code, str) and "await" not in code and "async" not in code:
            return False
        return self._ask(raw_cell, **how)


class _Tokens:
    """Leaves out the search for special lines where there is nothing to find."""

    def __init__(self, manager: Any) -> None:
        self._manager = manager
        self._search: Callable[[list[str]], list[str]] = manager.do_token_transforms
        self._known = list(manager.token_transformers)

    def __call__(self, lines: list[str]) -> list[str]:
        if self._manager.token_transformers == self._known and not _SPECIAL.search("".join(lines)):
            return lines
        return self._search(lines)
