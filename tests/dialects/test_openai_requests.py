"""OpenAI's surfaces as pure translations: nothing in a request can do more than be refused."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from forebay.core.events import Audio, End, Ended, Text, TextDelta, Usage
from forebay.dialects import openai_chat, openai_speech
from forebay.dialects.openai_common import error_object, status_of
from forebay.errors import BadRequest, QueueFull, Unauthorized, UpstreamFailed

ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
FIELDS = st.sampled_from(
    ["messages", "model", "stream", "stream_options", "n", "max_tokens", "temperature", "stop",
     "tools", "tool_choice", "response_format", "seed", "input", "voice", "speed",
     "response_format", "stream_format", "logprobs"]
)  # fmt: skip
GOOD: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}], "input": "x"}


@given(st.dictionaries(FIELDS, ANY_JSON, max_size=4))
def test_any_field_of_any_type_is_taken_or_refused(fields: dict[str, Any]) -> None:
    body = json.dumps(GOOD | fields).encode()
    for parse in (openai_chat.parse, openai_speech.parse):
        try:
            call = parse(body)
        except BadRequest as error:
            assert error.message[0].islower()
        else:
            assert call.items


@given(st.binary(max_size=60))
def test_any_bytes_are_taken_or_refused(body: bytes) -> None:
    for parse in (openai_chat.parse, openai_speech.parse):
        try:
            parse(body)
        except BadRequest:
            continue


def test_a_refusal_never_repeats_what_was_sent() -> None:
    secret = "tell nobody"
    for fields in ({"temperature": secret}, {"messages": [{"role": secret, "content": "x"}]}):
        try:
            openai_chat.parse(json.dumps(GOOD | fields).encode())
        except BadRequest as error:
            assert secret not in json.dumps(error_object(error))
        else:
            raise AssertionError("was taken")


def test_long_text_to_speak_arrives_whole_in_several_items() -> None:
    text = "".join(chr(0x4E00 + i % 500) for i in range(15_000))
    call = openai_speech.parse(json.dumps({"input": text}).encode())
    *pieces, end = call.items
    assert isinstance(end, End)
    assert len(pieces) == 4
    at = 0
    for piece in pieces:
        assert isinstance(piece, Text)
        assert piece.unit == at
        at += len(piece.text)
    assert "".join(p.text for p in pieces if isinstance(p, Text)) == text


@given(st.text(max_size=20), st.integers(1, 3))
def test_a_chunk_is_a_function_of_its_event_alone(text: str, n: int) -> None:
    event = TextDelta(text=text, n=n)
    encoders = [
        openai_chat.ChunkEncoder(id="i", created=1, model="m", include_usage=False)
        for _ in range(2)
    ]
    encoders[0].encode(TextDelta(text="before", n=1))
    (one,), (two,) = (e.encode(event) for e in encoders)
    assert one == two
    delta = json.loads(one[6:])["choices"][0]["delta"]
    assert delta["content"] == text
    assert ("role" in delta) == (n == 1)


def test_no_end_but_a_completed_one_looks_finished() -> None:
    chat = openai_chat.ChunkEncoder(id="i", created=1, model="m", include_usage=True)
    speech = openai_speech.PieceEncoder(openai_speech.SpeechRequest(input="x", stream_format="sse"))
    for state in ("failed", "cancelled", "expired"):
        ended = Ended(state=state, code="", message="gone")  # type: ignore[arg-type]
        for frame in (*chat.encode(ended), *speech.encode(ended)):
            assert b"[DONE]" not in frame
            assert b"finish_reason" not in frame
            assert b"audio.done" not in frame
            assert "error" in json.loads(frame[6:])
    assert chat.encode(Ended(state="completed")) == (b"data: [DONE]\n\n",)
    assert len(chat.encode(Usage(prompt_tokens=1, completion_tokens=1))) == 2


def test_a_wav_header_comes_with_the_first_audio_only() -> None:
    wav = openai_speech.PieceEncoder(openai_speech.SpeechRequest(input="x", response_format="wav"))
    (first,) = wav.encode(Audio(data=b"ab", text="x", unit=0, frames=1, n=1))
    (later,) = wav.encode(Audio(data=b"cd", text="y", unit=1, frames=1, n=2))
    assert first[:4] == b"RIFF"
    assert first[44:] == b"ab"
    assert later == b"cd"


def test_errors_speak_openais_words() -> None:
    assert error_object(QueueFull("full", retry_after_s=3))["error"]["type"] == "overloaded_error"
    assert error_object(Unauthorized("no"))["error"]["code"] == "invalid_api_key"
    assert status_of(UpstreamFailed("x", status=429)) == 503
    assert status_of(UpstreamFailed("x", status=500)) == 502
