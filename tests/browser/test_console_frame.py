"""What all pages of the console share: the kinds at a glance, the keyboard, what is read out."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from benchmarks.harness import Server
from playwright.async_api import Browser, Page, Route, expect

PAGES = ["/", "/static/listen.html", "/static/photos.html", "/captions", "/notebook", "/pools"]
PARTS = ["/room?room=x", "/speak?room=x"]
PHONE = {"width": 390, "height": 844}


async def changed(page: Page, change: Any) -> None:
    """From now on the gateway's status is what ``change`` makes of it."""

    async def answer(route: Route) -> None:
        found = await (await route.fetch()).json()
        change(found)
        await route.fulfill(body=json.dumps(found), content_type="application/json")

    await page.route("**/api/status", answer)


@pytest_asyncio.fixture(loop_scope="session")
async def phone(browser: Browser, server: Server) -> AsyncIterator[Page]:
    context = await browser.new_context(
        locale="en-US", viewport=PHONE, color_scheme="dark", has_touch=True
    )
    yield await context.new_page()
    await context.close()


async def test_the_start_page_shows_every_kind_and_whether_it_is_ready(page: Page) -> None:
    tiles = page.locator("#kinds li")
    await expect(tiles).to_have_count(5)
    for kind in ("text", "speech", "recognition"):
        tile = page.locator(f'#kinds [data-kind="{kind}"]')
        await expect(tile).to_have_class("ready")
        await expect(tile.locator(".load")).to_have_text("ready")
        await expect(tile.locator(".synthetic")).to_have_count(1)
    await expect(page.locator('#kinds [data-kind="kernel"] .load')).to_have_text("not running")
    listen = page.locator('#kinds [data-kind="recognition"] a')
    await expect(listen).to_have_attribute("href", "/static/listen.html")
    await page.click("#language")
    await expect(page.locator('#kinds [data-kind="kernel"] .load')).to_have_text("未运行")


async def test_the_start_page_shows_load_as_it_is(page: Page) -> None:
    def busy(found: Any) -> None:
        for pool in found["pools"]:
            if pool["kind"] == "speech":
                pool.update(running=3, slots=4, queued=2)

    await changed(page, busy)
    voice = page.locator('#kinds [data-kind="speech"]')
    await expect(voice.locator(".load")).to_have_text("3 of 4 busy, 2 waiting")
    await expect(voice.locator(".pips i.busy")).to_have_count(3)


async def test_an_engine_that_is_not_there_is_named_with_what_starts_it(
    page: Page, server: Server
) -> None:
    def without(found: Any) -> None:
        found["pools"] = [p for p in found["pools"] if p["kind"] != "recognition"]

    await changed(page, without)
    await page.goto(f"{server.http}/static/listen.html")
    await expect(page.locator("#banner")).to_contain_text("--engine recognition=")
    await expect(page.locator("#record")).to_be_disabled()
    await page.unroute("**/api/status")
    await expect(page.locator("#banner")).to_be_hidden()
    await expect(page.locator("#record")).to_be_enabled()


async def test_a_gateway_that_does_not_answer_is_said_and_comes_back(page: Page) -> None:
    await page.route("**/api/status", lambda route: route.abort())
    await expect(page.locator("#banner")).to_contain_text("does not answer")
    await page.unroute("**/api/status")
    await expect(page.locator("#banner")).to_be_hidden()


@pytest.mark.parametrize("path", [*PAGES, *PARTS])
async def test_a_phone_shows_every_link_whole_and_buttons_a_thumb_can_hit(
    phone: Page, server: Server, path: str
) -> None:
    await phone.goto(server.http + path)
    await expect(phone.locator(".views a:visible")).to_have_count(6)
    assert await phone.evaluate("document.documentElement.scrollWidth <= innerWidth")
    small = await phone.evaluate(
        """() => [...document.querySelectorAll('button, .file, .views a')].map((node) =>
             [node.textContent, node.getBoundingClientRect()]).filter(([, box]) => box.width &&
             (box.height < 36 || box.left < 0 || box.right > innerWidth)).map(([text]) => text)"""
    )
    assert small == []


@pytest.mark.parametrize("path", [*PAGES, *PARTS])
async def test_everything_that_can_be_pressed_or_filled_has_a_name(
    page: Page, server: Server, path: str
) -> None:
    await page.goto(server.http + path)
    await expect(page.locator(".views a")).to_have_count(6)
    nameless = await page.evaluate(
        """() => [...document.querySelectorAll('button, a[href], input, textarea, select')].filter(
             (node) => !node.textContent.trim() && !node.getAttribute('aria-label') &&
                       !(node.labels?.[0]?.textContent.trim())).map((node) => node.outerHTML)"""
    )
    assert nameless == []
    assert await page.locator("h1").count() == 1
    assert await page.evaluate(
        "[...document.querySelectorAll('[id]')].map((n) => n.id).every((id, i, all) => "
        "all.indexOf(id) === i)"
    ), "an id twice"


async def test_the_first_tab_leads_past_the_header(page: Page, server: Server) -> None:
    await page.goto(f"{server.http}/captions")
    await expect(page.locator(".skip")).to_have_text("Skip to the page")
    await page.keyboard.press("Tab")
    await expect(page.locator(".skip")).to_be_focused()
    assert await page.evaluate("document.activeElement.getBoundingClientRect().top >= 0")
    await page.keyboard.press("Enter")
    await page.keyboard.press("Tab")
    await expect(page.locator("#room")).to_be_focused()


async def test_focus_stays_where_a_button_gave_way_to_another(page: Page, server: Server) -> None:
    await page.goto(f"{server.http}/static/listen.html")
    await expect(page.locator("#record")).to_be_enabled()
    await page.evaluate(
        """() => { navigator.mediaDevices.getUserMedia =
             () => new Promise((_, no) => { window.no = no; }); }"""
    )
    await page.focus("#record")
    await page.keyboard.press("Enter")
    await expect(page.locator("#enough")).to_be_focused()
    await page.evaluate("window.no(new DOMException('', 'NotAllowedError'))")
    await expect(page.locator("#record")).to_be_focused()
    await expect(page.locator("#notice")).to_contain_text("microphone is not allowed")


async def test_a_silent_answer_is_read_out_and_a_spoken_one_is_not(page: Page) -> None:
    await page.fill("#prompt", "Say it.")
    await page.press("#prompt", "Enter")
    await expect(page.locator(".answer")).not_to_be_empty()
    async with asyncio.timeout(60):
        while await page.evaluate("window.forebay.chat.active"):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await expect(page.locator("#said")).to_be_empty()
    await page.uncheck("#voice")
    await page.fill("#prompt", "Say it.")
    await page.press("#prompt", "Enter")
    await expect(page.locator("#said")).to_have_text(re.compile("Say"))


async def test_motion_that_is_not_wanted_is_not_made(browser: Browser, server: Server) -> None:
    context = await browser.new_context(locale="en-US", reduced_motion="reduce")
    page = await context.new_page()
    await page.goto(server.http)
    await page.evaluate("document.querySelector('#hint').classList.add('caret')")
    names = await page.evaluate(
        "getComputedStyle(document.querySelector('#hint'), '::after').animationName"
    )
    assert names == "none"
    await context.close()


async def test_a_recording_may_be_dropped_on_the_listening_page(page: Page, server: Server) -> None:
    await page.goto(f"{server.http}/static/listen.html")
    await expect(page.locator("#record")).to_be_enabled()
    await page.evaluate(
        """() => { const files = new DataTransfer();
           files.items.add(new File(['no sound'], 'x.wav', { type: 'audio/wav' }));
           document.body.dispatchEvent(new DragEvent('drop', { dataTransfer: files, bubbles: true })); }"""
    )
    await expect(page.locator("#notice")).to_contain_text("could not be read")


async def test_a_display_says_what_it_waits_for(page: Page, server: Server) -> None:
    await page.goto(f"{server.http}/display")
    await expect(page.locator("#still")).to_contain_text("?room=NAME")
    await page.goto(f"{server.http}/display?room=hall&fade=0")
    await expect(page.locator("#still")).to_have_text("Waiting for the first words in hall")
    body = {"text": "Good evening", "user_name": "Ana", "room": "hall", "passphrase": "pp"}
    await page.request.post(f"{server.http}/api/send", data=body)
    await expect(page.locator("#lines .line")).to_have_count(1)
    await expect(page.locator("#still")).to_be_hidden()
    await page.goto(f"{server.http}/display?room=other&transparent=1")
    await expect(page.locator("#still")).to_be_hidden()


async def test_a_phone_has_the_words_first_and_the_room_beside_on_demand(
    phone: Page, server: Server
) -> None:
    await phone.goto(f"{server.http}/room?room=hall2")
    await expect(phone.locator("#side")).not_to_have_attribute("open", "")
    await phone.click("#side-title")
    await expect(phone.locator("#passphrase")).to_be_visible()
    await phone.goto(f"{server.http}/room")
    await expect(phone.locator("#about")).to_be_hidden()
    await expect(phone.locator("#none")).to_be_hidden()
