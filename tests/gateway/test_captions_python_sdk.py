"""The public centrifuge-python package, unmodified, against a real gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from centrifuge import (
    Client,
    PublicationContext,
    ReplyError,
    SubscribedContext,
    SubscribingContext,
    Subscription,
    SubscriptionEventHandler,
)
from room_world import PASS, World, world

from forebay.lab.fault_proxy import FaultProxy

LIMIT_S = 15.0


class Heard(SubscriptionEventHandler):  # type: ignore[misc]
    """Everything that happens to one subscription, in order."""

    def __init__(self) -> None:
        self.news: asyncio.Queue[Any] = asyncio.Queue()

    async def on_subscribing(self, ctx: SubscribingContext) -> None:
        self.news.put_nowait(ctx)

    async def on_subscribed(self, ctx: SubscribedContext) -> None:
        self.news.put_nowait(ctx)

    async def on_publication(self, ctx: PublicationContext) -> None:
        self.news.put_nowait(ctx.pub)

    async def next(self, kind: Any = None) -> Any:
        async with asyncio.timeout(LIMIT_S):
            found = await self.news.get()
        assert kind is None or isinstance(found, kind), found
        return found

    async def texts(self, count: int) -> list[str]:
        return [(await self.next()).data["text"] for _ in range(count)]


@pytest.fixture
async def w(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        yield made


@asynccontextmanager
async def reading(url: str, **subscribe: Any) -> AsyncIterator[tuple[Client, Subscription, Heard]]:
    address = url.replace("http", "ws") + "/connection/websocket"
    client = Client(address, min_reconnect_delay=0.05, max_reconnect_delay=0.2, proxy=None)
    heard = Heard()
    sub = client.new_subscription("talk", events=heard, **subscribe)
    await client.connect()
    await sub.subscribe()
    try:
        async with asyncio.timeout(LIMIT_S):
            await sub.ready()
        yield client, sub, heard
    finally:
        await client.disconnect()


async def test_it_connects_reads_and_publishes(w: World) -> None:
    await w.post(text="before")
    async with reading(w.main, data={"user": "python", "history": True}) as (_, sub, heard):
        await heard.next(SubscribingContext)
        told = await heard.next(SubscribedContext)
        assert told.recoverable and told.positioned and not told.was_recovering
        assert await heard.texts(1) == ["before"]
        await sub.publish({"user_name": "python", "text": "from python", "passphrase": PASS})
        said = await heard.next()
        assert (said.data["text"], said.offset) == ("from python", 2)
        await w.post(text="typing", is_preview=True)
        preview = await heard.next()
        assert preview.data["is_preview"] and not preview.offset
    assert await w.texts() == ["before", "from python"]


async def test_a_lost_connection_is_recovered_without_loss_or_repeat(w: World) -> None:
    port = int(w.main.rsplit(":", 1)[1])
    async with await FaultProxy().start("127.0.0.1", port) as proxy:
        async with reading(f"http://127.0.0.1:{proxy.port}") as (_, _sub, heard):
            await heard.next(SubscribingContext)
            assert not (await heard.next(SubscribedContext)).was_recovering
            await w.post(text="1")
            assert await heard.texts(1) == ["1"]
            proxy.refuse()
            proxy.reset()
            await heard.next(SubscribingContext)
            for n in (2, 3):
                await w.post(text=str(n))
            proxy.refuse(False)
            told = await heard.next(SubscribedContext)
            assert told.was_recovering and told.recovered
            await w.post(text="4")
            assert await heard.texts(3) == ["2", "3", "4"]


async def test_who_is_there_and_what_was_said_can_be_asked(w: World) -> None:
    for n in range(3):
        await w.post(text=str(n))
    async with reading(w.main, data={"user": "python"}) as (_, sub, _heard):
        clients = (await sub.presence()).clients
        assert [one.user for one in clients.values()] == ["python"]
        stats = await sub.presence_stats()
        assert (stats.num_clients, stats.num_users) == (1, 1)
        found = await sub.history(limit=2)
        assert [pub.data["text"] for pub in found.publications] == ["0", "1"]
        assert found.offset == 3 and found.epoch


async def test_a_wrong_passphrase_is_an_error_of_that_call_alone(w: World) -> None:
    await w.post(text="first")
    async with reading(w.main) as (_, sub, _heard):
        with pytest.raises(ReplyError) as refused:
            await sub.publish({"user_name": "x", "text": "x", "passphrase": "wrong"})
        assert refused.value.code == 101
        await sub.publish({"user_name": "x", "text": "x", "passphrase": PASS})
    assert await w.texts() == ["first", "x"]


async def test_another_room_under_the_same_name_is_begun_anew(w: World) -> None:
    await w.post(text="old")
    async with reading(w.main, data={"history": True}) as (_, _sub, heard):
        await heard.next(SubscribingContext)
        await heard.next(SubscribedContext)
        assert await heard.texts(1) == ["old"]
        await w.post("/api/rooms/talk/drop")
        await heard.next(SubscribingContext)
        assert not (await heard.next(SubscribedContext)).recovered
        await w.post(text="new")
        assert await heard.texts(1) == ["new"]
