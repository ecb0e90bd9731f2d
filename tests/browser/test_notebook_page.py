"""The notebook view in real Chromium, over a real kernel: live, safe, and there again after a reload."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio
from benchmarks.harness import Server, serving
from playwright.async_api import Browser, Locator, Page, Route, expect

LIMIT_MS = 120_000


@pytest.fixture(scope="module")
def kernel_server() -> Iterator[Server]:
    with serving(
        "--engine", "kernel=python",
        "--workers", "text=0", "--workers", "speech=0", "--workers", "image=0",
    ) as running:  # fmt: skip
        yield running


async def opened(browser: Browser, server: Server, **facts: Any) -> Page:
    context = await browser.new_context(
        **{"locale": "en-US", "viewport": {"width": 1200, "height": 800}, **facts}
    )
    tab = await context.new_page()
    await tab.goto(f"{server.http}/notebook")
    await ready(tab)
    return tab


async def ready(tab: Page) -> None:
    await expect(tab.locator("body[data-ready=true]")).to_be_attached(timeout=LIMIT_MS)


@pytest_asyncio.fixture(loop_scope="session")
async def page(browser: Browser, kernel_server: Server) -> AsyncIterator[Page]:
    tab = await opened(browser, kernel_server)
    thrown: list[str] = []
    tab.on("pageerror", lambda error: thrown.append(str(error)))
    yield tab
    await tab.context.close()
    assert thrown == []


async def run(page: Page, code: str, at: int = 0) -> Locator:
    cell = page.locator(".cell").nth(at)
    await cell.locator("textarea").fill(code)
    await cell.locator("button.go").click()
    return cell


async def over(cell: Locator, state: str = "done") -> None:
    await expect(cell).to_have_attribute("data-state", state, timeout=LIMIT_MS)


async def test_a_cell_runs_and_says_where_the_time_went(page: Page) -> None:
    cell = await run(page, "print('hello')\n6*7")
    await over(cell)
    await expect(cell.locator("pre.stdout")).to_have_text("hello\n")
    await expect(cell.locator("pre.result")).to_have_text("42")
    await expect(cell.locator(".count")).to_have_text("[1]")
    for stage in ("accept", "queue", "dispatch", "first output", "run", "flush", "write"):
        await expect(cell.locator(".foot")).to_contain_text(stage)


async def test_output_is_live_and_a_reload_shows_all_of_it_and_goes_on(
    page: Page, kernel_server: Server
) -> None:
    cell = await run(
        page,
        "import os, time\nopen('here', 'w').close()\nfor i in range(100):\n"
        "    print('line', i)\n    while i == 9 and not os.path.exists('go'): time.sleep(.02)",
    )
    await expect(cell.locator("pre.stdout")).to_contain_text("line 3\n", timeout=LIMIT_MS)
    await expect(cell).to_have_attribute("data-state", "running")
    await page.reload()
    await ready(page)
    again = page.locator(".cell").first
    await expect(again.locator("pre.stdout")).to_contain_text("line 0\nline 1\n")
    await expect(again).to_have_attribute("data-state", "running")
    await expect(again.locator("textarea")).to_have_value(re.compile("range"))
    (here,) = kernel_server.log.parent.rglob("here")
    here.with_name("go").touch()
    await over(again)
    text = await again.locator("pre.stdout").text_content()
    assert text == "".join(f"line {i}\n" for i in range(100))
    await page.reload()
    await ready(page)
    await over(page.locator(".cell").first)
    assert await page.locator("pre.stdout").first.text_content() == text


async def test_a_reload_that_meets_another_gateway_shows_the_output_too(page: Page) -> None:
    await over(await run(page, "print('kept')"))

    async def knows_no_cells(route: Route) -> None:
        await route.fulfill(json={"notebook": "x", "cells": []})

    await page.route(re.compile(r"/v1/notebooks/[\w-]+$"), knows_no_cells)
    await page.reload()
    await ready(page)
    await expect(page.locator("pre.stdout").first).to_have_text("kept\n")


async def test_interrupt_restart_and_a_draft_survive(page: Page) -> None:
    cell = await run(page, "v = 1\nprint('on')\nwhile True: pass")
    await expect(page.locator("#interrupt")).to_be_enabled()
    await expect(cell.locator("pre.stdout")).to_have_text("on\n", timeout=LIMIT_MS)
    await page.click("#interrupt")
    await over(cell)
    await expect(cell.locator("pre.error")).to_contain_text("KeyboardInterrupt")
    await page.click("#add")
    second = await run(page, "print(v)", 1)
    await over(second)
    await expect(second.locator("pre.stdout")).to_have_text("1\n")
    page.on("dialog", lambda dialog: asyncio.ensure_future(dialog.accept()))
    await page.click("#restart")
    await run(page, "print('v' in globals())", 1)
    await expect(second.locator("pre.stdout")).to_have_text("False\n", timeout=LIMIT_MS)
    await page.click("#add")
    await page.locator(".cell").nth(2).locator("textarea").fill("# a draft")
    await page.reload()
    await ready(page)
    await expect(page.locator(".cell").nth(2).locator("textarea")).to_have_value("# a draft")


async def test_progress_lines_are_replaced_and_colours_are_classes(page: Page) -> None:
    cell = await run(
        page,
        "import time\nfor i in range(101):\n    print(f'\\r{i}%', end='', flush=True); time.sleep(.002)\n"
        "print('\\n\\x1b[31mred\\x1b[0m plain\\x1b[2K')",
    )
    await over(cell)
    await expect(cell.locator("pre.stdout")).to_have_text("100%\nred plain\n")
    assert await cell.locator(".a31").text_content() == "red"


async def test_hostile_output_is_shown_and_does_nothing(page: Page) -> None:
    code = (
        "from IPython.display import display, HTML, SVG, Image\nimport os\n"
        "evil = \"<script>parent.document.title='owned'</script>"
        "<img src=x onerror='parent.document.title=1'><b>bold</b>\"\n"
        "print(evil)\ndisplay(HTML(evil))\n"
        'display(SVG(\'<svg xmlns="http://www.w3.org/2000/svg" onload="parent.document.title=2"/>\'))\n'
        "import base64\npng = base64.b64decode('iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4"
        "2mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==')\n"
        "display(Image(data=png + os.urandom(90_000), format='png'))"
    )
    cell = await run(page, code)
    await over(cell)
    await expect(cell.locator("pre.stdout")).to_contain_text("<script>")
    frame = cell.locator("iframe")
    assert await frame.get_attribute("sandbox") == ""
    await expect(cell.frame_locator("iframe").locator("b")).to_have_text("bold")
    large = cell.locator("img").nth(1)
    await expect(large).to_have_js_property("naturalWidth", 1)
    assert "/large/" in str(await large.get_attribute("src"))
    assert await page.title() == "Forebay: notebook"


async def test_a_burst_of_lines_does_not_stall_the_page(page: Page) -> None:
    cell = await run(page, "for i in range(100_000): print('line', i)")
    await over(cell)
    await expect(cell.locator("pre.stdout")).to_contain_text("line 99999", timeout=LIMIT_MS)
    assert await page.evaluate("document.querySelectorAll('.output *').length") < 5000


async def test_chinese_dark_and_small_screens(browser: Browser, kernel_server: Server) -> None:
    phone = {"viewport": {"width": 390, "height": 780}, "color_scheme": "dark", "locale": "zh-CN"}
    page = await opened(browser, kernel_server, **phone)
    await expect(page.locator("#add")).to_have_text("添加单元")
    await expect(page.locator("#confined")).to_contain_text("隔离")
    cell = await run(page, "print('x' * 500)\n1/0")
    await over(cell)
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    dark = await page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert dark == "rgb(13, 23, 27)"
    await page.click("#language")
    await expect(page.locator("#add")).to_have_text("Add a cell")
    await page.context.close()
