"""A real server with synthetic engines and a real Chromium in front of it.

Chromium is started once for all tests of a process; each test has profiles of its own, closed
at its end. A browser belongs to the loop that started it, so all tests here share one loop.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from benchmarks.harness import Server, serving
from browser_tools import ARGUMENTS, CHROMIUM, recording
from playwright.async_api import Browser, Page, Playwright, async_playwright, expect

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


def pytest_collection_modifyitems(items: list[Any]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.parent == here and pytest_asyncio.is_async_test(item):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


class Chromium:
    """A browser that is started when it is first asked for, and again if it has died."""

    def __init__(self, playwright: Playwright, *arguments: str) -> None:
        self._playwright = playwright
        self._arguments = [*ARGUMENTS, *arguments]
        self._browser: Browser | None = None

    async def get(self) -> Browser:
        if CHROMIUM is None:
            pytest.fail("chromium is not installed, run: scripts/system.sh")
        if self._browser is None or not self._browser.is_connected():
            self._browser = await self._playwright.chromium.launch(
                executable_path=CHROMIUM, args=self._arguments, timeout=HANG_MS
            )
        return self._browser

    async def forget(self) -> None:
        """Close every profile: the next test finds none."""
        for context in self._browser.contexts if self._browser is not None else ():
            await context.close()

    async def close(self) -> None:
        if self._browser is not None:
            await self._browser.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def playwright() -> AsyncIterator[Playwright]:
    async with async_playwright() as running:
        yield running


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def plain(playwright: Playwright) -> AsyncIterator[Chromium]:
    chromium = Chromium(playwright)
    yield chromium
    await chromium.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def with_microphone(
    playwright: Playwright, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Chromium]:
    path = recording(tmp_path_factory.mktemp("microphone"))
    chromium = Chromium(
        playwright,
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={path}",
    )
    yield chromium
    await chromium.close()


@pytest_asyncio.fixture(loop_scope="session")
async def browser(plain: Chromium) -> AsyncIterator[Browser]:
    yield await plain.get()
    await plain.forget()


@pytest_asyncio.fixture(loop_scope="session")
async def hearing(with_microphone: Chromium) -> AsyncIterator[Browser]:
    """A browser whose microphone plays a recording over and over."""
    yield await with_microphone.get()
    await with_microphone.forget()


@pytest_asyncio.fixture(loop_scope="session")
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
