"""Passages from a search service: what is taken of its answers, and what a failure costs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from forebay.errors import UpstreamFailed
from forebay.gateway import retrieval
from forebay.gateway.retrieval import Passage, grounded, passages_for, search

PATIENT_S = 30.0


class Service:
    """A search service that answers what it is told to."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.answer: Any = {"results": []}
        self.status = 200
        self.raw: bytes | None = None
        self.url = ""

    async def search(self, request: web.Request) -> web.Response:
        self.asked.append(await request.json())
        if self.status == 0:
            await asyncio.Event().wait()
        if self.status in (301, 307):
            raise web.HTTPTemporaryRedirect("/elsewhere")
        if self.raw is not None:
            return web.Response(status=self.status, body=self.raw)
        return web.json_response(self.answer, status=self.status)


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    found = Service()
    app = web.Application()
    app.router.add_post("/search", found.search)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    found.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield found
    await runner.cleanup()


async def test_the_question_is_asked_in_the_words_of_the_original(service: Service) -> None:
    service.answer = {"results": [{"content": "Water.", "score": 0.5, "metadata": {"page": 3}}]}
    found = await search(service.url + "/", "What is it?", PATIENT_S)
    assert found == [Passage(content="Water.", score=0.5, metadata={"page": 3})]
    assert service.asked == [{"query": "What is it?", "top_k": 5, "use_rerank": True}]


async def test_what_is_taken_is_bounded(service: Service) -> None:
    many = [{"content": "x" * 9000}, {"content": "  "}, *({"content": str(i)} for i in range(9))]
    service.answer = {"results": many}
    found = await search(service.url, "q", PATIENT_S)
    assert [len(p.content) for p in found] == [retrieval.MAX_PASSAGE_CHARS, 1, 1, 1]
    service.answer = {"results": [{"content": "x" * (retrieval.MAX_BODY_BYTES + 1)}]}
    with pytest.raises(UpstreamFailed, match="more than 1048576 bytes"):
        await search(service.url, "q", PATIENT_S)


@pytest.mark.parametrize(
    "raw", [b"", b"{}", b"[]", b'{"results": 1}', b'{"results": [{}]}', b"\xff"]
)
async def test_an_answer_without_results_is_named(service: Service, raw: bytes) -> None:
    service.raw = raw
    with pytest.raises(UpstreamFailed, match="no list of results"):
        await search(service.url, "q", PATIENT_S)


@pytest.mark.parametrize("status", [307, 404, 500])
async def test_a_refusal_and_a_redirect_are_named(service: Service, status: int) -> None:
    service.status = status
    with pytest.raises(UpstreamFailed, match=f"answered {status}, expected 200") as caught:
        await search(service.url, "q", PATIENT_S)
    assert caught.value.details["status"] == status


async def test_a_service_that_is_late_or_away_leaves_the_question_without(
    service: Service,
) -> None:
    service.status = 0
    found, failed = await passages_for(service.url, "q", 0.2)
    assert (found, failed) == ([], "the search service did not answer within 0.2 s")
    found, failed = await passages_for("http://127.0.0.1:9", "q", PATIENT_S)
    assert found == []
    assert failed.startswith("the search service is not there")


def test_passages_go_before_the_question_and_nothing_else_moves() -> None:
    before = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    assert grounded(before, []) == before
    after = grounded(before, [Passage(content="Water."), Passage(content="Stone.")])
    assert [after[0], after[2]] == before
    assert after[1]["role"] == "system"
    assert after[1]["content"].endswith("[1] Water.\n[2] Stone.")
