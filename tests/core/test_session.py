"""The session table: any interleaving of what clients ask and what the broker reports."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.core.events import End, Text
from forebay.core.intents import (
    Answer,
    Append,
    Attach,
    Attached,
    Begun,
    Cancel,
    CancelJob,
    Cancelled,
    Close,
    Deliver,
    Detach,
    EndInput,
    ExpireJob,
    Failed,
    Feed,
    Finished,
    Found,
    From,
    Gone,
    Lookup,
    Lost,
    NotBegun,
    Open,
    Over,
    Refuse,
    Resume,
    Slow,
    Started,
    StopDelivery,
    Stored,
    Submit,
    Superseded,
    Tick,
    Unread,
)
from forebay.core.kinds import Kind
from forebay.core.session import TABLE, Phase, Rules, Session, Sessions
from forebay.core.spec import JobSpec, JobView
from forebay.errors import (
    BadRequest,
    ForebayError,
    NotFound,
    QueueFull,
    ResumeNotAvailable,
    SlowClient,
)

PARAMS = {"sample_rate": 16000, "channels": 1}


def view(**facts: Any) -> JobView:
    params = facts.pop("params", PARAMS)
    spec = JobSpec(id=facts.pop("id", "j1"), kind=Kind.SPEECH, pool="speech/x", params=params)
    return JobView(spec=spec, state=facts.pop("state", "running"), epoch="e", **facts)


def fresh() -> Session:
    session = Session("s", PARAMS)
    assert session.open() == [Lookup()]
    assert session.receive(Found(None), 0) == [Submit(PARAMS)]
    effects = session.receive(Attached(view(state="queued"), 1), 0)
    assert effects == [Answer(Started(True, 0, -1)), Deliver(From.START)]
    return session


def returning(**facts: Any) -> Session:
    known = view(input_head=3, units=10, client_pos=7, head=5, **facts)
    session = Session("s", PARAMS)
    session.open()
    assert session.receive(Found(known), 0) == [Attach("j1")]
    (answer,) = session.receive(Attached(known, 2), 0)
    assert isinstance(answer, Answer)
    assert answer.what == Started(False, 10, 7, over=known.state == "completed")
    return session


def test_text_gets_its_units_and_the_store_has_the_last_word() -> None:
    session = fresh()
    assert session.receive(Feed(session="s", text="ab", seq=1), 0) == [
        Append((Text(text="ab", unit=0, seq=1),), 1, 2)
    ]
    session.receive(Stored(2), 0)
    assert session.receive(Feed(session="s", text="cde", seq=2), 0) == [
        Append((Text(text="cde", unit=2, seq=2),), 2, 5)
    ]
    session.receive(Stored(2), 0)  # it was a repeat
    assert session.receive(EndInput(session="s", seq=3), 0) == [Append((End(seq=3),), 3, 2)]
    assert session.phase is Phase.FLUSHING


def test_text_after_the_end_is_refused_and_a_second_end_is_not() -> None:
    session = fresh()
    session.receive(EndInput(session="s", seq=1), 0)
    assert session.receive(EndInput(session="s", seq=2), 0) == []
    effects = session.receive(Feed(session="s", text="x", seq=3), 0)
    assert isinstance(effects[1], Answer)
    assert isinstance(effects[1].what, Failed)
    assert isinstance(effects[1].what.error, BadRequest)
    assert effects[2:] == [Close(1000), Detach()]


def test_a_repeat_of_text_before_the_end_is_no_error() -> None:
    session = returning(input_ended=True)
    session.receive(Resume(session="s", have=0), 0)
    session.receive(Begun(), 0)
    assert session.phase is Phase.FLUSHING
    assert session.receive(Feed(session="s", text="x", seq=7), 0) == []


def test_a_returning_session_waits_a_second_then_goes_on_from_what_was_delivered() -> None:
    session = returning()
    assert session.deadline == 1.0
    assert session.receive(Tick(), 0.9) == []
    assert session.receive(Tick(), 1.0) == [Deliver(From.DELIVERED)]
    assert session.phase is Phase.STREAMING
    assert session.deadline is None


def test_resume_starts_delivery_at_that_unit() -> None:
    session = returning()
    assert session.receive(Resume(session="s", have=4), 0.1) == [Deliver(From.MARK, 4)]
    session.receive(Begun(), 0.1)
    assert session.phase is Phase.STREAMING
    assert session.receive(Tick(), 5) == []


def test_resume_ahead_of_what_was_ever_said_is_refused_and_nothing_else_changes() -> None:
    session = returning()
    (answer,) = session.receive(Resume(session="s", have=11), 0)
    assert isinstance(answer, Answer)
    assert isinstance(answer.what, Failed)
    assert isinstance(answer.what.error, ResumeNotAvailable)
    assert session.phase is Phase.HELD


def test_text_on_a_finished_id_begins_a_new_job_without_a_second_answer() -> None:
    session = returning(state="completed", input_ended=True)
    assert session.deadline is None
    text = Feed(session="s", text="new", seq=1)
    assert session.receive(text, 3) == [Detach(), Submit(PARAMS)]
    effects = session.receive(Attached(view(id="j2", state="queued"), 1), 3)
    assert effects == [Deliver(From.START), Append((Text(text="new", unit=0, seq=1),), 1, 3)]


def test_a_finished_id_with_other_parameters_is_a_new_session() -> None:
    session = Session("s", PARAMS)
    other = view(state="completed", params={"sample_rate": 8000, "channels": 1})
    assert session.receive(Found(other), 0) == [Submit(PARAMS)]


def test_a_live_id_with_other_parameters_is_refused() -> None:
    session = Session("s", PARAMS)
    effects = session.receive(Found(view(params={"sample_rate": 8000})), 0)
    assert session.phase is Phase.CLOSED
    assert effects[-1] == Close(1000)


def test_cancel_is_answered_once_the_broker_has_done_it() -> None:
    session = fresh()
    assert session.receive(Cancel(session="s", seq=9), 0) == [StopDelivery(), CancelJob()]
    assert session.receive(Feed(session="s", text="x", seq=10), 0) != []
    session = fresh()
    session.receive(Cancel(session="s", seq=9), 0)
    effects = session.receive(Cancelled(), 0)
    assert effects == [
        StopDelivery(),
        Answer(Finished(9, cancelled=True)),
        Close(1000),
        Detach(),
    ]


def test_slow_is_told_once_and_ends_the_job() -> None:
    session = fresh()
    effects = session.receive(Slow(30, 30), 0)
    assert isinstance(effects[0], ExpireJob)
    told = [e for e in effects if isinstance(e, Answer)]
    assert len(told) == 1
    assert isinstance(told[0].what, Failed)
    assert isinstance(told[0].what.error, SlowClient)
    assert session.receive(Slow(30, 30), 0) == []


def test_only_the_own_number_supersedes() -> None:
    session = returning()
    assert session.receive(Superseded(1), 0) == []
    assert session.receive(Superseded(2), 0) == [
        StopDelivery(),
        Detach(),
        Close(4409, "superseded"),
    ]


def test_an_attachment_that_comes_after_the_client_left_is_given_back() -> None:
    session = Session("s", PARAMS)
    session.receive(Found(None), 0)
    session.receive(Gone(), 0)
    assert session.receive(Attached(view(), 1), 0) == [Detach()]


def test_a_lost_window_is_told_by_name_and_the_session_stays() -> None:
    session = fresh()
    effects = session.receive(Lost(ResumeNotAvailable("gone", reason="window_expired")), 0)
    assert [type(e) for e in effects] == [StopDelivery, Answer]
    assert session.phase is Phase.HELD
    assert session.deadline is None


def test_a_returning_client_that_only_ends_its_text_hears_the_rest() -> None:
    session = returning()
    effects = session.receive(EndInput(session="s", seq=8), 0)
    assert effects == [Deliver(From.DELIVERED), Append((End(seq=8),), 8, 10)]
    session = returning(state="completed", input_ended=True)
    assert session.receive(EndInput(session="s", seq=8), 0) == [Deliver(From.DELIVERED)]


def test_text_of_a_returning_client_starts_delivery_and_is_added() -> None:
    session = returning()
    assert session.receive(Feed(session="s", text="x", seq=8), 0) == [
        Deliver(From.DELIVERED),
        Append((Text(text="x", unit=10, seq=8),), 8, 11),
    ]


def test_the_end_closes_normally_and_nothing_follows() -> None:
    session = fresh()
    assert session.receive(Over(), 1) == [StopDelivery(), Close(1000), Detach()]
    assert session.receive(Over(), 1) == []
    assert session.receive(Cancel(session="s", seq=1), 1) == []


def test_a_job_that_ends_while_its_client_hesitates_is_still_delivered() -> None:
    session = returning()
    assert session.receive(Unread(), 0.5) == []
    assert session.receive(Tick(), 1.0) == [Deliver(From.DELIVERED)]
    assert session.phase is Phase.FLUSHING


@pytest.mark.parametrize("fact", [NotBegun, Lost])
def test_a_stream_that_is_gone_for_good_ends_the_session(fact: Any) -> None:
    session = returning()
    session.receive(Resume(session="s", have=1), 0)
    if fact is Lost:
        session.receive(Begun(), 0)
    effects = session.receive(fact(NotFound("no job")), 0)
    assert [type(e) for e in effects] == [StopDelivery, Answer, Close, Detach]


def test_a_position_the_broker_refuses_changes_nothing() -> None:
    session = returning()
    session.receive(Resume(session="s", have=1), 0)
    error = ResumeNotAvailable("old", reason="window_expired")
    assert session.receive(NotBegun(error), 0) == [Answer(Failed(error, 0))]
    assert session.phase is Phase.HELD


def test_every_row_of_the_table_names_a_method() -> None:
    for (phase, event), name in TABLE.items():
        assert isinstance(phase, Phase)
        assert isinstance(event, type)
        assert callable(getattr(Session, name))


def test_a_second_open_leaves_the_first_session() -> None:
    sessions = Sessions()
    one, left = sessions.choose(Open(session="one", params=PARAMS))
    assert left == []
    assert sessions.choose(Feed(session="one", text="x", seq=1)) == (one, [])
    two, left = sessions.choose(Open(session="two", params=PARAMS))
    assert left == [one]
    with pytest.raises(BadRequest):
        sessions.choose(Feed(session="one", text="x", seq=1))
    again, left = sessions.choose(Open(session="two", params=PARAMS))
    assert left == [two]
    assert list(sessions) == [again]


def test_several_sessions_live_on_one_connection_where_the_dialect_says_so() -> None:
    sessions = Sessions(limit=2)
    opened = [sessions.choose(Open(session=n, params=PARAMS)) for n in "abc"]
    assert [left for _, left in opened] == [[], [], [opened[0][0]]]


def test_words_before_open_are_refused() -> None:
    with pytest.raises(BadRequest):
        Sessions().choose(Cancel(session="s", seq=1))


ERRORS = [
    BadRequest("x"),
    QueueFull("x"),
    NotFound("x"),
    ForebayError("x"),
    ResumeNotAvailable("x", reason="window_expired"),
]
seqs = st.integers(-2, 12)
events = st.one_of(
    st.builds(Feed, session=st.just("s"), text=st.text(min_size=1, max_size=4), seq=seqs),
    st.builds(EndInput, session=st.just("s"), seq=seqs),
    st.builds(Cancel, session=st.just("s"), seq=seqs),
    st.builds(Resume, session=st.just("s"), have=st.integers(0, 20)),
    st.builds(
        Found,
        st.sampled_from([None, view(), view(state="completed", input_ended=True, input_head=2)]),
    ),
    st.builds(
        Attached,
        st.sampled_from([view(state="queued"), view(input_head=2, units=5, client_pos=3, head=4)]),
        st.integers(1, 3),
    ),
    st.builds(Stored, st.integers(0, 20)),
    st.builds(Refuse, st.sampled_from(ERRORS)),
    st.builds(NotBegun, st.sampled_from(ERRORS)),
    st.builds(Lost, st.sampled_from(ERRORS)),
    st.builds(Superseded, st.integers(1, 3)),
    st.sampled_from([Begun(), Cancelled(), Over(), Unread(), Slow(30, 30), Gone(), Tick()]),
)


@given(st.lists(st.tuples(events, st.floats(0, 2)), max_size=30))
def test_no_interleaving_breaks_what_a_client_may_rely_on(steps: list[Any]) -> None:
    session = Session("s", PARAMS, Rules(silence_s=1.0))
    effects = session.open()
    now, closes, started = 0.0, 0, 0
    for event, wait in steps:
        now += wait
        was, units = session.phase, session.units
        effects = session.receive(event, now)
        kinds = [type(e) for e in effects]
        if was is Phase.CLOSED:
            assert kinds in ([], [Detach])
            continue
        closes += kinds.count(Close)
        assert closes <= 1
        for effect in effects:
            if isinstance(effect, Answer) and isinstance(effect.what, Started):
                started += 1
            if isinstance(effect, Deliver | Append):
                assert started == 1
            if isinstance(effect, Append) and isinstance(effect.items[0], Text):
                first = effect.items[0]
                assert first.unit in (units, session.units)
                assert effect.units == first.unit + len(first.text)
        if Close in kinds:
            assert session.phase is Phase.CLOSED
        if session.phase is Phase.CLOSED:
            assert session.deadline is None
        if session.deadline is not None:
            assert session.phase is Phase.HELD
    assert started <= 1
