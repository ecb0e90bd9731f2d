"""What a publisher sends next, whatever the network and the server do."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.client.publish_state import Message, PublishState, Request
from forebay.core.events import Caption
from forebay.core.room import Room, RoomItem, RoomSpec


def said(text: str) -> dict[str, Any]:
    return {"user_name": "Ann", "text": text}


class Server:
    """A room, spoken to with requests of the publisher's."""

    def __init__(self) -> None:
        self.room = Room(
            RoomSpec(id="local/talk", name="talk", tenant="local", secret="", created_ms=1), "e"
        )

    def take(self, request: Request, now: float) -> dict[str, Any]:
        json = request.json
        listed = json["messages"] if request.batch else [json]
        items = [
            RoomItem(client=json["client_id"], seq=one["seq"], settled=json["settled"],
                     caption=None if one.get("skip") else Caption(user="Ann", text=one["text"]))
            for one in listed if "seq" in one
        ]  # fmt: skip
        plan = self.room.plan(items, now)
        self.room.take(plan, 1)
        results = [{"status": 200, "result": answer.result} for answer in plan.answers]
        return {"results": results} if request.batch else results[0]

    def wait(self, now: float) -> None:
        self.room.take(self.room.overdue(now), 1)

    @property
    def shown(self) -> list[str]:
        return [event.text for event in self.room.log.after(0) if isinstance(event, Caption)]


@settings(max_examples=150)
@given(st.integers(0, 2**32), st.floats(0, 0.6), st.integers(1, 120))
def test_everything_arrives_once_and_in_order_whatever_is_lost(seed, loss, count):
    """Requests and answers are lost, and answers overtake each other; nothing is late because
    no more than one request is tried after a failure."""
    dice, server, now = random.Random(seed), Server(), 0.0
    state = PublishState("c" * 32, max_workers=3, forebay=True)
    flying: list[tuple[Request, dict[str, Any] | None]] = []
    left = count
    while left or not state.idle:
        now += 0.05
        for _ in range(min(left, dice.randint(0, 5))):
            state.final(said(str(count - left)))
            left -= 1
        lost = False
        while (request := state.take(now)) is not None:
            arrives = not lost and dice.random() >= loss
            lost = lost or not arrives  # the network is gone for this moment
            answer = server.take(request, now) if arrives else None
            flying.append((request, answer if dice.random() >= loss else None))
        dice.shuffle(flying)
        for request, answer in flying:
            if answer is None:
                state.failed(request, now, dice.random())
            else:
                state.answered(request, answer, now)
        flying.clear()
        server.wait(now)
    assert server.shown == [str(n) for n in range(count)]
    assert state.counters.sent == count and state.counters.queued == 0
    assert state.counters.dropped == 0 and state.settled == count


def test_what_waits_goes_in_one_request_and_three_may_be_under_way():
    state = PublishState("c", forebay=True)
    state.final(said("a"))
    first = state.take(0)
    for text in "bcd":
        state.final(said(text))
    second = state.take(0)
    assert first is not None and second is not None
    assert [message.seq for message in second.messages] == [2, 3, 4]
    for text in "ef":
        state.final(said(text))
        assert (state.take(0) is not None) == (text == "e")


def test_no_request_runs_further_ahead_than_the_server_holds():
    state = PublishState("c", forebay=True)
    for _ in range(200):
        state.final(said("x"))
    first, second = state.take(0), state.take(0)
    assert first is not None and len(first.messages) == 64
    assert second is None
    state.answered(first, {"results": [{"status": 200}] * 64}, 0)
    again = state.take(0)
    assert again is not None and again.messages[0].seq == 65


def test_only_the_newest_preview_is_sent_and_finals_go_before_it():
    state = PublishState("c", forebay=True)
    state.preview(said("he"), 0)
    state.preview(said("hel"), 0)
    state.final(said("hello"))
    state.preview(said("you"), 0)
    request = state.take(0)
    assert request is not None
    assert [(m["text"], "is_preview" in m) for m in request.json["messages"]] == [
        ("hello", False),
        ("you", True),
    ]
    state.preview(said("old"), 0)
    assert state.take(2.0) is None
    assert state.counters.previews_dropped == 3


def test_a_message_refused_for_good_gives_up_its_number():
    state = PublishState("c", forebay=True)
    for text in "ab":
        state.final(said(text))
    request = state.take(0)
    assert request is not None
    gone = state.answered(
        request, {"results": [{"status": 413}, {"status": 200, "result": "held"}]}, 0
    )
    assert gone == [2]
    skip = state.take(0)
    assert skip is not None and skip.json["messages"] == [{"seq": 1, "skip": True}]
    state.answered(skip, {"results": [{"status": 200, "result": "skipped"}]}, 0)
    assert state.idle and state.settled == 2
    assert (state.counters.sent, state.counters.dropped) == (1, 1)


def test_a_server_that_is_busy_is_asked_again_when_it_said():
    state = PublishState("c", forebay=True)
    state.final(said("a"))
    request = state.take(0)
    assert request is not None
    state.answered(request, {"results": [{"status": 429, "retry_after_s": 3}]}, 0)
    assert state.take(2.9) is None
    assert state.take(3.0) is not None


def test_originals_get_one_message_a_request_without_our_fields():
    strict = PublishState("c", forebay=False, order="strict")
    loose = PublishState("c", forebay=False, order="parallel")
    for state in (strict, loose):
        for text in "abc":
            state.final(said(text))
    first = strict.take(0)
    assert first is not None and first.json == said("a")
    assert strict.take(0) is None
    assert [loose.take(0) is not None for _ in range(4)] == [True, True, True, False]
    strict.refused(first)
    assert strict.counters.dropped == 1 and strict.take(0) is not None


def test_the_first_answer_tells_what_the_server_is():
    for answer, known in (({"result": "appended"}, True), ({"status": "ok"}, False)):
        state = PublishState("c")
        state.final(said("a"))
        request = state.take(0)
        assert request is not None and request.json["client_id"] == "c"
        state.final(said("b"))
        assert state.take(0) is None
        state.answered(request, answer, 0)
        assert state.forebay is known and state.take(0) is not None


def test_the_oldest_gives_way_when_the_outbox_is_full():
    state = PublishState("c", forebay=True)
    for text in "ab":
        state.final(said(text))
    assert state.drop_oldest() == (Message(1, {}, skip=True), [1])
    assert state.drop_oldest() == (Message(2, {}, skip=True), [2])
    assert state.drop_oldest() == (None, [])
    assert state.counters.dropped == 2 and state.counters.queued == 0
    assert state.settled == 2 and state.idle  # the server hears of it with the next caption


def test_what_gives_way_behind_a_request_under_way_is_told_to_the_server():
    state, server = PublishState("c", forebay=True), Server()
    state.final(said("a"))
    request = state.take(0)
    assert request is not None
    for text in "bcd":
        state.final(said(text))
    assert state.drop_oldest() == (Message(2, {}, skip=True), [])
    assert state.drop_oldest() == (Message(3, {}, skip=True), [])
    assert not state.idle
    state.answered(request, server.take(request, 0), 0)
    rest = state.take(0)
    assert rest is not None and [(m.seq, m.skip) for m in rest.messages] == [
        (2, True), (3, True), (4, False),
    ]  # fmt: skip
    state.answered(rest, server.take(rest, 0), 0)
    assert server.shown == ["a", "d"] and state.idle and state.settled == 4


def test_a_server_that_stays_away_lets_nothing_pile_up():
    state, server = PublishState("c", forebay=True), Server()
    for n in range(100):
        state.final(said(str(n)))
    for n in range(100, 5000):
        if n % 500 == 0 and (request := state.take(n)) is not None:
            state.failed(request, n, 0.5)
        state.drop_oldest()
        state.final(said(str(n)))
    assert state.counters.queued == 100 and state.counters.dropped == 4900
    assert len(state._skips) + len(state._done) <= 100
    while (request := state.take(9999)) is not None:
        state.answered(request, server.take(request, 0), 9999)
    assert server.shown == [str(n) for n in range(4900, 5000)] and state.idle


def test_what_comes_back_stands_where_it_was():
    state = PublishState("c", forebay=True)
    for n in range(64 * 2):
        state.final(said(str(n)))
    first = state.take(0)
    assert first is not None and state.take(0) is None  # no further ahead than a server holds
    state.failed(first, 0, 0)
    again = state.take(99)
    assert again is not None and [m.seq for m in again.messages] == list(range(1, 65))
    state.answered(again, {"results": [{"status": 429}, *[{}] * 63]}, 99)
    state.final(said("new"))
    assert [m.seq for m in state._waiting] == [1, *range(65, 130)]


def test_an_earlier_life_goes_on_where_it_stopped():
    state = PublishState("c", forebay=True)
    state.restore([Message(5, said("e")), Message(7, said("g"))], next_seq=8, settled=3)
    assert state.settled == 4 and state.counters.queued == 2
    request = state.take(0)
    assert request is not None and [m.seq for m in request.messages] == [5, 7]
    assert state.final(said("h")).seq == 8
