"""Cutting a conversation to a model's context."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.engines.context import answer_reserve, check, estimate, fit
from forebay.errors import PromptTooLong


def words(messages: Any) -> int:
    return sum(len(str(m.get("content", "")).split()) for m in messages)


def message(role: str, size: int, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": " ".join(["w"] * size), **more}


def talk(turns: int, size: int = 10) -> list[dict[str, Any]]:
    said = [message("system", 5)]
    for _ in range(turns):
        said += [message("user", size), message("assistant", size)]
    return [*said, message("user", size)]


def test_a_prompt_that_fits_is_left_alone() -> None:
    said = talk(2)
    fitted = fit(said, words, 100, 20)
    assert fitted.messages == said
    assert fitted.notice is None
    assert fitted.room == 100 - 55


def test_the_fewest_oldest_turns_are_cut_and_told() -> None:
    fitted = fit(talk(4), words, 70, 10)
    assert [m["role"] for m in fitted.messages] == [
        "system", "user", "assistant", "user", "assistant", "user",
    ]  # fmt: skip
    assert fitted.tokens == 55
    assert len(fitted.dropped) == 4
    assert fitted.notice is not None
    assert fitted.notice.code == "prompt_truncated"
    assert fitted.notice.details == {"tokens": 95, "limit": 70, "dropped": 4, "kept": 55}


def test_a_tool_result_never_loses_its_call() -> None:
    said = [
        message("user", 30),
        message("assistant", 5),
        message("user", 10),
        message("assistant", 5, tool_calls=[{"id": "a"}]),
        message("tool", 5, tool_call_id="a"),
    ]
    fitted = fit(said, words, 40, 10)
    assert [m["role"] for m in fitted.messages] == ["user", "assistant", "tool"]
    with pytest.raises(PromptTooLong):
        fit(said, words, 15, 5)


def test_system_prompt_and_last_message_alone_too_long_is_refused_with_figures() -> None:
    with pytest.raises(PromptTooLong) as caught:
        fit(talk(1, size=50), words, 40, 10)
    assert caught.value.details == {"tokens": 155, "limit": 40}
    assert caught.value.message == "prompt has 155 tokens, expected fewer than 40"


def test_less_than_the_reserve_is_accepted_when_nothing_more_can_be_cut() -> None:
    fitted = fit(talk(3, size=20), words, 30, 15)
    assert [m["role"] for m in fitted.messages] == ["system", "user"]
    assert fitted.room == 5


def test_without_leave_to_cut_the_prompt_is_refused() -> None:
    assert check(talk(1), words, 36) == 35
    with pytest.raises(PromptTooLong):
        check(talk(1), words, 35)


def test_a_large_answer_does_not_eat_the_conversation() -> None:
    assert answer_reserve(100_000, 4096) == 1024
    assert answer_reserve(16, 4096) == 16
    assert answer_reserve(None, 2) == 1


def test_the_estimate_knows_chinese_parts_and_tool_calls() -> None:
    assert estimate([{"role": "user", "content": "abcdefgh"}]) == 6
    assert estimate([{"role": "user", "content": "你好世界"}]) == 8
    assert estimate([{"role": "user", "content": [{"type": "text", "text": "abcd"}]}]) == 5
    picture = {"type": "image_url", "image_url": {"url": "x"}}
    assert estimate([{"role": "user", "content": [picture]}]) > 500
    called = {"function": {"name": "f", "arguments": "{}"}}
    assert estimate([{"role": "assistant", "content": None, "tool_calls": [called]}]) == 6


@given(
    st.lists(st.tuples(st.sampled_from(["user", "assistant", "system"]), st.integers(1, 20)),
             min_size=1, max_size=12),
    st.integers(2, 120),
    st.integers(1, 30),
)  # fmt: skip
def test_whatever_is_cut_system_and_last_stay_in_order(
    said: list[tuple[str, int]], limit: int, reserve: int
) -> None:
    messages = [message(role, size, id=i) for i, (role, size) in enumerate(said)]
    try:
        fitted = fit(messages, words, limit, reserve)
    except PromptTooLong:
        kept = [m for m in messages[:-1] if m["role"] == "system"]
        assert words([*kept, messages[-1]]) >= limit
        return
    ids = [m["id"] for m in fitted.messages]
    assert ids == sorted(ids)
    assert fitted.messages[-1] is messages[-1]
    assert all(m in fitted.messages for m in messages if m["role"] == "system")
    assert fitted.tokens == words(fitted.messages) < limit
    assert sorted(ids + [m["id"] for m in fitted.dropped]) == list(range(len(messages)))
