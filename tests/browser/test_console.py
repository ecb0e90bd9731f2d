"""The console as a person meets it, in real Chromium."""

from __future__ import annotations

import asyncio

import pytest
from benchmarks.harness import Server
from playwright.async_api import Browser, Page, expect

LIMIT_S = 60


async def until(page: Page, condition: str) -> None:
    """Wait for a JavaScript condition; not `wait_for_function`, which the page's CSP refuses."""
    async with asyncio.timeout(LIMIT_S):
        while not await page.evaluate(condition):  # noqa: ASYNC110 - in another process
            await asyncio.sleep(0.02)


async def ask(page: Page, text: str = "Tell me about rivers.") -> None:
    await page.fill("#prompt", text)
    await page.press("#prompt", "Enter")


async def finished(page: Page) -> None:
    await until(page, "!window.forebay.chat.active")


WRITTEN_WHEN_SOUND_BEGAN = """() => new Promise((found) => {
  const look = () => {
    const { player, chat } = window.forebay;
    const written = [...document.querySelectorAll(".answer")].at(-1)?.innerText.length ?? 0;
    if (!chat.active) found(null);
    else if (player.ahead() > 0) found(written);
    else setTimeout(look, 2);
  };
  look();
})"""


async def test_an_answer_is_written_and_spoken_while_it_is_still_written(page: Page) -> None:
    for _ in range(10):  # a page that was held up may see only the end of an answer
        await ask(page)
        written = await page.evaluate(WRITTEN_WHEN_SOUND_BEGAN)
        await finished(page)
        whole = len(await page.locator(".answer").last.inner_text())
        if written is not None and written < whole:
            break
    assert written is not None, "no sound while the answer was written"
    assert 0 < written < whole
    await expect(page.locator("#first-word")).to_contain_text("ms")
    await expect(page.locator("#first-sound")).to_contain_text("ms")
    await expect(page.locator("#prompt")).to_have_value("")


async def test_synthetic_engines_are_labelled(page: Page) -> None:
    await expect(page.locator(".pools .synthetic")).to_have_count(2)


async def test_stop_ends_the_answer_and_frees_the_slot(page: Page, server: Server) -> None:
    await ask(page)
    await until(page, "document.querySelector('.answer').innerText.length > 10")
    await page.click("#stop")
    await finished(page)
    await expect(page.locator(".foot")).to_have_text("stopped")
    await expect(page.locator("#stopped")).to_contain_text("ms")
    async with asyncio.timeout(60):
        while (await asyncio.to_thread(server.get, "/api/status"))["running"]:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_a_dropped_connection_resumes_with_nothing_lost_or_doubled(page: Page) -> None:
    await ask(page, "Say many words.")
    await until(page, "document.querySelector('.answer').innerText.length > 40")
    await page.evaluate("window.forebay.chat.socket.close()")
    await finished(page)
    await expect(page.locator("#resumed")).to_have_text("1")
    dropped = await page.inner_text(".answer")
    await ask(page, "Say many words.")
    await finished(page)
    again = await page.locator(".answer").nth(1).inner_text()
    assert dropped.split()[:5] == again.split()[:5]
    assert len(dropped.split()) == len(again.split())


async def test_without_voice_the_text_comes_alone(page: Page) -> None:
    await page.uncheck("#voice")
    await ask(page)
    await finished(page)
    await expect(page.locator("#first-sound")).to_have_text("–")
    assert await page.evaluate("window.forebay.player.ahead()") == 0


async def test_every_page_links_to_every_other(page: Page) -> None:
    await expect(page.locator(".views a:visible")).to_have_count(6)
    paths = await page.locator(".views a").evaluate_all("all => all.map((a) => a.pathname)")
    assert paths[3:] == ["/captions", "/notebook", "/pools"]
    origin = await page.evaluate("location.origin")
    for path in [*paths, "/room?room=x", "/speak?room=x"]:
        await page.goto(origin + path)
        found = page.locator(".views a")
        assert await found.evaluate_all("all => all.map((a) => a.pathname)") == paths, path
        await expect(page.locator(".views a[aria-current]")).to_have_count(1)
        await expect(page.locator(".views a:visible")).to_have_count(6)


async def test_text_from_people_and_models_is_never_markup(page: Page) -> None:
    await ask(page, "<img src=x onerror=\"document.title='owned'\"> <script>1</script>")
    await finished(page)
    assert await page.title() == "Forebay"
    assert await page.locator(".log img, .log script").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1200, 800), (390, 780)])
@pytest.mark.parametrize(("locale", "send"), [("en-US", "Send"), ("zh-CN", "发送")])
async def test_every_language_scheme_and_screen_shows_a_usable_page(
    browser: Browser,
    server: Server,
    scheme: str,
    width: int,
    height: int,
    locale: str,
    send: str,
) -> None:
    context = await browser.new_context(
        locale=locale,
        color_scheme="dark" if scheme == "dark" else "light",
        viewport={"width": width, "height": height},
    )
    page = await context.new_page()
    await page.goto(server.http)
    await expect(page.locator("#send")).to_have_text(send)
    box = await page.locator("#composer").bounding_box()
    assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= width
    assert box["y"] + box["height"] <= height
    assert await page.evaluate("document.documentElement.scrollWidth") <= width
    ink, paper = await page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    assert _luminance(ink) < _luminance(paper) if scheme == "light" else True
    assert abs(_luminance(ink) - _luminance(paper)) > 0.5
    await context.close()


def _luminance(colour: str) -> float:
    red, green, blue = (int(v) for v in colour.split("(")[1].rstrip(")").split(",")[:3])
    return (0.2126 * red + 0.7152 * green + 0.0722 * blue) / 255
