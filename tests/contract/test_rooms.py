"""Rooms in every home of the broker: many writers, one order, and what survives."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from homes import Home, MakeHome

from forebay.broker import GonePush, OutputPush, PreviewPush
from forebay.broker.local import Settings
from forebay.broker.local_rooms import BACK_S
from forebay.broker.rooms import RoomSettings
from forebay.core.events import Caption
from forebay.core.room import (
    HISTORY_ITEMS,
    HISTORY_S,
    HOLD_S,
    Member,
    RoomItem,
    RoomSpec,
    RoomView,
    room_id,
)
from forebay.errors import NotFound, ResumeNotAvailable, StoreFull

ROOM = room_id("local", "talk")
WALL_MS = int(time.time() * 1000)


def spec(name: str = "talk", **more: Any) -> RoomSpec:
    values: dict[str, Any] = {"tenant": "local", "secret": "s1", "created_ms": WALL_MS}
    return RoomSpec(id=room_id("local", name), name=name, **{**values, **more})


def said(text: str, seq: int = 0, client: str = "c", at_ms: int = WALL_MS) -> RoomItem:
    caption = Caption(user="u", text=text, created_ms=at_ms)
    return RoomItem(client=client if seq else "", seq=seq, caption=caption)


async def made(home: Home, **more: Any) -> RoomView:
    view: RoomView = await home.broker.rooms.open_room(spec(**more))
    await home.broker.rooms.watch_room(ROOM, "g1")
    return view


async def kept(home: Home, **more: Any) -> list[str]:
    events = await home.broker.rooms.read_room(ROOM, 0, **more)
    assert all(isinstance(event, Caption) for event in events)
    return [event.text for event in events if isinstance(event, Caption)]


def pushed(home: Home) -> list[str]:
    return [
        event.text
        for push in home.pushes
        if isinstance(push, OutputPush) and push.job == ROOM
        for event in push.events
        if isinstance(event, Caption)
    ]


async def test_a_room_is_made_once_and_keeps_its_first_secret(home: Home) -> None:
    first = await made(home)
    again = await home.broker.rooms.open_room(spec(secret="other"))
    assert again.spec.secret == "s1" and again.epoch == first.epoch
    assert (await home.broker.rooms.room(ROOM)).spec == first.spec
    with pytest.raises(NotFound):
        await home.broker.rooms.room(room_id("local", "none"))
    with pytest.raises(NotFound):
        await home.broker.rooms.publish(room_id("local", "none"), [said("x")])


async def test_a_room_that_waits_for_its_maker_becomes_the_first_ones_who_has_a_secret(
    home: Home,
) -> None:
    rooms = home.broker.rooms
    waiting = await made(home, secret="")
    with pytest.raises(NotFound):
        await rooms.publish(ROOM, [said("x")])
    claimed = await rooms.open_room(spec(secret="s1", title="t"))
    assert (claimed.spec.secret, claimed.spec.title) == ("s1", "t")
    assert claimed.epoch == waiting.epoch
    assert (await rooms.open_room(spec(secret="s2"))).spec.secret == "s1"
    await rooms.publish(ROOM, [said("x")])
    await home.settle()
    assert pushed(home) == ["x"]


async def test_a_room_that_nobody_made_is_gone_when_nobody_waits_for_it(home: Home) -> None:
    await made(home, secret="")
    await home.broker.rooms.unwatch_room(ROOM, "g1")
    with pytest.raises(NotFound):
        await home.broker.rooms.room(ROOM)


async def test_what_is_published_is_pushed_in_order_and_read_back(home: Home) -> None:
    view = await made(home)
    answers = await home.broker.rooms.publish(ROOM, [said("a"), said("b")])
    assert [answer.offset for answer in answers] == [1, 2]
    await home.broker.rooms.publish(ROOM, [said("c")])
    await home.settle()
    assert pushed(home) == ["a", "b", "c"]
    assert await kept(home, epoch=view.epoch) == ["a", "b", "c"]
    events = await home.broker.rooms.read_room(ROOM, 1, limit=1)
    assert [event.offset for event in events] == [2]
    assert await home.broker.rooms.read_room(ROOM, 3) == []


async def test_a_position_that_cannot_be_answered_is_refused_by_name(home: Home) -> None:
    await made(home)
    await home.broker.rooms.publish(ROOM, [said("x") for _ in range(HISTORY_ITEMS + 1)])
    for room, offset, epoch, reason in [
        (room_id("local", "none"), 0, None, "unknown"),
        (ROOM, 0, None, "window_expired"),
        (ROOM, 9999, None, "ahead_of_head"),
        (ROOM, 1, "another", "state_lost"),
    ]:
        with pytest.raises(ResumeNotAvailable) as caught:
            await home.broker.rooms.read_room(room, offset, epoch=epoch)
        assert caught.value.details["reason"] == reason


async def test_writers_are_put_in_order_and_repeats_change_nothing(home: Home) -> None:
    await made(home)
    rooms = home.broker.rooms
    assert (await rooms.publish(ROOM, [said("2", 2)]))[0].result == "held"
    assert (await rooms.publish(ROOM, [said("2", 2)]))[0].result == "repeat"
    answer = (await rooms.publish(ROOM, [said("1", 1)]))[0]
    assert (answer.result, answer.offset, answer.next_seq) == ("appended", 1, 3)
    await home.settle()
    assert pushed(home) == ["1", "2"] == await kept(home)
    assert (await rooms.room(ROOM)).held == 0


async def test_a_hold_runs_out_by_itself_and_the_latecomer_is_taken_once(home: Home) -> None:
    await made(home)
    rooms = home.broker.rooms
    await rooms.publish(ROOM, [said("2", 2)])
    await home.advance(HOLD_S / 2)
    await rooms.publish(ROOM, [said("4", 4)])
    assert pushed(home) == []
    await home.advance(HOLD_S / 2 + 0.01)
    assert pushed(home) == ["2"]
    await home.advance(HOLD_S / 2)
    assert pushed(home) == ["2", "4"]
    assert [a.result for a in await rooms.publish(ROOM, [said("1", 1), said("1", 1)])] == [
        "late",
        "repeat",
    ]
    assert await kept(home) == ["2", "4", "1"]


async def test_a_skip_releases_what_waits(home: Home) -> None:
    await made(home)
    await home.broker.rooms.publish(ROOM, [said("2", 2)])
    await home.broker.rooms.publish(ROOM, [RoomItem(client="c", seq=1)])
    await home.settle()
    assert pushed(home) == ["2"]


async def test_a_pipe_writes_what_rises(home: Home) -> None:
    await made(home, secret="!")
    item = RoomItem(
        client="pipe:p", seq=7, settled=6, caption=Caption(user="u", text="x", created_ms=WALL_MS)
    )
    results = [(await home.broker.rooms.publish(ROOM, [item]))[0].result for _ in range(2)]
    assert results == ["appended", "repeat"]


async def test_previews_are_pushed_and_not_stored(home: Home) -> None:
    await made(home)
    await home.broker.rooms.preview(ROOM, Caption(user="u", text="so f", preview=True))
    await home.settle()
    previews = [push for push in home.pushes if isinstance(push, PreviewPush)]
    assert [(push.job, push.caption.text) for push in previews] == [(ROOM, "so f")]
    assert await kept(home) == []


async def test_nothing_is_pushed_to_who_does_not_watch(home: Home) -> None:
    await made(home)
    await home.broker.rooms.unwatch_room(ROOM, "g1")
    await home.broker.rooms.publish(ROOM, [said("a")])
    await home.broker.rooms.preview(ROOM, Caption(user="u", text="p", preview=True))
    await home.settle()
    assert pushed(home) == [] and not [p for p in home.pushes if isinstance(p, PreviewPush)]
    await home.broker.rooms.unwatch_room(room_id("local", "none"), "g1")


async def test_presence_lists_who_joined_and_has_not_left(home: Home) -> None:
    await made(home)
    rooms = home.broker.rooms
    for name in ("m1", "m2"):
        await rooms.join_room(ROOM, Member(id=name, gateway="g1", user=name))
    assert {m.id for m in await rooms.room_members(ROOM)} == {"m1", "m2"}
    assert (await rooms.room(ROOM)).members == 2
    await rooms.leave_room(ROOM, "m1")
    await rooms.leave_room(ROOM, "m1")
    await rooms.leave_room(room_id("local", "none"), "m1")
    assert [m.user for m in await rooms.room_members(ROOM)] == ["m2"]


async def test_rooms_of_a_tenant_are_listed_last_active_first(home: Home) -> None:
    await made(home)
    other = room_id("other", "talk")
    await home.broker.rooms.open_room(
        RoomSpec(id=other, tenant="other", name="talk", created_ms=WALL_MS)
    )
    assert [view.spec.id for view in await home.broker.rooms.list_rooms("local")] == [ROOM]
    assert len(await home.broker.rooms.list_rooms(None)) == 2
    assert len(await home.broker.rooms.list_rooms(None, limit=1)) == 1


async def test_a_dropped_room_is_gone_and_comes_back_under_a_new_epoch(home: Home) -> None:
    first = await made(home)
    await home.broker.rooms.publish(ROOM, [said("a"), said("3", 3)])
    await home.broker.rooms.drop_room(ROOM)
    await home.broker.rooms.drop_room(ROOM)
    await home.settle()
    gone = [push for push in home.pushes if isinstance(push, GonePush)]
    assert [(push.job, push.epoch) for push in gone] == [(ROOM, first.epoch)]
    second = await made(home)
    assert second.epoch != first.epoch and second.head == 0
    await home.advance(1)
    assert await kept(home) == []


async def test_rooms_and_what_they_hold_are_bounded(make_home: MakeHome) -> None:
    home = await make_home(Settings(rooms=RoomSettings(rooms=2, members=1, store_bytes=3000)))
    await made(home)
    rooms = home.broker.rooms
    with pytest.raises(StoreFull):
        await rooms.open_room(spec("waiting", secret=""))
    await rooms.open_room(spec("b"))
    with pytest.raises(StoreFull):
        await rooms.open_room(spec("c"))
    for name in ("m1", "m2", "m1"):
        await rooms.join_room(ROOM, Member(id=name))
    assert [m.id for m in await rooms.room_members(ROOM)] == ["m1"]
    await rooms.publish(ROOM, [said("x" * 1000), said("y" * 1000)])
    await rooms.drop_room(room_id("local", "b"))
    with pytest.raises(StoreFull):
        await rooms.open_room(spec("b"))
    with pytest.raises(StoreFull):
        await rooms.publish(ROOM, [said("z", 1)])
    assert (await rooms.room(ROOM)).head == 2


# ------------------------------------------------------------ persistent rooms, local home


def crash(home: Home) -> None:
    assert home.broker._core.journal is not None
    home.broker._core.journal.close()


def now_ms(home: Home) -> int:
    return int((1_700_000_000.0 + home.time.now) * 1000)


async def test_a_persistent_room_survives_the_process_with_its_writers(tmp_path: Path) -> None:
    home = Home(journal_dir=tmp_path)
    before = await made(home, persist=True)
    rooms = home.broker.rooms
    at = now_ms(home)
    await rooms.publish(ROOM, [said("a", at_ms=at), said("1", 1, at_ms=at)])
    await rooms.publish(ROOM, [said("3", 3, at_ms=at)])
    await rooms.open_room(spec("short"))
    await rooms.open_room(spec("claimed", secret=""))
    await rooms.open_room(spec("claimed", persist=True))
    crash(home)

    home = Home(journal_dir=tmp_path)
    view = await home.broker.rooms.watch_room(ROOM, "g1")
    assert (view.epoch, view.head, view.held) == (before.epoch, 2, 1)
    assert view.spec == before.spec
    assert (await home.broker.rooms.room(room_id("local", "claimed"))).spec.secret == "s1"
    with pytest.raises(NotFound):
        await home.broker.rooms.room(room_id("local", "short"))
    assert (await home.broker.rooms.publish(ROOM, [said("1", 1, at_ms=at)]))[0].result == "repeat"
    assert (await home.broker.rooms.publish(ROOM, [said("2", 2, at_ms=at)]))[0].offset == 3
    assert await kept(home, epoch=before.epoch) == ["a", "1", "2", "3"]
    crash(home)


async def test_what_was_held_goes_on_after_a_restart_although_nobody_sends(tmp_path: Path) -> None:
    home = Home(journal_dir=tmp_path)
    await made(home, persist=True)
    await home.broker.rooms.publish(ROOM, [said("2", 2, at_ms=now_ms(home))])
    crash(home)
    home = Home(journal_dir=tmp_path)
    await home.broker.rooms.watch_room(ROOM, "g1")
    await home.advance(HOLD_S)
    assert pushed(home) == []
    await home.advance(BACK_S + 0.01)
    assert pushed(home) == ["2"]
    crash(home)
    home = Home(journal_dir=tmp_path)
    assert await kept(home) == ["2"]
    crash(home)


async def test_old_captions_go_and_then_the_room_but_never_its_offsets(tmp_path: Path) -> None:
    home = Home(journal_dir=tmp_path)
    view = await made(home, persist=True, created_ms=now_ms(home))
    await home.broker.rooms.publish(ROOM, [said("a", at_ms=now_ms(home))])
    home.time.advance(HISTORY_S - 700)
    await home.broker.rooms.publish(ROOM, [said("b", at_ms=now_ms(home))])
    home.time.advance(1400)
    assert (await home.broker.rooms.room(ROOM)).first == 2
    await home.broker.rooms.publish(ROOM, [said("c", at_ms=now_ms(home))])
    crash(home)
    home = Home(journal_dir=tmp_path, wall=1_700_000_000.0 + 3 * HISTORY_S)
    now = await home.broker.rooms.room(ROOM)
    assert (now.epoch, now.head, now.first) == (view.epoch, 3, 4)
    home.time.advance(1300)
    with pytest.raises(NotFound):
        await home.broker.rooms.room(ROOM)
    crash(home)
    home = Home(journal_dir=tmp_path)
    assert await home.broker.rooms.list_rooms(None) == []
    crash(home)


async def test_what_the_journal_cannot_take_was_never_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(journal_dir=tmp_path)
    await made(home, persist=True)
    rooms = home.broker.rooms
    await rooms.publish(ROOM, [said("2", 2)])
    full = True
    real = rooms._journal.published  # type: ignore[union-attr]

    def published(*args: Any, **kwargs: Any) -> None:
        if full:
            raise StoreFull("disk full")
        real(*args, **kwargs)

    monkeypatch.setattr(rooms._journal, "published", published)
    with pytest.raises(StoreFull):
        await rooms.publish(ROOM, [said("1", 1)])
    await home.advance(HOLD_S + 0.1)
    assert pushed(home) == [] and (await rooms.room(ROOM)).held == 1
    full = False
    await home.advance(1.1)
    assert pushed(home) == ["2"]
    assert (await rooms.publish(ROOM, [said("1", 1)]))[0].result == "late"
    crash(home)
