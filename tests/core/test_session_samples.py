"""A session whose client counts its samples: repeats, overlaps, holes, and what comes after."""

from __future__ import annotations

import msgspec
import pytest

from forebay.core.events import End, Sound
from forebay.core.intents import (
    Answer,
    Append,
    Attach,
    Attached,
    Close,
    Deliver,
    EndInput,
    Failed,
    Found,
    From,
    Hear,
    NotBegun,
    Stored,
    Submit,
    Took,
)
from forebay.core.kinds import Kind
from forebay.core.session import Rules, Session
from forebay.core.spec import BY_CLIENT, DELETED, JobSpec, JobView
from forebay.errors import BadRequest, ResumeNotAvailable

RULES = Rules(silence_s=0, acknowledges=True)


def view(units: int, state: str = "running") -> JobView:
    spec = JobSpec(id="j", kind=Kind.RECOGNITION, pool="recognition/m", params={})
    return JobView(
        spec=spec, state=state, epoch="e", input_head=3, units=units, client_pos=units, head=5
    )  # type: ignore[arg-type]


def back(units: int, after: int = 2, state: str = "running") -> tuple[Session, list[object]]:
    """A session that was attached again, and its last effects."""
    session = Session("s", {}, RULES, after)
    session.open()
    found = view(units, state)
    assert session.receive(Found(found), 0) == [Attach("j")]
    return session, list(session.receive(Attached(found, 2), 0))


def hear(at: int, *parts: bytes) -> Hear:
    units = sum(map(len, parts)) // 2
    sounds = tuple(Sound(data=part) for part in parts)
    return Hear(session="s", sounds=sounds, seq=at + units, units=units, at=at)


def test_news_goes_on_after_the_event_that_the_client_names() -> None:
    _, effects = back(10, after=2)
    assert effects[-1] == Deliver(From.AFTER, 2)


def test_what_is_stored_already_is_acknowledged_and_not_stored_again() -> None:
    session, _ = back(10)
    assert session.receive(hear(0, b"ab" * 10), 0) == [Answer(Took(10))]


def test_an_end_behind_what_is_stored_is_a_hole_and_ends_no_input() -> None:
    session, _ = back(10)
    effects = session.receive(EndInput(session="s", seq=11, at=11), 0)
    failed = next(e.what for e in effects if isinstance(e, Answer))
    assert isinstance(failed, Failed) and failed.error.details["stored"] == 10
    session, _ = back(10)
    (effect,) = session.receive(EndInput(session="s", seq=10, at=10), 0)
    assert isinstance(effect, Append) and effect.items == (End(seq=10),)


def test_who_has_had_events_is_given_no_session_but_that_one() -> None:
    def found(view: JobView | None, after: int | None) -> object:
        session = Session("s", {"a": 1}, RULES, after)
        session.open()
        effects = session.receive(Found(view), 0)
        told = [e.what.error for e in effects if isinstance(e, Answer)]  # type: ignore[union-attr]
        return told[0] if told else effects[0]

    assert found(None, None) == found(None, 0) == Submit({"a": 1})
    deleted = msgspec.structs.replace(view(10, "cancelled"), message=DELETED)
    assert found(deleted, None) == Submit({"a": 1}), "its text is nobody's any more"
    lost = found(None, 3)
    assert isinstance(lost, ResumeNotAvailable) and lost.details["reason"] == "unknown"
    over = view(10, "completed")  # begun with {}
    assert found(over, None) == Submit({"a": 1})
    other = found(over, 3)
    assert isinstance(other, BadRequest) and other.details["parameters"] == ["a"]


def test_a_session_of_which_nothing_is_kept_is_not_read_from_its_start() -> None:
    session = Session("s", {}, RULES, 3)
    session.open()
    spec = JobSpec(id="j", kind=Kind.RECOGNITION, pool="recognition/m", params={})
    empty = JobView(spec=spec, state="queued", epoch="e")
    session.receive(Found(empty), 0)
    assert Deliver(From.AFTER, 3) in session.receive(Attached(empty, 2), 0)


@pytest.mark.parametrize(("message", "waits"), [(BY_CLIENT, False), ("away", True)])
def test_who_cancelled_a_session_is_not_told_so_again(message: str, waits: bool) -> None:
    session = Session("s", {}, RULES)
    session.open()
    over = msgspec.structs.replace(view(10, "cancelled"), message=message)
    session.receive(Found(over), 0)
    session.receive(Attached(over, 2), 0)
    assert (session.deadline is not None) is waits


def test_an_overlap_is_cut_off_also_over_several_parts() -> None:
    session, _ = back(10)
    (effect,) = session.receive(hear(4, b"ab" * 5, b"cd" * 5, b"ef" * 2), 0)
    assert isinstance(effect, Append)
    assert [sound.data for sound in effect.items] == [b"cd" * 4, b"ef" * 2]  # type: ignore[union-attr]
    assert (effect.pos, effect.units, effect.tell) == (16, 16, True)
    assert session.receive(Stored(16, tell=True), 0) == [Answer(Took(16))]


def test_a_hole_is_a_mistake_that_says_what_is_stored() -> None:
    session, _ = back(10)
    effects = session.receive(hear(11, b"ab"), 0)
    failed = next(e.what for e in effects if isinstance(e, Answer))
    assert isinstance(failed, Failed) and isinstance(failed.error, BadRequest)
    assert failed.error.details["stored"] == 10


def test_a_position_that_cannot_be_read_any_more_ends_the_connection() -> None:
    session, _ = back(10)
    gone = ResumeNotAvailable("gone", reason="window_expired")
    effects = session.receive(NotBegun(gone), 0)
    assert Close(1000) in effects
    assert any(isinstance(e, Answer) and isinstance(e.what, Failed) for e in effects)


def test_a_session_that_is_over_is_read_to_its_end() -> None:
    session, effects = back(10, state="completed")
    assert effects[-1] == Deliver(From.AFTER, 2)
    assert session.receive(hear(0, b"ab"), 0) == [Answer(Took(1))], "a late repeat"
