"""From what a kernel says while a cell runs to the cell's output events.

Nothing waits here but what its reader has not taken yet: text that follows text joins it,
a progress line gives way to the next, an update to the newer one. So a burst costs as much
memory as the output may have in all, and not one event more than the reader can take.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import Any

import msgspec

from forebay.core.events import Display, Notice, OutputEvent, size_of
from forebay.errors import ForebayError

__all__ = ["CellOutput", "settle_returns"]

JOIN_CHARS = 16 * 1024
PIECE_CHARS = 32 * 1024
"""One event's text: under the item bound in any script, however escaped."""
ERROR_CHARS = 32 * 1024
SPARE_BYTES = 256 * 1024
"""Of the bound, kept for how the cell ends: its error, its notice."""


def settle_returns(text: str) -> str:
    """``text`` with what a carriage return overwrites left out: of each line, what follows
    the last return, with that return before it, as the line may have begun earlier."""
    if "\r" not in text:
        return text
    lines = text.replace("\r\n", "\n").split("\n")
    return "\n".join("\r" + line.rpartition("\r")[2] if "\r" in line else line for line in lines)


class CellOutput:
    """The output of one running cell. The kernel's side feeds, the engine's step takes.

    ``over``: the kernel has said everything. ``failure``: it will not."""

    def __init__(self, limit_bytes: int) -> None:
        self.over = False
        self.failure: ForebayError | None = None
        self.status = "ok"
        self.error: dict[str, Any] = {}
        self.count: int | None = None
        self.dropped_bytes = 0
        self.first = False  # whether anything was said at all
        self._limit = max(limit_bytes - SPARE_BYTES, limit_bytes // 2)
        self._used = 0
        self._full = False
        self._pending: deque[OutputEvent] = deque()
        self._carry: dict[str, str] = {}  # a return at the end of what came so far
        self._news = asyncio.Event()

    # ------------------------------------------------------------------------ taking

    async def wait(self) -> None:
        """Until there is something to take, or it is over."""
        await self._news.wait()

    def take(self) -> OutputEvent | None:
        """The next event; None: nothing now."""
        if self._pending:
            return self._pending.popleft()
        if not (self.over or self.failure):
            self._news.clear()
        return None

    def end(self, failure: ForebayError | None = None) -> None:
        self.over = failure is None
        self.failure = failure
        self._news.set()

    # ----------------------------------------------------------------------- feeding

    def feed(self, kind: str, content: Mapping[str, Any]) -> None:
        """One message of the kernel's output socket."""
        match kind:
            case "stream":
                self._stream(str(content.get("name", "stdout")), str(content.get("text", "")))
            case "display_data" | "execute_result" | "update_display_data":
                self._rich(kind, content)
            case "clear_output":
                self._add(Display(what="clear", data={"wait": bool(content.get("wait"))}))
            case "error":
                self._error(content)

    def _stream(self, name: str, text: str) -> None:
        text = self._carry.pop(name, "") + text
        if text.endswith("\r"):
            # Whether it begins the line anew or ends it is seen with what follows.
            self._carry[name] = "\r"
            text = text[:-1]
        text = settle_returns(text)
        head, newline, tail = text.rpartition("\n")
        if newline and tail.startswith("\r"):
            self._text(name, head + newline)
            text = tail
        while text:
            self._text(name, text[:PIECE_CHARS])
            text = text[PIECE_CHARS:]

    def _text(self, name: str, text: str) -> None:
        last = self._pending[-1] if self._pending else None
        if isinstance(last, Display) and last.what == "stream" and last.name == name:
            before = str(last.data["text/plain"])
            if text.startswith("\r") and before.startswith("\r") and "\n" not in before:
                self._used -= _bytes(before)
                if self._has_room(_bytes(text)):
                    self._pending[-1] = _stream(name, text)
                return
            if not text.startswith("\r") and len(before) + len(text) <= JOIN_CHARS:
                if self._has_room(_bytes(text)):
                    self._pending[-1] = _stream(name, before + text)
                return
        self._add(_stream(name, text))

    def _rich(self, kind: str, content: Mapping[str, Any]) -> None:
        what = {"execute_result": "result", "update_display_data": "update"}.get(kind, "display")
        transient = content.get("transient") or {}
        event = Display(
            what=what,
            data=dict(content.get("data") or {}),
            metadata=dict(content.get("metadata") or {}),
            display_id=str(transient.get("display_id") or ""),
        )
        last = self._pending[-1] if self._pending else None
        if (
            what == "update"
            and isinstance(last, Display)
            and last.what == "update"
            and last.display_id == event.display_id
        ):
            self._used -= size_of(self._pending.pop())
        self._add(event)

    def _error(self, content: Mapping[str, Any]) -> None:
        lines = [str(line) for line in content.get("traceback") or ()]
        while len(lines) > 1 and sum(map(len, lines)) > ERROR_CHARS:
            del lines[len(lines) // 2]  # how it began and where it happened say most
        self.error = {
            "ename": str(content.get("ename", ""))[:1000],
            "evalue": str(content.get("evalue", ""))[:10_000],
            "traceback": [line[:ERROR_CHARS] for line in lines],
        }
        self._put(Display(what="error", data=self.error))

    def _add(self, event: OutputEvent) -> None:
        if self._has_room(size_of(event)):
            self._put(event)

    def _put(self, event: OutputEvent) -> None:
        self._pending.append(event)
        self.first = True
        self._news.set()

    def _has_room(self, size: int) -> bool:
        """Whether so much more may be shown; says once that no more is."""
        if not self._full:
            if self._used + size <= self._limit:
                self._used += size
                return True
            self._full = True
            self._put(
                Notice(
                    code="output_limit",
                    message=f"output over {self._limit // 1024} KiB is not shown, the cell runs on",
                    details={"limit_bytes": self._limit},
                )
            )
        self.dropped_bytes += size
        return False


def _bytes(text: str) -> int:
    """What ``text`` adds to an event's size: escapes count."""
    return len(msgspec.json.encode(text))


def _stream(name: str, text: str) -> Display:
    return Display(what="stream", name=name, data={"text/plain": text})
