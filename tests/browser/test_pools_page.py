"""The operator's page, and signing in to a gateway that demands keys, in real Chromium."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from benchmarks.harness import Server, serving
from playwright.async_api import Browser, BrowserContext, Page, expect

from forebay.gateway import keys

LIMIT_MS = 30_000
VOICE = '[data-pool="speech/synthetic"]'


async def opened(browser: Browser, url: str, **facts: Any) -> Page:
    context = await browser.new_context(
        **{"locale": "en-US", "viewport": {"width": 1200, "height": 800}, **facts}
    )
    tab = await context.new_page()
    await tab.goto(url)
    return tab


@pytest_asyncio.fixture(loop_scope="session")
async def page(browser: Browser, server: Server) -> AsyncIterator[Page]:
    tab = await opened(browser, f"{server.http}/pools")
    thrown: list[str] = []
    refused: list[str] = []
    tab.on("pageerror", lambda error: thrown.append(str(error)))
    tab.on("console", lambda m: refused.append(m.text) if "Content Security" in m.text else None)
    await expect(tab.locator("body[data-ready=true]")).to_be_attached(timeout=LIMIT_MS)
    yield tab
    await tab.context.close()
    assert thrown == refused == []


async def speak(server: Server, people: int) -> None:
    asked = {"model": "synthetic", "input": "Water comes down from the hills. " * 40}
    async with aiohttp.ClientSession() as http:

        async def one() -> None:
            async with http.post(f"{server.http}/v1/audio/speech", json=asked) as answer:
                await answer.read()

        await asyncio.gather(*(one() for _ in range(people)))


def figure(page: Page, name: str, pool: str = VOICE) -> Any:
    return page.locator(f'{pool} dd[data-figure="{name}"]')


async def test_every_pool_has_a_card_with_its_slots_and_what_it_needs(
    page: Page, server: Server
) -> None:
    assert await page.locator(".work").count() == 3
    await expect(page.locator(f"{VOICE} .slots i")).to_have_count(4)
    await expect(figure(page, "plWorkers")).to_have_text("1")
    speaking = asyncio.create_task(speak(server, 12))
    await expect(page.locator(f"{VOICE} .slots i.busy").first).to_be_visible(timeout=LIMIT_MS)
    await speaking
    await expect(page.locator(f"{VOICE} .slots i.busy")).to_have_count(0, timeout=LIMIT_MS)
    await expect(figure(page, "plNeeded")).not_to_have_text("–", timeout=LIMIT_MS)
    # Both in one reading: on a slow machine this work may really have needed a second worker.
    needed, verdict = await page.evaluate(
        """(pool) => { const card = document.querySelector(pool);
           return [Number(card.querySelector('dd[data-figure="plNeeded"]').textContent),
                   card.dataset.verdict]; }""",
        VOICE,
    )
    assert needed >= 0
    assert verdict == ("more" if needed > 1 else "enough")
    points = await page.locator(f"{VOICE} polyline.word").get_attribute("points")
    assert points is not None
    assert len(points.split()) >= 2


async def test_it_speaks_both_languages_and_keeps_what_it_has_drawn(page: Page) -> None:
    await page.click("#language")
    await expect(page.locator("#pools-title")).to_have_text("资源池与工作进程")
    await expect(page.locator(f"{VOICE} dt[data-figure=plWorkers]")).to_have_text("工作进程")
    assert await page.locator(".work").count() == 3


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1200, 800), (390, 780)])
async def test_nothing_is_wider_than_the_screen(
    browser: Browser, server: Server, scheme: Any, width: int, height: int
) -> None:
    tab = await opened(
        browser,
        f"{server.http}/pools",
        color_scheme=scheme,
        locale="zh-CN",
        viewport={"width": width, "height": height},
    )
    await expect(tab.locator("body[data-ready=true]")).to_be_attached(timeout=LIMIT_MS)
    assert await tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    await tab.context.close()


async def test_a_gateway_that_is_gone_leaves_what_was_known_and_says_so(
    page: Page, server: Server
) -> None:
    await page.context.route("**/v1/capacity", lambda route: route.abort())
    await expect(page.locator("#notice")).to_be_visible(timeout=LIMIT_MS)
    await expect(page.locator(f"{VOICE}.stale")).to_be_attached()
    await page.context.unroute("**/v1/capacity")
    await expect(page.locator("#notice")).to_be_hidden(timeout=LIMIT_MS)


# ------------------------------------------------------------------------------ sign in


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str]]:
    """A gateway that demands keys, as one behind a proxy does, and a key of its."""
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    _, key = keys.create(path, now=0.0, tenant="acme", scopes=("read", "submit", "cancel"))
    arguments = ["--engine", "text=synthetic:tokens=6", "--engine", "speech=synthetic:rtf=0.05"]
    env = {
        **os.environ,
        "FOREBAY_SERVER_KEYS_FILE": str(path),
        "FOREBAY_SERVER_ALLOWED_HOSTS": "gw.example.com",
    }
    with serving(*arguments, env=env) as running:
        yield running, key


async def enter(page: Page, key: str) -> None:
    await page.fill(".door input", key)
    await page.click(".door button")


async def asked(context: BrowserContext, origin: str) -> int:
    return (await context.request.get(f"{origin}/api/status")).status


async def test_a_locked_gateway_asks_for_a_key_and_then_everything_works(
    browser: Browser, locked: tuple[Server, str]
) -> None:
    server, key = locked
    page = await opened(browser, server.http)
    await expect(page.locator(".door")).to_be_visible(timeout=LIMIT_MS)
    await page.keyboard.press("Escape")
    await expect(page.locator(".door")).to_be_visible()
    await enter(page, "fb_wrong")
    await expect(page.locator(".door .bad")).to_contain_text("unknown", timeout=LIMIT_MS)
    await enter(page, key)
    await expect(page.locator("#out")).to_be_visible(timeout=LIMIT_MS)
    assert await page.evaluate("document.cookie") == "", "no script reads it"
    await page.fill("textarea", "Hello there")
    await page.press("textarea", "Enter")  # over a WebSocket
    await expect(page.locator(".answer")).not_to_be_empty(timeout=LIMIT_MS)
    await page.goto(f"{server.http}/pools")
    await expect(page.locator(".work")).to_have_count(2, timeout=LIMIT_MS)
    await page.click("#out")
    await expect(page.locator(".door")).to_be_visible(timeout=LIMIT_MS)
    assert await asked(page.context, server.http) == 401
    await page.context.close()


async def test_the_door_speaks_chinese_and_fits_a_phone(
    browser: Browser, locked: tuple[Server, str]
) -> None:
    server, _ = locked
    page = await opened(
        browser, server.http, locale="zh-CN", viewport={"width": 390, "height": 780},
        color_scheme="dark",
    )  # fmt: skip
    await expect(page.locator(".door h2")).to_have_text("此网关需要密钥", timeout=LIMIT_MS)
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    await page.context.close()
