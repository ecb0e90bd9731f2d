"""One simulated reader of streamed text: asks, reads, sometimes leaves or comes back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import aiohttp
import msgspec

from forebay.client.reach import why

__all__ = ["Answer", "Outcome", "Plan", "User", "ask_chat"]

ANSWER_S = 300.0
Fault = Literal["", "leave", "drop"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """``fault`` falls on every answer after ``after_pieces`` of it: leave for good, or drop
    the connection and come back after ``away_s``."""

    url: str
    surface: str
    prompt: str
    until_s: float  # seconds into the run after which nothing new is asked
    start_after_s: float = 0.0
    fault: Fault = ""
    after_pieces: int = 3
    away_s: float = 0.2
    model: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Outcome:
    """What one reader saw. Times are seconds; ``firsts``: (when, request to first text)."""

    firsts: list[tuple[float, float]] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)
    heads_s: list[float] = field(default_factory=list)  # request to first line, whatever it is
    whole_s: list[float] = field(default_factory=list)
    answers: int = 0
    left: int = 0
    resumed: int = 0
    pieces: int = 0
    chars: int = 0
    mismatched: int = 0
    errors: list[str] = field(default_factory=list)
    over: bool = False


class User:
    """Asks one thing after another until its time is over. `outcome` is filled as it goes."""

    def __init__(self, plan: Plan, http: aiohttp.ClientSession) -> None:
        self.plan = plan
        self.outcome = Outcome()
        self._http = http

    async def run(self) -> None:
        begun = time.monotonic()
        try:
            await asyncio.sleep(self.plan.start_after_s)
            while time.monotonic() - begun < self.plan.until_s:
                await self._once()
        finally:
            self.outcome.over = True

    async def _once(self) -> None:
        errors = len(self.outcome.errors)
        try:
            async with asyncio.timeout(ANSWER_S):
                if self.plan.surface == "operation":
                    await self._operation()
                else:
                    await self._chat()
        except (aiohttp.ClientError, TimeoutError, OSError, msgspec.DecodeError) as exc:
            self.outcome.errors.append(why(exc))
        if len(self.outcome.errors) > errors:
            await asyncio.sleep(0.2)  # a server that refuses is not hammered

    # ----------------------------------------------------------------- /send_operation

    async def _operation(self) -> None:
        reading = _Reading(self.outcome)
        drops = self.plan.fault == "drop"
        headers = {**self.plan.headers, **({"X-Forebay-Stream": "new"} if drops else {})}
        url = self.plan.url + "/send_operation"
        async with self._http.post(
            url, json=_question(self.plan.prompt), headers=headers
        ) as answer:
            if answer.status != 200:
                self.outcome.errors.append(str(answer.status))
                return
            stream = answer.headers.get("X-Forebay-Stream", "")
            last, whole = await self._lines(answer, reading, 0, stop=bool(self.plan.fault))
        if whole or self.plan.fault == "leave":
            self.outcome.left += not whole
            return
        await asyncio.sleep(self.plan.away_s)
        headers = dict(self.plan.headers)
        async with self._http.get(f"{url}/{stream}?after={last}", headers=headers) as answer:
            if answer.status != 200:
                self.outcome.errors.append(f"resume {answer.status}")
                return
            self.outcome.resumed += 1
            await self._lines(answer, reading, last, stop=False)

    async def _lines(
        self, answer: aiohttp.ClientResponse, reading: _Reading, last: int, *, stop: bool
    ) -> tuple[int, bool]:
        """Read lines; the last id, and whether the answer came to its end."""
        async for raw in answer.content:
            line = raw.strip()
            if not line:
                continue
            event = msgspec.json.decode(line)
            last = event.get("id", last)
            reading.line()
            match event["type"]:
                case "addContentToAnswer":
                    reading.text(event["data"]["payload"]["content"])
                case "finishStreamingAnswer":
                    reading.done(event["data"]["payload"]["response"])
                case "error":
                    self.outcome.errors.append(event["payload"].get("code", "error"))
                case "ok":
                    return last, True
            if stop and reading.pieces >= self.plan.after_pieces:
                answer.close()
                return last, False
        self.outcome.errors.append("no closing line")
        return last, False

    # ----------------------------------------------------------------------- OpenAI

    async def _chat(self) -> None:
        reading = _Reading(self.outcome)
        plan = self.plan
        body = {"stream": True, "messages": [{"role": "user", "content": plan.prompt}]}
        if plan.model:
            body["model"] = plan.model
        url = plan.url + "/v1/chat/completions"
        async with self._http.post(url, json=body, headers=dict(plan.headers)) as answer:
            if answer.status != 200:
                self.outcome.errors.append(str(answer.status))
                return
            async for event in _sse(answer):
                reading.line()
                if "error" in event:
                    self.outcome.errors.append(str(event["error"].get("code")))
                    return
                reading.text(_delta(event))
                if plan.fault and reading.pieces >= plan.after_pieces:
                    answer.close()
                    self.outcome.left += 1
                    return
        reading.done(None)


class _Reading:
    """Times of one answer."""

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self._begun = self._last = time.monotonic()
        self._text: list[str] = []
        self._headed = False
        self.pieces = 0

    def line(self) -> None:
        if not self._headed:
            self._headed = True
            self._outcome.heads_s.append(time.monotonic() - self._begun)

    def text(self, text: str) -> None:
        if not text:
            return
        now = time.monotonic()
        if not self.pieces:
            self._outcome.firsts.append((now, now - self._begun))
        else:
            self._outcome.gaps_s.append(now - self._last)
        self._last = now
        self._text.append(text)
        self.pieces += 1
        self._outcome.pieces += 1
        self._outcome.chars += len(text)

    def done(self, whole: str | None) -> None:
        self._outcome.answers += 1
        self._outcome.whole_s.append(time.monotonic() - self._begun)
        if whole is not None and whole != "".join(self._text):
            self._outcome.mismatched += 1


def _question(prompt: str) -> dict[str, Any]:
    payload = {"QId": "bench", "content": prompt}
    return {"notebook_id": "bench", "operation": {"type": "user_question", "payload": payload}}


async def _sse(answer: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    async for raw in answer.content:
        line = raw.strip()
        if line.startswith(b"data:") and line[5:].strip() != b"[DONE]":
            yield msgspec.json.decode(line[5:])


def _delta(event: Mapping[str, Any]) -> str:
    choices = event.get("choices") or [{}]
    text: str = (choices[0].get("delta") or {}).get("content") or ""
    return text


def _reason(body: str) -> str:
    """What a server says of a refusal: its message, or the beginning of whatever it is."""
    try:
        return str(msgspec.json.decode(body)["error"]["message"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return body[:300]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer of one model. ``tokens``: as the server counted, or pieces."""

    text: str
    first_s: float
    took_s: float
    tokens: int


async def ask_chat(
    http: aiohttp.ClientSession,
    base: str,
    model: str,
    prompt: str,
    *,
    max_tokens: int,
    headers: Mapping[str, str],
) -> Answer:
    """Ask one model and read its whole answer. Raises `aiohttp.ClientError` and ValueError
    with what the server said."""
    body = {
        "model": model, "stream": True, "max_tokens": max_tokens,
        "stream_options": {"include_usage": True},
        "messages": [{"role": "user", "content": prompt}],
    }  # fmt: skip
    outcome = Outcome()
    reading, text, tokens, begun = _Reading(outcome), [], 0, time.monotonic()
    url = f"{base}/v1/chat/completions"
    async with http.post(url, json=body, headers=dict(headers)) as answer:
        if answer.status != 200:
            raise ValueError(f"{answer.status}: {_reason(await answer.text())}")
        async for event in _sse(answer):
            if "error" in event:
                raise ValueError(str(event["error"].get("message")))
            reading.text(_delta(event))
            text.append(_delta(event))
            tokens = (event.get("usage") or {}).get("completion_tokens") or tokens
    first = outcome.firsts[0][1] if outcome.firsts else 0.0
    took_s = time.monotonic() - begun
    return Answer(text="".join(text), first_s=first, took_s=took_s, tokens=tokens or outcome.pieces)
