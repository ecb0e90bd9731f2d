"""One simulated user of `/tts`: types at a steady pace, listens, and misbehaves on request.

Everything measured is what a client can see: when a unit was sent, when the audio that
speaks it arrived, what was missing, doubled or different at the end.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec

from forebay.client.reach import why
from forebay.client.s1 import Chunk, SpeechState
from forebay.errors import ForebayError, ResumeNotAvailable, StateLost

__all__ = ["Fault", "Outcome", "Plan", "User"]

CONNECT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What this user does wrong, ``at_s`` seconds after its first text."""

    kind: str  # disconnect, cancel, pause
    at_s: float
    for_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    url: str
    text: str
    cps: float
    sample_rate: int = 16000
    start_after_s: float = 0.0
    faults: tuple[Fault, ...] = ()
    headers: dict[str, str] = field(default_factory=dict)
    end_wait_s: float = 60.0  # after text_end; then the session counts as hung
    patient: bool = False  # a connection that fails before its start_ack is tried again


@dataclass(slots=True)
class Outcome:
    """What one user saw. Times are seconds on the event loop's clock."""

    injected: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    ttfa_s: float | None = None
    latencies: list[tuple[float, float]] = field(default_factory=list)  # (sent at, seconds)
    cut_s: list[float] = field(default_factory=list)  # clause mark sent -> its audio
    cut_audio_s: list[float] = field(default_factory=list)  # beside each: its segment's audio
    cut_at_s: list[float] = field(default_factory=list)  # beside each: when the mark was sent
    gaps_s: list[float] = field(default_factory=list)  # dropped -> next chunk
    cancel_s: float | None = None
    audio_after_cancel: int = 0
    resumed: int = 0
    restarted: int = 0
    units_sent: int = 0
    units_received: int = 0
    missing: int = 0
    duplicates: int = 0
    mismatched: int = 0
    out_of_order: int = 0
    split_words: int = 0
    chunks: int = 0
    audio_s: float = 0.0
    terminals: int = 0  # tts_end messages and errors that end a session
    resets: int = 0  # told that the session's state is gone, and began anew
    worst_gap_s: float = 0.0  # longest silence between two chunks
    worst_gap_at: float = 0.0
    ended: str = ""  # completed, cancelled, or an error code


class User:
    """Runs one `Plan`. `outcome` may be read while it runs (live progress)."""

    def __init__(self, plan: Plan, http: aiohttp.ClientSession) -> None:
        self.plan = plan
        self.outcome = Outcome()
        self._http = http
        self._state = SpeechState(secrets.token_hex(16), plan.sample_rate)
        self._ws: aiohttp.ClientWebSocketResponse | None = None
        self._sent_at: list[float] = []  # per unit
        self._up = asyncio.Event()  # a started connection exists
        self._resume_reading = asyncio.Event()
        self._resume_reading.set()
        self._dropped_at: float | None = None
        self._cancelled_at: float | None = None
        self._known = False
        self._segment_seq = 0
        self._segment_s = 0.0
        self._chunk_at: float | None = None

    async def run(self) -> Outcome:
        if self.plan.start_after_s:
            await asyncio.sleep(self.plan.start_after_s)
        typing = asyncio.ensure_future(self._type())
        misbehaving = asyncio.ensure_future(self._misbehave())
        try:
            await self._listen(typing)
        except (aiohttp.ClientError, OSError) as exc:
            self._fail(f"connect: {why(exc)}")
        finally:
            for task in (typing, misbehaving):
                task.cancel()
            for ended in await asyncio.gather(typing, misbehaving, return_exceptions=True):
                if isinstance(ended, Exception):
                    self._fail(f"tool_{type(ended).__name__}")
            if self._ws is not None:
                await self._ws.close()
        self._conclude()
        return self.outcome

    # ----------------------------------------------------------------- listening

    async def _listen(self, typing: asyncio.Future[None]) -> None:
        if self.plan.patient:
            await self._try_again(0.0)
        else:
            await self._connect()
        while not self._state.over:
            await self._resume_reading.wait()
            assert self._ws is not None  # noqa: S101 - set by _connect
            wait_s = self.plan.end_wait_s if typing.done() else None
            try:
                async with asyncio.timeout(wait_s or self.plan.end_wait_s * 4):
                    message = await self._ws.receive()
            except TimeoutError:
                self._fail("hung")
                return
            if message.type is aiohttp.WSMsgType.TEXT:
                await self._read(msgspec.json.decode(message.data))
            elif not self._state.over:
                await self._reconnect()

    async def _read(self, message: dict[str, Any]) -> None:
        now = time.monotonic()
        match message.get("type"):
            case "audio_chunk":
                if self._cancelled_at is not None:
                    self.outcome.audio_after_cancel += 1
                chunk = self._state.chunk(message)
                if chunk is not None:
                    self._measure(chunk, int(message["seq"]), now)
            case "tts_end":
                self.outcome.terminals += 1
                self._state.over = True
                self.outcome.ended = "cancelled" if message.get("cancelled") else "completed"
                if self._cancelled_at is not None:
                    self.outcome.cancel_s = now - self._cancelled_at
            case "error":
                await self._error(self._state.error(message), str(message.get("code")))

    def _measure(self, chunk: Chunk, seq: int, now: float) -> None:
        out = self.outcome
        out.chunks += 1
        if self._chunk_at is not None and now - self._chunk_at > out.worst_gap_s:
            out.worst_gap_s, out.worst_gap_at = now - self._chunk_at, now
        self._chunk_at = now
        audio_s = len(chunk.audio) / 2 / chunk.channels / chunk.sample_rate
        out.audio_s += audio_s
        # Pieces of one segment carry the same number: the newest when it was cut.
        self._segment_s = audio_s + (self._segment_s if seq == self._segment_seq else 0.0)
        self._segment_seq = seq
        if self._dropped_at is not None:
            out.gaps_s.append(now - self._dropped_at)
            self._dropped_at = None
        if out.ttfa_s is None and self._sent_at:
            out.ttfa_s = now - self._sent_at[0]
        for unit in range(chunk.unit, min(chunk.unit + len(chunk.text), len(self._sent_at))):
            out.latencies.append((self._sent_at[unit], now - self._sent_at[unit]))
        last = chunk.unit + len(chunk.text) - 1
        if last < len(self._sent_at):
            if chunk.text[-1] in "，。！？；：":
                out.cut_s.append(now - self._sent_at[last])
                out.cut_audio_s.append(self._segment_s)
                out.cut_at_s.append(self._sent_at[last])
            following = self._state.text[last + 1 : last + 2]
            if chunk.text[-1].isascii() and chunk.text[-1].isalnum() and following.isalnum():
                out.split_words += following.isascii()

    async def _error(self, error: ForebayError, code: str) -> None:
        if isinstance(error, ResumeNotAvailable | StateLost):
            self._up.clear()  # what is typed from here on belongs to the next session
            self._state.restart(secrets.token_hex(16))
            self._known = False
            self.outcome.restarted += 1
            self.outcome.resets += isinstance(error, StateLost) or self._lost(error)
            if self.plan.patient:
                await self._try_again(0.0)
            else:
                await self._connect()
            return
        self.outcome.terminals += 1
        self._fail(code)

    @staticmethod
    def _lost(error: ForebayError) -> bool:
        """A resume that the server cannot answer, since it does not know the session."""
        return error.details.get("reason") in {"state_lost", "unknown", "unknown_session"}

    def _fail(self, code: str) -> None:
        self.outcome.errors.append(code)
        self.outcome.ended = code
        self._state.over = True

    # ---------------------------------------------------------------- connecting

    async def _connect(self) -> None:
        if self._ws is not None:
            await self._ws.close()
        self._ws = await self._http.ws_connect(
            self.plan.url, compress=0, headers=self.plan.headers, max_msg_size=1 << 20
        )
        for message in self._state.opening(known=self._known):
            await self._send(message)
        ack = await self._ack()
        if ack is None:
            return
        self._known = True
        for message in self._state.resent(ack):
            await self._send(message)
        self._up.set()

    async def _ack(self) -> dict[str, Any] | None:
        assert self._ws is not None  # noqa: S101 - set by _connect
        message = await self._ws.receive()
        if message.type is not aiohttp.WSMsgType.TEXT:
            if self.plan.patient:
                raise ConnectionResetError("the connection ended before start was answered")
            self._fail(f"closed_{self._ws.close_code}")
            return None
        ack: dict[str, Any] = msgspec.json.decode(message.data)
        if ack.get("type") != "start_ack":
            if self.plan.patient and ack.get("retry_after_s") is not None:
                raise ConnectionResetError("refused for now")
            self._fail(str(ack.get("code", "no_start_ack")))
            return None
        return ack

    async def _reconnect(self) -> None:
        self._up.clear()
        if self._dropped_at is None:
            self._dropped_at = time.monotonic()
            if "disconnect" not in self.outcome.injected:
                code = self._ws.close_code if self._ws is not None else None
                if code not in {1001, 1006, 1012}:
                    self._fail(f"closed_{code}")
                    return
        if await self._try_again(self._disconnected_for_s()):
            self.outcome.resumed += 1

    async def _try_again(self, wait_s: float) -> bool:
        """Connect, after ``wait_s`` and then ever later; false when the session failed."""
        for attempt in range(16 if self.plan.patient else 8):
            await asyncio.sleep(wait_s if attempt == 0 else min(0.05 * 2**attempt, 1.0))
            try:
                async with asyncio.timeout(CONNECT_S):
                    await self._connect()
            except (aiohttp.ClientError, OSError):  # a timeout is an OSError
                continue
            return not self._state.over
        self._fail("no_connection")
        return False

    def _disconnected_for_s(self) -> float:
        return next((f.for_s for f in self.plan.faults if f.kind == "disconnect"), 0.05)

    async def _send(self, message: dict[str, Any]) -> bool:
        if self._ws is None or self._ws.closed:
            return False
        try:
            await self._ws.send_str(msgspec.json.encode(message).decode())
        except (ConnectionError, aiohttp.ClientError):
            return False  # what was not heard is sent again after the next start_ack
        return True

    # -------------------------------------------------------------------- typing

    async def _type(self) -> None:
        """One unit every 1/cps seconds; late ticks are sent together, never skipped."""
        await self._up.wait()
        begin = time.monotonic()
        text, at = self.plan.text, 0
        while at < len(text) and not self._state.cancelled:
            now = time.monotonic()
            due = min(len(text), int((now - begin) * self.plan.cps) + 1)
            if due > at:
                await self._say(text[at:due], now)
                at = due
            await asyncio.sleep(max(0.0, begin + at / self.plan.cps - time.monotonic()))
        if not self._state.cancelled:
            message = self._state.end()
            if self._up.is_set():
                await self._send(message)

    async def _say(self, text: str, now: float) -> None:
        self._sent_at.extend([now] * len(text))
        self.outcome.units_sent += len(text)
        if self._up.is_set():
            await self._send(self._state.delta(text))
        else:
            self._state.remember(text)

    async def _misbehave(self) -> None:
        await self._up.wait()
        begin = time.monotonic()
        for fault in sorted(self.plan.faults, key=lambda f: f.at_s):
            await asyncio.sleep(max(0.0, begin + fault.at_s - time.monotonic()))
            self.outcome.injected.append(fault.kind)
            if fault.kind == "disconnect":
                self._drop()
            elif fault.kind == "cancel":
                await self._up.wait()
                self._cancelled_at = time.monotonic()
                await self._send(self._state.cancel())
            else:
                self._resume_reading.clear()
                await asyncio.sleep(fault.for_s)
                self._resume_reading.set()

    def _drop(self) -> None:
        """Cut the line as a lost network does: no close frame."""
        self._up.clear()
        self._dropped_at = time.monotonic()
        line = self._ws.get_extra_info("socket") if self._ws is not None else None
        if line is not None:
            # Through a duplicate: not every event loop lets its own socket be shut down.
            with socket.socket(fileno=os.dup(line.fileno())) as same:
                same.shutdown(socket.SHUT_RDWR)

    def _conclude(self) -> None:
        out, state = self.outcome, self._state
        out.units_received = state.next_unit
        out.duplicates = state.duplicates
        out.mismatched = state.mismatched
        out.out_of_order = state.out_of_order
        # What was never spoken because its speaker said stop is not missing.
        whole = out.ended == "completed" or not (state.cancelled or out.errors)
        out.missing = state.gaps + (state.missing if whole else 0)
