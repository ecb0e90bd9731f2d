"""The recognition view in real Chromium, its microphone a file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from benchmarks.harness import Server, serving
from browser_tools import ARGUMENTS, CHROMIUM
from playwright.async_api import Page, async_playwright, expect

from forebay.core.audio import wav_header
from forebay.core.tones import speak

LIMIT_S = 60
SOUND = speak(range(100))


async def until(page: Page, condition: str) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not await page.evaluate(condition):  # noqa: ASYNC110 - in another process
            await asyncio.sleep(0.05)


def recording(folder: Path) -> Path:
    path = folder / "words.wav"
    path.write_bytes(wav_header(16_000, 1, data_bytes=len(SOUND)) + SOUND)
    return path


@pytest.fixture
async def page(server: Server, tmp_path: Path) -> AsyncIterator[Page]:
    """The listening page; its microphone plays the recording over and over."""
    fake = [
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={recording(tmp_path)}",
    ]
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(
            executable_path=CHROMIUM, args=[*ARGUMENTS, *fake]
        )
        context = await chromium.new_context(locale="en-US", permissions=["microphone"])
        tab = await context.new_page()
        thrown: list[str] = []
        tab.on("pageerror", lambda error: thrown.append(str(error)))
        await tab.goto(f"{server.http}/static/listen.html")
        yield tab
        await chromium.close()
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


async def test_the_queue_is_told_in_both_languages(tmp_path: Path) -> None:
    with serving(
        "--engine", "recognition=synthetic:rtf=1.0,slots=1",
        "--workers", "text=0", "--workers", "speech=0",
    ) as busy:  # fmt: skip
        async with async_playwright() as playwright:
            fake = [
                "--use-fake-device-for-media-stream",
                "--use-fake-ui-for-media-stream",
                f"--use-file-for-fake-audio-capture={recording(tmp_path)}",
            ]
            chromium = await playwright.chromium.launch(
                executable_path=CHROMIUM, args=[*ARGUMENTS, *fake]
            )
            tabs = []
            for locale in ("en-US", "en-US", "zh-CN"):
                context = await chromium.new_context(locale=locale, permissions=["microphone"])
                tabs.append(await context.new_page())
                await tabs[-1].goto(f"{busy.http}/static/listen.html")
                await expect(tabs[-1].locator("#record")).to_be_enabled()
                await tabs[-1].click("#record")
                await until(tabs[-1], "window.forebay.ear?.stored > 0")
            await expect(tabs[1].locator("#notice")).to_contain_text("Current queue: 1")
            await expect(tabs[1].locator("#notice")).to_contain_text("please wait")
            await expect(tabs[2].locator("#notice")).to_contain_text("当前排队：2")
            await chromium.close()


@pytest.mark.parametrize(("width", "height"), [(1200, 800), (390, 780)])
async def test_the_page_fits_its_screen(page: Page, width: int, height: int) -> None:
    await page.set_viewport_size({"width": width, "height": height})
    box = await page.locator(".recorder").bounding_box()
    assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= width
    assert box["y"] + box["height"] <= height
    assert await page.evaluate("document.documentElement.scrollWidth") <= width
