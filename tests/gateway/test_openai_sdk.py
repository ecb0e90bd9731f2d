"""OpenAI's own Python SDK, unmodified, against the gateway."""

from __future__ import annotations

from collections.abc import AsyncIterator

import openai
import pytest
from http_helpers import Stand, stand
from test_openai_http import tone

MESSAGES = [{"role": "user", "content": "count"}]


@pytest.fixture
async def gateway() -> AsyncIterator[Stand]:
    async with stand(model_aliases={"tts-1": "speech", "gpt-4o": "text/tiny"}) as made:
        made.speech.script = tone
        yield made


@pytest.fixture
async def sdk(gateway: Stand) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none") as client:
        yield client


@pytest.mark.parametrize("model", ["tiny", "gpt-4o"])
async def test_a_chat_is_answered_whole_and_streamed(sdk: openai.AsyncOpenAI, model: str) -> None:
    whole = await sdk.chat.completions.create(model=model, messages=MESSAGES)
    assert whole.choices[0].message.content == "one two three"
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage is not None and whole.usage.total_tokens == 7
    stream = await sdk.chat.completions.create(
        model=model, messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    text = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(text) == "one two three"
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 3


@pytest.mark.parametrize("form", ["pcm", "wav"])
async def test_speech_is_spoken_by_the_model_that_a_public_name_means(
    sdk: openai.AsyncOpenAI, gateway: Stand, form: str
) -> None:
    spoken = await sdk.audio.speech.create(
        model="tts-1", voice="alloy", input="hello there", response_format=form
    )
    assert len(spoken.content) == 960 + (44 if form == "wav" else 0)
    async with sdk.audio.speech.with_streaming_response.create(
        model="tts-1", voice="alloy", input="hello there", response_format=form
    ) as response:
        streamed = b"".join([part async for part in response.iter_bytes()])
    assert streamed[-960:] == spoken.content[-960:]
    assert {lease.spec.pool for lease in gateway.speech.leases} == {"speech/tone"}


async def test_models_are_listed_under_their_own_names(sdk: openai.AsyncOpenAI) -> None:
    assert {model.id async for model in sdk.models.list()} == {"tiny", "tone"}


async def test_refusals_are_the_sdks_own_exceptions(sdk: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        await sdk.chat.completions.create(model="nobody", messages=MESSAGES)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):  # a name of another kind means nothing here
        await sdk.chat.completions.create(model="tts-1", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError):
        await sdk.chat.completions.create(model="tiny", messages=[])
    with pytest.raises(openai.APIStatusError) as large:
        long = [{"role": "user", "content": "x" * 400_000}]
        await sdk.chat.completions.create(model="tiny", messages=long)
    assert large.value.status_code == 413
    assert "expected no more than 393216" in large.value.message


async def test_a_conversation_of_two_hundred_kilobytes_is_answered(
    sdk: openai.AsyncOpenAI, gateway: Stand
) -> None:
    long = [{"role": "user", "content": "word " * 4000}] * 10
    answer = await sdk.chat.completions.create(model="tiny", messages=long)
    assert answer.choices[0].message.content == "one two three"
    assert len(gateway.text.leases[0].input[0].messages) == 10
