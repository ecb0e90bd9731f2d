"""Captions from any thread: to a gateway that dies, to the originals, and to nobody."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Callable

import pytest
from aiohttp import web

from forebay.client import CaptionPublisher, PublisherStatus
from forebay.errors import BadRequest, ConfigError

ACCESS = {"room": "talk", "passphrase": "secret", "user_name": "Ann"}


@contextlib.asynccontextmanager
async def original(**answers: object) -> AsyncIterator[tuple[str, list[dict[str, object]]]]:
    """A Node original: takes one message, knows no numbers. Its url, and what it took."""
    taken: list[dict[str, object]] = []

    async def send(request: web.Request) -> web.Response:
        body = await request.json()
        if not body.get("text"):
            return web.json_response({"error": "Missing required fields"}, status=400)
        taken.append(body)
        return web.json_response({"status": "ok"})

    app = web.Application()
    app.router.add_post("/api/send", send)
    app.router.add_post("/live/server.php", send)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", taken
    finally:
        await runner.cleanup()


async def until(what: Callable[[], bool], limit_s: float = 60.0) -> None:
    async with asyncio.timeout(limit_s):
        while not what():  # noqa: ASYNC110 - another thread makes it true
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("path", ["", "/live/server.php"])
async def test_an_original_gets_everything_in_order(path):
    async with original() as (url, taken):
        publisher = CaptionPublisher(url + path, **ACCESS)
        for n in range(10):
            publisher.send(f"caption {n}")
        await until(lambda: len(taken) == 10)
        status = await asyncio.to_thread(publisher.close)
    assert [one["text"] for one in taken] == [f"caption {n}" for n in range(10)]
    assert set(taken[5]) == {"room", "passphrase", "user_name", "text", "timestamp"}
    assert (status.state, status.counters.sent) == ("closed", 10)


async def test_any_thread_may_send():
    async with original() as (url, taken):
        publisher = CaptionPublisher(url, order="parallel", **ACCESS)
        threads = [
            threading.Thread(target=lambda n=n: [publisher.send(f"{n}") for _ in range(20)])
            for n in range(4)
        ]
        for thread in threads:
            thread.start()
        await until(lambda: len(taken) == 80)
        assert (await asyncio.to_thread(publisher.close)).counters.sent == 80


def nobody() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"http://127.0.0.1:{free.getsockname()[1]}"


async def test_a_dead_server_holds_nobody_up_and_is_told_of():
    heard: list[PublisherStatus] = []
    publisher = CaptionPublisher(nobody(), on_status=heard.append, offline_s=0.3, **ACCESS)
    for _ in range(100):
        publisher.send("nobody hears this")
    await until(lambda: any(status.state == "offline" for status in heard))
    async with asyncio.timeout(60):  # it would go on trying for ever
        status = await asyncio.to_thread(publisher.close, 0.2)
    assert status.counters.queued == 100 and status.counters.sent == 0
    assert status.counters.errors >= 1 and status.reason


async def test_a_server_that_answers_nothing_holds_nobody_up():
    gone = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await gone.wait()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    publisher = CaptionPublisher(url, timeout_s=3600.0, **ACCESS)
    for _ in range(100):
        publisher.send("nobody answers this")  # returns while the first is still under way
    assert publisher.status.counters.queued == 100
    assert publisher.status.counters.errors == publisher.status.counters.sent == 0
    gone.set()
    await asyncio.to_thread(publisher.close, 0.1)
    server.close()


async def test_a_server_that_answers_nothing_fails_each_attempt_in_time():
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    heard: list[PublisherStatus] = []
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    publisher = CaptionPublisher(
        url, on_status=heard.append, timeout_s=0.4, offline_s=0.2, **ACCESS
    )
    publisher.send("hello")
    await until(lambda: publisher.status.counters.errors >= 2)
    assert "offline" in [status.state for status in heard]
    assert publisher.status.reason == "no answer in time"
    await asyncio.to_thread(publisher.close, 0.1)
    server.close()


async def test_what_was_not_delivered_is_sent_by_the_next_life(tmp_path):
    box = tmp_path / "talk.db"
    first = CaptionPublisher(nobody(), outbox=box, **ACCESS)
    for n in range(5):
        first.send(f"caption {n}")
    await asyncio.to_thread(first.close, 0.0)
    async with original() as (url, taken):
        second = CaptionPublisher(url, outbox=box, **ACCESS)
        second.send("caption 5")
        await until(lambda: len(taken) == 6)
        await asyncio.to_thread(second.close)
    assert [one["text"] for one in taken] == [f"caption {n}" for n in range(6)]
    third = CaptionPublisher(nobody(), outbox=box, **ACCESS)
    assert third.status.counters.queued == 0
    third.close(0)


def test_an_outbox_has_one_publisher_and_one_room(tmp_path):
    box = tmp_path / "talk.db"
    with CaptionPublisher(nobody(), outbox=box, **ACCESS):
        with pytest.raises(ConfigError):
            CaptionPublisher(nobody(), outbox=box, **ACCESS)
    with pytest.raises(ConfigError, match="belongs to room"):
        CaptionPublisher(nobody(), outbox=box, **(ACCESS | {"room": "other"}))


def test_the_oldest_give_way_in_a_full_outbox(tmp_path):
    publisher = CaptionPublisher(nobody(), outbox=tmp_path / "o.db", max_messages=10, **ACCESS)
    for n in range(15):
        publisher.send(str(n))
    counters = publisher.close(0).counters
    assert counters.dropped >= 4 and counters.queued <= 11


def test_bad_captions_and_addresses_are_refused_where_they_are_made():
    with pytest.raises(ConfigError):
        CaptionPublisher("talk.example", **ACCESS)
    with CaptionPublisher(nobody(), **ACCESS) as publisher:
        with pytest.raises(BadRequest):
            publisher.send("   ")
        with pytest.raises(BadRequest):
            publisher.send("x" * 2001)
