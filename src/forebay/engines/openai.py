"""Any OpenAI-compatible servers (SGLang, vLLM, llama.cpp, a paid API) as a text engine.

One step is one streamed chat completion. Nothing is repeated once a server has begun to
answer; what it refuses, and how it breaks, reaches the job as a named error with the facts
(tokens, limit, retry-after). Closing the step closes the connection, which is how these
servers learn that nobody listens any more.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from forebay.core.events import InputItem, OutputEvent, Prompt, TextDelta, Usage
from forebay.core.kinds import Kind
from forebay.core.spec import LoadStage
from forebay.engines import EngineInfo, Report, Resume
from forebay.engines.context import Fitted, Message, answer_reserve, check, estimate, fit
from forebay.engines.openai_pool import Answers, Member, Pool
from forebay.engines.openai_probe import Step, probe
from forebay.engines.openai_wire import Answer, SseLines, StopSeam, request_body
from forebay.engines.options import Option, parse
from forebay.errors import (
    CannotBoot,
    ConfigError,
    EngineFailed,
    PromptTooLong,
    UpstreamRefused,
    WorkerLost,
)

__all__ = ["OpenAIText", "open_upstreams"]

OPTIONS = (
    Option("base_url", str, "http://localhost:8082",
           "server address, with or without /v1; several as [MODEL@]URL[*WEIGHT],..."),
    Option("api_key", str, "", "sent as Bearer; prefer api_key_file"),
    Option("api_key_file", str, "", "file whose first line is the key"),
    Option("model", str, "", "model name; empty takes the first the server lists"),
    Option("prefix", str, "no", "server can go on from a given text",
           choices=("no", "yes", "true", "false", "continue_final_message")),
    Option("slots", int, 32, "answers at once", 1, 10_000),
    Option("pool", int, None, "connections at once; absent: slots + 2", 1, 20_000),
    Option("connect_timeout_s", float, 3.0, "seconds to connect", 0.01, 600),
    Option("connect_retries", int, 2, "tries more while nobody answers", 0, 10),
    Option("first_token_timeout_s", float, 60.0, "seconds to the first token", 0.05, 3600),
    Option("stall_timeout_s", float, 30.0, "seconds between tokens", 0.05, 3600),
    Option("max_tokens", int, None, "answer length where the client gives none", 1, 1_000_000),
    Option("max_tokens_field", str, "max_tokens", "what the server calls it",
           choices=("max_tokens", "max_completion_tokens")),
    Option("temperature", float, None, "default, sent only if set", 0, 100),
    Option("top_p", float, None, "default, sent only if set", 0, 1),
    Option("top_k", int, None, "default, sent only if set", -1, 1_000_000),
    Option("repetition_penalty", float, None, "default, sent only if set", 0, 10),
    Option("presence_penalty", float, None, "default, sent only if set", -10, 10),
    Option("frequency_penalty", float, None, "default, sent only if set", -10, 10),
    Option("context", int, None, "model's length in tokens; absent: as it says", 16, 100_000_000),
    Option("max_total_tokens", int, None, "prompt and answer together", 16, 100_000_000),
    Option("allow_auto_truncate", bool, False, "cut the oldest turns of too long a prompt"),
    Option("usage", bool, True, "ask for token counts (stream_options.include_usage)"),
    Option("cache_s", float, 0.0, "seconds an answer is kept for exactly the same request",
           0, 1_000_000),
    Option("cache_mib", int, 64, "memory for kept answers", 1, 1_000_000),
    Option("wait", bool, True, "not ready until the server is; no: ready with a warning, needs model"),
    Option("warm_answer", bool, False, "ask for one token while loading"),
)  # fmt: skip

_DEFAULTS = (
    "temperature", "top_p", "top_k", "repetition_penalty", "presence_penalty",
    "frequency_penalty",
)  # fmt: skip
_STAGES = {"address": "locate", "health": "warm_up"}


@dataclass(frozen=True, slots=True)
class _Proof:
    """What a probe found; ``failed``: its step that did not hold."""

    facts: dict[str, Any]
    elapsed_s: float
    failed: Step | None


@dataclass(slots=True)
class _Session:
    params: dict[str, Any]
    resume: Resume


def open_upstreams(options: Mapping[str, Any]) -> tuple[Pool, dict[str, Any]]:
    """The servers that engine options name, opened, and the options as parsed.

    For `doctor`: the caller closes them. Raises `ConfigError`.
    """
    values = parse(OpenAIText.name, OPTIONS, options)
    pool = Pool(values)
    pool.open()
    return pool, values


class OpenAIText:
    """See the module; options are `OPTIONS`. Raises `ConfigError` for a bad one."""

    name = "openai"
    kind = Kind.TEXT
    OPTIONS = OPTIONS

    def __init__(self, **options: Any) -> None:
        values = parse(self.name, OPTIONS, options)
        if not values["wait"] and not values["model"]:
            raise ConfigError(
                "option 'wait' of engine 'openai' is no and no model is set, expected a model: "
                "a server that is not there cannot be asked for one",
                option="model",
            )
        self._values = values
        self._defaults = {k: values[k] for k in _DEFAULTS if values[k] is not None}
        self._prefix = values["prefix"] not in ("no", "false")
        self._model: str = values["model"]
        self._pool = Pool(values)
        self._answers = Answers(values["cache_s"], values["cache_mib"])
        self._limit: int | None = _least(values["context"], values["max_total_tokens"])
        self._scale = 1.0  # tokens the server counted for each estimated one, lately

    async def load(self, report: Report) -> EngineInfo:
        """Find the server and prove it. Raises `CannotBoot` with the stage, and so is tried
        again by the supervisor; with ``wait=no`` a server that is not there yet is only a
        warning, while a wrong key or model still fails."""
        self._pool.open()
        proofs = [await self._prove(member, report) for member in self._pool.members]
        ready = [proof for proof in proofs if proof.failed is None]
        if not ready:
            first = proofs[0].failed
            if first is not None and (
                self._values["wait"] or isinstance(first.error, UpstreamRefused)
            ):
                await self._pool.close()
                raise _cannot_boot(_stage(first), first) from first.error
        facts = ready[0].facts if ready else {}
        self._model = self._model or facts.get("model") or "default"
        if self._values["context"] is None:
            told = [proof.facts.get("context") for proof in ready]
            self._limit = _least(*told, self._values["max_total_tokens"])
        warning = "; ".join(proof.failed.detail for proof in proofs if proof.failed is not None)
        elapsed_s = max(proof.elapsed_s for proof in proofs)
        report(LoadStage(stage="ready", detail=warning or self._model, elapsed_s=elapsed_s))
        return self._info(warning)

    async def _prove(self, member: Member, report: Report) -> _Proof:
        """Ask one server the steps of a probe, telling each."""
        begun = time.monotonic()
        facts: dict[str, Any] = {}
        steps = probe(
            member.upstream,
            model=member.model or self._model,
            answer=self._values["warm_answer"],
        )
        async for step in steps:
            facts, elapsed_s = step.facts, time.monotonic() - begun
            alone = len(self._pool.members) == 1
            fatal = alone and (self._values["wait"] or isinstance(step.error, UpstreamRefused))
            if step.ok:
                detail = f"{step.name}: {step.detail}"
                report(LoadStage(stage=_stage(step), detail=detail, elapsed_s=elapsed_s))
                continue
            if fatal:
                report(LoadStage(stage="failed", detail=step.detail, elapsed_s=elapsed_s))
            return _Proof(facts, elapsed_s, step)
        return _Proof(facts, time.monotonic() - begun, None)

    async def open(self, params: Mapping[str, Any], resume: Resume) -> _Session:
        """Raises `WorkerLost` where an answer was begun that cannot be continued."""
        if resume.text and not self._prefix:
            raise WorkerLost("the answer was cut off and its model server cannot continue a text")
        if resume.text and (params.get("tools") or params.get("response_format")):
            raise WorkerLost("an answer with tools or a schema was cut off, expected plain text")
        own = {k: v for k, v in params.items() if v is not None}
        return _Session({**self._defaults, **own}, resume)

    async def step(
        self, session: _Session, items: Sequence[InputItem]
    ) -> AsyncIterator[OutputEvent]:
        """One answer: `Notice` if the prompt was cut, text and tool calls, one `Usage`."""
        prompts = [item for item in items if isinstance(item, Prompt)]
        if not prompts:
            raise EngineFailed(f"step got {len(items)} items and no prompt")
        messages = prompts[-1].messages
        key = self._answers.key(messages, session.params)
        if not session.resume.text and (kept := self._answers.find(key)) is not None:
            for event in kept:
                yield event
            return
        hear = self._answers.recorder(key)
        fitted = self._fitted(messages, session.params)
        for last_try in (False, True):
            begun = False
            try:
                async with aclosing(self._answer(session, fitted)) as events:
                    async for event in events:
                        begun = True
                        if not session.resume.text:
                            hear(event)
                        yield event
                return
            except PromptTooLong as exc:
                if begun or last_try:
                    raise
                self._learn(fitted, exc)
                fitted = self._fitted(messages, session.params)

    async def close(self, session: _Session) -> None:
        return None

    async def unload(self) -> None:
        await self._pool.close()

    @property
    def counts(self) -> dict[str, int]:
        """What has happened so far, by name; for the worker's beats."""
        return {**self._pool.counts, **self._answers.counts}

    # ---------------------------------------------------------------- one attempt

    def _answer(self, session: _Session, fitted: Fitted) -> AsyncGenerator[OutputEvent]:
        return self._pool.answer(
            lambda member, deadline: self._attempt(session, fitted, member, deadline),
            self._values["first_token_timeout_s"],
        )

    async def _attempt(
        self, session: _Session, fitted: Fitted, member: Member, deadline: float
    ) -> AsyncGenerator[OutputEvent]:
        model, upstream = member.model or self._model, member.upstream
        params, committed = session.params, session.resume.text
        before = session.resume.tokens or self._tokens_of(committed)
        wanted = params.get("max_tokens") or self._values["max_tokens"]
        limits = [n for n in (wanted, self._room(fitted)) if n is not None]
        body = request_body(
            fitted.messages,
            params,
            model=model,
            max_tokens=max(1, min(limits) - before) if limits else None,
            max_tokens_field=self._values["max_tokens_field"],
            continued=committed,
            usage=self._values["usage"],
        )
        stall_s = self._values["stall_timeout_s"]
        seam = StopSeam(committed, params.get("stop") or ()) if committed else None
        lines, answer, notice = SseLines(), Answer(), fitted.notice
        async with upstream.post(
            "/chat/completions", body, model=model, deadline=deadline
        ) as response:
            watch = upstream.watch(response, deadline)
            try:
                while not answer.over:
                    data = await watch.read(answer.begun)
                    payloads = lines.feed(data) if data else lines.end()
                    events = answer.take(payloads)
                    if seam is not None:
                        events = _through(seam, events)
                    if notice is not None and events:
                        yield notice
                        notice = None
                    for event in events:
                        yield event
                    if not data or (seam is not None and seam.stopped):
                        break
                    if payloads:  # comments keep a connection alive, not an answer
                        watch.heard(stall_s)
                stopped = seam is not None and seam.stopped
                if not stopped and (error := answer.failure()):
                    raise error
                if seam is not None and (rest := seam.end()):
                    yield TextDelta(text=rest)
                yield self._usage(answer, fitted, before, stopped)
                if answer.done:
                    await watch.drain()
            finally:
                watch.stop()

    def _usage(self, answer: Answer, fitted: Fitted, before: int, stopped: bool) -> Usage:
        """What the server counted, less what a continuation made it count twice."""
        guess = max(1, estimate(fitted.messages))
        if answer.prompt_tokens is None:
            prompt = math.ceil(guess * self._scale)
        else:
            prompt = max(1, answer.prompt_tokens - before)
            self._scale += 0.3 * (min(4.0, max(0.25, prompt / guess)) - self._scale)
        counted = answer.completion_tokens
        completion = (answer.chunks if counted is None else counted) + before
        finish = "stop" if stopped or answer.finish is None else answer.finish
        return Usage(prompt_tokens=prompt, completion_tokens=completion, finish=finish)

    # -------------------------------------------------------------------- fitting

    def _count(self, messages: Sequence[Message]) -> int:
        return math.ceil(estimate(messages) * self._scale)

    def _tokens_of(self, text: str) -> int:
        return self._count([{"content": text}]) if text else 0

    def _room(self, fitted: Fitted) -> int | None:
        """Bound on the answer, where we hold the limit and may shorten things ourselves."""
        return fitted.room if fitted.room > 0 and self._owns_limit() else None

    def _owns_limit(self) -> bool:
        return self._values["max_total_tokens"] is not None or (
            self._limit is not None and self._values["allow_auto_truncate"]
        )

    def _fitted(self, messages: list[Message], params: Mapping[str, Any]) -> Fitted:
        if self._limit is None or not self._owns_limit():
            return Fitted(messages=messages, tokens=0, room=0, dropped=[])
        if self._values["allow_auto_truncate"]:
            wanted = params.get("max_tokens") or self._values["max_tokens"]
            return fit(messages, self._count, self._limit, answer_reserve(wanted, self._limit))
        tokens = check(messages, self._count, self._limit)
        return Fitted(messages=messages, tokens=tokens, room=self._limit - tokens, dropped=[])

    def _learn(self, fitted: Fitted, exc: PromptTooLong) -> None:
        """The server counted and refused: take its figures. Re-raises where it may not be cut
        or gave none."""
        tokens, limit = exc.details.get("tokens"), exc.details.get("limit") or self._limit
        if not self._values["allow_auto_truncate"] or tokens is None or limit is None:
            raise exc
        self._scale = tokens / max(1, estimate(fitted.messages)) * 1.02  # and a little air
        self._limit = _least(limit, self._limit)

    def _info(self, warning: str) -> EngineInfo:
        capabilities = {"abortable", "tools", "batch"} | ({"prefix"} if self._prefix else set())
        facts: dict[str, Any] = {"base_url": self._pool.members[0].upstream.base}
        if len(self._pool.members) > 1:
            facts["upstreams"] = [
                {"base_url": m.upstream.base, "weight": m.weight, "model": m.model or self._model}
                for m in self._pool.members
            ]
        if self._limit is not None:
            facts["context"] = self._limit
        if warning:
            facts["warning"] = warning
        return EngineInfo(
            model=self._model,
            slots=self._values["slots"],
            capabilities=frozenset(capabilities),
            facts=facts,
        )


def _through(seam: StopSeam, events: list[OutputEvent]) -> list[OutputEvent]:
    kept: list[OutputEvent] = []
    for event in events:
        if isinstance(event, TextDelta):
            text = seam.feed(event.text)
            if text:
                kept.append(TextDelta(text=text, count=event.count))
        else:
            kept.append(event)
    return kept


def _stage(step: Step) -> Any:
    return _STAGES.get(step.name, "warm_up")


def _cannot_boot(stage: str, step: Step) -> CannotBoot:
    hint = f", {step.hint}" if step.hint else ""
    facts = {k: v for k, v in (step.error.details if step.error else {}).items() if k != "stage"}
    return CannotBoot(f"{step.detail}{hint}", stage=stage, step=step.name, **facts)


def _least(*values: int | None) -> int | None:
    given = [v for v in values if v is not None]
    return min(given) if given else None
