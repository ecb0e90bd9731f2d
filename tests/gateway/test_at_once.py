"""Messages that are dealt with in the call that brings them, and those that are not."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from gateway_harness import Served, frame, read_frame, serving

from forebay.broker import Assign, InputPush
from forebay.broker.local import LocalBroker
from forebay.core.events import Consumed, Heard, Sound
from forebay.core.kinds import KINDS, Kind
from forebay.core.spec import WorkerInfo
from forebay.dialects.asr import AsrDialect
from forebay.gateway.auth import Auth
from forebay.gateway.connection import serve_websocket
from forebay.gateway.context import GatewayContext
from forebay.gateway.driver import Hold
from forebay.gateway.hub import Hub
from forebay.gateway.inbox import Inbox
from forebay.gateway.metrics import GatewayMetrics
from forebay.gateway.options import GatewayOptions
from forebay.gateway.ws_protocol import AT_ONCE, MESSAGES_AHEAD

POOL = "recognition/test"


# --------------------------------------------------------------------------- the inbox


async def test_an_inbox_gives_what_came_in_order_and_waits_for_more() -> None:
    inbox: Inbox[int] = Inbox(asyncio.get_running_loop(), 2)
    inbox.put_nowait(1)
    inbox.put_nowait(2)
    assert [await inbox.get(), await inbox.get()] == [1, 2]
    assert not inbox.waited_for
    later = asyncio.create_task(inbox.get())
    await asyncio.sleep(0)
    assert inbox.waited_for and not len(inbox)
    inbox.put_nowait(3)
    inbox.put_nowait(4)
    assert not inbox.waited_for
    assert await later == 3
    assert len(inbox) == 1


async def test_a_reader_that_is_cancelled_loses_nothing() -> None:
    inbox: Inbox[int] = Inbox(asyncio.get_running_loop(), 2)
    waits = asyncio.create_task(inbox.get())
    await asyncio.sleep(0)
    inbox.put_nowait(1)
    waits.cancel()  # after its message came, before it ran
    await asyncio.gather(waits, return_exceptions=True)
    again = asyncio.create_task(inbox.get())
    assert await again == 1
    idle = asyncio.create_task(inbox.get())
    await asyncio.sleep(0)
    idle.cancel()
    await asyncio.gather(idle, return_exceptions=True)
    assert not inbox.waited_for


# ------------------------------------------------------------------------ the protocol


async def test_messages_of_a_read_are_offered_until_one_is_received_and_order_is_kept() -> None:
    offered: list[Any] = []

    async with serving() as served:
        _, writer = await served.websocket("/quiet")
        protocol: Any = next(iter(served.server.state.connections))
        await served.until(lambda: protocol.inbox.waited_for)

        def take(said: Any) -> int:
            offered.extend(said)
            return sum(one in ("a", b"d") for one in said)

        protocol.wire.offer_messages(take)
        writer.write(frame(1, b"a") + frame(1, b"b") + frame(1, b"c"))
        await served.until(lambda: served.probe.heard == ["b", "c"])
        assert offered == ["a", "b", "c", "b", "c"]  # what is left is offered until none is taken
        offered[:] = ["a"]
        await served.until(lambda: protocol.inbox.waited_for)
        writer.write(frame(2, b"d"))
        await served.until(lambda: offered[1:] == [b"d"])
        writer.write(frame(1, b"e"))  # offered, and refused: it is received like any other
        await served.until(lambda: served.probe.heard == ["b", "c", "e"])
        assert offered == ["a", b"d", "e"]
        protocol.wire.offer_messages(None)
        await served.until(lambda: protocol.inbox.waited_for)
        writer.write(frame(1, b"f"))
        await served.until(lambda: served.probe.heard[-1] == "f")
        assert len(offered) == 3


async def test_a_read_full_of_messages_does_not_keep_the_loop_from_all_others() -> None:
    offered: list[list[Any]] = []

    async with serving() as served:
        reader, writer = await served.websocket("/quiet")
        protocol: Any = next(iter(served.server.state.connections))
        await served.until(lambda: protocol.inbox.waited_for)

        def take(said: Any) -> int:
            offered.append(list(said))
            for one in said:
                protocol.wire.send(f"to {one}")
            return len(said)

        protocol.wire.offer_messages(take)
        protocol.data_received(b"".join(frame(1, b"%d" % n) for n in range(AT_ONCE + 2)))
        assert [one for some in offered for one in some] == [str(n) for n in range(AT_ONCE)]
        assert {len(some) for some in offered} == {MESSAGES_AHEAD}
        assert protocol.wire.backlog() == 0  # the answers left together, at the end of the read
        await served.until(lambda: served.probe.heard == [str(AT_ONCE), str(AT_ONCE + 1)])
        async with asyncio.timeout(10):
            heard = [(await read_frame(reader))[1].decode() for _ in range(AT_ONCE)]
        assert heard == [f"to {n}" for n in range(AT_ONCE)]


async def test_behind_one_that_is_received_nothing_more_is_offered() -> None:
    offered: list[Any] = []

    async with serving() as served:
        await served.websocket("/quiet")
        protocol: Any = next(iter(served.server.state.connections))
        await served.until(lambda: protocol.inbox.waited_for)

        def take(said: Any) -> int:
            offered.append(list(said))
            return 3 if len(offered) == 1 else 0

        protocol.wire.offer_messages(take)
        protocol.data_received(b"".join(frame(1, b"%d" % n) for n in range(AT_ONCE)))
        assert [len(some) for some in offered] == [MESSAGES_AHEAD, MESSAGES_AHEAD - 3]
        await served.until(lambda: served.probe.heard == [str(n) for n in range(3, AT_ONCE)])
        assert len(offered) == 2


async def test_what_was_answered_before_a_broken_message_of_the_same_read_still_leaves() -> None:
    async with serving() as served:
        reader, writer = await served.websocket("/quiet")
        protocol: Any = next(iter(served.server.state.connections))
        await served.until(lambda: protocol.inbox.waited_for)

        def take(said: Any) -> int:
            for one in said:
                protocol.wire.send(f"to {one}")
            return len(said)

        protocol.wire.offer_messages(take)
        writer.write(frame(1, b"a") + frame(1, b"\xff"))
        async with asyncio.timeout(10):
            assert (await read_frame(reader))[1] == b"to a"
            opcode, payload = await read_frame(reader)
        assert (opcode & 0x0F, int.from_bytes(payload[:2], "big")) == (8, 1007)


# ---------------------------------------------------------------------------- sessions


class World:
    """A recogniser that hears at once, behind a real server."""

    def __init__(self, broker: LocalBroker, ctx: GatewayContext) -> None:
        self.broker, self.ctx = broker, ctx
        self.taken: list[int] = []  # chunks, each time
        self.deaf = False
        self.heard = 0
        self.samples = 0
        self.sounds: list[bytes] = []

    def work(self, push: Any) -> None:
        if isinstance(push, Assign):
            items, job, attempt = push.lease.input, push.lease.spec.id, push.lease.attempt
        elif isinstance(push, InputPush):
            items, job, attempt = push.items, push.job, push.attempt
        else:
            return
        for item in items:
            if isinstance(item, Sound) and not self.deaf:
                self.sounds.append(item.data)
                asyncio.get_running_loop().call_soon(self.hear, job, attempt, item)

    def hear(self, job: str, attempt: int, item: Sound) -> None:
        self.heard += 1
        self.samples += len(item.data) // 2
        told = Heard(offset=self.heard, n=self.heard, seq=item.seq, samples=self.samples)
        at = Consumed(item.offset, self.samples, item.offset, self.samples)
        self.broker.worker_commit("w", job, attempt, [told], at)


@asynccontextmanager
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[World, Served]]:
    broker = LocalBroker()
    async with Hub(broker, "g", asyncio.get_running_loop().time) as hub:
        options = GatewayOptions()
        ctx = GatewayContext(
            broker=broker,
            hub=hub,
            gateway_id="g",
            metrics=GatewayMetrics(),
            rows=dict(KINDS),
            options=options,
            auth=Auth(options),
        )
        stand = World(broker, ctx)
        broker.worker_connect("w", stand.work)
        broker.worker_register(WorkerInfo(id="w", pools=[POOL], slots=8, sessions=8))
        real: Callable[..., bool] = Hold.take_at_once

        def noted(self: Hold, chunks: Any, append_now: Any, send_late: Any) -> bool:
            done = real(self, chunks, append_now, send_late)
            stand.taken.append(len(chunks) if done else 0)
            return done

        monkeypatch.setattr(Hold, "take_at_once", noted)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            dialect = AsrDialect(new_id=ctx.new_id)
            await serve_websocket(scope, receive, send, ctx, dialect)

        async with serving(app=app) as served:
            yield stand, served
        await broker.close()


def said(action: str, index: int = 0, data: bytes = b"", session: str = "s") -> bytes:
    message: dict[str, Any] = {"action": action, "session_id": session, "chunk_index": index}
    if data:
        message["audio_data"] = base64.b64encode(data).decode()
    return frame(1, json.dumps(message).encode())


async def answers(reader: asyncio.StreamReader, count: int) -> list[dict[str, Any]]:
    async with asyncio.timeout(10):
        return [json.loads((await read_frame(reader))[1]) for _ in range(count)]


async def test_a_chunk_is_stored_and_answered_in_the_call_that_brings_it(monkeypatch: Any) -> None:
    async with world(monkeypatch) as (stand, served):
        reader, writer = await served.websocket("/ws/asr")
        writer.write(said("start"))
        await answers(reader, 1)
        for index in range(4):
            writer.write(said("chunk", index, bytes([index]) * 320))
            ack, result = await answers(reader, 2)
            assert (ack["type"], ack["chunk_index"]) == ("ack", index)
            assert (result["type"], result["chunk_index"]) == ("chunk_result", index)
        assert stand.taken == [1] * 3  # the first goes the ordinary way
        assert stand.sounds == [bytes([index]) * 320 for index in range(4)]


async def test_chunks_of_one_read_are_one_piece_of_input_and_each_is_answered(
    monkeypatch: Any,
) -> None:
    async with world(monkeypatch) as (stand, served):
        reader, writer = await served.websocket("/ws/asr")
        writer.write(said("start") + said("chunk", 0, b"\0" * 320))
        await answers(reader, 3)
        protocol: Any = next(iter(served.server.state.connections))
        await served.until(lambda: protocol.inbox.waited_for)
        read = b"".join(said("chunk", index, bytes([index]) * 320) for index in range(1, 5))
        protocol.data_received(read + said("finish", 5))
        assert stand.taken == [4]
        told = await answers(reader, 8)
        assert [a["chunk_index"] for a in told if a["type"] == "ack"] == [1, 2, 3, 4]
        assert [a["chunk_index"] for a in told if a["type"] == "chunk_result"] == [1, 2, 3, 4]
        assert stand.sounds == [bytes([index]) * 320 for index in range(5)]


async def test_chunks_that_may_be_repeats_are_not_taken_together(monkeypatch: Any) -> None:
    async with world(monkeypatch) as (stand, served):
        reader, writer = await served.websocket("/ws/asr")
        writer.write(said("start") + said("chunk", 5, b"\0" * 320))
        await answers(reader, 3)
        protocol: Any = next(iter(served.server.state.connections))
        await served.until(lambda: protocol.inbox.waited_for)
        protocol.data_received(said("chunk", 7, b"\1" * 320) + said("chunk", 6, b"\2" * 320))
        assert [a["chunk_index"] for a in await answers(reader, 4) if a["type"] == "ack"] == [7, 6]
        assert stand.taken == [0]
        assert stand.sounds == [bytes([n]) * 320 for n in range(3)]


class Full:
    """Stands for the `Gather` of a gateway that has too much to do, and lets nobody rest."""

    def __init__(self) -> None:
        self.asked = 0

    def rest(self, who: Any) -> bool:
        self.asked += 1
        return False


async def test_a_connection_with_several_sessions_does_not_rest(monkeypatch: Any) -> None:
    async with world(monkeypatch) as (stand, served):
        reader, writer = await served.websocket("/ws/asr")
        protocol: Any = next(iter(served.server.state.connections))
        protocol.listener.gather = full = Full()
        writer.write(said("start"))
        await answers(reader, 1)
        for index in range(3):
            writer.write(said("chunk", index, bytes(320)))
            await answers(reader, 2)
        assert (stand.taken, full.asked) == ([1] * 2, 2)
        writer.write(frame(1, b'{"action":"start","session_id":"t"}'))
        await answers(reader, 1)
        writer.write(said("chunk", 3, bytes(320)))
        await answers(reader, 2)
        assert (stand.taken, full.asked) == ([1] * 3, 2)


async def test_chunks_of_two_sessions_in_one_read_are_taken_in_turn(monkeypatch: Any) -> None:
    def of(session: str, index: int) -> bytes:
        return said("chunk", index, bytes([index]) * 320, session)

    async with world(monkeypatch) as (stand, served):
        reader, writer = await served.websocket("/ws/asr")
        for name in ("a", "b"):
            writer.write(frame(1, json.dumps({"action": "start", "session_id": name}).encode()))
        writer.write(of("a", 0))
        await answers(reader, 4)
        protocol: Any = next(iter(served.server.state.connections))
        await served.until(lambda: protocol.inbox.waited_for)
        protocol.data_received(of("a", 1) + of("b", 1) + of("a", 2) + of("b", 2))
        assert stand.taken == [1, 1, 1, 1]
        told = await answers(reader, 4)
        assert [(a["session_id"], a["chunk_index"]) for a in told if a["type"] == "ack"] == [
            ("a", 1), ("b", 1), ("a", 2), ("b", 2),
        ]  # fmt: skip


async def test_what_follows_a_chunk_that_had_to_wait_for_room_stays_behind_it(
    monkeypatch: Any,
) -> None:
    async with world(monkeypatch) as (stand, served):
        reader, writer = await served.websocket("/ws/asr")
        writer.write(said("start") + said("chunk", 0, b"\0" * 320))
        await answers(reader, 3)
        protocol: Any = next(iter(served.server.state.connections))
        await served.until(lambda: protocol.inbox.waited_for)
        there_is_room = asyncio.Event()

        async def room(self: Hold) -> None:
            await there_is_room.wait()
            self.full = False
            await asyncio.sleep(0.01)  # the loop has much to do

        real = Hold.take

        async def take(self: Hold, event: Any) -> None:
            await asyncio.sleep(0.01)
            await real(self, event)

        monkeypatch.setattr(Hold, "room", room)
        monkeypatch.setattr(Hold, "take", take)
        (hold,) = (one.__self__._holds["s"] for one in [protocol.take_now])
        hold.full = True
        protocol.data_received(said("chunk", 1, b"\1" * 320))
        await asyncio.sleep(0.01)
        there_is_room.set()
        for _ in range(3):
            await asyncio.sleep(0)
        protocol.data_received(said("chunk", 2, b"\2" * 320))
        await answers(reader, 4)
        assert stand.sounds == [bytes([n]) * 320 for n in range(3)]


async def test_what_cannot_be_taken_at_once_is_answered_as_ever(monkeypatch: Any) -> None:
    async with world(monkeypatch) as (stand, served):
        reader, writer = await served.websocket("/ws/asr")
        writer.write(said("start"))
        writer.write(said("chunk", 0, b"\0" * 320))
        await answers(reader, 3)
        for odd in (
            frame(1, b"{"),
            frame(1, b'{"action":"chunk","session_id":"s","audio_data":"!"}'),
            frame(1, b'{"action":"chunk","session_id":"other","audio_data":"AAAA"}'),
            said("chunk", 1, b"\0" * 321),
            frame(2, b"binary"),
        ):
            writer.write(odd)
            (error,) = await answers(reader, 1)
            assert error["type"] == "error"
        writer.write(said("chunk", 1, b"\1" * 320))
        assert [a["type"] for a in await answers(reader, 2)] == ["ack", "chunk_result"]
        assert stand.taken == [1]
        writer.write(said("finish", 2))
        writer.write(said("chunk", 3, b"\0" * 320))
        (late,) = await answers(reader, 1)
        assert late["type"] == "error" and late["code"] == "bad_request"
        assert stand.sounds == [b"\0" * 320, b"\1" * 320]


async def test_input_over_its_bound_holds_the_client_up_and_loses_nothing(
    monkeypatch: Any,
) -> None:
    chunk = b"\2" * 32_000
    count = KINDS[Kind.RECOGNITION].input_bytes // len(chunk) + 8
    async with world(monkeypatch) as (stand, served):
        reader, writer = await served.websocket("/ws/asr")
        stand.deaf = True
        writer.write(said("start"))
        await answers(reader, 1)
        for index in range(count):
            writer.write(said("chunk", index, chunk))
        (job,) = stand.broker._core.entries.values()
        await served.until(job.over_bound, 10)
        await asyncio.sleep(0.1)
        stored = job.inp.head
        assert stored < count  # the rest waits in front of the door
        stand.deaf = False
        for item in job.inp.after(0):
            assert isinstance(item, Sound)
            stand.sounds.append(item.data)
            stand.hear(job.id, job.job.attempt, item)
        await served.until(lambda: len(stand.sounds) == count, 10)
        told = await answers(reader, 2 * count)
        results = [a["chunk_index"] for a in told if a["type"] == "chunk_result"]
        assert results == list(range(count))
