"""The Responses API as text: what is read, what is refused, how events are numbered."""

from __future__ import annotations

import json
from typing import Any

import pytest

from forebay.core.events import Ended, Heard, Notice, Prompt, TextDelta, ToolCalls, Usage
from forebay.dialects.openai_responses import Encoder, Response, job_of, parse
from forebay.errors import BadRequest, TooLarge

JOB = "ab" * 16


def call(**facts: Any) -> Any:
    return parse(json.dumps({"input": "hi", **facts}).encode(), 7)


def messages(**facts: Any) -> list[dict[str, Any]]:
    prompt = call(**facts).items[0]
    assert isinstance(prompt, Prompt)
    return prompt.messages


def test_every_way_to_say_something_becomes_messages() -> None:
    assert messages(instructions="be brief") == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hi"},
    ]
    said = [
        {"role": "developer", "content": "d"},
        {"type": "message", "role": "assistant",
         "content": [{"type": "output_text", "text": "a"}, {"type": "refusal", "refusal": "b"}]},
        {"role": "user", "content": [{"type": "input_text", "text": "see"},
                                     {"type": "input_image", "image_url": "data:x"}]},
        {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
        {"type": "function_call", "call_id": "2", "name": "g", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": "x"},
        {"type": "function_call_output", "call_id": "2",
         "output": [{"type": "input_text", "text": "y"}]},
    ]  # fmt: skip
    found = messages(input=said)
    assert [m["role"] for m in found] == [
        "developer", "assistant", "user", "assistant", "tool", "tool"
    ]  # fmt: skip
    assert found[1]["content"] == "ab"
    assert found[2]["content"][1] == {"type": "image_url", "image_url": {"url": "data:x"}}
    assert [c["id"] for c in found[3]["tool_calls"]] == ["1", "2"]
    assert (found[4]["content"], found[5]["content"]) == ("x", "y")


def test_parameters_have_the_engines_names() -> None:
    params = call(
        max_output_tokens=5, temperature=0.5, top_p=0.9, metadata={"a": "b"}, stream=True,
        tools=[{"type": "function", "name": "f", "parameters": {}, "strict": None}],
        tool_choice={"type": "function", "name": "f"},
        text={"format": {"type": "json_schema", "name": "s", "schema": {}, "strict": True}},
    ).params  # fmt: skip
    kept = params.pop("response")
    assert params == {
        "max_tokens": 5,
        "temperature": 0.5,
        "top_p": 0.9,
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "response_format": {
            "type": "json_schema", "json_schema": {"name": "s", "schema": {}, "strict": True}
        },
    }  # fmt: skip
    assert (kept["created_at"], kept["metadata"]) == (7, {"a": "b"})
    assert "response_format" not in call(text={"format": {"type": "text"}}).params
    assert "response_format" not in call(text={}).params
    assert call(text={"format": {"type": "json_object"}}).params["response_format"] == {
        "type": "json_object"
    }
    assert call(tool_choice="none", tools=[]).params["tool_choice"] == "none"
    assert call(background=True).durable


@pytest.mark.parametrize(
    ("facts", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": {"id": "x"}}, "conversation"),
        ({"background": True, "store": False}, "store"),
        ({"input": []}, "input"),
        ({"input": [{"role": "nobody", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": 5, "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": ["x"]}]}, "input[0].content[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]},
         "input[0].content[0].text"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]},
         "input[0].content[0].type"),
        ({"input": [{"type": "reasoning"}]}, "input[0].type"),
        ({"input": [{"type": "function_call", "call_id": "1"}]}, "input[0].name"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tool_choice": {"type": "mcp"}}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice"),
        ({"text": {"format": "x"}}, "text.format"),
        ({"text": {"format": {}}}, "text.format"),
        ({"text": {"format": json.loads("[" * 40 + "]" * 40)}}, "text"),
    ],
)  # fmt: skip
def test_what_is_not_offered_is_refused_by_its_place(facts: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as refused:
        call(**facts)
    assert refused.value.details["param"] == param


def test_what_is_too_large_is_refused() -> None:
    with pytest.raises(TooLarge):
        call(input="x" * 400_000)
    response = Response(job=JOB, model="m", kept={})
    with pytest.raises(TooLarge):
        response.take(TextDelta(text="x" * (8 * 1024 * 1024 + 1)))


@pytest.mark.parametrize("name", ["x", JOB, "resp_", "resp_a/b", "resp_" + "a" * 65])
def test_only_a_responses_id_names_a_job(name: str) -> None:
    with pytest.raises(BadRequest):
        job_of(name)


def test_a_responses_id_is_its_jobs() -> None:
    assert job_of("resp_" + JOB) == JOB


def events(after: int, *given: Any) -> list[dict[str, Any]]:
    encoder = Encoder(Response(job=JOB, model="m", kept={}, state="running"), after)
    frames = [*encoder.opening(), *(frame for event in given for frame in encoder.encode(event))]
    return [json.loads(frame.split(b"data: ", 1)[1]) for frame in frames]


CALLS = [{"index": 0, "function": {"name": "f", "arguments": "{}"}}]
ANSWER = (
    Notice(offset=1, code="cut", message="x"),
    TextDelta(offset=2, text="a"),
    TextDelta(offset=3, text="b"),
    ToolCalls(offset=4, calls=CALLS, delta=CALLS),
    Usage(offset=5, prompt_tokens=1, completion_tokens=2),
    Ended(offset=6, state="completed"),
)


def test_who_comes_back_after_any_number_gets_exactly_the_rest() -> None:
    whole = events(-1, *ANSWER)
    numbers = [event["sequence_number"] for event in whole]
    assert numbers == sorted(set(numbers))
    for number in range(-1, numbers[-1] + 1):
        assert events(number, *ANSWER) == [e for e in whole if e["sequence_number"] > number]
    assert [o["type"] for o in whole[-1]["response"]["output"]] == ["message", "function_call"]
    assert whole[-1]["response"]["output"][1]["call_id"] == "call_0"


def test_a_response_says_how_far_it_is() -> None:
    response = Response(job=JOB, model="m", kept={"instructions": "i"})
    assert (response.object()["status"], response.object()["output"]) == ("queued", [])
    response.state = "running"
    response.take(TextDelta(offset=1, text="so"))
    response.take(Heard(seq=1, samples=1))
    assert response.object()["output"][0]["status"] == "in_progress"
    assert response.object()["usage"] is None
    response.take(Ended(offset=2, state="expired", code="deadline_exceeded", message="late"))
    ended = response.object()
    assert (ended["status"], ended["error"]["code"]) == ("failed", "deadline_exceeded")
    assert ended["output"][0]["status"] == "incomplete"


def test_a_tool_call_alone_is_all_of_an_answer() -> None:
    response = Response(job=JOB, model="m", kept={})
    response.take(ToolCalls(offset=1, calls=CALLS, delta=CALLS))
    response.take(Ended(offset=2, state="completed"))
    assert [item["type"] for item in response.object()["output"]] == ["function_call"]
    silent = Response(job=JOB, model="m", kept={})
    silent.take(Ended(offset=1, state="completed"))
    assert silent.object()["output"][0]["content"][0]["text"] == ""


def test_an_answer_that_was_cut_or_failed_says_so_in_its_last_event() -> None:
    full = Usage(offset=2, prompt_tokens=1, completion_tokens=1, finish="length")
    cut = events(-1, TextDelta(offset=1, text="a"), full, Ended(offset=3, state="completed"))
    assert cut[-1]["type"] == "response.incomplete"
    assert cut[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    failed = events(-1, Ended(offset=1, state="failed", code="poison", message="x"))
    assert failed[-1]["type"] == "response.failed"
    response = Response(job=JOB, model="m", kept={})
    assert json.loads(response.body())["id"] == response.id == "resp_" + JOB
