"""The photo view in real Chromium: tiles appear, places are shown, before and after compare."""

from __future__ import annotations

import io
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio
from benchmarks.harness import Server, serving
from PIL import Image
from playwright.async_api import Browser, Page, expect

LIMIT_MS = 120_000


@pytest.fixture(scope="module")
def photo_server() -> Iterator[Server]:
    with serving(
        "--engine", "image=synthetic:tile_ms=80",
        "--workers", "text=0", "--workers", "speech=0",
    ) as running:  # fmt: skip
        yield running


def photo(width: int = 620, height: int = 460, shade: int = 90, form: str = "JPEG") -> bytes:
    out = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert("RGB").point(
        lambda v: (v + shade) % 256
    ).save(out, form)
    return out.getvalue()


def file(name: str, data: bytes, kind: str = "image/jpeg") -> Any:
    return {"name": name, "mimeType": kind, "buffer": data}


async def opened(browser: Browser, server: Server, **facts: Any) -> Page:
    context = await browser.new_context(
        **{"locale": "en-US", "viewport": {"width": 1200, "height": 800}, **facts}
    )
    tab = await context.new_page()
    await tab.goto(f"{server.http}/static/photos.html")
    await expect(tab.locator("body[data-ready=true]")).to_be_attached(timeout=LIMIT_MS)
    return tab


@pytest_asyncio.fixture(loop_scope="session")
async def page(browser: Browser, photo_server: Server) -> AsyncIterator[Page]:
    tab = await opened(browser, photo_server)
    thrown: list[str] = []
    refused: list[str] = []
    tab.on("pageerror", lambda error: thrown.append(str(error)))
    tab.on("console", lambda m: refused.append(m.text) if "Content Security" in m.text else None)
    yield tab
    await tab.context.close()
    assert thrown == refused == []


async def test_tiles_appear_and_the_result_compares(page: Page) -> None:
    await page.set_input_files("#files", [file("lake.jpg", photo())])
    card = page.locator(".photo")
    await expect(card).to_have_attribute("data-tiles", re.compile("[1-4]"), timeout=LIMIT_MS)
    await expect(card).to_have_class("photo done", timeout=LIMIT_MS)
    assert await card.get_attribute("data-tiles") == "4"
    await expect(card.locator(".state")).to_contain_text("1240 × 920")
    await expect(page.locator("#first-tile")).to_contain_text(" s")
    drawn = await page.evaluate(
        """() => { const c = document.querySelector('.after');
           const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
           let n = 0; for (let i = 3; i < d.length; i += 4) n += d[i] === 255; return n / (d.length / 4); }"""
    )
    assert drawn > 0.99, "every tile is where it belongs"
    slider = card.locator("input[type=range]")
    await slider.fill("80")
    assert "80%" in await page.evaluate("document.querySelector('.after').style.clipPath")
    async with page.expect_download() as saving:
        await card.locator("a").click()
    assert (await saving.value).suggested_filename == "lake_enhanced.jpg"


async def test_who_waits_sees_a_place_and_may_leave(page: Page) -> None:
    await page.select_option("#uploads", "3")
    photos = [file(f"{n}.jpg", photo(shade=n * 9)) for n in range(4)]
    await page.set_input_files("#files", photos)
    cards = page.locator(".photo")
    await expect(cards.nth(3).locator(".state")).to_contain_text("place", timeout=LIMIT_MS)
    await cards.nth(3).get_by_role("button", name="Cancel").click()
    await expect(cards.nth(3).locator(".state")).to_have_text("cancelled")
    for number in range(3):
        await expect(cards.nth(number)).to_have_class("photo done", timeout=LIMIT_MS)
    await expect(page.locator("#done")).to_have_text("3")
    await expect(page.locator("#in-all")).to_contain_text(" s")


async def test_what_is_no_photo_says_why(page: Page) -> None:
    await page.set_input_files(
        "#files", [file("cut.jpg", photo()[:-50]), file("<b>x</b>.jpg", b"no")]
    )
    first, second = page.locator(".photo").nth(0), page.locator(".photo").nth(1)
    await expect(first.locator(".state")).to_contain_text("not enhanced", timeout=LIMIT_MS)
    await expect(second.locator(".state")).to_contain_text("jpeg", timeout=LIMIT_MS)
    await expect(second.locator(".name")).to_have_text("<b>x</b>.jpg")


async def test_photos_are_dropped_onto_the_page(page: Page) -> None:
    data = list(photo())
    await page.evaluate(
        """(bytes) => { const files = new DataTransfer();
           files.items.add(new File([new Uint8Array(bytes)], 'drop.jpg', { type: 'image/jpeg' }));
           document.body.dispatchEvent(new DragEvent('drop', { dataTransfer: files, bubbles: true })); }""",
        data,
    )
    await expect(page.locator(".photo")).to_have_class("photo done", timeout=LIMIT_MS)


async def test_a_cut_connection_goes_on_after_the_last_tile(page: Page) -> None:
    await page.evaluate(
        """() => { const real = window.fetch; window.cuts = 0;
           window.fetch = async (url, facts) => {
             const response = await real(url, facts);
             if (!String(url).endsWith('/events') || window.cuts++) return response;
             const reader = response.body.getReader(); let left = 4;
             const body = new ReadableStream({ async pull(c) {
               const { value, done } = await reader.read();
               if (done || !left--) { reader.cancel(); c.error(new TypeError('cut')); return; }
               c.enqueue(value); } });
             return new Response(body, { status: response.status, headers: response.headers }); }; }"""
    )
    await page.set_input_files("#files", [file("cut.jpg", photo(1000, 700))])
    await expect(page.locator(".photo")).to_have_class("photo done", timeout=LIMIT_MS)
    assert await page.evaluate("window.cuts") > 1
    assert await page.locator(".photo").get_attribute("data-tiles") == "6", "none twice"


async def test_the_page_is_chinese_dark_and_fits_a_phone(
    browser: Browser, photo_server: Server
) -> None:
    phone = {"width": 390, "height": 780}
    tab = await opened(browser, photo_server, locale="zh-CN", color_scheme="dark", viewport=phone)
    await expect(tab.locator("#choose")).to_contain_text("选择照片")
    await tab.set_input_files("#files", [file("一.jpg", photo())])
    await expect(tab.locator(".photo .state")).to_contain_text("秒完成", timeout=LIMIT_MS)
    await expect(tab.locator(".photo a")).to_have_text("保存")
    width = await tab.evaluate("document.documentElement.scrollWidth")
    assert width <= 390
    dark = await tab.evaluate("getComputedStyle(document.body).backgroundColor")
    await tab.click("#theme")
    light = await tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert dark != light
    await tab.set_input_files("#files", [file("断.jpg", photo()[:300])])
    await expect(tab.locator(".photo .state").last).to_contain_text("图片已损坏", timeout=LIMIT_MS)
    await tab.click("#language")
    await expect(tab.locator("#choose")).to_contain_text("Choose photos")
    await expect(tab.locator(".photo .state").last).to_contain_text("not enhanced: the file ends")
    await expect(tab.locator(".photo .state").first).to_contain_text("done in")
    await tab.context.close()


async def test_the_originals_address_has_the_page(browser: Browser, photo_server: Server) -> None:
    context = await browser.new_context(locale="en-US")
    tab = await context.new_page()
    await tab.goto(f"{photo_server.http}/examples/stream_processing.html")
    await expect(tab.locator("#photos-title")).to_have_text("Photo enhancement")
    await context.close()
