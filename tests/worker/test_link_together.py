"""What comes together over the link is worked on, and answered, together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from forebay.broker import InputPush
from forebay.broker.link_client import LinkClient
from forebay.broker.link_keeper import Wire
from forebay.broker.link_peer import JOINED_BYTES, Peer
from forebay.broker.link_wire import (
    GREETING,
    FrameReader,
    Hello,
    Park,
    decode_from_broker,
    decode_from_worker,
    encode,
    frames,
)
from forebay.core.events import InputItem, Sound


class Pipe:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: 0


def bodies(data: bytes) -> list[Any]:
    reader = FrameReader()
    reader.feed(data if data.startswith(GREETING) else GREETING + data)
    return [bytes(body) for body in reader]


def sound(offset: int, size: int = 100) -> list[InputItem]:
    return [Sound(data=bytes(size), offset=offset)]


def push(job: str, offset: int, *, attempt: int = 1, size: int = 100) -> InputPush:
    return InputPush(job=job, attempt=attempt, items=sound(offset, size))


# --------------------------------------------------------------------- to the worker


async def said_to_worker(
    *pushes: InputPush, meanwhile: Any = None, then: Sequence[InputPush] = ()
) -> list[tuple[str, int, list[int]]]:
    class Owner:
        turn: Any = None
        host: Any = None

        def __init__(self) -> None:
            self.peers: set[Peer] = set()

        def left(self, peer: Peer) -> None:
            self.peers.discard(peer)

        def greeted(self, peer: Peer) -> None:
            raise AssertionError("nobody said hello")

    peer, pipe = Peer(Owner()), Pipe()
    peer.connection_made(pipe)  # type: ignore[arg-type]
    for one in pushes:
        peer.push(one)
    if meanwhile is not None:
        await meanwhile(peer)
        for one in then:
            peer.push(one)
    await asyncio.sleep(0)
    found: list[Any] = [decode_from_broker(body) for body in bodies(b"".join(pipe.writes))]
    # The greeting, and everything else that was said together.
    assert len(pipe.writes) == (2 if meanwhile is None else 3)
    peer.connection_lost(None)
    return [(p.job, p.attempt, [item.offset for item in p.items]) for p in found]


async def test_input_of_one_job_that_comes_at_once_is_one_message() -> None:
    said = await said_to_worker(push("a", 1), push("a", 2), push("a", 3), push("b", 1))
    assert said == [("a", 1, [1, 2, 3]), ("b", 1, [1])]


async def test_what_waits_of_one_lease_is_one_message_at_the_place_of_the_oldest() -> None:
    said = await said_to_worker(
        push("a", 1), push("b", 1), push("a", 2), push("a", 2, attempt=2), push("a", 3, attempt=2)
    )
    assert said == [("a", 1, [1, 2]), ("b", 1, [1]), ("a", 2, [2, 3])]


async def test_what_leaves_is_not_joined_any_more() -> None:
    async def leave(peer: Peer) -> None:
        await asyncio.sleep(0)

    said = await said_to_worker(push("a", 1), push("a", 2), meanwhile=leave, then=[push("a", 3)])
    assert said == [("a", 1, [1, 2]), ("a", 1, [3])]


async def test_a_joined_message_stays_short() -> None:
    size = JOINED_BYTES // 2
    said = await said_to_worker(*(push("a", n, size=size) for n in (1, 2, 3)))
    assert [offsets for _, _, offsets in said] == [[1], [2], [3]]


async def test_order_stays_where_the_oldest_message_is_full() -> None:
    size = JOINED_BYTES // 2
    said = await said_to_worker(
        push("a", 1, size=size), push("b", 1), push("a", 2, size=size), push("a", 3)
    )
    assert said == [("a", 1, [1]), ("b", 1, [1]), ("a", 1, [2, 3])]


# ------------------------------------------------------------------- from the worker


def wired() -> tuple[Wire, Pipe, list[Any]]:
    heard: list[Any] = []
    wire, pipe = Wire(Hello("worker", "w"), heard.append, lambda: None), Pipe()
    wire.connection_made(pipe)  # type: ignore[arg-type]
    pipe.writes.clear()
    return wire, pipe, heard


async def test_work_on_a_read_begins_when_all_of_it_is_here_and_its_answers_leave_together() -> (
    None
):
    wire, pipe, heard = wired()
    seen: list[int] = []

    def work(again: bool) -> None:
        seen.append(len(heard))
        wire.send(Park("a", len(seen)))
        if again:
            wire.soon(work, False)

    def hear(message: Any) -> None:
        heard.append(message)
        wire.soon(work, len(heard) == 1)

    wire._on_message = hear
    data = b"".join(part for n in (1, 2) for part in frames(encode(push("a", n)), control=False))
    wire.data_received(GREETING + data)
    assert seen == [2, 2, 2]
    (written,) = pipe.writes  # before the call returns: nothing waits for another turn
    assert [decode_from_worker(body) for body in bodies(written)] == [
        Park("a", n) for n in (1, 2, 3)
    ]
    await asyncio.wait_for(wire.drained(), 5)


async def test_outside_of_a_read_work_begins_in_the_next_turn() -> None:
    wire, pipe, _ = wired()
    wire.soon(wire.send, Park("a", 1))
    assert not pipe.writes
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(pipe.writes) == 1


async def test_a_link_that_is_down_does_work_in_the_next_turn() -> None:
    done: list[int] = []
    LinkClient("/nowhere", "w").soon(done.append, 1)
    assert not done
    await asyncio.sleep(0)
    assert done == [1]


async def test_a_read_that_ends_in_a_mistake_still_sends_what_was_answered() -> None:
    wire, pipe, _ = wired()

    def hear(message: Any) -> None:
        wire.send(Park("a", 1))
        raise RuntimeError("a bug")

    wire._on_message = hear
    with pytest.raises(RuntimeError, match="a bug"):
        wire.data_received(GREETING + b"".join(frames(encode(push("a", 1)), control=False)))
    assert len(pipe.writes) == 1
    wire.soon(wire.send, Park("a", 2))  # and it is not taken for a read that goes on
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(pipe.writes) == 2
