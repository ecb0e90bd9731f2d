"""The recognition view in real Chromium, its microphone a file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from benchmarks.harness import Server, serving
from browser_tools import recording
from playwright.async_api import Browser, Page, expect

LIMIT_S = 60


async def until(page: Page, condition: str) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not await page.evaluate(condition):  # noqa: ASYNC110 - in another process
            await asyncio.sleep(0.05)


@pytest_asyncio.fixture(loop_scope="session")
async def page(hearing: Browser, server: Server) -> AsyncIterator[Page]:
    """The listening page; its microphone plays the recording over and over."""
    context = await hearing.new_context(locale="en-US", permissions=["microphone"])
    tab = await context.new_page()
    thrown: list[str] = []
    tab.on("pageerror", lambda error: thrown.append(str(error)))
    await tab.goto(f"{server.http}/static/listen.html")
    yield tab
    await context.close()
    assert thrown == []


async def test_speaking_brings_words_while_one_speaks(page: Page) -> None:
    await expect(page.locator("#record")).to_be_enabled()
    await page.click("#record")
    await until(page, "document.querySelector('#transcript').textContent.length > 20")
    assert await page.evaluate("window.forebay.ear.active")
    await page.click("#enough")
    await until(page, "!window.forebay.ear.active")
    await expect(page.locator("#record")).to_be_visible()
    await expect(page.locator("#notice")).to_be_hidden()
    await expect(page.locator("#open")).to_have_text("")
    said, stored = await page.evaluate("[window.forebay.ear.said, window.forebay.ear.stored]")
    assert said == stored > 0


async def test_a_dropped_connection_comes_back_by_itself(page: Page) -> None:
    await expect(page.locator("#record")).to_be_enabled()
    await page.click("#record")
    await until(page, "document.querySelector('#transcript').textContent.length > 20")
    await page.evaluate("window.forebay.ear.socket.close()")
    await expect(page.locator("#resumed")).to_have_text("1", timeout=LIMIT_S * 1000)
    await page.click("#enough")
    await until(page, "!window.forebay.ear.active")
    said, stored = await page.evaluate("[window.forebay.ear.said, window.forebay.ear.stored]")
    assert said == stored > 0


async def test_a_recording_is_read_word_for_word(page: Page, tmp_path: Path) -> None:
    await expect(page.locator("#record")).to_be_enabled()
    await page.set_input_files("#file", recording(tmp_path))
    text = " ".join(f"w{n}" for n in range(100))
    await expect(page.locator("#sure")).to_have_text(text, timeout=LIMIT_S * 1000)
    await expect(page.locator("#heard-for")).to_have_text("10.0 s")


async def test_what_is_no_recording_is_said_so(page: Page, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.wav"
    wrong.write_bytes(b"nothing to hear")
    await expect(page.locator("#record")).to_be_enabled()
    await page.set_input_files("#file", wrong)
    await expect(page.locator("#notice")).to_contain_text("could not be read")


async def test_the_queue_is_told_in_both_languages(hearing: Browser) -> None:
    with serving(
        "--engine", "recognition=synthetic:rtf=1.0,slots=1",
        "--workers", "text=0", "--workers", "speech=0",
    ) as busy:  # fmt: skip
        tabs = []
        for locale in ("en-US", "en-US", "zh-CN"):
            context = await hearing.new_context(locale=locale, permissions=["microphone"])
            tabs.append(await context.new_page())
            await tabs[-1].goto(f"{busy.http}/static/listen.html")
            await expect(tabs[-1].locator("#record")).to_be_enabled()
            await tabs[-1].click("#record")
            await until(tabs[-1], "window.forebay.ear?.stored > 0")
        await expect(tabs[1].locator("#notice")).to_contain_text("Current queue: 1")
        await expect(tabs[1].locator("#notice")).to_contain_text("please wait")
        await expect(tabs[2].locator("#notice")).to_contain_text("当前排队：2")


@pytest.mark.parametrize(("width", "height"), [(1200, 800), (390, 780)])
async def test_the_page_fits_its_screen(page: Page, width: int, height: int) -> None:
    await page.set_viewport_size({"width": width, "height": height})
    box = await page.locator(".recorder").bounding_box()
    assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= width
    assert box["y"] + box["height"] <= height
    assert await page.evaluate("document.documentElement.scrollWidth") <= width
