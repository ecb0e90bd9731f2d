"""One simulated speaker of `/ws/asr`: talks in real time, listens, obeys what it is told.

It does what the original's clients do: connect, ``start``, a chunk every so often whatever
the server says, ``finish``, wait for ``final_result``. Refused at the door it waits as long
as ``Retry-After`` asks and tries again, until its patience ends; a lost connection is opened
again with the same session id and what was not acknowledged is sent again.

Measured is what a client can see: when it was first told anything, when it left the queue,
how far the text lags behind the voice, and every word against what was said.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Any

import msgspec

from forebay.client.reach import why
from forebay.lab.line import Line, TurnedAway, text_frame

__all__ = ["Clip", "Notice", "Outcome", "Plan", "Speaker", "word_errors"]

LOST_LINE = {None, 1001, 1006, 1012, 4408}
"""Close codes after which a session is still there to come back to."""


@dataclass(frozen=True, slots=True)
class Clip:
    """Something to say: its words and its sound, cut and encoded for the wire."""

    words: tuple[str, ...]
    chunks: tuple[bytes, ...]
    chunk_s: float

    @property
    def audio_s(self) -> float:
        return len(self.chunks) * self.chunk_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """``until_s``: no new attempt later than this after the run began. ``patience_s``: for
    the final result after ``finish``. ``drops``: seconds into the speech at which the line
    is cut. ``silent_s``: say nothing for so long after ``start``."""

    url: str
    clip: Clip
    start_after_s: float = 0.0
    until_s: float = 120.0
    patience_s: float = 60.0
    drops: tuple[float, ...] = ()
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Notice:
    """A queue place the client was told. ``at_s``: when, on the loop's clock."""

    at_s: float
    position: int
    eta_s: float | None


@dataclass(slots=True)
class Outcome:
    """What one speaker saw. Times are seconds; points in time are on the loop's clock."""

    ended: str = ""  # completed, refused, or what went wrong
    attempts: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    told_s: list[float] = field(default_factory=list)  # wanted in -> first definite answer
    notices: list[Notice] = field(default_factory=list)
    left_at: float | None = None  # the moment its audio was first being heard
    lags: list[tuple[float, float]] = field(default_factory=list)  # (result at, seconds)
    final_s: float | None = None  # finish -> final_result
    rtf: float | None = None  # whole time at the server / seconds of audio
    audio_s: float = 0.0
    resumed: int = 0
    sent: int = 0
    acked: int = 0
    results: int = 0
    lost_chunks: int = 0
    repeated_chunks: int = 0
    out_of_order: int = 0
    finals: int = 0
    words: int = 0
    missing_words: int = 0
    extra_words: int = 0
    errors: list[str] = field(default_factory=list)

    @property
    def eta_errors(self) -> list[float]:
        """Relative errors of predicted waits that turned out longer than 2 s."""
        if self.left_at is None:
            return []
        found = []
        for notice in self.notices:
            waited = self.left_at - notice.at_s
            if notice.eta_s is not None and waited > 2.0:
                found.append(abs(notice.eta_s - waited) / waited)
        return found


class Message(msgspec.Struct):
    """What any server of this protocol may say; absent fields are None or 0."""

    type: str
    session_id: str = ""
    status: str = ""
    message: str = ""
    text: str = ""
    chunk_index: int = 0
    chunk_count: int = 0
    pending: int = 0
    position: int | None = None
    eta_s: float | None = None
    retry_after_s: float | None = None
    last_chunk_index: int | None = None


_decoder = msgspec.json.Decoder(Message)


class Refused(Exception):  # noqa: N818 - a turn of events, not a mistake
    """Not now. ``wait_s``: what the server asked for."""

    def __init__(self, why: str, wait_s: float) -> None:
        super().__init__(why)
        self.why = why
        self.wait_s = wait_s


class Speaker:
    """Runs one `Plan`; `outcome` may be read meanwhile. A chunk costs a timer and a write, an
    answer a call: the tasks are for connecting and for waiting only."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.outcome = Outcome(audio_s=plan.clip.audio_s, words=len(plan.clip.words))
        self._loop = asyncio.get_running_loop()
        self._line: Line | None = None
        self._session = secrets.token_hex(16)
        self._begun: float | None = None  # when it began to speak
        self._wanted_at = 0.0
        self._told = False
        self._up = False  # a session is open on the line
        self._next = 0  # next chunk to be sent on this connection
        self._acked = -1
        self._result = -1
        self._texts: dict[int, str] = {}
        self._finished_at: float | None = None
        self._first: asyncio.Future[Message] | None = None  # the answer to `start`
        self._news = asyncio.Event()  # the end, or the line is gone
        self._timer: asyncio.TimerHandle | None = None
        self._drops = list(plan.drops)

    async def run(self) -> Outcome:
        begin = self._loop.time()
        await asyncio.sleep(self.plan.start_after_s)
        while not self.outcome.ended:
            try:
                await self._attempt()
            except Refused as refused:
                self.outcome.refusals[refused.why] += 1
                await self._give_up_or_wait(refused, begin)
            except (OSError, TimeoutError) as exc:
                self._fail(f"connect: {why(exc)}")
        if self._line is not None:
            self._line.close()
        return self.outcome

    async def _give_up_or_wait(self, refused: Refused, begin: float) -> None:
        if self._loop.time() + refused.wait_s > begin + self.plan.until_s:
            self.outcome.ended = "refused"
        else:
            await asyncio.sleep(refused.wait_s)

    # ------------------------------------------------------------------- one session

    async def _attempt(self) -> None:
        self.outcome.attempts += 1
        self._wanted_at, self._told = self._loop.time(), False
        await self._connect()
        self._wait_for_tick(0)
        try:
            await self._listen()
        finally:
            if self._timer is not None:
                self._timer.cancel()

    async def _connect(self) -> None:
        """Raises `Refused` when turned away, at the door or at ``start``."""
        if self._line is not None:
            self._line.close()
        headers = dict(self.plan.headers)
        if self._begun is not None:
            headers["X-Forebay-Session"] = self._session
        self._news.clear()
        try:
            self._line = await Line.open(self.plan.url, self._heard, self._news.set, headers)
        except TurnedAway as away:
            if away.status not in (429, 503):
                raise
            self._tell()
            raise Refused(
                f"http_{away.status}", float(away.headers.get("retry-after", "1"))
            ) from None
        self._first = self._loop.create_future()
        self._send({"action": "start", "session_id": self._session})
        ack = await self._first_answer(self._line, self._first)
        if self._begun is None:
            self._begun = self._loop.time()
        self._next = 0 if ack.last_chunk_index is None else ack.last_chunk_index + 1
        self._up = True
        if self._finished_at is not None:
            self._resend()

    async def _first_answer(self, line: Line, answer: asyncio.Future[Message]) -> Message:
        gone = asyncio.ensure_future(self._news.wait())
        try:
            await asyncio.wait(
                (answer, gone),
                timeout=self.plan.patience_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            gone.cancel()
            self._first = None
        if not answer.done():
            if line.closed:
                raise ConnectionResetError(f"closed {line.code} before an ack")
            raise TimeoutError("no answer to start")
        message = answer.result()
        if message.type == "error":
            self._tell()
            raise Refused("error_at_start", message.retry_after_s or 1.0)
        return message

    def _tell(self) -> None:
        """The client knows where it stands: served, in the queue, or refused."""
        if not self._told:
            self._told = True
            self.outcome.told_s.append(self._loop.time() - self._wanted_at)

    # ---------------------------------------------------------------------- speaking

    def _wait_for_tick(self, tick: int) -> None:
        """A chunk at each tick of the voice's own clock; late ones follow at once."""
        assert self._begun is not None  # noqa: S101 - set by _connect
        due = self._begun + (tick + 1) * self.plan.clip.chunk_s  # said before it can be sent
        self._timer = self._loop.call_at(due, self._tick, tick, due)

    def _tick(self, tick: int, due: float) -> None:
        assert self._begun is not None  # noqa: S101 - set by _connect
        if self._drops and due - self._begun >= self._drops[0]:
            self._drops.pop(0)
            self._cut()
        while self._up and self._next <= tick:
            if not self._chunk(self._next):
                break
        if tick + 1 < len(self.plan.clip.chunks):
            self._wait_for_tick(tick + 1)
            return
        self._finished_at = self._loop.time()
        if self._up:
            self._resend()

    def _resend(self) -> None:
        """Everything said that this connection has not carried yet, and the end."""
        while self._next < len(self.plan.clip.chunks):
            if not self._chunk(self._next):
                return
        self._send({"action": "finish", "session_id": self._session})

    def _chunk(self, index: int) -> bool:
        head = (
            f'{{"action":"chunk","session_id":"{self._session}","chunk_index":{index},'
            f'"audio_data":"'
        )
        # What cannot be sent now is sent again after the next ack.
        if self._line is None or not self._line.send(
            text_frame(head.encode(), self.plan.clip.chunks[index], b'"}')
        ):
            return False
        self._next = index + 1
        self.outcome.sent = max(self.outcome.sent, index + 1)
        return True

    def _send(self, message: dict[str, Any]) -> None:
        if self._line is not None:
            self._line.send(text_frame(msgspec.json.encode(message)))

    def _cut(self) -> None:
        self._up = False
        if self._line is not None:
            self._line.cut()

    # --------------------------------------------------------------------- listening

    async def _listen(self) -> None:
        while not self.outcome.ended:
            assert self._line is not None  # noqa: S101 - set by _connect
            try:
                async with asyncio.timeout_at(self._deadline()):
                    await self._news.wait()
            except TimeoutError:
                if self._loop.time() >= self._deadline():
                    self._fail("timeout")
                continue
            if not self.outcome.ended:
                await self._come_back(self._line.code)

    def _deadline(self) -> float:
        assert self._begun is not None  # noqa: S101 - set by _connect
        said = self._finished_at or self._begun + self.plan.clip.audio_s
        return said + self.plan.patience_s

    async def _come_back(self, code: int | None) -> None:
        self._up = False
        if code not in LOST_LINE:
            self._fail(f"closed_{code}")
            return
        for attempt in range(10):
            await asyncio.sleep(min(0.05 * 2**attempt, 2.0))
            try:
                await self._connect()
            except (OSError, TimeoutError, Refused):
                continue
            self.outcome.resumed += 1
            return
        self._fail("no_connection")

    def _heard(self, data: bytes) -> None:
        message = _decoder.decode(data)
        first = self._first
        if first is not None and not first.done() and message.type in ("ack", "error"):
            first.set_result(message)
        else:
            self._read(message)
        if self.outcome.ended:
            self._news.set()

    def _read(self, message: Message) -> None:
        match message.type:
            case "ack":
                self._acked = max(self._acked, message.chunk_index)
                self.outcome.acked = self._acked + 1
            case "chunk_result":
                self._chunk_result(message)
            case "queue_status":
                self._queue_status(message)
            case "final_result":
                self._final(message)
            case "error":
                self._fail(f"error: {message.message[:80]}")

    def _queue_status(self, message: Message) -> None:
        self._tell()
        if message.position:
            notice = Notice(self._loop.time(), message.position, message.eta_s)
            self.outcome.notices.append(notice)
            self.outcome.left_at = None
        elif self.outcome.left_at is None:
            self.outcome.left_at = self._loop.time()

    def _chunk_result(self, message: Message) -> None:
        self._tell()
        out, now, index = self.outcome, self._loop.time(), message.chunk_index
        if out.left_at is None:
            out.left_at = now
        out.results += 1
        if index in self._texts:
            out.repeated_chunks += 1
        elif index != self._result + 1:
            out.out_of_order += 1
        self._result = max(self._result, index)
        self._texts[index] = self._texts.get(index, "") + message.text
        if self._begun is not None:
            said_at = self._begun + (index + 1) * self.plan.clip.chunk_s
            out.lags.append((now, now - max(said_at, out.left_at)))

    def _final(self, message: Message) -> None:
        out, now, clip = self.outcome, self._loop.time(), self.plan.clip
        self._tell()
        out.finals += 1
        out.ended = "completed"
        if self._finished_at is not None:
            out.final_s = now - self._finished_at
        if self._begun is not None:
            out.rtf = (now - self._begun) / clip.audio_s
        out.left_at = out.left_at if out.left_at is not None else now
        out.lost_chunks = len(clip.chunks) - message.chunk_count
        if clip.words:
            out.missing_words, out.extra_words = word_errors(clip.words, message.text.split())

    def _fail(self, code: str) -> None:
        self.outcome.errors.append(code)
        self.outcome.ended = code
        self._news.set()


def word_errors(said: tuple[str, ...], heard: list[str]) -> tuple[int, int]:
    """Words of ``said`` that are not in ``heard`` at their place, and words too many."""
    if list(said) == heard:
        return 0, 0
    same = sum(
        block.size for block in SequenceMatcher(None, said, heard, False).get_matching_blocks()
    )
    return len(said) - same, len(heard) - same
