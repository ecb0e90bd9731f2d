"""Displays tell what stands on them; who speaks hears of the last one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from room_world import Display, World, world


@pytest.fixture
async def w(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        yield made


async def display(w: World) -> Display:
    return await w.connect("talk", {"data": {"shows": True}})


async def tell(one: Display, *at: Any, channel: str = "talk") -> None:
    said = {"send": {"data": {"shown": {"channel": channel, "at": list(at)}}}}
    await one.socket.send_str(json.dumps(said))


async def metrics(w: World) -> str:
    async with w.http.get(w.main + "/metrics") as answer:
        return await answer.text()


async def test_a_speaker_hears_when_the_last_display_shows_its_caption(w: World) -> None:
    speaker = await w.connect("talk", {"data": {"shown": True, "role": "speaker"}})
    assert "data" not in speaker.subscribed
    shows = [await display(w) for _ in range(2)]
    assert all(one.subscribed["data"] == {"shows": True} for one in shows)
    await w.post(text="hello", client_id="c", seq=1)
    assert (await speaker.pub())["offset"] == 1
    await tell(shows[0], [1, 0])
    await tell(shows[1], [1, 20])
    news = (await speaker.push())["message"]["data"]["shown"]
    assert 0 <= news.pop("ago_ms") < 5000
    assert news == {"client_id": "c", "seq": 1, "id": 1, "displays": 2, "of": 2}
    text = await metrics(w)
    assert "forebay_caption_shown_seconds_count 1.0" in text
    assert "forebay_caption_not_shown_total 0.0" in text


async def test_an_event_stream_hears_it_where_it_asks(w: World) -> None:
    await w.post(text="first", client_id="c", seq=1)
    url = w.main + "/api/stream?room=talk&history=0&shown=1"
    async with w.http.get(url) as answer, asyncio.timeout(10):
        await answer.content.readuntil(b": here\n\n")
        one = await display(w)
        await w.post(text="hello", client_id="c", seq=2)
        await tell(one, [2, 0])
        await answer.content.readuntil(b"\n\n")
        assert await answer.content.readline() == b"event: shown\n"
        said = json.loads((await answer.content.readline())[6:])
        assert (said["seq"], said["displays"], said["of"]) == (2, 1, 1)


async def test_readers_that_did_not_ask_hear_nothing_of_it(w: World) -> None:
    reader = await w.display()
    one = await display(w)
    await w.post(text="hello", client_id="c", seq=1)
    await tell(one, [1, 0])
    await asyncio.sleep(0.05)
    await w.post(text="next", client_id="c", seq=2)
    assert await reader.texts(2) == ["hello", "next"]


async def test_a_display_that_leaves_is_not_waited_for(w: World) -> None:
    speaker = await w.connect("talk", {"data": {"shown": True}})
    stays, leaves = await display(w), await display(w)
    await w.post(text="hello", client_id="c", seq=1)
    await speaker.pub()
    await tell(stays, [1, 0])
    await leaves.ask("unsubscribe", channel="talk")
    news = (await speaker.push())["message"]["data"]["shown"]
    assert (news["displays"], news["of"]) == (1, 1)


@pytest.mark.parametrize("at", [None, [1, 2], [[1]], [[1, "x"]], [[1, True]], [[1, 0]] * 17])
async def test_a_report_that_cannot_be_meant_is_refused_and_the_display_stays(
    w: World, at: Any
) -> None:
    one = await display(w)
    error = await one.ask("send", data={"shown": {"channel": "talk", "at": at}})
    assert error["code"] == 107
    assert await one.ask("ping") == {}


async def test_who_was_not_asked_or_does_not_read_there_tells_nothing(w: World) -> None:
    speaker = await w.connect("talk", {"data": {"shown": True}})
    one, other = await display(w), await w.display()
    await w.post(text="hello", client_id="c", seq=1)
    await speaker.pub()
    assert await other.ask("send", data={"shown": {"channel": "talk", "at": [[1, 0]]}}) == {}
    await tell(one, [1, 0], channel="elsewhere")
    await w.post(text="next", client_id="c", seq=2)
    assert (await speaker.push())["pub"]["offset"] == 2  # no news came before it


async def test_nobody_can_pretend_to_be_the_news(w: World) -> None:
    status, _ = await w.post(text="", user_name="", is_preview=True, client_id="c", seq=1)
    assert status == 400
