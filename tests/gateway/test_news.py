"""The bell that wakes an answer's task."""

from __future__ import annotations

import asyncio

import pytest

from forebay.gateway.news import News


async def test_a_ring_that_nobody_waits_for_is_kept_for_the_next_who_waits() -> None:
    news = News()
    news.ring()
    news.ring()
    assert await news.wait(0.01)
    assert not await news.wait(0.01)


async def test_waiting_ends_with_the_ring_or_says_that_the_time_passed_in_silence() -> None:
    news = News()
    waiting = asyncio.create_task(news.wait())
    await asyncio.sleep(0)
    assert not waiting.done()
    news.ring()
    assert await waiting
    assert not await news.wait(0.001)


async def test_a_waiter_that_is_cancelled_leaves_the_bell_as_it_was() -> None:
    news = News()
    waiting = asyncio.create_task(news.wait(60))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    news.ring()
    assert await news.wait(60)
