"""The JavaScript package, in Node and in Chromium, over connections that are cut."""

from __future__ import annotations

import array
import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from benchmarks.harness import Server, serving
from playwright.async_api import Page, Response, Route, async_playwright
from tests.browser.browser_tools import ARGUMENTS, CHROMIUM

from forebay.core.tones import speak
from forebay.lab.fault_proxy import FaultProxy

PACKAGE = Path(__file__).resolve().parents[2] / "clients" / "javascript"
TEXT = "This sentence goes on for a while, and here is another one. " * 4
WORDS = list(range(100, 140))
SOUND = array.array("h", speak(WORDS)).tolist()

Work = Callable[[int], Awaitable[Any]]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(
        "--engine",
        "speech=synthetic:rtf=0.2,latency_ms=5,slots=4,piece_ms=200",
        "--engine",
        "recognition=synthetic:rtf=0.02,slots=2",
        "--engine",
        "text=synthetic:tokens=60,token_ms=20,slots=4",
        *("--workers", "image=0"),
    ) as running:
        yield running


@pytest.fixture(scope="module")
def packages() -> Path:
    """The package with what its tests need beside it."""
    if not (PACKAGE / "node_modules" / "ws").is_dir():
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        subprocess.run(command, cwd=PACKAGE, check=True, capture_output=True, timeout=180)
    return PACKAGE


class InNode:
    """A scenario of ``test/scenarios.js``, run by Node."""

    async def __call__(self, scenario: str, given: dict[str, Any]) -> dict[str, Any]:
        process = await asyncio.create_subprocess_exec(
            *("node", str(PACKAGE / "test" / "run.js"), scenario),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(60):
            out, _ = await process.communicate(json.dumps(given).encode())
        assert process.returncode == 0
        return json.loads(out)

    def answered(self, proxy: FaultProxy) -> bool:
        """Whether the session was answered at all through ``proxy``."""
        return proxy.bytes_down > 0


class InPage:
    """The same in a page of the gateway: one made up here could not reach this machine."""

    def __init__(self, page: Page, server: Server) -> None:
        self._page = page
        self._server = server
        self._answered = False
        page.on("websocket", lambda line: line.on("framereceived", self._heard))
        page.on("response", self._heard_response)

    async def __call__(self, scenario: str, given: dict[str, Any]) -> dict[str, Any]:
        url = given["urls"][-1]
        origin = url.replace("ws://", "http://").split("/", 3)[:3]
        await self._page.goto(self._server.http if ":9/" in url else "/".join(origin))
        return await self._page.evaluate(
            "async ([name, given]) => (await import('/package/test/scenarios.js'))[name](given)",
            [scenario, given],
        )

    def answered(self, proxy: FaultProxy) -> bool:
        """The page came through ``proxy`` as well, so its bytes say nothing."""
        return self._answered

    def _heard(self, _: object) -> None:
        self._answered = True

    def _heard_response(self, response: Response) -> None:
        self._answered |= response.url.endswith("/events")


async def from_disk(route: Route) -> None:
    """The package's files, at the gateway's own origin."""
    name = route.request.url.partition("/package/")[2]
    await route.fulfill(body=(PACKAGE / name).read_text(), content_type="text/javascript")


@pytest.fixture(params=["node", "chromium"])
async def play(
    request: pytest.FixtureRequest, server: Server, packages: Path
) -> AsyncIterator[InNode | InPage]:
    if request.param == "node":
        yield InNode()
        return
    if CHROMIUM is None:
        pytest.fail("chromium is not installed, run: scripts/system.sh")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = await browser.new_page()
        await page.route("**/package/**", from_disk)
        yield InPage(page, server)
        await browser.close()


async def cut(proxy: FaultProxy, play: InNode | InPage, times: int, every_s: float) -> None:
    """Not before the session was answered: a first connection that fails is an error."""
    while not play.answered(proxy):  # noqa: ASYNC110 - the line is watched from outside
        await asyncio.sleep(0.02)
    for _ in range(times):
        await asyncio.sleep(every_s)
        proxy.reset()


async def through(server: Server, play: InNode | InPage, work: Work, times: int) -> Any:
    """``work`` with the port of a proxy whose connections are cut now and then."""
    proxy = FaultProxy()
    await proxy.start("127.0.0.1", server.port)
    try:
        async with asyncio.TaskGroup() as group:
            cutting = group.create_task(cut(proxy, play, times, 0.6))
            found = await work(proxy.port)
            cutting.cancel()
        return found
    finally:
        await proxy.close()


async def test_speech_is_exact_over_lost_connections(server, play):
    found = await through(
        server,
        play,
        lambda port: play("speak", {"urls": [f"ws://127.0.0.1:{port}/tts"], "text": TEXT}),
        times=20,
    )
    assert found["spoken"] == TEXT
    assert found["inOrder"] and found["frames"] > 0
    assert found["resumed"] >= 1 and found["restarts"] == 0


async def test_every_word_is_heard_once_over_lost_connections(server, play):
    found = await through(
        server,
        play,
        lambda port: play("listen", {"urls": [f"ws://127.0.0.1:{port}/v1/listen"],
                                     "samples": SOUND}),
        times=20,
    )  # fmt: skip
    assert found["text"].split() == [f"w{word}" for word in WORDS]
    assert found["resumed"] >= 1


async def test_a_dead_address_among_several_is_passed_over(server, play):
    urls = ["ws://127.0.0.1:9/tts", f"ws://127.0.0.1:{server.port}/tts"]
    found = await play("speak", {"urls": urls, "text": "Short. "})
    assert found["spoken"] == "Short. "


async def test_a_refusal_has_its_name(server, play):
    given = {"urls": [f"ws://127.0.0.1:{server.port}/tts"], "options": {"sampleRate": 5}}
    assert (await play("refused", given))["code"] == "bad_request"
    assert (await play("refused", {"urls": ["ws://127.0.0.1:9/tts"]}))["code"] == "unreachable"


async def test_the_events_of_an_answer_come_once_over_lost_connections(server, play):
    body = {"model": "synthetic", "input": "go", "background": True}
    async with aiohttp.ClientSession() as http:
        answer = await http.post(f"{server.http}/v1/responses", json=body)
        job = (await answer.json())["id"].removeprefix("resp_")
    found = await through(
        server,
        play,
        lambda port: play("follow", {"urls": [f"http://127.0.0.1:{port}/v1/jobs/{job}/events"]}),
        times=20,
    )
    assert found["last"] == "ended"
    assert found["ids"] == list(range(1, len(found["ids"]) + 1))
    assert found["text"]


def test_its_types_hold(packages):
    if not (packages / "node_modules" / "typescript").is_dir() and not os.environ.get("CI"):
        pytest.skip("typescript is not installed: npm ci in clients/javascript")
    subprocess.run(["npx", "tsc", "-p", "."], cwd=packages, check=True, timeout=120)
