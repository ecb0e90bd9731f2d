"""The OpenAI streaming answer: bytes in, events out. Pure; no I/O, no clock.

`SseLines` cuts bytes into the payloads of ``data:`` lines. `Answer` turns payloads into
events: one `TextDelta` for the text of each chunk, several chunks of one read together,
because what arrived at once can leave at once. `StopSeam` finds stop strings across the
place where a second attempt went on from the first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from forebay.core.events import OutputEvent, TextDelta, ToolCalls
from forebay.engines.openai_errors import in_stream
from forebay.errors import ForebayError, UpstreamCut, UpstreamFailed

__all__ = ["Answer", "SseLines", "StopSeam", "request_body"]

LINE_BYTES = 1024 * 1024
"""One line of an event stream; longer is garbage."""
TOOL_CALLS = 64
TOOL_BYTES = 48 * 1024  # arguments and names of all calls: one stream item holds them

_SAMPLING = (
    "temperature", "top_p", "top_k", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "seed", "stop", "tools", "tool_choice", "response_format",
)  # fmt: skip
_ABORTED = frozenset({"abort", "error"})  # a finish that is none


def request_body(
    messages: Sequence[Mapping[str, Any]],
    params: Mapping[str, Any],
    *,
    model: str,
    max_tokens: int | None,
    max_tokens_field: str = "max_tokens",
    continued: str = "",
    usage: bool = True,
) -> bytes:
    """The body of one streamed chat completion.

    ``params``: only what is set is sent, so that the server's own defaults hold.
    ``continued``: committed text of an earlier attempt, sent as an open last message.
    """
    body: dict[str, Any] = {"model": model, "stream": True, "messages": messages}
    if usage:
        body["stream_options"] = {"include_usage": True}
    if max_tokens is not None:
        body[max_tokens_field] = max_tokens
    for name in _SAMPLING:
        value = params.get(name)
        if value is not None and value != []:
            body[name] = value
    if continued:
        body["messages"] = [*messages, {"role": "assistant", "content": continued}]
        body["continue_final_message"] = True
        body["add_generation_prompt"] = False
    return msgspec.json.encode(body)


class SseLines:
    """Cuts an event stream into payloads, whatever the pieces it arrives in."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Payloads completed by ``data``. Raises `UpstreamFailed` for what is no event stream.

        Each ``data:`` line is one payload, as every server of this family writes them.
        """
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > LINE_BYTES:
            raise _garbage(f"a line of over {LINE_BYTES} bytes")
        payloads = []
        for line in lines:
            if line.startswith(b"data:"):
                payload = line[5:].strip()
                if payload:
                    payloads.append(payload)
            elif line.strip() and not line.startswith((b":", b"event:", b"id:", b"retry:")):
                raise _garbage("a line that is no part of an event stream")
        return payloads

    def end(self) -> list[bytes]:
        """A last line that came without its newline, if it is one."""
        rest, self._rest = self._rest, b""
        return [rest[5:].strip()] if rest.startswith(b"data:") and rest[5:].strip() else []


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Counts(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Counts | None = None
    error: Any = None
    object: str = ""
    message: Any = None


_decode = msgspec.json.Decoder(_Chunk).decode


class Answer:
    """One streamed answer as it grows. After the stream: look at `failure`.

    ``chunks``: text chunks seen, about the tokens. ``prompt_tokens``, ``completion_tokens``:
    the server's own count, None where it gave none.
    """

    def __init__(self) -> None:
        self.done = False
        self.finish: str | None = None
        self.chunks = 0
        self.begun = False
        self.broken: ForebayError | None = None
        self.prompt_tokens: int | None = None
        self.completion_tokens: int | None = None
        self._text: list[str] = []
        self._tools = _Tools()

    def take(self, payloads: Sequence[bytes]) -> list[OutputEvent]:
        """Events of one read. When `over` is true afterwards, read no more."""
        events: list[OutputEvent] = []
        for payload in payloads:
            if payload == b"[DONE]":
                self.done = True
                break
            try:
                self._chunk(_decode(payload), events)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                self.broken = _garbage("an event that is no completion chunk")
                break
            except ForebayError as exc:
                self.broken = exc
                break
        self._flush_text(events)
        if self.done or self.finish is not None:
            self._flush_tools(events)
        if events:
            self.begun = True
        return events

    @property
    def over(self) -> bool:
        return self.done or self.broken is not None

    def failure(self) -> ForebayError | None:
        """Call when the stream has ended: None when the answer is whole."""
        if self.broken is not None:
            return self.broken
        if self.finish in _ABORTED:
            return UpstreamCut("model server aborted the answer", reason="aborted")
        if self.done or self.finish is not None:
            return None
        if self.begun:
            return UpstreamCut(
                f"model server closed after {self.chunks} chunks, expected [DONE]", reason="cut"
            )
        return UpstreamFailed(
            "model server closed before its first token, expected an answer", reason="cut"
        )

    def _chunk(self, chunk: _Chunk, events: list[OutputEvent]) -> None:
        if chunk.error is not None or chunk.object == "error":
            raise in_stream(chunk.error or {"message": chunk.message}, begun=self.begun)
        if chunk.usage is not None:
            self.prompt_tokens = chunk.usage.prompt_tokens
            self.completion_tokens = chunk.usage.completion_tokens
        if not chunk.choices:
            return
        choice = chunk.choices[0]
        if choice.delta is not None:
            if choice.delta.content:
                self._text.append(choice.delta.content)
            if choice.delta.tool_calls:
                self._flush_text(events)
                for call in choice.delta.tool_calls:
                    self._tools.add(call)
                if self._tools.due():
                    self._flush_tools(events)
        if choice.finish_reason is not None:
            self.finish = choice.finish_reason

    def _flush_text(self, events: list[OutputEvent]) -> None:
        if self._text:
            self.chunks += len(self._text)
            events.append(TextDelta(text="".join(self._text), count=len(self._text)))
            self._text.clear()

    def _flush_tools(self, events: list[OutputEvent]) -> None:
        if event := self._tools.take():
            events.append(event)


class _Tools:
    """Accumulates tool calls.

    Every event carries all calls so far, so one event a token would cost the square of the
    arguments. An event leaves when a call begins and then each time the arguments have
    grown by an eighth; nobody can use half of them, and the end brings the rest at once.
    """

    def __init__(self) -> None:
        self._calls: dict[int, dict[str, Any]] = {}
        self._fresh: dict[int, dict[str, Any]] = {}
        self._bytes = 0
        self._fresh_bytes = 0
        self._new_call = False

    def add(self, part: _Call) -> None:
        function = part.function or _Function()
        index = part.index if part.index is not None else max(0, len(self._calls) - 1)
        if part.index is None and part.id and index in self._calls:
            index += self._calls[index]["id"] not in ("", part.id)
        self._new_call |= index not in self._calls
        for calls in (self._calls, self._fresh):
            call = calls.setdefault(
                index, {"index": index, "id": "", "function": {"name": "", "arguments": ""}}
            )
            call["id"] = part.id or call["id"]
            call["function"]["name"] += function.name or ""
            call["function"]["arguments"] += function.arguments or ""
        size = len((function.arguments or "").encode()) + len((function.name or "").encode())
        self._bytes += size
        self._fresh_bytes += size
        if self._bytes > TOOL_BYTES or len(self._calls) > TOOL_CALLS:
            raise UpstreamFailed(
                f"tool calls of {self._bytes} bytes in {len(self._calls)} calls, "
                f"expected no more than {TOOL_BYTES} bytes in {TOOL_CALLS}",
                reason="tools_too_large",
            )

    def due(self) -> bool:
        return self._new_call or self._fresh_bytes >= max(64, self._bytes // 8)

    def take(self) -> ToolCalls | None:
        if not self._fresh:
            return None
        event = ToolCalls(calls=_copies(self._calls), delta=_copies(self._fresh))
        self._fresh = {}
        self._fresh_bytes = 0
        self._new_call = False
        return event


def _copies(calls: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**c, "function": dict(c["function"])} for _, c in sorted(calls.items())]


class StopSeam:
    """Finds stop strings that begin in the committed text and end in the new one.

    The server sees stop strings in its own output only. New text is held back while it may
    still complete one that the committed text began, which is at most a stop string's length.
    """

    def __init__(self, committed: str, stops: Sequence[str]) -> None:
        self._stops = [s for s in stops if s]
        reach = max(map(len, self._stops), default=1) - 1
        self._tail = committed[-reach:] if reach else ""
        self._held = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """What may be sent now; after it, `stopped` says whether the answer ends there."""
        if not self._tail or self.stopped:
            return "" if self.stopped else text
        self._held += text
        whole = self._tail + self._held
        for stop in self._stops:
            at = whole.find(stop)
            if 0 <= at < len(self._tail):
                self.stopped = True
                self._held = ""
                return ""
        if any(self._may_match(whole, start) for start in range(len(self._tail))):
            return ""
        return self.end()

    def end(self) -> str:
        """The rest; the seam is behind us."""
        held, self._held, self._tail = self._held, "", ""
        return held

    def _may_match(self, whole: str, start: int) -> bool:
        rest = whole[start:]
        return any(len(rest) < len(stop) and stop.startswith(rest) for stop in self._stops)


def _garbage(what: str) -> UpstreamFailed:
    return UpstreamFailed(f"model server sent {what}", reason="garbage")
