"""The Unix-socket link: framing, order, bounds, and what both ends do when it breaks."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.broker import Assign, CancelJob, InputPush, LeaseLost, StatePush
from forebay.broker.link_client import LinkClient, SupervisorLink, path_of
from forebay.broker.link_server import LinkServer, serve_link
from forebay.broker.link_socket import PATH_BYTES, socket_path
from forebay.broker.link_wire import (
    FRAME_BYTES,
    GREETING,
    Beat,
    Failure,
    FrameReader,
    Hello,
    check_greeting,
    decode_from_broker,
    decode_from_worker,
    encode,
    frames,
)
from forebay.core.events import Audio, Consumed, Ended, Text, TextDelta
from forebay.core.kinds import Kind
from forebay.core.spec import JobSpec, Lease, LoadStage, PoolView, WorkerInfo
from forebay.errors import ConfigError, Fenced, OffsetGap, ProtocolError, TooLarge
from forebay.worker.heartbeat import Heartbeat


class Host:
    """Records what the server end says; `said` wakes whoever waits for more."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.sinks: dict[str, Any] = {}
        self.gateway_sink: Any = None
        self.answer: Exception | None = None
        self.views = [PoolView(name="speech/test", kind=Kind.SPEECH)]

    def _note(self, *call: Any) -> None:
        self.calls.append(call)

    def open(self, gateway: str, sink: Any) -> None:
        self.gateway_sink = sink

    def pools(self) -> list[PoolView]:
        return self.views

    def worker_connect(self, worker: str, sink: Any) -> None:
        self.sinks[worker] = sink
        self._note("connect", worker)

    def worker_stage(self, worker: str, pools: Any, stage: LoadStage) -> None:
        self._note("stage", worker, stage.stage)

    def worker_register(self, info: WorkerInfo) -> None:
        self._note("register", info.id)

    def worker_commit(
        self, worker: str, job: str, attempt: int, events: Any, consumed: Any, *, model_s: float
    ) -> None:
        self._note("commit", worker, job, attempt, list(events), consumed, model_s)
        if self.answer is not None:
            raise self.answer

    def worker_park(self, worker: str, job: str, attempt: int) -> None:
        self._note("park", worker, job, attempt)

    def worker_beat(self, worker: str, load: Any) -> None:
        self._note("beat", worker, dict(load))

    def worker_gone(self, worker: str, reason: str = "") -> None:
        self._note("gone", worker)

    def exited(self, worker: str, *, abnormal: bool, stepping: Any, reason: str) -> None:
        self._note("exited", worker, abnormal, list(stepping), reason)

    def names(self) -> list[str]:
        return [call[0] for call in self.calls]


async def until(ready: Any, what: str = "") -> None:
    async with asyncio.timeout(60):
        while not ready():  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0.002)


@pytest.fixture
async def link(tmp_path: Path) -> AsyncIterator[tuple[Host, LinkServer, str]]:
    host = Host()
    path = str(tmp_path / "b.sock")
    server = await serve_link(path, host)
    yield host, server, path
    await server.close()


@pytest.fixture
async def worker(link: Any) -> AsyncIterator[tuple[Host, LinkClient, list[Any]]]:
    host, _, path = link
    pushes: list[Any] = []
    client = LinkClient(path, "w1")
    await client.connect(pushes.append)
    await until(lambda: "w1" in host.sinks)
    yield host, client, pushes
    await client.close()


def lease(job: str = "j", **more: Any) -> Lease:
    spec = JobSpec(id=job, kind=Kind.SPEECH, pool="speech/test", params={})
    return Lease(spec=spec, attempt=more.pop("attempt", 1), **more)


def info(worker: str = "w1") -> WorkerInfo:
    return WorkerInfo(id=worker, pools=["speech/test"], slots=1, sessions=4)


# ------------------------------------------------------------------------- framing


@given(st.lists(st.binary(max_size=200), max_size=8), st.integers(1, 50), st.booleans())
def test_messages_survive_any_cutting_of_the_bytes(
    bodies: list[bytes], step: int, control: bool
) -> None:
    wire = GREETING + b"".join(b"".join(frames(b, control=control)) for b in bodies)
    reader = FrameReader()
    got = []
    for start in range(0, len(wire), step):
        reader.feed(wire[start : start + step])
        got += [bytes(body) for body in reader]
    assert got == bodies
    assert reader.pending == 0


def test_a_long_message_lets_an_urgent_one_pass_between_its_frames() -> None:
    long = bytes(FRAME_BYTES * 2 + 5)
    parts = frames(long, control=False)
    assert max(map(len, parts)) <= FRAME_BYTES
    wire = parts[0] + parts[1] + b"".join(frames(b"now", control=True)) + b"".join(parts[2:])
    reader = FrameReader()
    reader.feed(GREETING + wire)
    assert [bytes(m) for m in reader] == [b"now", long]


def test_a_frame_over_the_limit_is_refused_before_it_is_buffered() -> None:
    reader = FrameReader()
    reader.feed(GREETING + (FRAME_BYTES + 1).to_bytes(4, "little"))
    with pytest.raises(ProtocolError, match="524289 bytes, expected no more than 524288"):
        list(reader)


def test_a_message_over_the_readers_limit_is_refused() -> None:
    reader = FrameReader(1000)
    reader.feed(GREETING + b"".join(frames(bytes(1001), control=False)))
    with pytest.raises(ProtocolError, match="expected no more than 1000"):
        list(reader)
    with pytest.raises(TooLarge):
        frames(bytes(FRAME_BYTES + 1), control=False, limit_bytes=FRAME_BYTES)


def test_another_version_is_refused_with_both_numbers() -> None:
    with pytest.raises(ProtocolError, match="version 9, expected 1"):
        check_greeting(b"FBL\x09")
    with pytest.raises(ProtocolError, match="does not speak"):
        check_greeting(b"GET ")


def test_garbage_is_a_protocol_error_that_shows_no_content() -> None:
    with pytest.raises(ProtocolError):
        decode_from_worker(b"\xc1 secret")
    with pytest.raises(ProtocolError) as caught:
        decode_from_worker(msgspec.msgpack.encode({"p": "park", "job": ["secret"], "attempt": 1}))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "message",
    [
        Assign(lease=lease(input=[Text(text="hé", unit=0, offset=1)])),
        CancelJob(job="j", attempt=1, ended=Ended(state="cancelled", seq=4)),
        InputPush(job="j", attempt=1, items=[Text(text="x", unit=0)]),
        Failure("protocol_error", "no"),
    ],
)
def test_what_the_broker_says_is_read_as_it_was_meant(message: Any) -> None:
    assert decode_from_broker(encode(message)) == message


# -------------------------------------------------------------------- the two ends


async def test_what_a_worker_says_reaches_the_host_in_order(worker: Any) -> None:
    host, client, pushes = worker
    client.stage("w1", ["speech/test"], LoadStage(stage="weights"))
    client.register(info())
    await until(lambda: "register" in host.names())
    host.sinks["w1"](Assign(lease=lease()))
    await until(lambda: pushes)
    audio = Audio(data=bytes(100), text="ab", unit=0, frames=50, offset=1, n=1, units=2)
    client.commit("j", 1, [audio], Consumed(1, 2), model_s=0.5)
    client.park("j", 1)
    await client.drained()
    await until(lambda: "park" in host.names())
    assert host.names() == ["connect", "stage", "register", "commit", "park"]
    assert host.calls[3] == ("commit", "w1", "j", 1, [audio], Consumed(1, 2), 0.5)


async def test_everything_said_in_one_tick_leaves_in_one_write(
    worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, client, pushes = worker
    monkeypatch.setattr("forebay.broker.link_keeper.TICK_S", 60.0)  # however slow this machine is
    host.sinks["w1"](Assign(lease=lease()))
    await until(lambda: pushes)
    transport = client._wire._transport
    writes = []

    class Spy:
        def __getattr__(self, name: str) -> Any:
            return getattr(transport, name)

        def write(self, data: bytes) -> None:
            writes.append(data)
            transport.write(data)

    client._wire._transport = Spy()
    for i in range(20):
        client.commit("j", 1, [TextDelta(text="x", offset=i + 1)], Consumed())
    await until(lambda: host.names().count("commit") == 20)
    assert len(writes) == 1


async def test_in_a_long_tick_what_is_ready_does_not_wait_for_its_end(
    worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, client, pushes = worker
    host.sinks["w1"](Assign(lease=lease()))
    await until(lambda: pushes)
    monkeypatch.setattr("forebay.broker.link_keeper.TICK_S", -1.0)
    transport = client._wire._transport
    for _ in range(3):
        client.commit("j", 1, [], Consumed())
        assert transport.get_write_buffer_size() == 0 and not client._wire._queue
    await client.drained()
    await until(lambda: host.names().count("commit") == 3)


async def test_a_busy_worker_is_told_when_it_has_a_slot_again(
    worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, client, pushes = worker
    monkeypatch.setattr("forebay.broker.link_client.HOLD_S", 3600.0)
    client.hold(True)
    client.hold(True)
    host.sinks["w1"](Assign(lease=lease()))
    await asyncio.sleep(0.1)
    assert pushes == []
    client.commit("j", 1, [], Consumed())  # what it says itself is not held
    client.register(info())
    await until(lambda: "register" in host.names())
    client.hold(False)
    client.hold(False)
    await until(lambda: pushes)


async def test_nothing_is_held_longer_than_the_limit(worker: Any) -> None:
    host, client, pushes = worker
    client.hold(True)
    host.sinks["w1"](Assign(lease=lease()))
    await until(lambda: pushes)


async def test_a_link_that_is_lost_while_held_comes_back(link: Any, worker: Any) -> None:
    host, client, pushes = worker
    host.sinks["w1"](Assign(lease=lease()))
    await until(lambda: pushes)
    client.hold(True)
    await link[1].close()
    await until(lambda: LeaseLost(job="j", attempt=1) in pushes)
    client.hold(True)
    client.hold(False)


async def test_control_goes_before_input_that_waits(worker: Any) -> None:
    host, _, pushes = worker
    sink = host.sinks["w1"]
    sink(Assign(lease=lease()))
    sink(InputPush(job="j", attempt=1, items=[Text(text="x" * 60_000, unit=0, offset=1)]))
    sink(CancelJob(job="j", attempt=1, ended=Ended(state="cancelled")))
    await until(lambda: len(pushes) == 3)
    assert [type(p) for p in pushes] == [Assign, CancelJob, InputPush]


async def test_a_lease_with_a_megabyte_of_text_arrives_whole(worker: Any) -> None:
    host, _, pushes = worker
    big = lease(text="y" * 1_500_000)
    host.sinks["w1"](Assign(lease=big))
    await until(lambda: pushes)
    assert pushes == [Assign(lease=big)]


async def test_a_fenced_commit_is_dropped_and_the_connection_stays(worker: Any) -> None:
    host, client, pushes = worker
    host.sinks["w1"](Assign(lease=lease()))
    await until(lambda: pushes)
    host.answer = Fenced("attempt 1 is over")
    client.commit("j", 1, [], Consumed())
    client.register(info())
    await until(lambda: "register" in host.names())
    assert "gone" not in host.names()


@pytest.mark.parametrize(
    "error", [ProtocolError("over its byte credit"), OffsetGap("offset 7, expected 2")]
)
async def test_a_broken_contract_ends_that_connection_and_no_other(
    link: Any, worker: Any, error: Exception
) -> None:
    host, client, pushes = worker
    other = LinkClient(link[2], "w2")
    await other.connect(lambda push: None)
    host.sinks["w1"](Assign(lease=lease()))
    await until(lambda: pushes)
    host.answer = error
    client.commit("j", 1, [], Consumed())
    await until(lambda: ("gone", "w1") in host.calls)
    await until(lambda: LeaseLost(job="j", attempt=1) in pushes)
    host.answer = None
    other.register(info("w2"))
    await until(lambda: ("register", "w2") in host.calls)
    assert ("gone", "w2") not in host.calls
    await other.close()


async def test_when_the_link_is_lost_leases_are_lost_and_the_worker_comes_back(
    link: Any, worker: Any, tmp_path: Path
) -> None:
    host, client, pushes = worker
    client.register(info())
    host.sinks["w1"](Assign(lease=lease()))
    await until(lambda: pushes)
    await link[1].close()
    await until(lambda: LeaseLost(job="j", attempt=1) in pushes)
    client.commit("j", 1, [], Consumed())  # nobody to tell, nothing to keep
    fresh = Host()
    server = await serve_link(link[2], fresh)
    await until(lambda: fresh.names() == ["connect", "register"])
    await server.close()


async def test_a_cancel_that_crosses_the_end_of_its_job_is_answered_and_not_delivered(
    worker: Any,
) -> None:
    host, client, pushes = worker
    host.sinks["w1"](Assign(lease=lease()))
    await until(lambda: pushes)
    client.commit("j", 1, [Ended(state="completed", offset=1)], Consumed())
    host.sinks["w1"](CancelJob(job="j", attempt=1, ended=Ended(state="cancelled")))
    await until(lambda: ("park", "w1", "j", 1) in host.calls)
    assert len(pushes) == 1


async def test_beats_come_on_a_connection_of_their_own_even_while_the_loop_is_blocked(
    worker: Any,
) -> None:
    host, client, _ = worker
    await asyncio.to_thread(client.beat, "w1", {"busy": 2})
    await asyncio.to_thread(client.beat, "w1", {"busy": 3})
    await until(lambda: ("beat", "w1", {"busy": 3}) in host.calls)
    assert "gone" not in host.names()


async def test_a_blocked_event_loop_does_not_stop_the_heart(worker: Any) -> None:
    host, client, _ = worker
    beat = Heartbeat(client, "w1", lambda: {"busy": 1})
    beat.start()
    time.sleep(1.1)  # noqa: ASYNC251 - this is the busy model
    beat.stop()
    await until(lambda: host.names().count("beat") >= 4)


async def test_a_second_connection_under_the_same_id_replaces_the_first(
    link: Any, worker: Any
) -> None:
    host, _, _ = worker
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(link[2])
    sock.sendall(GREETING + b"".join(frames(encode(Hello("worker", "w1")), control=True)))
    await until(lambda: host.calls.count(("connect", "w1")) >= 2)
    assert ("gone", "w1") not in host.calls[:2]
    sock.close()


async def test_a_peer_of_another_version_is_told_and_closed(link: Any) -> None:
    reader, writer = await asyncio.open_unix_connection(link[2])
    writer.write(b"FBL\x07")
    answer = await reader.read()
    assert answer[:4] == GREETING
    told = FrameReader()
    told.feed(answer)
    [message] = [decode_from_broker(body) for body in told]
    assert message == Failure("protocol_error", "peer speaks link version 7, expected 1")
    writer.close()


async def test_a_client_whose_broker_speaks_another_version_says_so(tmp_path: Path) -> None:
    async def old(reader: Any, writer: Any) -> None:
        writer.write(b"FBL\x02")
        await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(old, tmp_path / "s")
    client = LinkClient(str(tmp_path / "s"), "w")
    with pytest.raises(ProtocolError, match="version 2, expected 1"):
        await client.connect(lambda push: None)
    await client.close()
    server.close()


async def test_a_message_before_hello_ends_the_connection(link: Any) -> None:
    host = link[0]
    reader, writer = await asyncio.open_unix_connection(link[2])
    writer.write(GREETING + b"".join(frames(encode(Beat("w", {})), control=True)))
    assert b"expected Hello" in await reader.read()
    assert host.calls == []
    writer.close()


async def test_a_worker_that_reads_nothing_is_given_up_at_the_backlog_bound(
    link: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forebay.broker.link_peer.BACKLOG_BYTES", 2_000_000)
    host = link[0]
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(link[2])
    sock.sendall(GREETING + b"".join(frames(encode(Hello("worker", "deaf")), control=True)))
    await until(lambda: "deaf" in host.sinks)
    item = Text(text="x" * 60_000, unit=0)
    for _ in range(100):
        host.sinks["deaf"](InputPush(job="j", attempt=1, items=[item]))
        await asyncio.sleep(0)
    await until(lambda: ("gone", "deaf") in host.calls)
    sock.close()


async def test_a_flood_from_one_worker_lets_the_loop_turn(worker: Any) -> None:
    host, client, pushes = worker
    host.sinks["w1"](Assign(lease=lease()))
    await until(lambda: pushes)
    seen: list[int] = []

    def slow(*args: Any, **kwargs: Any) -> None:
        end = asyncio.get_running_loop().time() + 0.002
        while asyncio.get_running_loop().time() < end:
            pass
        seen.append(len(turns))

    host.worker_commit = slow  # type: ignore[method-assign]
    turns: list[int] = []

    async def turn() -> None:
        while len(seen) < 50:
            turns.append(1)
            await asyncio.sleep(0)

    for i in range(50):
        client.commit("j", 1, [TextDelta(text="x", offset=i + 1)], Consumed())
    async with asyncio.timeout(60):
        await turn()
    most = max(seen.count(t) for t in set(seen))
    assert most <= 4  # 5 ms of work at 2 ms each, and the one that went over


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_drained_returns_when_all_has_been_sent_on_either_loop(loop: str, tmp_path: Path) -> None:
    """The two loops differ in when a transport pauses, resumes and counts as empty."""

    async def talk() -> None:
        host = Host()
        server = await serve_link(tmp_path / "b.sock", host)
        client = LinkClient(str(tmp_path / "b.sock"), "w1")
        pushes: list[Any] = []
        await client.connect(pushes.append)
        await until(lambda: "w1" in host.sinks)
        host.sinks["w1"](Assign(lease=lease()))
        await until(lambda: pushes)
        for i in range(200):
            audio = Audio(data=bytes(30_000), text="a", unit=i, frames=15_000, offset=i + 1)
            client.commit("j", 1, [audio], Consumed(0, i))
        async with asyncio.timeout(60):
            await client.drained()
        client.park("j", 1)
        async with asyncio.timeout(60):
            await client.drained()
        await client.close()
        await until(lambda: "gone" in host.names())
        assert host.names()[-2:] == ["park", "gone"]
        assert host.names().count("commit") == 200
        await server.close()

    factory = None if loop == "asyncio" else pytest.importorskip("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(talk())


# ------------------------------------------------------------------ the supervisor


async def test_the_supervisor_tells_of_exits_and_hears_of_pools(link: Any) -> None:
    host, _, path = link
    boss = SupervisorLink(path)
    boss.exited("w0", abnormal=True, stepping=[("j", 3)], reason="killed")  # before there is one
    await boss.open()
    await until(lambda: host.calls)
    assert host.calls == [("exited", "w0", True, [("j", 3)], "killed")]
    heard: list[list[PoolView]] = []

    async def listen() -> None:
        async for views in boss.pools():
            heard.append(views)

    task = asyncio.create_task(listen())
    await until(lambda: heard)
    host.views = [PoolView(name="speech/test", kind=Kind.SPEECH, ready=2)]
    for _ in range(10):
        host.gateway_sink(StatePush(pool="speech/test"))
    await until(lambda: heard[-1][0].ready == 2)
    assert len(heard) == 2
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await boss.close()


# ------------------------------------------------------------------ the socket file


async def test_the_socket_is_for_its_owner_only_and_is_removed_at_the_end(
    tmp_path: Path,
) -> None:
    path = tmp_path / "b.sock"
    server = await serve_link(path, Host())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(ConfigError, match="another gateway serves"):
        await serve_link(path, Host())
    await server.close()
    assert not path.exists()


async def test_a_dead_gateways_socket_is_taken_over_and_no_other_file_is(tmp_path: Path) -> None:
    path = tmp_path / "b.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    server = await serve_link(path, Host())
    await server.close()
    path.write_text("precious")
    with pytest.raises(ConfigError, match="not a socket"):
        await serve_link(path, Host())


async def test_a_path_too_long_for_a_socket_is_refused_or_replaced(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    with pytest.raises(ConfigError, match="expected no more than 107"):
        await serve_link(deep / "broker.sock", Host())
    short = socket_path(deep)
    assert len(os.fsencode(short)) <= PATH_BYTES
    short.parent.rmdir()
    assert socket_path(tmp_path) == tmp_path / "broker.sock"


def test_a_broker_url_names_an_absolute_socket() -> None:
    assert path_of("unix:///run/b.sock") == "/run/b.sock"
    for bad in ("redis://x", "unix://b.sock", "/run/b.sock"):
        with pytest.raises(ConfigError):
            path_of(bad)
