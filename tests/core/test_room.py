"""A room's writers: order, repeats, holes, names, and what is remembered of them."""

from __future__ import annotations

from typing import Any

import pytest

from forebay.core.events import Caption
from forebay.core.room import (
    HELD,
    HISTORY_ITEMS,
    HISTORY_S,
    HOLD_S,
    LATE,
    WRITERS,
    Member,
    Room,
    RoomAnswer,
    RoomItem,
    RoomSpec,
    Writer,
    room_id,
    valid_room,
)

SPEC = RoomSpec(id=room_id("local", "r"), tenant="local", name="r", created_ms=1)


def said(text: str, seq: int = 0, client: str = "c", settled: int = 0) -> RoomItem:
    caption = Caption(user="u", text=text, created_ms=1000)
    return RoomItem(client=client if seq else "", seq=seq, settled=settled, caption=caption)


def skip(seq: int, client: str = "c") -> RoomItem:
    return RoomItem(client=client, seq=seq)


class World:
    def __init__(self, **more: Any) -> None:
        self.room = Room(SPEC, "e1", **more)
        self.now = 10.0

    def send(self, *items: RoomItem, now_ms: int = 2000) -> list[RoomAnswer]:
        plan = self.room.plan(items, self.now)
        self.room.take(plan, now_ms)
        return plan.answers

    def wait(self, seconds: float) -> list[str]:
        self.now += seconds
        plan = self.room.overdue(self.now)
        self.room.take(plan, 2000)
        return [event.text for event in plan.events if isinstance(event, Caption)]

    @property
    def texts(self) -> list[str]:
        kept = self.room.log.after(self.room.log.first - 1)
        return [event.text for event in kept if isinstance(event, Caption)]


@pytest.fixture
def world() -> World:
    return World()


def test_names_of_rooms_are_bounded_and_belong_to_a_tenant() -> None:
    assert valid_room("A-b_9") and valid_room("x" * 64)
    assert not valid_room("") and not valid_room("x" * 65) and not valid_room("a b")
    assert room_id("a", "b") != room_id("b", "a")


def test_messages_without_a_number_stand_in_order_of_arrival(world: World) -> None:
    answers = world.send(said("a"), said("a"), said("b"))
    assert [a.result for a in answers] == ["appended"] * 3
    assert [a.offset for a in answers] == [1, 2, 3] and world.texts == ["a", "a", "b"]
    assert all(a.next_seq == 0 for a in answers)


def test_numbered_messages_that_overtake_each_other_are_put_in_order(world: World) -> None:
    first = world.send(said("3", 3), said("2", 2))
    assert [a.result for a in first] == ["held", "held"] and world.texts == []
    assert [a.next_seq for a in first] == [1, 1]
    answer = world.send(said("1", 1))[0]
    assert (answer.result, answer.offset, answer.next_seq) == ("appended", 1, 4)
    assert world.texts == ["1", "2", "3"] and world.room.deadline is None


def test_a_retry_is_a_repeat_whether_the_first_was_appended_or_is_held(world: World) -> None:
    world.send(said("1", 1), said("3", 3))
    assert [a.result for a in world.send(said("1", 1), said("3", 3))] == ["repeat", "repeat"]
    assert world.texts == ["1"]


def test_what_is_held_goes_past_the_hole_in_time_and_the_latecomer_once(world: World) -> None:
    world.send(said("2", 2))
    assert world.room.deadline == pytest.approx(world.now + HOLD_S)
    assert world.wait(HOLD_S / 2) == []
    assert world.wait(HOLD_S / 2) == ["2"]
    assert world.send(said("1", 1))[0].result == "late"
    assert world.send(said("1", 1))[0].result == "repeat"
    assert world.texts == ["2", "1"]


def test_everything_below_what_is_due_goes_with_it(world: World) -> None:
    world.send(said("4", 4))
    world.now += 0.3
    world.send(said("2", 2), said("7", 7))
    assert world.wait(0.2) == ["2", "4"]
    assert world.wait(0.3) == ["7"]


def test_a_skip_releases_what_waits_behind_it_and_can_wait_itself(world: World) -> None:
    world.send(said("3", 3))
    assert world.send(skip(2))[0].result == "skipped"
    assert world.texts == []
    assert world.send(skip(1))[0] == RoomAnswer(result="skipped", next_seq=4)
    assert world.texts == ["3"]
    assert world.send(skip(1))[0].result == "repeat"
    assert world.send(RoomItem())[0].result == "skipped"


def test_a_skipped_latecomer_never_comes(world: World) -> None:
    world.send(said("2", 2))
    world.wait(HOLD_S)
    assert world.send(skip(1))[0].result == "skipped"
    assert world.send(said("1", 1))[0].result == "repeat"


def test_one_too_many_gives_up_the_oldest_hole_only(world: World) -> None:
    evens = [said(str(n), n) for n in range(2, 2 * HELD + 1, 2)]
    world.send(*evens)
    assert world.texts == [] and world.room.view().held == HELD
    assert world.send(said("x", 1000))[0].result == "held"
    assert world.texts == ["2"] and world.room.writers["c"].next == 3
    assert world.send(skip(1002))[0].result == "skipped"
    assert world.texts == ["2", "4"]


def test_settled_numbers_are_not_waited_for_and_never_come(world: World) -> None:
    answer = world.send(said("57", 57, settled=56))[0]
    assert (answer.result, answer.offset, answer.next_seq) == ("appended", 1, 58)
    assert world.send(said("9", 9))[0].result == "repeat"
    world.send(said("60", 60))
    answers = world.send(said("62", 62, settled=61))
    assert [(a.result, a.offset) for a in answers] == [("appended", 3)]
    assert world.texts == ["57", "60", "62"]


def test_settled_forgets_holes_below_it_and_says_nothing_about_itself(world: World) -> None:
    world.send(said("3", 3))
    world.wait(HOLD_S)
    world.send(said("4", 4, settled=1))
    assert list(world.room.writers["c"].missed) == [2]
    assert world.send(said("5", 5, settled=99))[0].result == "appended"
    assert world.room.writers["c"].next == 6


def test_writers_do_not_hold_each_other_up(world: World) -> None:
    world.send(said("a2", 2, "a"), said("b1", 1, "b"))
    assert world.texts == ["b1"]
    assert world.room.view().writers == 2


def test_numbers_given_up_are_remembered_up_to_a_bound(world: World) -> None:
    world.send(said("far", 10_000_000))
    world.wait(HOLD_S)
    missed = world.room.writers["c"].missed
    assert len(missed) <= LATE and max(missed) == 9_999_999
    world.send(said("farther", 20_000_000))
    world.wait(HOLD_S)
    assert len(missed) <= LATE
    assert world.send(said("near", 19_999_999))[0].result == "late"
    assert world.send(said("lost", 5))[0].result == "repeat"


def test_a_named_message_is_kept_once_while_it_is_in_the_window(world: World) -> None:
    def named() -> RoomItem:
        return RoomItem(client="m1", caption=Caption(user="u", text="x", created_ms=1000))

    assert [a.result for a in world.send(named(), named())] == ["appended", "repeat"]
    assert world.send(named())[0].result == "repeat"
    kept = world.room.log.after(0)
    back = World(events=kept)
    assert back.send(named())[0].result == "repeat"
    back.send(*[said("n") for _ in range(HISTORY_ITEMS)])
    assert back.room.trim(2000) == 1
    assert back.send(named())[0].result == "appended"


def test_a_plan_changes_nothing_until_it_is_taken(world: World) -> None:
    world.send(said("2", 2))
    before = world.room.view()
    plan = world.room.plan([said("1", 1), said("free")], world.now)
    assert len(plan.events) == 3 and not plan.empty
    assert world.room.view() == before and world.room.writers["c"].next == 1
    assert world.room.plan([], world.now).empty


def test_history_is_bounded_by_count_and_by_age(world: World) -> None:
    for n in range(HISTORY_ITEMS + 5):
        world.send(said(str(n)))
    assert world.room.trim(2000) == 5 and len(world.room.log) == HISTORY_ITEMS
    assert world.room.trim(2000) == 0
    later = int(HISTORY_S * 1000) + 1000
    assert world.room.trim(later - 1) == 0
    assert world.room.trim(later) == HISTORY_ITEMS + 5
    assert world.room.log.head == HISTORY_ITEMS + 5 and len(world.room.log) == 0


def test_a_room_is_idle_when_empty_and_quiet_for_the_whole_window(world: World) -> None:
    later = int(HISTORY_S * 1000) + 2000
    assert World().room.idle(later)
    world.send(said("x"), now_ms=2000)
    world.room.trim(later)
    assert not world.room.idle(later - 1) and world.room.idle(later)
    world.room.members["m"] = Member(id="m")
    assert not world.room.idle(later)
    world.room.members.clear()
    world.send(said("2", 2), now_ms=2000)
    assert not world.room.idle(later)


def test_the_writer_unheard_for_longest_is_forgotten_but_not_while_it_waits(world: World) -> None:
    world.send(said("held", 2, "waits"))
    for n in range(WRITERS):
        world.send(said("x", 1, f"c{n}"))
    assert len(world.room.writers) == WRITERS
    assert "waits" in world.room.writers and "c0" not in world.room.writers


def test_a_room_goes_on_where_its_journal_stopped() -> None:
    writer = Writer(next=3, held={4: Caption(user="u", text="4", created_ms=1)}, since={4: 10.0})
    back = World(last_offset=7, writers={"c": writer}, active_ms=9)
    assert back.room.view().head == 7 and back.room.view().active_ms == 9
    assert back.send(said("2", 2), said("3", 3))[1].offset == 8
    assert back.texts == ["3", "4"]


def test_a_later_answer_is_no_overdue_of_others(world: World) -> None:
    world.send(said("a2", 2, "a"))
    world.now += 0.3
    world.send(said("b2", 2, "b"), skip(3, "b"), said("c1", 1, "c"))
    assert world.wait(0.2) == ["a2"]
    assert world.wait(0.3) == ["b2"] and world.room.writers["b"].next == 4
    world.send(skip(9, "b"))
    assert world.wait(HOLD_S) == []
    assert world.room.writers["b"].next == 10
