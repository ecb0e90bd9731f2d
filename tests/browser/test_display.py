"""The display and the room console in real Chromium: nothing people write ever runs."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote
from urllib.request import Request, urlopen

import pytest
from benchmarks.harness import Server
from playwright.async_api import Browser, Page, expect

PASS = "a long passphrase"

PAYLOADS = [
    "<script>window.pwned=1</script>",
    "<img src=x onerror=window.pwned=1>",
    "<svg onload=window.pwned=1>",
    "<svg><script>window.pwned=1</script></svg>",
    "<body onload=window.pwned=1>",
    "<iframe src=javascript:window.pwned=1></iframe>",
    "<iframe srcdoc='<script>parent.pwned=1</script>'></iframe>",
    "<a href=javascript:window.pwned=1 autofocus onfocus=window.pwned=1>x</a>",
    "<input autofocus onfocus=window.pwned=1>",
    "<details open ontoggle=window.pwned=1>",
    "<video><source onerror=window.pwned=1></video>",
    "<audio src=x onerror=window.pwned=1>",
    "<marquee onstart=window.pwned=1>",
    "<object data=javascript:window.pwned=1>",
    "<embed src=javascript:window.pwned=1>",
    "<math><mtext></form><form><mglyph><style></math><img src onerror=window.pwned=1>",
    "<form action=javascript:window.pwned=1><button>x</button></form>",
    "<style>@import 'javascript:window.pwned=1'</style>",
    "<link rel=stylesheet href=javascript:window.pwned=1>",
    "<meta http-equiv=refresh content='0;url=javascript:window.pwned=1'>",
    "<base href=javascript:window.pwned=1//>",
    "<template><script>window.pwned=1</script></template>",
    "<noscript><p title='</noscript><img src=x onerror=window.pwned=1>'>",
    "'><script>window.pwned=1</script>",
    '"><script>window.pwned=1</script>',
    '" onmouseover="window.pwned=1',
    "' autofocus onfocus='window.pwned=1",
    "</p></div><script>window.pwned=1</script>",
    "</title><script>window.pwned=1</script>",
    "</textarea><script>window.pwned=1</script>",
    "<!--><script>window.pwned=1</script-->",
    "<![CDATA[><script>window.pwned=1</script>]]>",
    "javascript:window.pwned=1",
    "data:text/html,<script>window.pwned=1</script>",
    "red;background:url(javascript:window.pwned=1)",
    "expression(window.pwned=1)",
    "#ff0000;}body{background:url('/pwned')}",
    "#ff0000' onload='window.pwned=1",
    "Arial';src:url('/pwned');x:'",
    "{{constructor.constructor('window.pwned=1')()}}${window.pwned=1}",
]


def post(server: Server, room: str, **fields: Any) -> None:
    body = {"room": room, "passphrase": PASS, "user_name": "Ada", "text": "hello", **fields}
    request = Request(
        server.http + "/api/send",
        data=json.dumps(body).encode(),
        headers={"content-type": "application/json"},
    )
    with urlopen(request, timeout=5) as answer:
        assert answer.status == 200


async def say(server: Server, room: str, **fields: Any) -> None:
    await asyncio.to_thread(post, server, room, **fields)


@pytest.fixture
def room() -> Iterator[str]:
    yield f"r{time.monotonic_ns()}"


@asynccontextmanager
async def opened(
    browser: Browser, server: Server, address: str, **context: Any
) -> AsyncIterator[Page]:
    """A page of ours; what it throws, asks or loads from elsewhere fails the test."""
    given = {"locale": "en-US", "viewport": {"width": 1000, "height": 700}, **context}
    made = await browser.new_context(**given)
    page = await made.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(f"error {error}"))
    page.on("dialog", lambda dialog: wrong.append("dialog"))
    page.on(
        "request",
        lambda request: (
            None if request.url.startswith((server.http, "data:")) else wrong.append(request.url)
        ),
    )
    await page.goto(server.http + address)
    yield page
    ran = await page.evaluate("window.pwned")
    await made.close()
    assert ran is None and wrong == []


def lines(page: Page) -> Any:
    return page.locator("#lines .line")


async def live(page: Page) -> None:
    await expect(page.locator("#link")).to_have_attribute("data-state", "live")


async def test_no_payload_runs_in_any_field(browser: Browser, server: Server, room: str) -> None:
    assert len(PAYLOADS) == 40
    async with (
        opened(browser, server, f"/display?room={room}&fade=0") as page,
        opened(browser, server, f"/room?room={room}") as console,
    ):
        await live(page)
        await live(console)
        for payload in PAYLOADS:
            fields = {
                "user_name": payload[:64],
                "timestamp": payload[:32],
                "text": payload,
                "font_family": payload,
                "font_type": payload,
                "user_color": payload,
                "text_color": payload,
                "background_color": payload,
            }
            await say(server, room, **fields, is_preview=True)
            await say(server, room, **fields)
        for shown in (page, console):
            await expect(lines(shown)).to_have_count(40)
            texts = await shown.locator("#lines .text").all_text_contents()
            assert texts == PAYLOADS
            assert await shown.locator("#lines :not(p, span)").count() == 0
            await shown.locator("#lines .line").last.hover()


async def test_no_payload_runs_from_the_address(browser: Browser, server: Server) -> None:
    for payload in (PAYLOADS[0], PAYLOADS[1], PAYLOADS[24], PAYLOADS[38], "javascript:pwned=1"):
        names = ("fade", "fontsize", "websafefont", "fontsource", "maxlines", "theme", "lang")
        address = f"/display?room={quote(payload)}&" + "&".join(
            f"{name}={quote(payload)}" for name in names
        )
        async with opened(browser, server, address) as page:
            await expect(page.locator("#link")).to_have_attribute("data-state", "lost")
        async with opened(browser, server, f"/room?room={quote(payload)}") as page:
            await expect(page.locator("#shown")).to_have_text(payload)


async def test_a_display_shows_history_previews_and_finals_in_order(
    browser: Browser, server: Server, room: str
) -> None:
    await say(server, room, text="before")
    async with opened(browser, server, f"/display?room={room}&fade=0") as page:
        await expect(lines(page)).to_have_count(1)
        await live(page)
        await say(server, room, text="hel", is_preview=True)
        await expect(page.locator(".preview .text")).to_have_text("hel")
        await say(server, room, text="hello wor", is_preview=True)
        await expect(page.locator(".preview .text")).to_have_text("hello wor")
        await say(server, room, user_name="Bob", text="I say")
        await say(server, room, text="hello world")
        await expect(page.locator(".preview")).to_have_count(0)
        await expect(page.locator("#lines .text")).to_have_text(["before", "I say", "hello world"])
        await expect(page.locator("#lines .stamp").first).to_be_visible()


async def test_the_options_of_the_address_are_kept(
    browser: Browser, server: Server, room: str
) -> None:
    for n in range(6):
        await say(server, room, text=f"line {n}")
    address = (
        f"/display?room={room}&fade=1&timestamps=false&maxlines=3&fontsize=40&websafefont=Georgia"
    )
    async with opened(browser, server, address) as page:
        await expect(lines(page)).to_have_count(3)
        style = "getComputedStyle(document.querySelector('#lines'))"
        assert await page.evaluate(f"{style}.fontSize") == "40px"
        assert "Georgia" in await page.evaluate(f"{style}.fontFamily")
        assert await page.locator("#lines .stamp:visible").count() == 0
        await expect(lines(page)).to_have_count(0)


async def test_obs_sees_through_the_page(browser: Browser, server: Server, room: str) -> None:
    await say(server, room, text_color="#00ff00", background_color="#00000080")
    async with opened(browser, server, f"/display?room={room}&fade=0&transparent=1") as page:
        await expect(lines(page)).to_have_count(1)
        for part in ("document.documentElement", "document.body"):
            colour = await page.evaluate(f"getComputedStyle({part}).backgroundColor")
            assert colour == "rgba(0, 0, 0, 0)"
        text = "document.querySelector('.text')"
        assert await page.evaluate(f"getComputedStyle({text}).color") == "rgb(0, 255, 0)"
        await live(page)
        await expect(page.locator("#link")).to_be_hidden()


CONTRAST = """name => {
  const pen = document.createElement('canvas').getContext('2d');
  const light = (value) => {
    pen.fillStyle = value;
    pen.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...pen.getImageData(0, 0, 1, 1).data].map((c) => c / 255)
      .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
  };
  const paper = light(getComputedStyle(document.body).backgroundColor);
  const ink = light(getComputedStyle(document.querySelector(name)).color);
  return Math.max(paper, ink) / Math.min(paper, ink);
}"""


@pytest.mark.parametrize("theme", ["light", "dark"])
async def test_a_senders_colours_can_be_read_in_either_theme(
    browser: Browser, server: Server, room: str, theme: Any
) -> None:
    for path in ("/display?fade=0&room=", "/room?room="):
        for dark, light in (("#0f2c3c", "#ffffaa"), ("#000080", "#00ff00")):
            name = f"{room}-{dark[1:]}"
            await say(server, name, user_color=dark, text_color=light)
            address = path + name
            async with opened(browser, server, address, color_scheme=theme) as page:
                await expect(lines(page).first).to_be_visible()
                for part in (".who", ".text"):
                    assert await page.evaluate(CONTRAST, f"#lines {part}") >= 3, (part, address)


async def test_scripts_from_right_to_left_stand_beside_others(
    browser: Browser, server: Server, room: str
) -> None:
    await say(server, room, user_name="דנה", text="שלום (3) עולם")
    await say(server, room, user_name="小明", text="大家好，今天我们开会。")
    await say(server, room, user_name="evil\u202e", text="abc \u202e def")
    async with opened(browser, server, f"/display?room={room}&fade=0") as page:
        await expect(lines(page)).to_have_count(3)
        ways = await page.eval_on_selector_all(
            "#lines .text", "all => all.map(one => getComputedStyle(one).direction)"
        )
        assert ways == ["rtl", "ltr", "ltr"]
        left = "document.querySelectorAll('#lines .line')[2].children"
        boxes = await page.evaluate(f"[...{left}].map(one => one.getBoundingClientRect().left)")
        assert boxes == sorted(boxes)


async def test_a_display_that_lost_its_socket_misses_nothing_and_repeats_nothing(
    browser: Browser, server: Server, room: str
) -> None:
    async with opened(browser, server, f"/display?room={room}&fade=0") as page:
        await live(page)
        await say(server, room, text="0")
        await expect(lines(page)).to_have_count(1)
        for n in range(1, 6):
            await page.evaluate("window.forebay.reader.socket?.close()")
            await say(server, room, text=str(n))
        await expect(page.locator("#lines .text")).to_have_text([str(n) for n in range(6)])
        await live(page)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(("locale", "word"), [("en-US", "Messages"), ("zh-CN", "消息")])
async def test_the_pages_speak_two_languages_in_two_themes_on_a_phone(
    browser: Browser, server: Server, room: str, locale: str, word: str, theme: Any
) -> None:
    await say(server, room, text="a long line " * 40)
    phone: dict[str, Any] = {"viewport": {"width": 360, "height": 640}, "color_scheme": theme}
    fits = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    paper = "getComputedStyle(document.body).backgroundColor"
    for address in ("/captions", f"/room?room={room}", f"/display?room={room}&fade=0"):
        async with opened(browser, server, address, locale=locale, **phone) as page:
            if address.startswith("/room"):
                await page.click("#side-title")  # folded away on a phone: the words come first
                await expect(page.get_by_text(word, exact=True)).to_be_visible()
            if address != "/captions":
                await expect(lines(page)).to_have_count(1)
            assert await page.evaluate(fits), address
            dark = await page.evaluate(paper)
            assert (dark == "rgb(13, 23, 27)") is (theme == "dark")


async def test_the_landing_page_makes_a_room_that_works(browser: Browser, server: Server) -> None:
    async with opened(browser, server, "/captions") as page:
        first = await page.locator("#room").input_value()
        await page.click("#again")
        name = await page.locator("#room").input_value()
        secret = await page.locator("#passphrase").input_value()
        assert name != first and len(secret) > 20
        shown = await page.locator("#display").get_attribute("href")
        assert shown == f"{server.http}/display?room={name}"
        await page.fill("#room", "no spaces")
        await expect(page.locator("#bad")).to_be_visible()
        await say(server, name, passphrase=secret, text="it works")


async def test_the_console_counts_lists_exports_and_makes_links(
    browser: Browser, server: Server, room: str
) -> None:
    await say(server, room, client_id="c", seq=1, text="one")
    async with opened(browser, server, f"/display?room={room}&fade=0") as display:
        await live(display)
        async with opened(browser, server, f"/room?room={room}") as page:
            await expect(page.locator("#present")).to_have_text("2")
            await expect(page.locator("#messages")).to_have_text("1")
            await expect(page.locator("#who li")).to_have_count(2)
            for form, begin in (("srt", "1\n00:00:00"), ("vtt", "WEBVTT"), ("txt", "[")):
                address = await page.locator(f"#{form}").get_attribute("href")
                text = await page.evaluate(f"fetch({json.dumps(address)}).then(r => r.text())")
                assert text.startswith(begin) and "one" in text
            await page.fill("#passphrase", "wrong")
            await page.click("#make button")
            await expect(page.locator("#made")).to_contain_text("not this room")
            await page.fill("#passphrase", PASS)
            await page.click("#make button")
            await expect(page.locator("#made")).to_contain_text("/display?room=")
