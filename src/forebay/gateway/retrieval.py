"""Passages for a question, from a search service the operator names.

The service speaks as the one of the original text orchestrator: ``POST {url}/search`` with
``{query, top_k, use_rerank}`` answers ``{results: [{content, score, metadata}]}``. A question is
answered with or without it: a service that is away costs its time limit and is named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import structlog

from forebay.errors import UpstreamFailed

__all__ = ["Passage", "grounded", "passages_for", "search"]

TOP = 5
MAX_BODY_BYTES = 1024 * 1024
MAX_PASSAGE_CHARS = 4000
ADVICE = "Answer from these passages where they help; say so where they do not."

log = structlog.get_logger()


class Passage(msgspec.Struct, frozen=True):
    content: str
    score: float | None = None
    metadata: dict[str, Any] = {}


class _Found(msgspec.Struct, frozen=True):
    results: list[Passage]


_found = msgspec.json.Decoder(_Found)


async def search(url: str, query: str, timeout_s: float) -> list[Passage]:
    """At most `TOP` passages, each cut to `MAX_PASSAGE_CHARS`.

    Raises `UpstreamFailed` for a service that is away, late, or answers something else."""
    import aiohttp  # loads slowly, and few gateways need it

    asked = {"query": query, "top_k": TOP, "use_rerank": True}
    limit = aiohttp.ClientTimeout(total=timeout_s)
    try:
        async with (
            aiohttp.ClientSession(timeout=limit) as http,
            http.post(f"{url.rstrip('/')}/search", json=asked, allow_redirects=False) as answer,
        ):
            if answer.status != 200:
                raise UpstreamFailed(
                    f"the search service answered {answer.status}, expected 200",
                    status=answer.status,
                )
            body = await _bounded(answer.content)
    except TimeoutError as error:
        message = f"the search service did not answer within {timeout_s:g} s"
        raise UpstreamFailed(message) from error
    except (aiohttp.ClientError, OSError) as error:
        message = f"the search service is not there ({type(error).__name__})"
        raise UpstreamFailed(message) from error
    return _passages(body)


async def _bounded(content: Any) -> bytes:
    body = bytearray()
    async for part in content.iter_any():
        body += part
        if len(body) > MAX_BODY_BYTES:
            raise UpstreamFailed(f"the search service sent more than {MAX_BODY_BYTES} bytes")
    return bytes(body)


def _passages(body: bytes) -> list[Passage]:
    try:
        found = _found.decode(body).results
    except msgspec.DecodeError as error:
        raise UpstreamFailed("the search service answered no list of results") from error
    return [
        msgspec.structs.replace(passage, content=passage.content[:MAX_PASSAGE_CHARS])
        for passage in found[:TOP]
        if passage.content.strip()
    ]


def grounded(
    messages: Sequence[Mapping[str, Any]], passages: Sequence[Passage]
) -> list[dict[str, Any]]:
    """``messages`` with ``passages`` before the last of them, the question."""
    if not passages:
        return [dict(message) for message in messages]
    lines = [f"[{number}] {passage.content}" for number, passage in enumerate(passages, 1)]
    known = {"role": "system", "content": "\n".join([ADVICE, *lines])}
    return [*(dict(message) for message in messages[:-1]), known, dict(messages[-1])]


async def passages_for(url: str, query: str, timeout_s: float) -> tuple[list[Passage], str]:
    """What was found, and what went wrong: an answer comes either way."""
    try:
        return await search(url, query, timeout_s), ""
    except UpstreamFailed as error:
        log.warning("retrieval.failed", reason=error.message)
        return [], error.message
