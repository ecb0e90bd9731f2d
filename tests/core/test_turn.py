"""One answer of a conversation: order of what is told, and any interleaving."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.core.events import Ended
from forebay.core.turn import (
    TABLE,
    Answering,
    Ask,
    Back,
    Broken,
    Clear,
    Cleared,
    CloseTurn,
    FindTurn,
    Gone,
    LeaveTurn,
    Lost,
    NotStarted,
    Ping,
    Pong,
    Read,
    Say,
    Slow,
    Started,
    StartTurn,
    Stop,
    StopTurn,
    Superseded,
    TextDone,
    TextOver,
    Turn,
    TurnCancelled,
    TurnFailed,
    TurnPhase,
    VoiceDone,
    VoiceMissing,
    VoiceOver,
)
from forebay.errors import ForebayError, NoWorkers

DONE = Ended(state="completed", seq=4)
ASK = Ask(session="s", prompt="hi", speech={"sample_rate": 16000})


def said(effects: Any) -> list[Any]:
    return [e.what for e in effects if isinstance(e, Say)]


def answering(voice: bool = True, **how: Any) -> Turn:
    turn = Turn(once=how.pop("once", True), **how)
    turn.receive(ASK, 0)
    assert turn.receive(Started(voice), 0) == [Say(Answering("s", voice)), Read()]
    return turn


def test_the_text_is_done_before_the_speech_is_whichever_ends_first() -> None:
    text, voice = TextOver(ended=DONE, text="ab"), VoiceOver(DONE)
    turn = answering()
    effects = [*turn.receive(text, 1), *turn.receive(voice, 2)]
    assert [type(w) for w in said(effects)] == [TextDone, VoiceDone]
    turn = answering()
    assert turn.receive(voice, 1) == []
    effects = turn.receive(text, 2)
    assert [type(w) for w in said(effects)] == [TextDone, VoiceDone]
    assert effects[-1] == CloseTurn()


def test_a_voice_that_breaks_leaves_the_text_going_on() -> None:
    turn = answering()
    error = ForebayError("broken")
    assert turn.receive(VoiceOver(Ended(state="failed"), error), 1) == [Say(VoiceMissing(error))]
    effects = turn.receive(TextOver(ended=DONE), 2)
    assert [type(w) for w in said(effects)] == [TextDone]
    assert effects[-1] == CloseTurn()


def test_no_voice_is_told_before_the_first_word() -> None:
    turn = Turn(once=True)
    turn.receive(ASK, 0)
    error = NoWorkers("none")
    effects = turn.receive(Started(False, error), 0)
    assert effects == [Say(Answering("s", False)), Say(VoiceMissing(error)), Read()]


def test_stop_is_answered_and_closes() -> None:
    turn = answering()
    effects = turn.receive(Stop(), 1)
    assert effects == [
        StopTurn(),
        Say(VoiceDone("s", 0, cancelled=True)),
        Say(TurnCancelled("s")),
        CloseTurn(),
    ]
    assert turn.receive(TextOver(ended=DONE), 2) == []


def test_history_grows_is_bounded_and_can_be_cleared() -> None:
    turn = Turn(once=False, system_prompt="brief", history_messages=4)
    for n in range(5):
        (start,) = turn.receive(Ask(session="", prompt=f"q{n}"), n)
        assert isinstance(start, StartTurn)
        assert start.messages[0] == {"role": "system", "content": "brief"}
        assert start.messages[-1] == {"role": "user", "content": f"q{n}"}
        assert len(start.messages) <= 6
        turn.receive(Started(False), n)
        turn.receive(TextOver(ended=DONE, text=f"a{n}"), n)
    assert [m["content"] for m in turn.history] == ["q3", "a3", "q4", "a4"]
    assert turn.receive(Clear(), 9) == [Say(Cleared())]
    assert turn.history == []
    assert turn.receive(Ping(), 9) == [Say(Pong())]


def test_a_system_message_of_the_client_replaces_ours() -> None:
    turn = Turn(once=True, system_prompt="ours")
    before = [{"role": "system", "content": "theirs"}]
    (start,) = turn.receive(Ask(session="s", prompt="q", messages=before), 0)
    assert isinstance(start, StartTurn)
    assert [m["content"] for m in start.messages] == ["theirs", "q"]


def test_questions_wait_for_the_answer_before_but_not_without_end() -> None:
    turn = answering(once=False, voice=False)
    for _ in range(4):
        assert turn.receive(ASK, 1) == []
    (refused,) = said(turn.receive(ASK, 1))
    assert isinstance(refused, TurnFailed)
    effects = turn.receive(TextOver(ended=DONE), 2)
    assert isinstance(effects[-1], StartTurn)


def test_jobs_that_come_after_the_client_left_are_stopped() -> None:
    turn = Turn(once=True)
    turn.receive(ASK, 0)
    assert turn.receive(Gone(), 0) == [StopTurn()]
    assert turn.receive(Started(True), 0) == [StopTurn()]


@pytest.mark.parametrize(
    "fact",
    [
        TextOver(ended=Ended(state="failed"), error=ForebayError("x")),
        Slow(30),
        Lost(ForebayError("x")),
        Ask(session="s", prompt="a second prompt"),
    ],
)
def test_what_goes_wrong_stops_both_jobs_is_told_once_and_closes(fact: Any) -> None:
    effects = answering().receive(fact, 1)
    assert [type(e) for e in effects] == [StopTurn, Say, CloseTurn]
    assert isinstance(said(effects)[0], TurnFailed)


def test_an_answer_cancelled_from_elsewhere_is_told_as_cancelled() -> None:
    effects = answering(voice=False).receive(TextOver(ended=Ended(state="cancelled")), 1)
    assert said(effects) == [TurnCancelled("s")]


def test_a_refused_start_is_an_error() -> None:
    turn = Turn(once=True)
    turn.receive(ASK, 0)
    effects = turn.receive(NotStarted(NoWorkers("none")), 0)
    assert isinstance(said(effects)[0], TurnFailed)


def test_cancel_before_a_prompt_is_an_error_only_where_there_is_one_answer() -> None:
    assert isinstance(said(Turn(once=True).receive(Stop(), 0))[0], TurnFailed)
    assert Turn(once=False).receive(Stop(), 0) == []


def test_a_history_the_client_keeps_is_not_kept_twice() -> None:
    turn = Turn(once=False)
    turn.receive(Ask(session="s", prompt="q", messages=()), 0)
    turn.receive(Started(False), 0)
    turn.receive(TextOver(ended=DONE, text="a"), 1)
    assert turn.history == []


RESUMABLE = Ask(session="s", prompt="hi", speech={"sample_rate": 16000}, resumable=True)


@pytest.mark.parametrize(
    ("event", "closes"),
    [
        (Gone(), []),
        (Superseded(), [CloseTurn(4409, "superseded")]),
        (Slow(30), [CloseTurn(4408, "the client took nothing for 30 s")]),
    ],
)
def test_a_resumable_answer_is_left_and_not_stopped(event: Any, closes: list[Any]) -> None:
    turn = Turn(once=True)
    turn.receive(RESUMABLE, 0)
    turn.receive(Started(True), 0)
    assert turn.receive(event, 1) == [LeaveTurn(), *closes]
    assert turn.phase is TurnPhase.CLOSED


@pytest.mark.parametrize("event", [Stop(), Lost(ForebayError("x")), Broken(ForebayError("x"))])
def test_a_resumable_answer_ends_where_it_cannot_go_on(event: Any) -> None:
    turn = Turn(once=True)
    turn.receive(RESUMABLE, 0)
    turn.receive(Started(True), 0)
    assert StopTurn() in turn.receive(event, 1)


def test_who_comes_back_hears_the_whole_answers_length_and_age() -> None:
    turn = Turn(once=True)
    back = Back(session="s", chars=5, units=2)
    assert turn.receive(back, 10) == [FindTurn(back)]
    assert said(turn.receive(Started(True, age_s=4.0), 10)) == [
        Answering("s", True, resumable=True, resumed=True)
    ]
    (done,) = said(turn.receive(TextOver(ended=DONE, text="xyz", before=5), 11))
    assert (done.chars, done.elapsed_ms) == (8, 5000)
    assert said(turn.receive(VoiceOver(DONE), 12)) == [VoiceDone("s", 4)]


def test_coming_back_is_a_first_message_only() -> None:
    turn = answering()
    effects = turn.receive(Back(session="s"), 1)
    assert effects[0] == StopTurn() and isinstance(said(effects)[0], TurnFailed)


def test_every_row_of_the_table_names_a_method() -> None:
    for (phase, event), name in TABLE.items():
        assert isinstance(phase, TurnPhase)
        assert isinstance(event, type)
        assert callable(getattr(Turn, name))


error = ForebayError("x")
events = st.sampled_from(
    [
        ASK,
        Ask(session="s", prompt="text only"),
        Ask(session="s", prompt="hi", resumable=True),
        Back(session="s", chars=3),
        Superseded(),
        Broken(error),
        Stop(),
        Clear(),
        Ping(),
        Started(True),
        Started(False),
        Started(False, error),
        NotStarted(error),
        TextOver(ended=DONE, text="x"),
        TextOver(ended=Ended(state="failed"), error=error),
        TextOver(ended=Ended(state="cancelled")),
        VoiceOver(DONE),
        VoiceOver(Ended(state="failed"), error),
        Slow(30),
        Lost(error),
        Gone(),
    ]
)


@given(st.booleans(), st.lists(events, max_size=25))
def test_no_interleaving_breaks_the_order_of_an_answer(once: bool, steps: list[Any]) -> None:
    turn = Turn(once=once)
    closes, text_done = 0, True
    for event in steps:
        if not once and (isinstance(event, Back) or getattr(event, "resumable", False)):
            continue  # text connections have no such messages
        was = turn.phase
        effects = turn.receive(event, 0)
        closes += sum(isinstance(e, CloseTurn) for e in effects)
        assert closes <= 1
        assert once or closes == 0
        for what in said(effects):
            if isinstance(what, Answering):
                text_done = False
            elif isinstance(what, TextDone):
                assert not text_done
                text_done = True
            elif isinstance(what, VoiceDone) and not what.cancelled:
                assert text_done
        if was is TurnPhase.CLOSED:
            assert all(isinstance(e, StopTurn) for e in effects)
