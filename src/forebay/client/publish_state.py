"""What a caption publisher still has to send, without any I/O, clock or thread.

Finals carry the publisher's own numbers (1, 2, 3...) and are sent in that order, up to
``max_workers`` requests at once; a server that knows Forebay's additive fields puts them in
order and drops repeats, so a request may be repeated as often as it takes. After a failed
request one is tried at a time, the lowest numbers first, until one succeeds: a server that
comes back never sees a later caption first. Previews have no number: only the newest counts,
and finals go before it.

A server without those fields (the originals) is sent one message a request: ``strict``, one
at a time, or ``parallel``, in whatever order they arrive there.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from forebay.errors import BadRequest

__all__ = ["Counters", "Message", "Order", "PublishState", "Request"]

Order = Literal["strict", "parallel"]

BATCH = 64
AHEAD = 64  # a server holds that many behind a hole: more would be given out of order
PREVIEW_S = 1.0
BACKOFF_S, MAX_BACKOFF_S = 0.1, 5.0
BUSY_S = 1.0  # at least, after a "too fast": then a good part of what waits is taken


class Message(msgspec.Struct, frozen=True, gc=False):
    """``body``: the fields of one caption. ``skip``: its number will never come. (Thousands may
    wait: the garbage collector is not to count them, or it would hold up who speaks.)"""

    seq: int
    body: Mapping[str, Any]
    skip: bool = False

    def wire(self) -> dict[str, Any]:
        return {"seq": self.seq, "skip": True} if self.skip else {"seq": self.seq, **self.body}


@dataclass(frozen=True, slots=True)
class Request:
    """One request to make. ``json``: its body without room and passphrase."""

    number: int
    messages: tuple[Message, ...]
    preview: Mapping[str, Any] | None
    json: Mapping[str, Any]
    batch: bool


@dataclass(slots=True)
class Counters:
    """Exact, since the publisher was opened. ``queued``: finals not answered yet, those of an
    earlier life included. ``dropped``: finals that will never arrive. ``errors``: requests
    without an answer of 200. ``late``: arrived, but after later ones."""

    sent: int = 0
    previews: int = 0
    queued: int = 0
    retried: int = 0
    dropped: int = 0
    previews_dropped: int = 0
    errors: int = 0
    late: int = 0


@dataclass(slots=True)
class PublishState:
    """``forebay``: whether the server knows the additive fields; None: not known yet."""

    client_id: str
    max_workers: int = 3
    order: Order = "strict"
    next_seq: int = 1
    forebay: bool | None = None
    counters: Counters = field(default_factory=Counters)
    settled: int = 0
    failures: int = 0  # in a row
    retry_at: float = 0.0

    _waiting: deque[Message] = field(default_factory=deque)
    _flying: dict[int, Request] = field(default_factory=dict)
    _skips: list[int] = field(default_factory=list)  # a heap: given up while they waited
    _done: set[int] = field(default_factory=set)
    _preview: tuple[Mapping[str, Any], float] | None = None
    _number: int = 0

    # ------------------------------------------------------------------- adding

    def restore(self, messages: Iterable[Message], *, next_seq: int, settled: int) -> None:
        """What an earlier life left in the outbox."""
        self._waiting.extend(messages)
        self.next_seq = max(self.next_seq, next_seq)
        self.settled = settled
        left = {message.seq for message in self._waiting}
        self._done = {n for n in range(settled + 1, self.next_seq) if n not in left}
        self._settle()
        self.counters.queued = len(self._waiting)

    def final(self, body: Mapping[str, Any]) -> Message:
        """A caption with its number. An older preview of this speaker is stale now."""
        message = Message(self.next_seq, body)
        self.next_seq += 1
        self._waiting.append(message)
        self.counters.queued += 1
        if self._preview is not None:
            self._preview = None
            self.counters.previews_dropped += 1
        return message

    def preview(self, body: Mapping[str, Any], now: float) -> None:
        if self._preview is not None:
            self.counters.previews_dropped += 1
        self._preview = (body, now)

    def drop_oldest(self) -> tuple[Message | None, list[int]]:
        """The oldest caption that waits becomes a `skip`: it, if there was one, and the numbers
        that need no keeping any more. What directly follows `settled` needs no telling."""
        found = None
        while self._waiting and found is None:
            message = self._waiting.popleft()
            heapq.heappush(self._skips, message.seq)
            if not message.skip:
                found = Message(message.seq, {}, skip=True)
                self.counters.dropped += 1
                self.counters.queued -= 1
        gone: list[int] = []
        while self._skips and self._skips[0] == self.settled + 1:
            gone += self._finish(Message(heapq.heappop(self._skips), {}, skip=True))
        return found, gone

    def _next(self) -> Message | None:
        """The message with the lowest number of those that wait."""
        if self._skips and (not self._waiting or self._skips[0] < self._waiting[0].seq):
            return Message(self._skips[0], {}, skip=True)
        return self._waiting[0] if self._waiting else None

    def _pop(self, message: Message) -> None:
        """``message``, which is the `_next`, waits no more."""
        if self._skips and self._skips[0] == message.seq:
            heapq.heappop(self._skips)
        else:
            self._waiting.popleft()

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing is under way."""
        waits = self._waiting or self._skips or self._preview is not None
        return not waits and not self._flying

    @property
    def flying(self) -> int:
        return len(self._flying)

    def has(self, request: Request) -> bool:
        """Whether ``request`` is under way, its answer not read yet."""
        return request.number in self._flying

    # ------------------------------------------------------------------- sending

    def ready(self, now: float) -> bool:
        """Whether another request may begin now."""
        return now >= self.retry_at and len(self._flying) < self._limit()

    def take(self, now: float) -> Request | None:
        """The next request to make now, if any."""
        if not self.ready(now):
            return None
        self._forget_stale(now)
        if self.forebay:
            return self._batch()
        return self._single()

    def _limit(self) -> int:
        careful = self.failures or self.forebay is None
        strict = self.forebay is False and self.order == "strict"
        return 1 if careful or strict else self.max_workers

    def _forget_stale(self, now: float) -> None:
        if self._preview is not None and now - self._preview[1] > PREVIEW_S:
            self._preview = None
            self.counters.previews_dropped += 1

    def _batch(self) -> Request | None:
        messages: list[Message] = []
        while (message := self._next()) is not None and len(messages) < BATCH:
            if message.seq > self.settled + AHEAD:
                break
            self._pop(message)
            messages.append(message)
        preview = self._take_preview() if message is None else None
        if not messages and preview is None:
            return None
        wire = [message.wire() for message in messages]
        if preview is not None:
            wire.append({**preview, "is_preview": True})
        json = {"client_id": self.client_id, "settled": self.settled, "messages": wire}
        return self._fly(messages, preview, json, batch=True)

    def _single(self) -> Request | None:
        while (message := self._next()) is not None and message.skip:
            if self.forebay is None:
                break
            self._pop(message)  # nobody there would understand it
            self._finish(message)
        if message is not None:
            self._pop(message)
            json = message.wire()
            if self.forebay is None:
                json |= {"client_id": self.client_id, "settled": self.settled}
            else:
                json.pop("seq")
            return self._fly([message], None, json, batch=False)
        preview = self._take_preview()
        if preview is None:
            return None
        return self._fly([], preview, {**preview, "is_preview": True}, batch=False)

    def _take_preview(self) -> Mapping[str, Any] | None:
        found, self._preview = self._preview, None
        return None if found is None else found[0]

    def _fly(
        self,
        messages: list[Message],
        preview: Mapping[str, Any] | None,
        json: Mapping[str, Any],
        *,
        batch: bool,
    ) -> Request:
        self._number += 1
        request = Request(self._number, tuple(messages), preview, json, batch)
        self._flying[request.number] = request
        return request

    # ------------------------------------------------------------------- answers

    def answered(self, request: Request, answer: Mapping[str, Any], now: float) -> list[int]:
        """The server said 200. Returns the numbers that need no keeping any more. Raises
        `BadRequest`, and changes nothing, for an answer that does not fit."""
        results = answer.get("results")
        if request.batch and (
            not isinstance(results, list) or len(results) < len(request.messages)
        ):
            raise BadRequest("the server answered no result for each message")
        self._flying.pop(request.number)
        self.failures, self.retry_at = 0, 0.0
        if not request.batch:
            if self.forebay is None and request.messages:
                self.forebay = "result" in answer
            self.counters.previews += request.preview is not None
            return [n for message in request.messages for n in self._arrived(message, answer)]
        gone: list[int] = []
        again: list[Message] = []
        for message, result in zip(request.messages, results or (), strict=False):
            gone += self._result(message, result, again, now)
        self._back(again)
        self.counters.previews += request.preview is not None
        return gone

    def _result(
        self, message: Message, result: Mapping[str, Any], again: list[Message], now: float
    ) -> list[int]:
        status = int(result.get("status", 200))
        if status == 200:
            return self._arrived(message, result)
        if status in (429, 503):
            self.counters.retried += 1
            wait = max(BUSY_S, float(result.get("retry_after_s") or 0.0))
            self.retry_at = max(self.retry_at, now + wait)
            again.append(message)
            return []
        again.append(Message(message.seq, {}, skip=True))  # for good: its number is given up
        self.counters.dropped += 1
        self.counters.queued -= 1
        self.counters.errors += 1
        return []

    def _arrived(self, message: Message, result: Mapping[str, Any]) -> list[int]:
        if not message.skip:
            self.counters.sent += 1
            self.counters.queued -= 1
            self.counters.late += result.get("result") == "late"
        return self._finish(message)

    def _finish(self, message: Message) -> list[int]:
        self._done.add(message.seq)
        self._settle()
        return [message.seq]

    def _settle(self) -> None:
        while self.settled + 1 in self._done:
            self.settled += 1
            self._done.discard(self.settled)

    def refused(self, request: Request) -> list[int]:
        """The server refused this one message for good (400, 413)."""
        self._flying.pop(request.number)
        self.counters.errors += 1
        gone: list[int] = []
        for message in request.messages:
            if not message.skip:
                self.counters.dropped += 1
                self.counters.queued -= 1
            gone += self._finish(message)
        return gone

    def failed(
        self, request: Request, now: float, jitter: float, retry_after_s: float | None = None
    ) -> None:
        """No answer, or one that asks to come back. ``jitter``: random, 0 to 1. The wait
        doubles with every failure in a row, up to 5 s."""
        self._flying.pop(request.number)
        self.counters.errors += 1
        self.counters.retried += len(request.messages)
        wait = min(BACKOFF_S * 2.0**self.failures, MAX_BACKOFF_S) * (0.5 + jitter / 2)
        self.failures += 1
        self.retry_at = max(self.retry_at, now + max(wait, retry_after_s or 0.0))
        self._back(list(request.messages))
        if request.preview is not None:
            self.counters.previews_dropped += 1

    def _back(self, messages: list[Message]) -> None:
        """They wait again. All were taken from the front: only what other requests brought
        back can belong before or between them, so nothing else is looked at."""
        if not messages:
            return
        last, front = max(message.seq for message in messages), list(messages)
        while self._waiting and self._waiting[0].seq < last:
            front.append(self._waiting.popleft())
        self._waiting.extendleft(sorted(front, key=lambda message: message.seq, reverse=True))
