"""``POST /v1/chat/completions``: OpenAI's request in, its chunks or its one object out.

Unknown fields are ignored, wrong types are refused by name. One choice only. An answer that
was cut never looks finished: no finish reason, no ``[DONE]``, an ``error`` object instead.

Beside OpenAI's fields a notice (such as a shortened prompt) travels in ``forebay.notices``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from forebay.core.events import (
    Ended,
    Notice,
    OutputEvent,
    Prompt,
    TextDelta,
    ToolCalls,
    Usage,
    size_of,
)
from forebay.core.kinds import Kind, row
from forebay.dialects import error_of
from forebay.dialects.openai_common import (
    Call,
    check_depth,
    decode_request,
    error_object,
    sse,
)
from forebay.errors import BadRequest, EngineFailed, TooLarge

__all__ = ["ChatRequest", "ChunkEncoder", "Whole", "parse"]

MAX_MESSAGES = 2000
WHOLE_BYTES = 8 * 1024 * 1024
"""A whole (not streamed) answer held while it is made."""

_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
_Stop = Annotated[str, Meta(min_length=1, max_length=256)]


class StreamOptions(msgspec.Struct):
    include_usage: bool = False


class ChatRequest(msgspec.Struct):
    """What is read of a request; everything else in it is ignored."""

    messages: Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=MAX_MESSAGES)]
    model: Annotated[str, Meta(max_length=200)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=10_000_000)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1, le=10_000_000)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=10)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=1_000_000)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: _Stop | Annotated[list[_Stop], Meta(max_length=16)] | None = None
    tools: Annotated[list[dict[str, Any]], Meta(max_length=128)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    logprobs: bool | None = None
    priority: Annotated[int, Meta(ge=-100, le=100)] | None = None


_decoder = msgspec.json.Decoder(ChatRequest)
_SAMPLING = (
    "temperature", "top_p", "top_k", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "seed", "tool_choice", "response_format",
)  # fmt: skip


def parse(body: bytes) -> Call:
    """A request body as a text job. Raises `BadRequest` (``details["param"]``), `TooLarge`."""
    request = decode_request(_decoder, body)
    if request.n not in (None, 1):
        raise BadRequest(f"n is {request.n}, expected 1", param="n")
    if request.logprobs:
        raise BadRequest("logprobs are not offered", param="logprobs")
    for name in ("messages", "tools", "tool_choice", "response_format"):
        check_depth(getattr(request, name), name)
    for index, message in enumerate(request.messages):
        _check_message(message, f"messages[{index}]")
    prompt = Prompt(messages=request.messages)
    size, limit = size_of(prompt), row(Kind.TEXT).item_limit_bytes
    if size > limit:
        raise TooLarge(
            f"messages are {size} bytes, expected no more than {limit}", param="messages"
        )
    stop = [request.stop] if isinstance(request.stop, str) else request.stop
    params: dict[str, Any] = {
        "max_tokens": request.max_completion_tokens or request.max_tokens,
        "stop": stop or [],
        "tools": request.tools or None,
    }
    params.update({name: getattr(request, name) for name in _SAMPLING})
    return Call(
        kind=Kind.TEXT,
        model=request.model or None,
        params={name: value for name, value in params.items() if value is not None},
        items=(prompt,),
        stream=bool(request.stream),
        request=request,
    )


def _check_message(message: dict[str, Any], where: str) -> None:
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise BadRequest(
            f"role is unknown, expected one of {', '.join(sorted(_ROLES))}", param=f"{where}.role"
        )
    content = message.get("content")
    if content is None:
        if role != "assistant":
            raise BadRequest("content is missing", param=f"{where}.content")
    elif isinstance(content, list):
        _check_parts(content, f"{where}.content")
    elif not isinstance(content, str):
        raise BadRequest("content is neither text nor parts", param=f"{where}.content")
    calls = message.get("tool_calls")
    if calls is not None and not (
        isinstance(calls, list) and all(isinstance(call, dict) for call in calls)
    ):
        raise BadRequest("tool_calls is no list of objects", param=f"{where}.tool_calls")


def _check_parts(parts: list[Any], where: str) -> None:
    for index, part in enumerate(parts):
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise BadRequest("part is no object with a type", param=f"{where}[{index}]")
        if part["type"] == "text" and not isinstance(part.get("text"), str):
            raise BadRequest("text is missing", param=f"{where}[{index}].text")


# ------------------------------------------------------------------------ streamed


class ChunkEncoder:
    """Events to server-sent chunks: a function of the event and of constants only."""

    def __init__(self, *, id: str, created: int, model: str, include_usage: bool) -> None:
        head = msgspec.json.encode(
            {"id": id, "object": "chat.completion.chunk", "created": created, "model": model}
        )[:-1]
        self._head = b"data: " + head
        self._choice = self._head + b',"choices":[{"index":0,"delta":'
        self._text = self._choice + b'{"content":'
        self._first = self._choice + b'{"role":"assistant","content":'
        self._usage = include_usage

    def encode(self, event: OutputEvent) -> Sequence[bytes]:
        match event:
            case TextDelta():
                start = self._first if event.n == 1 else self._text
                text = msgspec.json.encode(event.text)
                return (start + text + b'},"finish_reason":null}]}\n\n',)
            case Usage():
                return self._finish(event)
            case Ended():
                return self._end(event)
            case ToolCalls():
                return (self._delta(_tool_delta(event)),)
            case Notice():
                extra = msgspec.json.encode({"notices": [_notice(event)]})
                return (self._choice + b'{},"finish_reason":null}],"forebay":' + extra + b"}\n\n",)
            case _:
                return ()

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return self._choice + msgspec.json.encode(delta) + b',"finish_reason":null}]}\n\n'

    def _finish(self, event: Usage) -> Sequence[bytes]:
        reason = msgspec.json.encode(event.finish)
        last = self._choice + b'{},"finish_reason":' + reason + b"}]}\n\n"
        if not self._usage:
            return (last,)
        usage = msgspec.json.encode(_usage(event))
        return (last, self._head + b',"choices":[],"usage":' + usage + b"}\n\n")

    def _end(self, event: Ended) -> Sequence[bytes]:
        if event.state == "completed":
            return (b"data: [DONE]\n\n",)
        return (self.error(event),)

    def error(self, event: Ended) -> bytes:
        return sse(msgspec.json.encode(error_object(error_of(event)), enc_hook=str))


# -------------------------------------------------------------------------- whole


class Whole:
    """Collects one answer. ``take`` every event; then `completion`, if the job completed."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._bytes = 0
        self._tools: ToolCalls | None = None
        self._usage: Usage | None = None
        self._notices: list[dict[str, Any]] = []

    def take(self, event: OutputEvent) -> None:
        """Raises `TooLarge` past `WHOLE_BYTES`."""
        match event:
            case TextDelta():
                self._text.append(event.text)
                self._bytes += len(event.text.encode())
                if self._bytes > WHOLE_BYTES:
                    raise TooLarge(
                        f"answer is over {WHOLE_BYTES} bytes, expected stream=true for so much"
                    )
            case ToolCalls():
                self._tools = event
            case Usage():
                self._usage = event
            case Notice():
                self._notices.append(_notice(event))
            case _:
                return

    def completion(self, *, id: str, created: int, model: str) -> bytes:
        """The ``chat.completion`` object. Raises `EngineFailed` without a `Usage`."""
        if self._usage is None:
            raise EngineFailed("the model ended without saying why")
        text = "".join(self._text)
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if self._tools is not None:
            message["content"] = text or None
            message["tool_calls"] = [
                {"id": c["id"], "type": "function", "function": c["function"]}
                for c in self._tools.calls
            ]
        answer: dict[str, Any] = {
            "id": id,
            "object": "chat.completion",
            "created": created,
            "model": model,
            "choices": [
                {
                    "index": 0,
                    "message": message,
                    "logprobs": None,
                    "finish_reason": self._usage.finish,
                }
            ],
            "usage": _usage(self._usage),
        }
        if self._notices:
            answer["forebay"] = {"notices": self._notices}
        return msgspec.json.encode(answer)


def _usage(event: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": event.prompt_tokens,
        "completion_tokens": event.completion_tokens,
        "total_tokens": event.prompt_tokens + event.completion_tokens,
    }


def _notice(event: Notice) -> dict[str, Any]:
    return {"code": event.code, "message": event.message, "details": event.details}


def _tool_delta(event: ToolCalls) -> dict[str, Any]:
    calls = []
    for part in event.delta:
        call: dict[str, Any] = {"index": part["index"]}
        if part.get("id"):
            call.update(id=part["id"], type="function")
        function = {k: v for k, v in part["function"].items() if k == "arguments" or v}
        calls.append({**call, "function": function})
    delta: dict[str, Any] = {"tool_calls": calls}
    if event.n == 1:
        delta = {"role": "assistant", **delta}
    return delta
