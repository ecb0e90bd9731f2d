"""Many WebSocket readers in one process, as cheap as they can be: messages are searched for
their numbers, nothing is parsed. The same reader for every server that is compared."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from forebay.lab.captions import Arrivals
from forebay.lab.line import Line, text_frame

__all__ = ["Crowd"]


class _Watcher:
    """Goes through the steps of a protocol's beginning, then counts."""

    def __init__(self, crowd: Crowd) -> None:
        self.crowd = crowd
        self.stage = 0
        self.line: Line | None = None
        self.early: list[bytes] = []  # answers to what came with the handshake itself
        self.ready = asyncio.get_running_loop().create_future()

    async def open(self, url: str) -> None:
        self.line = await Line.open(url, self._heard, self._gone)
        for frame in [*self.early, *self.crowd.first]:
            self.line.send(frame)
        if self.crowd.steps:
            await asyncio.wait_for(self.ready, 20)

    def _heard(self, data: bytes) -> None:
        if self.stage == len(self.crowd.steps):
            self.crowd.arrivals.heard(data)
            return
        expected, answer = self.crowd.steps[self.stage]
        if expected in data:
            self.stage += 1
            if answer:
                frame = text_frame(answer.encode())
                self.early.append(frame) if self.line is None else self.line.send(frame)
            if self.stage == len(self.crowd.steps) and not self.ready.done():
                self.ready.set_result(None)

    def _gone(self) -> None:
        self.crowd.lost += 1


class Crowd:
    """``first``: what a reader says at once; ``steps``: what it then waits for, and says.
    After the last it counts messages, which carry ``#number#``."""

    def __init__(self, first: Sequence[str], steps: Sequence[tuple[bytes, str]]) -> None:
        self.first = [text_frame(text.encode()) for text in first]
        self.steps = list(steps)
        self.arrivals = Arrivals()
        self.lost = 0
        self._watchers: list[_Watcher] = []

    async def join(self, url: str, readers: int) -> None:
        for start in range(0, readers, 50):
            some = [_Watcher(self) for _ in range(start, min(start + 50, readers))]
            await asyncio.gather(*(watcher.open(url) for watcher in some))
            self._watchers += some

    def leave(self) -> None:
        for watcher in self._watchers:
            if watcher.line is not None:
                watcher.line.close()
