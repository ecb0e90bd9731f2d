"""OpenAI's image edits, by its own SDK unmodified: whole, streamed, refused."""

from __future__ import annotations

import base64
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from photo_stand import PhotoStand, bomb, jpeg, photo_stand, post


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[PhotoStand]:
    async with photo_stand(tmp_path) as made:
        yield made


@pytest.fixture
async def sdk(gateway: PhotoStand) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{gateway.url}/v1", api_key="none", max_retries=0
    ) as client:
        yield client


async def test_a_photo_comes_back_enhanced(gateway: PhotoStand, sdk: openai.AsyncOpenAI) -> None:
    answer = await sdk.images.edit(
        image=("a.jpg", jpeg()), prompt="better", model="gpt-image-1", quality="low",
        extra_body={"output_format": "jpeg", "output_compression": 80},
    )  # fmt: skip
    assert answer.data is not None
    assert base64.b64decode(answer.data[0].b64_json or "") == jpeg(80, 60)
    assert answer.output_format == "jpeg"
    params = gateway.image.leases[0].spec.params
    assert (params["quality_level"], params["format"], params["quality"]) == ("fast", "jpeg", 80)
    assert params["tile_size"] == 256


async def test_a_streamed_answer_has_partial_images_and_the_whole(
    gateway: PhotoStand, sdk: openai.AsyncOpenAI
) -> None:
    stream: Any = await sdk.images.edit(
        image=("a.jpg", jpeg()), prompt="better", stream=True, partial_images=2
    )
    events = [event async for event in stream]
    assert [event.type for event in events] == [
        "image_edit.partial_image", "image_edit.partial_image", "image_edit.completed"
    ]  # fmt: skip
    assert [event.partial_image_index for event in events[:2]] == [0, 1]
    assert base64.b64decode(events[0].b64_json) == b"tile 1"
    assert (events[0].x, events[0].width) == (20, 20)
    assert base64.b64decode(events[2].b64_json) == jpeg(80, 60)


@pytest.mark.parametrize(
    ("facts", "status"),
    [
        ({"fields": {"n": "2"}}, 400),
        ({"fields": {"response_format": "url"}}, 400),
        ({"fields": {"quality": "best"}}, 400),
        ({"fields": {"partial_images": "9"}}, 400),
        ({"fields": {"stream": "maybe"}}, 400),
        ({"fields": {"output_format": "gif"}}, 422),
        ({"fields": {"model": "other"}}, 404),
        ({"field": "mask"}, 400),
    ],
)
async def test_what_cannot_be_done_is_refused_and_nothing_is_kept(
    gateway: PhotoStand, facts: Any, status: int
) -> None:
    facts = {"field": "image", **facts}
    async with aiohttp.ClientSession() as client:
        response = await post(client, gateway, jpeg(), path="/v1/images/edits", **facts)
        body = await response.json()
    assert response.status == status, body
    assert "message" in body["error"]
    assert gateway.files() == []
    assert gateway.image.leases == []


async def test_a_bomb_and_a_form_without_a_picture_are_refused(gateway: PhotoStand) -> None:
    async with aiohttp.ClientSession() as client:
        response = await post(client, gateway, bomb(), field="image", path="/v1/images/edits")
        assert response.status == 413
        form = aiohttp.FormData(default_to_multipart=True)
        form.add_field("prompt", "x")
        async with client.post(f"{gateway.url}/v1/images/edits", data=form) as response:
            assert response.status == 400
    assert gateway.files() == []


async def test_leaving_cancels(gateway: PhotoStand) -> None:
    gateway.go.clear()
    async with aiohttp.ClientSession() as client:
        response = await post(
            client, gateway, jpeg(), field="image", path="/v1/images/edits",
            fields={"stream": "true", "partial_images": "3"},
        )  # fmt: skip
        response.close()
    await gateway.image.stopped.wait()
    assert gateway.image.cancelled


@pytest.mark.parametrize("stream", [True, False])
async def test_files_are_never_read_in_the_event_loop(
    gateway: PhotoStand, sdk: openai.AsyncOpenAI, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, readers = threading.get_ident(), []
    real = Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        readers.append(threading.get_ident())
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    answer: Any = await sdk.images.edit(
        image=("a.jpg", jpeg()), prompt="better", stream=stream, partial_images=2
    )
    if stream:
        assert len([event async for event in answer]) == 3
    assert readers and loop not in readers
