"""The page that speaks into a room, in real Chromium, its microphone a file."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Callable

import pytest
from benchmarks.harness import Server
from playwright.async_api import Browser, Page, Route, expect

LIMIT_MS = 120_000


async def opened(browser: Browser, server: Server, room: str, locale: str = "en-US") -> Page:
    context = await browser.new_context(locale=locale, permissions=["microphone"])
    page = await context.new_page()
    await page.goto(f"{server.http}/speak?room={room}&name=Ada")
    await page.fill("#passphrase", "open sesame")
    await page.press("#passphrase", "Tab")
    return page


def said(server: Server, room: str) -> list[dict[str, object]]:
    with urllib.request.urlopen(f"{server.http}/api/list?room={room}", timeout=60) as answer:
        return json.load(answer)["transcriptions"]


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_MS / 1000):
        while not await asyncio.to_thread(what):  # noqa: ASYNC110 - in another process
            await asyncio.sleep(0.1)


async def test_what_is_said_is_shown_here_and_in_the_room_with_its_lag(hearing, server):
    page = await opened(hearing, server, "spoken")
    await expect(page.locator("#sync-state")).to_contain_text("room: ok", timeout=LIMIT_MS)
    await page.click("#record")
    await expect(page.locator("#transcript")).not_to_be_empty(timeout=LIMIT_MS)
    await until(lambda: len(said(server, "spoken")) > 0)
    await expect(page.locator("#lag")).to_contain_text("ms", timeout=LIMIT_MS)
    await page.click("#enough")
    await expect(page.locator("#record")).to_be_visible(timeout=LIMIT_MS)
    assert {one["user_name"] for one in said(server, "spoken")} == {"Ada"}


async def test_a_server_that_is_away_holds_no_words_up_and_gets_them_later(hearing, server):
    page = await opened(hearing, server, "away")
    await expect(page.locator("#sync-state")).to_contain_text("room: ok", timeout=LIMIT_MS)

    async def lost(route: Route) -> None:
        await route.abort()

    await page.route("**/api/send", lost)
    await page.evaluate("[1, 2, 3].forEach(n => window.forebay.sender.send(`caption ${n}`))")
    await expect(page.locator("#sync-state")).to_contain_text("room: retrying", timeout=LIMIT_MS)
    await expect(page.locator("#n-queued")).to_have_text("3")
    await page.unroute("**/api/send")
    await expect(page.locator("#n-sent")).to_have_text("3", timeout=LIMIT_MS)
    await expect(page.locator("#sync-state")).to_contain_text("room: ok")
    assert [one["text"] for one in said(server, "away")] == [f"caption {n}" for n in (1, 2, 3)]


async def test_captions_wait_in_the_browser_over_a_reload(hearing, server):
    page = await opened(hearing, server, "reload")
    await expect(page.locator("#sync-state")).to_contain_text("room: ok", timeout=LIMIT_MS)
    await page.route("**/api/send", lambda route: route.abort())
    await page.evaluate("window.forebay.sender.send('kept')")
    await expect(page.locator("#n-errors")).not_to_have_text("0", timeout=LIMIT_MS)
    await page.unroute("**/api/send")
    await page.reload()
    await page.fill("#passphrase", "open sesame")
    await page.press("#passphrase", "Tab")
    await until(lambda: [one["text"] for one in said(server, "reload")] == ["kept"])


async def test_a_wrong_passphrase_is_said_in_chinese_too(hearing, server):
    first = await opened(hearing, server, "locked")
    await expect(first.locator("#sync-state")).to_contain_text("room: ok", timeout=LIMIT_MS)
    await first.evaluate("window.forebay.sender.send('mine')")
    await expect(first.locator("#n-sent")).to_have_text("1", timeout=LIMIT_MS)
    page = await opened(hearing, server, "locked", "zh-CN")
    await page.fill("#passphrase", "wrong")
    await page.press("#passphrase", "Tab")
    await page.evaluate("window.forebay.sender.send('theirs')")
    await expect(page.locator("#sync-state")).to_contain_text("被拒绝", timeout=LIMIT_MS)


@pytest.mark.parametrize(("width", "height"), [(1200, 800), (390, 780)])
async def test_the_speak_page_fits_its_screen(hearing, server, width, height):
    page = await opened(hearing, server, "fits")
    for theme in ("light", "dark"):
        await page.emulate_media(color_scheme=theme)
        await page.set_viewport_size({"width": width, "height": height})
        assert await page.evaluate("document.documentElement.scrollWidth") <= width
        box = await page.locator(".recorder").bounding_box()
        assert box is not None and box["x"] + box["width"] <= width


async def test_the_lag_to_the_last_display_is_shown_and_saved(hearing, server):
    page = await opened(hearing, server, "lagging")
    await expect(page.locator("#sync-state")).to_contain_text("room: ok", timeout=LIMIT_MS)
    displays = []
    for _ in range(2):
        context = await hearing.new_context()
        display = await context.new_page()
        await display.goto(f"{server.http}/display?room=lagging")
        await expect(display.locator("#link")).to_have_attribute(
            "data-state", "live", timeout=LIMIT_MS
        )
        displays.append(display)
    # As the microphone does: a final shows here and goes to the room.
    await page.click("#record")
    await expect(page.locator("#shown")).to_contain_text("2 of 2 displays", timeout=LIMIT_MS)
    await expect(page.locator("#shown")).to_contain_text("ms · p50")
    await page.click("#enough")
    async with page.expect_download() as saving:
        await page.click("#export")
    path = await (await saving.value).path()
    found = json.loads(await asyncio.to_thread(path.read_text))
    first = found["shown"][0]
    assert first["seq"] == 1 and first["displays"] == first["of"] == 2
    assert first["ms"] > 0
    for display in displays:
        await expect(display.locator(".line").first).to_be_visible(timeout=LIMIT_MS)
