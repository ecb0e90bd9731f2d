"""The gateway process: what it is told, how it starts, how it ends."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog
from gateway_harness import QUICK, Served, close_code, frame, read_frame

from forebay.broker.journal import Journal
from forebay.broker.local import LocalBroker, Settings
from forebay.client.s1 import SpeechState
from forebay.core.events import Consumed, Ended, Prompt, TextDelta
from forebay.core.kinds import Kind
from forebay.core.spec import JobSpec, Lease, PipeSpec, WorkerInfo
from forebay.core.stream import Stamper
from forebay.errors import CannotBoot, ConfigError
from forebay.gateway.bind import PortTaken, bind, owner_of
from forebay.gateway.main import (
    GatewaySpec,
    SocketSpec,
    main,
    read_spec,
    run_gateway,
    write_spec,
)
from forebay.process import EXIT_CANNOT_BOOT

START = json.dumps(
    {"type": "start", "session_id": "s", "audio_format": "pcm16_wav", "sample_rate": 16000,
     "channels": 1}
).encode()  # fmt: skip


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """`main` sets up logging for its process, which here is that of all tests."""
    chain, root = structlog.get_config(), logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    structlog.configure(**chain)
    root.handlers[:] = handlers
    root.setLevel(level)


def spec_for(folder: Path, socks: list[tuple[socket.socket, str]], **facts: Any) -> GatewaySpec:
    base: dict[str, Any] = {
        "sockets": [SocketSpec(os.dup(sock.fileno()), name) for sock, name in socks],
        "link_path": str(folder / "l.sock"),
        "expected": ["speech/tone"],
        "options": QUICK,
    }
    return GatewaySpec(**{**base, **facts})


@asynccontextmanager
async def running(folder: Path, **facts: Any) -> AsyncIterator[tuple[Served, Any, asyncio.Event]]:
    """A gateway with its broker and link in this process, and what stops it."""
    sock = bind("127.0.0.1", 0)
    stop = asyncio.Event()
    spec = spec_for(folder, [(sock, "main")], **facts)
    task = asyncio.ensure_future(run_gateway(spec, stop=stop))
    served = Served(None, None, None, sock.getsockname()[1])  # type: ignore[arg-type]
    try:
        yield served, task, stop
    finally:
        stop.set()
        await served.hang_up()
        await asyncio.wait_for(task, 60)
        sock.close()


async def get(served: Served, path: str) -> tuple[int, Any]:
    head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    out, _ = await served.ask(head.encode())
    status, _, body = out.partition(b"\r\n\r\n")
    return int(status.split(b" ")[1]), json.loads(body)


async def test_it_is_live_at_once_and_not_ready_before_its_workers(tmp_path: Path) -> None:
    async with running(tmp_path) as (served, _, _):
        assert (await get(served, "/healthz"))[0] == 200
        status, facts = await get(served, "/readyz")
        assert status == 503
        assert facts["pools"][0]["name"] == "speech/tone"
        assert (tmp_path / "l.sock").is_socket()
        _, about = await get(served, "/api/status")
        assert about["ports"] == {"main": "console and every protocol"}


async def test_a_voice_session_begins_over_the_whole_stack(tmp_path: Path) -> None:
    async with running(tmp_path) as (served, _, _):
        reader, writer = await served.websocket("/tts")
        writer.write(frame(1, START))
        _, payload = await read_frame(reader)
        assert json.loads(payload)["type"] == "start_ack"


async def test_whoever_is_idle_is_sent_away_at_once_with_1012(tmp_path: Path) -> None:
    options = replace(QUICK, drain_s=3600.0, quiet_s=0.3)
    async with running(tmp_path, options=options) as (served, task, stop):
        reader, _ = await served.websocket("/ws/chat")
        assert (await read_frame(reader))[0] == 1  # the greeting
        kept, keeper = await served.open()
        keeper.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await kept.readuntil(b"}")
        stop.set()
        async with asyncio.timeout(60):  # and not an hour, the limit
            assert await kept.read() == b""
            assert await close_code(reader) == 1012
            assert await task == 0


async def test_whoever_is_not_done_at_the_limit_is_cut_with_1012(tmp_path: Path) -> None:
    options = replace(QUICK, drain_s=0.4)
    async with running(tmp_path, options=options) as (served, task, stop):
        reader, writer = await served.websocket("/tts")
        writer.write(frame(1, START))
        await read_frame(reader)
        stop.set()
        async with asyncio.timeout(60):
            assert await close_code(reader) == 1012
        writer.close()
        assert await asyncio.wait_for(task, 60) == 0


async def test_silence_of_a_session_that_waits_is_no_reason_to_cut_it(tmp_path: Path) -> None:
    options = replace(QUICK, drain_s=1.0, quiet_s=0.0)
    async with running(tmp_path, options=options) as (served, task, stop):
        state = SpeechState("s")
        reader, writer = await served.websocket("/tts")
        writer.write(frame(1, json.dumps(state.start()).encode()))
        await read_frame(reader)
        delta = state.delta("This waits for a worker. ")  # there is none yet
        writer.write(frame(1, json.dumps(delta).encode()))
        while not any(job["units"] for job in (await get(served, "/api/jobs"))[1]["jobs"]):
            continue  # its text is on the way
        stop.set()
        async with asyncio.timeout(60):
            opcode, payload = await read_frame(reader)
            assert opcode == 1, "the limit, not the silence, ends it: with a named error"
            told = json.loads(payload)
            assert (told["type"], told["detail_code"]) == ("error", "state_lost")
            assert "1 s" in told["message"]
            assert await close_code(reader) == 1012
        writer.close()
        assert await asyncio.wait_for(task, 60) == 0


async def test_while_lingering_connections_on_their_way_are_served(tmp_path: Path) -> None:
    options = replace(QUICK, linger_s=0.5, drain_s=1.0)
    async with running(tmp_path, options=options) as (served, _, stop):
        reader, writer = await served.open()
        await asyncio.sleep(0.05)
        stop.set()
        await asyncio.sleep(0.1)
        writer.write(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 503 ")
        writer.close()


async def test_the_inherited_socket_outlives_the_gateway(tmp_path: Path) -> None:
    async with running(tmp_path) as (served, task, stop):
        stop.set()
        await asyncio.wait_for(task, 60)
        # The supervisor's copy still takes connections for the next gateway.
        with socket.create_connection(("127.0.0.1", served.port), timeout=60):
            pass


async def test_the_stock_protocols_serve_the_whole_stack(tmp_path: Path) -> None:
    async with running(tmp_path, stock_protocols=True) as (served, _, _):
        assert (await get(served, "/healthz"))[0] == 200
        reader, writer = await served.websocket("/tts")
        writer.write(frame(1, START))
        assert json.loads((await read_frame(reader))[1])["type"] == "start_ack"


async def test_an_open_bind_without_keys_refuses_to_start(tmp_path: Path) -> None:
    sock = bind("0.0.0.0", 0)
    with sock, pytest.raises(CannotBoot, match="without a key"):
        await run_gateway(spec_for(tmp_path, [(sock, "main")]))


async def test_two_gateways_cannot_share_a_data_folder(tmp_path: Path) -> None:
    async with running(tmp_path, data_dir=str(tmp_path)) as (served, _, _):
        await get(served, "/healthz")
        sock = bind("127.0.0.1", 0)
        other = tmp_path / "other"
        other.mkdir()
        with sock, pytest.raises((CannotBoot, ConfigError)):
            await run_gateway(spec_for(other, [(sock, "main")], data_dir=str(tmp_path)))


# ------------------------------------------------------------------------------ spec


def test_a_spec_survives_its_file_and_nobody_else_may_read_it(tmp_path: Path) -> None:
    spec = GatewaySpec(
        sockets=[SocketSpec(3, "main")],
        link_path="/x/l.sock",
        options=replace(QUICK, allowed_hosts=("a", "b"), orch_api_key="s"),
    )
    path = tmp_path / "spec.json"
    path.write_text("old")
    path.chmod(0o644)
    write_spec(spec, path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_spec(path) == spec
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="mode 640"):
        read_spec(path)


@pytest.mark.parametrize(
    "text", ["", "{}", '{"sockets": 1}', '{"sockets":[],"link_path":"x","y":1}']
)
def test_a_malformed_spec_ends_with_the_boot_code(tmp_path: Path, text: str) -> None:
    path = tmp_path / "spec.json"
    path.write_text(text)
    path.chmod(0o600)
    assert main(path) == EXIT_CANNOT_BOOT


def test_a_missing_spec_ends_with_the_boot_code(tmp_path: Path) -> None:
    assert main(tmp_path / "nope") == EXIT_CANNOT_BOOT


# ------------------------------------------------------------------------------ bind


def test_a_taken_port_names_its_owner() -> None:
    with bind("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) <= 2 * 65536
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert not sock.get_inheritable()
        with pytest.raises(PortTaken, match=f"port {port} on 127.0.0.1 is in use by process") as e:
            bind("127.0.0.1", port)
        assert e.value.details["pid"] == os.getpid()
    assert owner_of(port) is None


def test_addresses_that_cannot_be_bound_are_refused_by_name() -> None:
    with pytest.raises(CannotBoot, match="cannot resolve"):
        bind("no.such.host.invalid", 0)
    with pytest.raises(CannotBoot, match="cannot listen on 192.0.2.1:0"):
        bind("192.0.2.1", 0)


# --------------------------------------------------------------------------- process


_spawned: list[subprocess.Popen[bytes]] = []


@pytest.fixture(autouse=True)
def _nothing_that_was_spawned_stays() -> Iterator[None]:
    yield
    while _spawned:
        with _spawned.pop() as process:
            if process.poll() is None:
                process.kill()


def spawn(path: Path, sock: socket.socket) -> subprocess.Popen[bytes]:
    code = f"import sys; from forebay.gateway.main import *; from pathlib import Path; sys.exit(main(Path({str(path)!r})))"
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-X", "dev", "-c", code],
        pass_fds=[sock.fileno()],
        stderr=subprocess.PIPE,
    )
    _spawned.append(process)
    return process


def ask(port: int, path: str) -> bytes:
    head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(head.encode())
        out = b""
        while part := client.recv(65536):
            out += part
        return out


async def test_what_was_said_before_a_crash_is_spoken_after_it(tmp_path: Path) -> None:
    """A durable pipe, whose carrier died with the gateway, is carried on by the next one."""
    journal = Journal(tmp_path)
    broker = LocalBroker(Settings(), journal=journal)
    leases: list[Lease] = []
    broker.worker_connect("w", lambda push: leases.append(push.lease))
    broker.worker_register(WorkerInfo(id="w", pools=["text/tiny"], slots=1, sessions=1))
    ids = {kind: f"{n:032x}" for n, kind in enumerate((Kind.TEXT, Kind.SPEECH), 1)}
    for kind, pool in ((Kind.TEXT, "text/tiny"), (Kind.SPEECH, "speech/tone")):
        broker.expect([pool])
        spec = JobSpec(id=ids[kind], kind=kind, pool=pool, params={}, durable=True)
        await broker.submit(spec, [Prompt(messages=[])] if kind is Kind.TEXT else [])
    await broker.pipe(PipeSpec(id="p", source=ids[Kind.TEXT], target=ids[Kind.SPEECH], map="speak"))
    stamper = Stamper(0, {}, {})
    said = [stamper.stamp(e) for e in (TextDelta(text="Hello."), Ended(state="completed"))]
    broker.worker_commit("w", ids[Kind.TEXT], 1, said, Consumed(1))
    assert len(leases) == 1
    journal.close()
    async with running(tmp_path, data_dir=str(tmp_path)) as (served, _, _):
        async with asyncio.timeout(60):
            while True:
                _, job = await get(served, f"/api/jobs/{ids[Kind.SPEECH]}")
                if job["input_ended"]:
                    break
                await asyncio.sleep(0.02)
    assert job["units"] == len("Hello.")


def test_a_process_inherits_serves_reloads_keys_and_drains_on_sigterm(tmp_path: Path) -> None:
    with bind("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        spec = GatewaySpec(
            sockets=[SocketSpec(sock.fileno(), "main")],
            link_path=str(tmp_path / "l.sock"),
            data_dir=str(tmp_path),
            parent_pid=os.getpid(),
            options=replace(QUICK, keys_file=str(tmp_path / "keys.json")),
            log_format="json",
        )
        write_spec(spec, tmp_path / "spec.json")
        process = spawn(tmp_path / "spec.json", sock)
        # Connections queue in the inherited socket until the process is up.
        assert ask(port, "/healthz").startswith(b"HTTP/1.1 200 ")
        scrape = ask(port, "/metrics")
        assert b'forebay_cpu_seconds_total{role="gateway"}' in scrape
        process.send_signal(signal.SIGHUP)
        (tmp_path / "keys.json").write_text("{")
        process.send_signal(signal.SIGHUP)
        assert ask(port, "/healthz").startswith(b"HTTP/1.1 200 ")
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=240)
        assert process.returncode == 0
        events = [json.loads(line)["event"] for line in err.splitlines()]
        assert events[0] == "gateway.ready"
        assert events[-1] == "gateway.stopped", err[-2000:]
        assert b"Traceback" not in err and b"Warning" not in err


async def test_a_gateway_that_stands_by_accepts_from_its_signal_on(tmp_path: Path) -> None:
    with bind("127.0.0.1", 0) as sock:
        spec = GatewaySpec(
            sockets=[SocketSpec(os.dup(sock.fileno()), "main")],
            link_path=str(tmp_path / "l.sock"),
            options=QUICK,
        )
        told: asyncio.Queue[bool] = asyncio.Queue()
        task = asyncio.create_task(
            run_gateway(spec, on_ready=lambda: told.put_nowait(True), standby=True)
        )
        async with asyncio.timeout(60):
            await told.get()
            asked = asyncio.create_task(asyncio.to_thread(ask, sock.getsockname()[1], "/healthz"))
            await asyncio.sleep(0.2)
            assert not asked.done()
            os.kill(os.getpid(), signal.SIGUSR1)
            assert (await asked).startswith(b"HTTP/1.1 200 ")
            os.kill(os.getpid(), signal.SIGTERM)
            assert await task == 0
        assert told.qsize() == 1, "once when it could, once when it did"


async def test_a_gateway_that_stands_by_leaves_at_once_when_told(tmp_path: Path) -> None:
    with bind("127.0.0.1", 0) as sock:
        spec = GatewaySpec(
            sockets=[SocketSpec(os.dup(sock.fileno()), "main")],
            link_path=str(tmp_path / "l.sock"),
            options=replace(QUICK, linger_s=3600.0, drain_s=3600.0),
        )
        stop = asyncio.Event()
        stop.set()
        async with asyncio.timeout(60):
            assert await run_gateway(spec, stop=stop, standby=True) == 0


def test_a_second_signal_does_not_wait_for_the_limit(tmp_path: Path) -> None:
    with bind("127.0.0.1", 0) as sock:
        spec = GatewaySpec(
            sockets=[SocketSpec(sock.fileno(), "main")],
            link_path=str(tmp_path / "l.sock"),
            options=replace(QUICK, linger_s=3600.0, drain_s=3600.0),
            log_format="json",
        )
        write_spec(spec, tmp_path / "spec.json")
        process = spawn(tmp_path / "spec.json", sock)
        assert ask(sock.getsockname()[1], "/healthz").startswith(b"HTTP/1.1 200 ")
        process.send_signal(signal.SIGTERM)
        while b'"draining":true' not in ask(sock.getsockname()[1], "/readyz"):
            time.sleep(0.02)  # until the first has been heard: two at once would be one
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=240)  # and not an hour, the limit
        assert process.returncode == 0


def test_a_gateway_ends_with_its_supervisor(tmp_path: Path) -> None:
    with bind("127.0.0.1", 0) as sock:
        spec = GatewaySpec(
            sockets=[SocketSpec(sock.fileno(), "main")],
            link_path=str(tmp_path / "l.sock"),
            parent_pid=1,  # not who started it: as if the supervisor had died meanwhile
        )
        write_spec(spec, tmp_path / "spec.json")
        process = spawn(tmp_path / "spec.json", sock)
        process.communicate(timeout=240)
        assert process.returncode == -signal.SIGKILL
