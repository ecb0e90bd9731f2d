"""The session table where the connection outlives its sessions and input is acknowledged."""

from __future__ import annotations

from typing import Any

import pytest

from forebay.core.events import End, Sound
from forebay.core.intents import (
    Answer,
    Append,
    Attached,
    Cancel,
    CancelJob,
    Cancelled,
    Deliver,
    Detach,
    EndInput,
    ExpireJob,
    Failed,
    Finished,
    Found,
    From,
    Hear,
    Lost,
    Open,
    Over,
    Refuse,
    Started,
    StopDelivery,
    Stored,
    Submit,
    Tick,
    Took,
    together,
)
from forebay.core.kinds import Kind
from forebay.core.session import Phase, Rules, Session, Sessions
from forebay.core.spec import JobSpec, JobView
from forebay.errors import (
    BadRequest,
    ForebayError,
    QuotaExceeded,
    ResumeNotAvailable,
    StoreFull,
    TooLarge,
)

RULES = Rules(silence_s=0.0, over_code=None, acknowledges=True)


def view(**facts: Any) -> JobView:
    spec = JobSpec(id="j1", kind=Kind.RECOGNITION, pool="recognition/x", params={})
    return JobView(spec=spec, state=facts.pop("state", "running"), epoch="e", **facts)


def hear(seq: int) -> Hear:
    return Hear(session="s", sounds=(Sound(data=b"ab", seq=seq),), seq=seq, units=1)


def fresh() -> Session:
    session = Session("s", {}, RULES)
    session.open()
    session.receive(Found(None), 0)
    session.receive(Attached(view(state="queued"), 1), 0)
    return session


def returning(**facts: Any) -> Session:
    known = view(input_head=3, client_pos=7, head=5, **facts)
    session = Session("s", {}, RULES)
    session.open()
    session.receive(Found(known), 0)
    session.receive(Attached(known, 2), 0)
    return session


def failed(effects: list[Any]) -> ForebayError:
    (answer,) = [e for e in effects if isinstance(e, Answer)]
    assert isinstance(answer.what, Failed)
    return answer.what.error


def test_a_chunk_is_acknowledged_once_the_store_has_it_and_the_end_is_not() -> None:
    session = fresh()
    (append,) = session.receive(hear(4), 0)
    assert append == Append((Sound(data=b"ab", seq=4),), 4, 1, tell=True)
    assert session.receive(Stored(1, True), 0) == [Answer(Took(4))]
    end = session.receive(EndInput(session="s", seq=0), 0)
    assert end == [Append((End(),), None, 1)], "an end without a number is never a repeat"
    assert session.receive(Stored(1), 0) == []


def test_a_live_session_is_delivered_at_once() -> None:
    session = returning(delivered=2)
    assert session.deadline == 0
    assert session.receive(Tick(), 0) == [Deliver(From.DELIVERED)]
    assert session.phase is Phase.STREAMING


def test_a_finished_one_only_if_its_end_was_not_delivered() -> None:
    assert returning(delivered=4, state="completed").deadline == 0
    heard = returning(delivered=5, state="completed")
    assert heard.deadline is None
    assert heard.receive(EndInput(session="s", seq=0), 0) == [Deliver(From.DELIVERED)]
    new = returning(delivered=5, state="completed")
    assert new.receive(hear(0), 0) == [Detach(), Submit({})]
    assert new.receive(Attached(view(state="queued"), 3), 0) == [
        Deliver(From.START),
        Append((Sound(data=b"ab", seq=0),), 0, 1, tell=True),
    ]


def test_a_repeat_after_the_end_is_acknowledged_and_new_audio_is_a_mistake() -> None:
    session = returning(input_ended=True)
    session.receive(Tick(), 0)
    assert session.phase is Phase.FLUSHING
    assert session.receive(hear(7), 0) == [Answer(Took(7))]
    effects = session.receive(hear(8), 0)
    assert isinstance(failed(effects), BadRequest)
    assert session.phase is Phase.FLUSHING


@pytest.mark.parametrize("error", [TooLarge("x"), BadRequest("x")])
def test_what_the_store_does_not_take_from_a_client_ends_nothing(error: BadRequest) -> None:
    session = fresh()
    session.receive(hear(1), 0)
    assert session.receive(Refuse(error), 0) == [Answer(Failed(error, 1))]
    assert session.phase is Phase.STREAMING


def test_a_quota_ends_the_job_too_and_is_told_once() -> None:
    session, error = fresh(), QuotaExceeded("3 s of audio", retry_after_s=60)
    effects = session.receive(Refuse(error), 0)
    kinds = [type(effect) for effect in effects]
    assert kinds.index(StopDelivery) < kinds.index(ExpireJob) < kinds.index(Answer)
    assert failed(effects) is error and session.phase is Phase.CLOSED


def test_what_the_store_cannot_do_ends_the_session_and_not_the_connection() -> None:
    session = fresh()
    error = StoreFull("x")
    effects = session.receive(Refuse(error), 0)
    assert effects == [StopDelivery(), Answer(Failed(error, 0)), Detach()]
    lost = returning()
    lost.receive(Tick(), 0)
    gone = ResumeNotAvailable("x", reason="window_expired")
    assert lost.receive(Lost(gone), 0)[1] == Answer(Failed(gone, 0))
    assert lost.phase is Phase.CLOSED


def test_an_impossible_word_is_a_mistake_only() -> None:
    session = fresh()
    effects = session.receive(Open(session="s", params={}), 0)
    assert isinstance(failed(effects), BadRequest)
    assert session.phase is Phase.STREAMING


def test_after_the_end_input_is_told_and_after_a_cancel_it_is_ignored() -> None:
    over = fresh()
    assert over.receive(Over(), 0) == [StopDelivery(), Detach()]
    assert failed(over.receive(hear(3), 0)).details["reason"] == "unknown_session"
    assert failed(over.receive(EndInput(session="s", seq=0), 0)).details["session"] == "s"
    stopped = fresh()
    stopped.receive(hear(2), 0)
    assert stopped.receive(Cancel(session="s", seq=0), 0) == [StopDelivery(), CancelJob()]
    effects = stopped.receive(Cancelled(), 0)
    assert Answer(Finished(0, cancelled=True)) in effects
    assert stopped.receive(hear(3), 0) == []


def test_a_connection_holds_so_many_and_forgets_those_that_are_over() -> None:
    sessions = Sessions(2, RULES)
    one, _ = sessions.choose(Open(session="a", params={}))
    sessions.choose(Open(session="b", params={}))
    with pytest.raises(BadRequest) as caught:
        sessions.choose(Open(session="c", params={}))
    assert caught.value.details["session"] == "c"
    one.phase = Phase.CLOSED
    _, leaving = sessions.choose(Open(session="c", params={}))
    assert leaving == [one]
    with pytest.raises(BadRequest) as caught:
        sessions.choose(EndInput(session="a", seq=0))
    assert caught.value.details["reason"] == "unknown_session"
    again, leaving = sessions.choose(Open(session="b", params={}))
    assert [s.name for s in leaving] == ["b"] and again.name == "b"


def test_started_says_what_arrived() -> None:
    known = view(input_head=3, client_pos=7, units=9, head=5)
    session = Session("s", {}, RULES)
    session.open()
    session.receive(Found(known), 0)
    (answer,) = session.receive(Attached(known, 2), 0)
    assert answer == Answer(Started(False, 9, 7))


# ------------------------------------------------------------------ several at once


def counted(seq: int, at: int, units: int = 1) -> Hear:
    sounds = (Sound(data=b"ab" * units, seq=seq),)
    return Hear(session="s", sounds=sounds, seq=seq, units=units, at=at)


def streaming(client_pos: int = 0, head: int = 0, units: int = 0) -> Session:
    session = Session("s", {}, RULES, after=None)
    session.open()
    known = view(client_pos=client_pos, input_head=head, units=units)
    session.receive(Found(known), 0.0)
    session.receive(Attached(known, 1), 0.0)
    session.receive(Tick(), 0.0)
    assert session.phase is Phase.STREAMING
    return session


def test_chunks_that_follow_each_other_are_one_append() -> None:
    session = streaming()
    chunks = [hear(1), hear(2), hear(2), hear(4)]
    assert session.goes_on(chunks)
    one = together(chunks)
    assert session.receive(one, 0.0) == [
        Append(tuple(sound for chunk in chunks for sound in chunk.sounds), 4, 4, tell=True)
    ]
    assert session.seq == 4
    assert together(chunks[:1]) is chunks[0]


def test_chunks_that_count_samples_are_one_where_they_leave_no_hole() -> None:
    session = streaming()
    chunks = [counted(3, 0, 3), counted(5, 3, 2)]
    assert session.goes_on(chunks)
    (append,) = session.receive(together(chunks), 0.0)
    assert isinstance(append, Append) and (append.pos, append.units) == (5, 5)
    assert not session.goes_on([counted(3, 0, 3), counted(6, 4, 2)])
    assert not session.goes_on([counted(2, 1)])


def test_what_may_be_a_repeat_is_taken_alone() -> None:
    session = streaming(client_pos=4, head=4, units=4)
    assert session.goes_on([hear(4)])  # the store knows what it is
    assert not session.goes_on([hear(4), hear(5)])
    assert session.goes_on([hear(5), hear(6)])
    assert not session.goes_on([hear(6), hear(5)])
    session.receive(EndInput(session="s", seq=7), 0.0)
    assert not session.goes_on([hear(8)])
