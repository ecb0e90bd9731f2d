"""A real server with synthetic engines and a real Chromium in front of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from benchmarks.harness import Server, serving
from browser_tools import ARGUMENTS, CHROMIUM
from playwright.async_api import Browser, Page, async_playwright, expect

HANG_MS = 120_000
expect.set_options(timeout=60_000)  # only what hangs takes as long


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with serving(
        "--engine",
        "speech=synthetic:rtf=0.05,latency_ms=5,slots=4",
        "--engine",
        "text=synthetic:tokens=24,token_ms=40,slots=2",
        "--engine",
        "recognition=synthetic:rtf=0.05,slots=1",
    ) as running:
        yield running


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    if CHROMIUM is None:
        pytest.fail("chromium is not installed, run: make setup-system")
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(
            executable_path=CHROMIUM, args=ARGUMENTS, timeout=HANG_MS
        )
        yield chromium
        await chromium.close()


@pytest.fixture
async def page(browser: Browser, server: Server) -> AsyncIterator[Page]:
    """An English desktop page; anything the page throws fails the test."""
    context = await browser.new_context(locale="en-US", viewport={"width": 1200, "height": 800})
    tab = await context.new_page()
    thrown: list[str] = []
    tab.on("pageerror", lambda error: thrown.append(str(error)))
    await tab.goto(server.http)
    yield tab
    await context.close()
    assert thrown == []
