"""OpenAI's transcriptions: what a form may say, and what is said of one that may not."""

from __future__ import annotations

import json
from pathlib import Path

import aiohttp
import pytest
from test_asr_rest import FAST, rest, wav

from forebay.core.events import Ended, Final
from forebay.dialects.openai_transcribe import Request, Whole, encode_event, parse
from forebay.errors import BadAudio, BadRequest
from forebay.gateway import listening

WAV = wav(0, 1)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("response_format", "xml", "response_format is 'xml', expected one of json"),
        ("response_format", "x" * 99, f"'{'x' * 40}...'"),
        ("stream", "maybe", "stream is 'maybe', expected true or false"),
        ("language", "x" * 36, "language has 36 characters, expected no more than 35"),
        ("temperature", "abc", "temperature is 'abc', expected a number from 0 to 1"),
        ("temperature", "nan", "temperature is 'nan'"),
        ("temperature", "-1", "temperature is '-1'"),
        ("temperature", "5", "temperature is '5'"),
        ("timestamp_granularities[]", "bogus", "has 'bogus', expected word or segment"),
    ],
)
def test_a_field_that_cannot_be_meant_is_named_with_its_value(
    field: str, value: str, says: str
) -> None:
    with pytest.raises(BadRequest) as caught:
        parse({field: [value]}, WAV)
    assert says in caught.value.message
    assert caught.value.details["param"] == field.removesuffix("[]")


def test_a_streamed_answer_has_no_form_with_times() -> None:
    with pytest.raises(BadRequest, match="response_format is srt, expected json or text"):
        parse({"stream": ["true"], "response_format": ["srt"]}, WAV)


def test_what_has_no_effect_is_named() -> None:
    fields = {"temperature": ["0.5"], "timestamp_granularities[]": ["word", "segment"]}
    assert parse(fields, WAV).request.ignored == ("temperature", "timestamp_granularities")
    fields = {"temperature": ["1"], "timestamp_granularities[]": ["segment"]}
    assert parse(fields, WAV).request.ignored == ("temperature",)


def test_an_empty_file_says_so() -> None:
    with pytest.raises(BadAudio, match="0 bytes") as caught:
        parse({}, b"")
    assert caught.value.details["param"] == "file"


@pytest.mark.parametrize(
    ("heard", "asked", "shown"),
    [("zh", "en", "zh"), ("", "en", "en"), ("", "", "unknown")],
)
def test_the_language_is_always_a_text(heard: str, asked: str, shown: str) -> None:
    whole = Whole(Request(form="verbose_json", stream=False, language=asked))
    whole.take(Final(text="x", start=0, end=16_000, language=heard))
    whole.take(Ended(state="completed", details={"audio_s": 1.0}))
    body = json.loads(whole.body())
    assert body["language"] == shown
    assert body["segments"] == [{"id": 0, "start": 0.0, "end": 1.0, "text": "x"}]


def test_a_broken_file_is_the_parameter_at_fault() -> None:
    ended = Ended(state="failed", code="bad_audio", message="the Ogg file cannot be read")
    with pytest.raises(BadAudio) as caught:
        Whole(Request(form="json", stream=False, language="")).take(ended)
    assert caught.value.details["param"] == "file"
    (frame,) = encode_event(ended)
    assert json.loads(frame[6:])["error"]["param"] == "file"


async def test_a_file_over_the_limit_is_refused_with_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "FILE_BYTES", 3000)
    async with rest(tmp_path, engine=FAST) as r:
        form = aiohttp.FormData()
        form.add_field("file", WAV, filename="a.wav")
        status, body = await r.ask("POST", "/v1/audio/transcriptions", data=form)
        error = body["error"]
        assert (status, error["param"]) == (413, "file")
        assert f"{len(WAV)} bytes" in error["message"] and "3000" in error["message"]


async def test_a_damaged_file_is_named_by_its_format(tmp_path: Path) -> None:
    async with rest(tmp_path, engine=FAST) as r:
        form = aiohttp.FormData()
        form.add_field("file", b"\x1aE\xdf\xa3" + bytes(500), filename="a.webm")
        status, body = await r.ask("POST", "/v1/audio/transcriptions", data=form)
        assert (status, body["error"]["param"]) == (422, "file")
        assert body["error"]["message"].startswith("the WebM/Matroska file cannot be read: it ")
