"""The recognition view when the server is away, full, or has lost the session.

The server's side of the WebSocket is played here, so that it can fail as a test wants it to.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from benchmarks.harness import Server
from browser_tools import recording
from playwright.async_api import Browser, Page, Route, WebSocketRoute, expect

LIMIT_S = 60
NOTICE = "#notice"


class Call:
    """One connection of the page, as the server sees it."""

    def __init__(self, gateway: Gateway, socket: WebSocketRoute) -> None:
        self.gateway = gateway
        self.socket = socket
        self.start: dict[str, Any] = {}
        self.texts: list[dict[str, Any]] = []
        self.samples = 0

    def say(self, **message: Any) -> None:
        self.socket.send(json.dumps(message))

    def begin(self, *, samples: int = 0, resumed: bool = False, **more: Any) -> None:
        facts = {"session_id": self.start["session_id"], "finished": False, "ttl_s": 120.0}
        self.say(type="started", samples=samples, resumed=resumed, **{**facts, **more})


class Gateway:
    """Answers each connection's ``start`` with the next of ``answers``, the last for ever."""

    def __init__(self, *answers: Callable[[Call], None]) -> None:
        self.answers = list(answers)
        self.calls: list[Call] = []
        self.acked = 0
        self.closing: asyncio.Future[None] | None = None
        self.moved = asyncio.Event()

    async def play(self, page: Page) -> None:
        await page.route_web_socket("**/v1/listen**", self._take)

    def _take(self, socket: WebSocketRoute) -> None:
        call = Call(self, socket)
        self.calls.append(call)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

        def heard(frame: str | bytes) -> None:
            if isinstance(frame, bytes):
                call.samples += len(frame) // 2
            else:
                message = json.loads(frame)
                call.texts.append(message)
                if message["type"] == "start":
                    call.start = message
                    answer(call)
            self.moved.set()

        socket.on_message(heard)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(LIMIT_S):
            while not condition():
                self.moved.clear()
                await self.moved.wait()

    async def heard(self, call: int, samples: int) -> Call:
        """That connection, once it has brought so many samples."""
        await self.until(lambda: len(self.calls) > call and self.calls[call].samples >= samples)
        return self.calls[call]


async def cut(route: Route) -> None:
    await route.abort()


def hang_up(call: Call) -> None:
    call.gateway.closing = asyncio.ensure_future(call.socket.close(code=1011))


def unknown(call: Call) -> None:
    call.say(
        type="error", code="resume_not_available", message="no such session",
        details={"reason": "unknown"},
    )  # fmt: skip


@pytest_asyncio.fixture(loop_scope="session")
async def page(hearing: Browser, server: Server) -> AsyncIterator[Page]:
    """The listening page; its microphone plays the recording over and over."""
    context = await hearing.new_context(locale="en-US", permissions=["microphone"])
    tab = await context.new_page()
    thrown: list[str] = []
    tab.on("pageerror", lambda error: thrown.append(str(error)))
    await tab.goto(f"{server.http}/static/listen.html")
    await expect(tab.locator("#record")).to_be_enabled()
    yield tab
    await context.close()
    assert thrown == []


async def lost_after_words(page: Page, *then: Callable[[Call], None]) -> Gateway:
    """Speaking; the first words came, a second of sound after them is not acknowledged, and
    the connection is cut."""
    gateway = Gateway(Call.begin, *then)
    await gateway.play(page)
    await page.click("#record")
    call = await gateway.heard(0, 4000)
    rate = call.start["sample_rate"]
    gateway.acked = call.samples
    call.say(type="ack", samples=gateway.acked)
    call.say(type="final", event=1, text="first words", start=0.0, end=gateway.acked / rate)
    await expect(page.locator("#sure")).to_have_text("first words")
    await gateway.heard(0, gateway.acked + rate)
    await call.socket.close(code=1011)
    return gateway


async def test_an_absent_server_is_waited_for_as_long_as_the_session_waits(page: Page) -> None:
    await page.clock.install()
    await lost_after_words(page, hang_up)
    for _ in range(20):
        await page.clock.run_for(5000)
    await expect(page.locator("#link")).to_contain_text("coming back")
    assert await page.evaluate("window.forebay.ear.active")
    for _ in range(5):
        await page.clock.run_for(5000)
    await expect(page.locator(NOTICE)).to_contain_text("s of speech were not heard")
    await expect(page.locator("#record")).to_be_visible()
    await expect(page.locator("#sure")).to_have_text("first words")


async def test_a_network_that_is_back_is_used_at_once(page: Page) -> None:
    await page.evaluate("Math.random = () => 1")
    await page.route("**/v1/capacity", cut)
    gateway = Gateway(hang_up, Call.begin)
    await gateway.play(page)
    await page.click("#record")
    await expect(page.locator(NOTICE)).to_contain_text("The server cannot be reached")
    await page.clock.install()  # from here on no timer of the page runs out by itself
    await page.evaluate("dispatchEvent(new Event('online'))")
    await expect(page.locator("#link")).to_have_text("connected")
    await expect(page.locator(NOTICE)).to_be_hidden()


@pytest.mark.parametrize("answer", [unknown, Call.begin], ids=["error", "a new one of its name"])
async def test_a_lost_session_is_followed_by_a_new_one(
    page: Page, answer: Callable[[Call], None]
) -> None:
    gateway = await lost_after_words(page, answer, Call.begin)
    await expect(page.locator(NOTICE)).to_contain_text("The server lost the session")
    await expect(page.locator(NOTICE)).to_contain_text("words so far are kept")
    await expect(page.locator("#resumed")).to_have_text("0")
    old, new = gateway.calls[0], gateway.calls[2]
    assert new.start["session_id"] != old.start["session_id"]
    assert new.start["after_event"] == 0
    rate = new.start["sample_rate"]
    await gateway.heard(2, rate)  # what was not heard came along, from its first sample
    assert next(m for m in new.texts if m["type"] == "from") == {"type": "from", "sample": 0}
    new.say(type="ack", samples=new.samples)
    new.say(type="final", event=1, text="more", start=0.0, end=new.samples / rate)
    await expect(page.locator("#sure")).to_have_text("first words more")
    await page.click("#enough")
    await gateway.until(lambda: new.texts[-1]["type"] == "end")
    new.say(type="ack", samples=new.samples)
    new.say(type="ended", event=2, state="completed", text="more")
    await expect(page.locator("#record")).to_be_visible()
    said, stored = await page.evaluate("[window.forebay.ear.said, window.forebay.ear.stored]")
    assert said == stored
    await expect(page.locator(NOTICE)).to_contain_text("The server lost the session")
    await page.click("#language")
    await expect(page.locator(NOTICE)).to_contain_text("服务器丢失了会话")


async def test_a_session_that_was_over_on_coming_back_is_followed_by_a_new_one(page: Page) -> None:
    def over(call: Call) -> None:
        call.begin(samples=call.gateway.acked, resumed=True, finished=True)
        call.say(type="final", event=2, text=" and late ones", start=0.0, end=0.1)
        call.say(type="ended", event=3, state="cancelled")

    await lost_after_words(page, over, Call.begin)
    await expect(page.locator(NOTICE)).to_contain_text("a new one goes on")
    await expect(page.locator("#sure")).to_have_text("first words and late ones")


@pytest.mark.parametrize("message", [
    {"type": "ended", "event": 1, "state": "cancelled"},
    {"type": "ended", "event": 1, "state": "failed"},
    {"type": "error", "code": "job_failed", "message": "the model stopped"},
], ids=["cancelled", "failed", "error"])  # fmt: skip
async def test_an_end_that_nobody_asked_for_is_told(page: Page, message: dict[str, Any]) -> None:
    gateway = Gateway(Call.begin)
    await gateway.play(page)
    await page.click("#record")
    call = await gateway.heard(0, 4000)
    call.say(**message)
    await expect(page.locator(NOTICE)).to_contain_text("s of speech were not heard")
    await expect(page.locator(NOTICE)).to_contain_text("Press Speak to begin again")
    await expect(page.locator("#record")).to_be_visible()


async def test_stopping_while_the_connection_is_lost_can_be_given_up(page: Page) -> None:
    await lost_after_words(page, hang_up)
    await expect(page.locator("#link")).to_contain_text("coming back")
    await page.click("#enough")
    await expect(page.locator(NOTICE)).to_contain_text("press Stop again")
    await page.click("#enough")
    await expect(page.locator(NOTICE)).to_contain_text("s of speech were not heard")


async def test_only_a_full_server_is_called_full(page: Page) -> None:
    pool = {"kind": "recognition", "free_now": 0, "queued": 3, "wait_now_s": 30.0}
    await page.route("**/v1/capacity", lambda route: route.fulfill(json={"pools": [pool]}))
    gateway = Gateway(hang_up)
    await gateway.play(page)
    await page.click("#record")
    await expect(page.locator(NOTICE)).to_contain_text("Every place is taken")
    await page.click("#language")
    await expect(page.locator(NOTICE)).to_contain_text("名额已满")
    await page.click("#enough")
    await expect(page.locator(NOTICE)).to_be_hidden()
    await expect(page.locator("#welcome")).to_be_visible()


async def test_a_server_that_is_away_is_not_called_a_missing_microphone(page: Page) -> None:
    # No route sees what a worklet fetches.
    await page.evaluate(
        "() => { AudioWorklet.prototype.addModule = () => Promise.reject(Error()); }"
    )
    await page.click("#record")
    await expect(page.locator(NOTICE)).to_contain_text("The server cannot be reached")
    await expect(page.locator("#record")).to_be_visible()


# ------------------------------------------------------------------------------- files


async def test_a_recording_without_a_server_is_not_called_unreadable(
    page: Page, tmp_path: Path
) -> None:
    await page.route("**/v1/audio/transcriptions", cut)
    await page.set_input_files("#file", recording(tmp_path))
    await expect(page.locator(NOTICE)).to_contain_text("connection to the server was lost")
    await expect(page.locator("#welcome")).to_be_visible()


async def test_a_recording_that_is_cut_keeps_its_words(page: Page, tmp_path: Path) -> None:
    line = f"data: {json.dumps({'type': 'transcript.text.delta', 'delta': 'some words'})}\n\n"
    await page.route(
        "**/v1/audio/transcriptions",
        lambda route: route.fulfill(body=line, content_type="text/event-stream"),
    )
    await page.set_input_files("#file", recording(tmp_path))
    await expect(page.locator(NOTICE)).to_contain_text("connection to the server was lost")
    await expect(page.locator("#sure")).to_have_text("some words")


async def test_a_recording_that_waits_is_told_its_place(page: Page, tmp_path: Path) -> None:
    asked = 0
    answer = asyncio.Event()
    done = {"type": "transcript.text.done", "text": "", "usage": {"seconds": 0.0}}

    async def capacity(route: Route) -> None:
        nonlocal asked
        asked += 1
        pool = {"kind": "recognition", "free_now": 0, "queued": 2, "wait_now_s": 3.2}
        await route.fulfill(json={"pools": [pool]})

    async def reading(route: Route) -> None:
        await answer.wait()
        await route.fulfill(body=f"data: {json.dumps(done)}\n\n", content_type="text/event-stream")

    await page.route("**/v1/capacity", capacity)
    await page.route("**/v1/audio/transcriptions", reading)
    await page.set_input_files("#file", recording(tmp_path))
    await expect(page.locator("#place")).to_have_text("place 2, about 4 s")
    await page.click("#language")
    await expect(page.locator("#place")).to_have_text("第 2 位，约 4 秒")
    await expect(page.locator("#link")).to_have_text("正在读取录音")
    answer.set()
    await expect(page.locator(NOTICE)).to_have_text("这个文件里没有声音。")
    before = asked
    await page.clock.install()
    await page.clock.run_for(5000)
    assert asked == before


async def test_refused_files_leave_no_trace(page: Page, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.wav"
    wrong.write_bytes(b"nothing to hear")
    for _ in range(2):
        await page.set_input_files("#file", wrong)
        await expect(page.locator(NOTICE)).to_contain_text("could not be read")
    assert await page.locator("#sure").text_content() == ""
    await expect(page.locator("#welcome")).to_be_visible()
    await page.click("#language")
    await expect(page.locator(NOTICE)).to_contain_text("无法读取这段录音")
