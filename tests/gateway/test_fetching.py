"""Files that an event names are read in a thread, before the event is encoded."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from forebay.core.events import OutputEvent, Progress, Result
from forebay.errors import NotFound
from forebay.gateway.fetching import Files


def wanted(event: OutputEvent) -> str:
    return event.blob if isinstance(event, Result) else ""


class Stand:
    """`Files` whose readings happen when the test says so."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.threads: list[int] = []
        self.woken = asyncio.Event()
        self.tasks: list[asyncio.Task[None]] = []
        self.files: Files[str] = Files(wanted, self.read, self.spawn)
        self.files.on_read = self.woken.set

    def spawn(self, work: Any) -> None:
        self.tasks.append(asyncio.ensure_future(work))

    def read(self, name: str) -> str:
        self.threads.append(threading.get_ident())
        self.gate.wait(5)
        if name == "gone":
            raise NotFound("no such blob")
        return f"content of {name}"


async def test_an_event_waits_for_its_file_and_no_longer() -> None:
    s = Stand()
    event = Result(blob="a", offset=1)
    assert s.files.due(Progress(value=0.5, offset=1), 5.0) == 5.0
    assert s.files.due(event, 5.0) > 5.0
    assert s.files.due(event, 5.5) > 5.5  # asked again: not read twice
    s.gate.set()
    await asyncio.wait_for(s.woken.wait(), 60)
    assert s.files.due(event, 6.0) == 6.0
    assert s.files.take("a") == "content of a"
    assert len(s.threads) == 1 and s.threads[0] != threading.get_ident()
    s.files.sent(event, 6.0)
    with pytest.raises(RuntimeError):
        s.files.take("a")  # it is not kept


async def test_a_file_that_is_gone_is_told_where_it_is_needed() -> None:
    s = Stand()
    s.gate.set()
    event = Result(blob="gone", offset=1)
    s.files.due(event, 0.0)
    await asyncio.wait_for(s.woken.wait(), 60)
    assert s.files.due(event, 1.0) == 1.0
    with pytest.raises(NotFound):
        s.files.take("gone")
