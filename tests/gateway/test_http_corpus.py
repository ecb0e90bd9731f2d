"""Malformed requests are refused one by one, legal ones are not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from gateway_harness import HANG_S, Probe, Served, corpus, serving

MALFORMED = list(corpus("malformed.txt"))
LEGAL = list(corpus("legal.txt"))


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving() as running:
        yield running


def test_the_corpus_is_large_and_its_cases_are_distinct() -> None:
    assert len(MALFORMED) >= 38
    assert len({data for _, _, data in MALFORMED}) == len(MALFORMED)


@pytest.mark.parametrize(
    ("statuses", "data"), [c[1:] for c in MALFORMED], ids=[c[0] for c in MALFORMED]
)
async def test_refused_and_closed(served: Served, statuses: list[str], data: bytes) -> None:
    out, closed = await served.ask(data)
    head, _, body = out.partition(b"\r\n\r\n")
    assert head.split(b" ")[1].decode() in statuses, head[:200]
    assert closed, "the connection must end"
    assert out.count(b"HTTP/1.1 ") == 1, "one answer only"
    assert b"Traceback" not in out
    probe: Probe = served.probe
    assert "/smuggled" not in probe.paths
    await served.until(lambda: served.server.gate.open == 0)


@pytest.mark.parametrize(("statuses", "data"), [c[1:] for c in LEGAL], ids=[c[0] for c in LEGAL])
async def test_answered(served: Served, statuses: list[str], data: bytes) -> None:
    reader, writer = await served.open()
    writer.write(data)
    async with asyncio.timeout(HANG_S):
        out = await reader.readuntil(b"\r\n\r\n")
    assert out.split(b" ")[1].decode() in statuses, out[:200]
    assert b" 4" not in out.split(b"\r\n")[0]


async def test_refusals_are_json_with_an_id_and_no_echo(served: Served) -> None:
    secret = b"GET / HTTP/1.1\r\nHost: localhost\r\nX: SECRET\x01\r\n\r\n"
    out, _ = await served.ask(secret)
    assert b'"request_id":"' in out
    assert b"application/json" in out
    assert b"SECRET" not in out
