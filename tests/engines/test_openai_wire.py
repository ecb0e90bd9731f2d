"""The openai engine's pure parts: bytes to events, refusals to errors, when to try again."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.core.events import TextDelta, ToolCalls
from forebay.engines.openai_client import normal_base, read_key
from forebay.engines.openai_errors import in_stream, refusal, retry_after
from forebay.engines.openai_wire import Answer, SseLines, StopSeam, request_body
from forebay.errors import (
    BadRequest,
    ConfigError,
    ForebayError,
    PromptTooLong,
    UpstreamCut,
    UpstreamFailed,
    UpstreamRefused,
)


def said(message: str, status: int = 400, **more: Any) -> ForebayError:
    body = json.dumps({"error": {"message": message, **more}}).encode()
    return refusal(status, body, model="m", key_given=True)


# ------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("message", "tokens", "limit"),
    [
        ("The input (5000 tokens) is longer than the model's context length (4096 tokens).",
         5000, 4096),
        ("Requested token count exceeds the model's maximum context length of 64000 tokens. You "
         "requested a total of 71897 tokens: 7897 tokens from the input messages and 64000 tokens "
         "for the completion.", 7897, 64000),
        ("This model's maximum context length is 4096 tokens. However, you requested 5100 tokens "
         "(5000 in the messages, 100 in the completion).", 5000, 4096),
        ("This model's maximum context length is 4096 tokens. However, your request has 5000 "
         "input tokens. Please reduce the length of the input messages.", 5000, 4096),
        ("'max_tokens' or 'max_completion_tokens' is too large: 5000. This model's maximum "
         "context length is 4096 tokens and your request has 100 input tokens (5000 > 4096 - "
         "100).", 100, 4096),
        ("This model's maximum context length is 4096 tokens. However, you requested 0 output "
         "tokens and your prompt contains at least 4097 input tokens, for a total of at least "
         "4097 tokens.", 4097, 4096),
        ("The prompt (total length 5000) is too long to fit into the model (context length 4096).",
         5000, 4096),
        ("This model's maximum context length is 8192 tokens. However, your messages resulted in "
         "9001 tokens. Please reduce the length of the messages.", 9001, 8192),
        ("Input tokens exceed the configured limit of 272000 tokens. Your messages resulted in "
         "300000 tokens. Please reduce the length of the messages.", 300000, 272000),
        ("Input length (265330) exceeds model's maximum context length (262144).", 265330, 262144),
        ("Input length 100000 exceeds the maximum allowed input length of 65536 tokens.",
         100000, 65536),
        ("prompt is too long: 213462 tokens > 200000 maximum", 213462, 200000),
        ("This model's maximum prompt length is 131072 but the request contains 537812 tokens",
         537812, 131072),
        ("You passed 4097 input tokens and requested 100 output tokens. However, the model's "
         "context length is only 4096 tokens.", 4097, 4096),
    ],
)  # fmt: skip
def test_every_known_way_to_say_too_long_is_read(message: str, tokens: int, limit: int) -> None:
    error = said(message)
    assert isinstance(error, PromptTooLong)
    assert (error.details["tokens"], error.details["limit"]) == (tokens, limit)


def test_an_unknown_way_to_say_too_long_is_still_too_long() -> None:
    error = said("Please reduce.", code="context_length_exceeded")
    assert isinstance(error, PromptTooLong)
    assert error.details["limit"] is None
    error = said("exceeds", type="exceed_context_size_error", n_prompt_tokens=9, n_ctx=4)
    assert (error.details["tokens"], error.details["limit"]) == (9, 4)


@pytest.mark.parametrize(
    ("status", "message", "kind", "reason"),
    [
        (401, "Unauthorized", UpstreamRefused, "key"),
        (403, "no", UpstreamRefused, "key"),
        (404, "The model `x` does not exist.", UpstreamRefused, "unknown_model"),
        (400, "Invalid model name passed in model=x", UpstreamRefused, "unknown_model"),
        (404, "Not Found", UpstreamRefused, "wrong_address"),
        (405, "Method Not Allowed", UpstreamRefused, "wrong_address"),
        (400, "temperature must be non-negative", BadRequest, "refused"),
        (422, "bad", BadRequest, "refused"),
        (429, "slow down", UpstreamFailed, "rate_limit"),
        (503, "loading", UpstreamFailed, "unavailable"),
        (500, "oops", UpstreamFailed, "failed"),
        (500, "CUDA out of memory.", UpstreamFailed, "out_of_memory"),
        (200, "surprise", UpstreamFailed, "garbage"),
    ],
)
def test_every_refusal_has_its_name(
    status: int, message: str, kind: type[ForebayError], reason: str
) -> None:
    error = said(message, status)
    assert type(error) is kind
    assert error.details["reason"] == reason
    assert error.message[0].islower()
    assert not error.message.endswith(".") or message.endswith(".")


def test_a_missing_key_is_told_from_a_wrong_one() -> None:
    assert "none is set" in refusal(401, b"", model="m", key_given=False).message
    assert "refused the api_key" in refusal(401, b"", model="m", key_given=True).message


def test_what_the_user_said_is_left_out_of_a_validation_error() -> None:
    body = json.dumps({"detail": [{"loc": ["x"], "msg": "too short", "input": "my secret"}]})
    error = refusal(422, body.encode(), model="m", key_given=True)
    assert "too short" in error.message
    assert "secret" not in error.message


@given(st.integers(400, 599), st.binary(max_size=200))
def test_any_body_makes_some_error(status: int, body: bytes) -> None:
    assert isinstance(refusal(status, body, model="m", key_given=True), ForebayError)


def test_an_error_inside_a_stream_is_a_length_only_before_the_first_token() -> None:
    too_long = {
        "message": "The input (9 tokens) is longer than the model's context length (4 tokens)."
    }
    assert isinstance(in_stream(too_long, begun=False), PromptTooLong)
    assert isinstance(in_stream(too_long, begun=True), UpstreamFailed)


def test_retry_after_is_seconds_and_bounded() -> None:
    assert retry_after("7") == 7
    assert retry_after("1e9") == 3600
    for nonsense in (None, "", "soon", "-1", "nan"):
        assert retry_after(nonsense) is None


# ---------------------------------------------------------------------- event stream


def chunk(text: str | None = None, finish: str | None = None, **more: Any) -> bytes:
    delta = {} if text is None else {"content": text}
    return json.dumps({"choices": [{"delta": delta, "finish_reason": finish}], **more}).encode()


@given(st.lists(st.text(max_size=8), min_size=1, max_size=8), st.data())
def test_any_cut_of_the_bytes_gives_the_same_answer(texts: list[str], data: Any) -> None:
    stream = b"".join(b"data: " + chunk(t) + b"\n\n" for t in texts)
    stream += b": ping\r\n\r\nevent: x\ndata: " + chunk(finish="stop") + b"\n\ndata: [DONE]\n\n"
    lines, answer, got = SseLines(), Answer(), ""
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        part, stream = stream[:size], stream[size:]
        for event in answer.take(lines.feed(part)):
            assert isinstance(event, TextDelta)
            got += event.text
    assert got == "".join(texts)
    assert answer.done
    assert answer.failure() is None


def test_chunks_that_come_together_leave_together() -> None:
    answer = Answer()
    (event,) = answer.take([chunk("a"), chunk("b"), chunk("c")])
    assert isinstance(event, TextDelta)
    assert (event.text, event.count, answer.chunks) == ("abc", 3, 3)


def test_text_before_an_error_in_the_same_read_is_kept() -> None:
    answer = Answer()
    events = answer.take([chunk("a"), b'{"error": {"message": "boom"}}', chunk("b")])
    assert [e.text for e in events if isinstance(e, TextDelta)] == ["a"]
    assert answer.over
    assert isinstance(answer.failure(), UpstreamFailed)


def test_an_end_without_a_reason_is_a_cut() -> None:
    answer = Answer()
    answer.take([chunk("a")])
    assert isinstance(answer.failure(), UpstreamCut)
    answer.take([chunk(finish="length")])
    assert answer.failure() is None


@pytest.mark.parametrize("line", [b"<html>\n", b"Internal Server Error\n", b"x" * 1_100_000])
def test_what_is_no_event_stream_is_garbage(line: bytes) -> None:
    with pytest.raises(UpstreamFailed) as caught:
        SseLines().feed(line)
    assert caught.value.details["reason"] == "garbage"


def call(index: int | None, arguments: str, **head: Any) -> bytes:
    part = {"index": index, "function": {"arguments": arguments, **head.pop("function", {})}}
    return json.dumps({"choices": [{"delta": {"tool_calls": [{**part, **head}]}}]}).encode()


def test_long_arguments_cost_few_events_and_lose_nothing() -> None:
    answer = Answer()
    events = list(answer.take([call(0, "", id="c", function={"name": "f"})]))
    for _ in range(2000):
        events += answer.take([call(0, "abcdef")])
    events += answer.take([chunk(finish="tool_calls")])
    assert len(events) < 100
    last = events[-1]
    assert isinstance(last, ToolCalls)
    assert last.calls[0]["function"] == {"name": "f", "arguments": "abcdef" * 2000}
    deltas = [
        d["function"]["arguments"] for e in events if isinstance(e, ToolCalls) for d in e.delta
    ]
    assert "".join(deltas) == "abcdef" * 2000


def test_calls_without_an_index_are_told_apart_by_their_id() -> None:
    answer = Answer()
    answer.take([call(None, "{}", id="a", function={"name": "f"})])
    answer.take([call(None, "[]", id="b", function={"name": "g"})])
    (event,) = answer.take([call(None, "!"), chunk(finish="tool_calls")])
    assert isinstance(event, ToolCalls)
    assert [(c["id"], c["function"]["arguments"]) for c in event.calls] == [
        ("a", "{}"),
        ("b", "[]!"),
    ]


def test_endless_tool_arguments_are_refused() -> None:
    answer = Answer()
    answer.take([call(0, "x" * 30_000, id="c"), call(0, "x" * 30_000)])
    failure = answer.failure()
    assert failure is not None
    assert failure.details["reason"] == "tools_too_large"


# -------------------------------------------------------------------------- the seam


@given(
    st.text("ab", max_size=8),
    st.lists(st.text("ab", min_size=1, max_size=3), max_size=8),
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_the_seam_stops_exactly_where_one_answer_would_have(
    committed: str, parts: list[str], stops: list[str]
) -> None:
    seam = StopSeam(committed, stops)
    got = ""
    for part in parts:
        got += seam.feed(part)
        if seam.stopped:
            break
    got += "" if seam.stopped else seam.end()
    whole = committed + "".join(parts)
    reach = max(map(len, stops)) - 1
    start = max(0, len(committed) - reach)
    crossing = [
        at
        for stop in stops
        for at in range(start, len(committed))
        if whole.startswith(stop, at) and at + len(stop) > len(committed)
    ]
    inside = any(stop in committed[start:] for stop in stops)
    if crossing and not inside:
        assert seam.stopped
        assert got == ""
    elif not inside:
        assert not seam.stopped
        assert got == "".join(parts)


# ----------------------------------------------------------------- requests and peers


def test_a_request_carries_only_what_is_set() -> None:
    body = json.loads(request_body([{"role": "user"}], {"top_k": None}, model="m", max_tokens=None))
    assert set(body) == {"model", "stream", "messages", "stream_options"}
    body = json.loads(
        request_body([], {"stop": ["x"]}, model="m", max_tokens=3,
                     max_tokens_field="max_completion_tokens", usage=False)
    )  # fmt: skip
    assert body["max_completion_tokens"] == 3
    assert body["stop"] == ["x"]
    assert "stream_options" not in body


def test_bad_addresses_and_key_files_are_named(tmp_path: Any) -> None:
    for url in ("ftp://h", "http://", "http://h:99999"):
        with pytest.raises(ConfigError):
            normal_base(url)
    assert normal_base("https://h/api/openai/v1/") == "https://h/api/openai/v1"
    with pytest.raises(ConfigError):
        read_key("", str(tmp_path / "none"))
    (tmp_path / "empty").write_text("")
    assert read_key("", str(tmp_path / "empty")) == ""
