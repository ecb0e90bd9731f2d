"""OpenAI's Responses API: requests as text jobs, a job's output as a response and its events.

``sequence_number`` of an event is the job's output offset plus a constant, so any gateway
goes on exactly where another stopped. What ends an answer repeats its whole text, so a stream
is always read from the job's beginning; what the client has is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from forebay.core.events import Ended, OutputEvent, Prompt, TextDelta, ToolCalls, Usage, size_of
from forebay.core.kinds import Kind, row
from forebay.dialects.openai_chat import MAX_MESSAGES, WHOLE_BYTES
from forebay.dialects.openai_common import Call, check_depth, decode_request
from forebay.dialects.openai_inputs import chat_format, chat_messages, chat_tool_choice, chat_tools
from forebay.errors import BadRequest, TooLarge, Unsupported

__all__ = ["PREFIX", "Encoder", "Response", "ResponseRequest", "job_of", "parse"]

PREFIX = "resp_"
OPENING = 4
"""Events before the first of the model's own."""

_KEPT = (
    "instructions", "max_output_tokens", "temperature", "top_p", "tools", "tool_choice", "text",
    "metadata", "background", "store", "user",
)  # fmt: skip
_STATUS = {"queued": "queued", "running": "in_progress", "completed": "completed",
           "cancelled": "cancelled"}  # fmt: skip


class ResponseRequest(msgspec.Struct):
    """What is read of a request; everything else in it is ignored."""

    input: str | Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=MAX_MESSAGES)]
    model: Annotated[str, Meta(max_length=200)] | None = None
    instructions: str | None = None
    stream: bool | None = None
    background: bool | None = None
    store: bool | None = None
    max_output_tokens: Annotated[int, Meta(ge=1, le=10_000_000)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=10)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    tools: Annotated[list[dict[str, Any]], Meta(max_length=128)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    text: dict[str, Any] | None = None
    metadata: Annotated[dict[str, str], Meta(max_length=16)] | None = None
    user: Annotated[str, Meta(max_length=512)] | None = None
    previous_response_id: str | None = None
    conversation: Any = None


_decoder = msgspec.json.Decoder(ResponseRequest)


def parse(body: bytes, created: int) -> Call:
    """A request body as a text job. ``created``: seconds since 1970.

    Raises `BadRequest` (``details["param"]``), `TooLarge`, `Unsupported`."""
    request = decode_request(_decoder, body)
    for name in ("previous_response_id", "conversation"):
        if getattr(request, name) is not None:
            raise Unsupported(f"{name} is not offered, send the conversation in input", param=name)
    if request.background and request.store is False:
        raise BadRequest("store is false, expected true with background", param="store")
    for name in ("input", "tools", "tool_choice", "text", "metadata"):
        check_depth(getattr(request, name), name)
    prompt = Prompt(messages=chat_messages(request.input, request.instructions))
    size, limit = size_of(prompt), row(Kind.TEXT).item_limit_bytes
    if size > limit:
        raise TooLarge(f"input is {size} bytes, expected no more than {limit}", param="input")
    params: dict[str, Any] = {
        "max_tokens": request.max_output_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "tools": chat_tools(request.tools),
        "tool_choice": chat_tool_choice(request.tool_choice),
        "response_format": chat_format(request.text),
    }
    kept = {name: getattr(request, name) for name in _KEPT if getattr(request, name) is not None}
    kept["created_at"] = created
    params["response"] = kept
    return Call(
        kind=Kind.TEXT,
        model=request.model or None,
        params={name: value for name, value in params.items() if value is not None},
        items=(prompt,),
        stream=bool(request.stream),
        request=request,
        durable=bool(request.background),
    )


def job_of(response: str) -> str:
    """The job that a response's id names. Raises `BadRequest`."""
    job = response.removeprefix(PREFIX)
    if job == response or not job.isalnum() or len(job) > 64:
        raise BadRequest(f"{response[:80]!r} is not the id of a response", param="response_id")
    return job


# ------------------------------------------------------------------------ the object


@dataclass(slots=True, kw_only=True)
class Response:
    """A response as it grows: `take` events in order, `body` at any time.

    ``kept``: what the job remembers of its request."""

    job: str
    model: str
    kept: Mapping[str, Any]
    state: str = "queued"
    _text: list[str] = field(default_factory=list)
    _bytes: int = 0
    _calls: Sequence[Mapping[str, Any]] = ()
    _usage: Usage | None = None
    _ended: Ended | None = None

    @property
    def id(self) -> str:
        return PREFIX + self.job

    @property
    def message(self) -> str:
        return "msg_" + self.job

    @property
    def text(self) -> str:
        return "".join(self._text)

    def take(self, event: OutputEvent) -> None:
        """Raises `TooLarge` past `WHOLE_BYTES`."""
        match event:
            case TextDelta():
                self._text.append(event.text)
                self._bytes += len(event.text.encode())
                if self._bytes > WHOLE_BYTES:
                    raise TooLarge(f"answer is over {WHOLE_BYTES} bytes")
            case ToolCalls():
                self._calls = event.calls
            case Usage():
                self._usage = event
            case Ended():
                self._ended = event
                self.state = event.state
            case _:
                return

    def body(self) -> bytes:
        return msgspec.json.encode(self.object(), enc_hook=str)

    @property
    def status(self) -> str:
        if self.state == "completed" and self._usage is not None and self._usage.finish == "length":
            return "incomplete"
        return _STATUS.get(self.state, "failed")

    def object(self) -> dict[str, Any]:
        """The ``response`` object as it stands."""
        kept, status = self.kept, self.status
        cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return {
            "id": self.id,
            "object": "response",
            "created_at": kept.get("created_at", 0),
            "status": status,
            "background": kept.get("background", False),
            "error": self._error(),
            "incomplete_details": cut,
            "instructions": kept.get("instructions"),
            "max_output_tokens": kept.get("max_output_tokens"),
            "model": self.model,
            "output": self.output(),
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": kept.get("store", True),
            "temperature": kept.get("temperature"),
            "text": kept.get("text", {"format": {"type": "text"}}),
            "tool_choice": kept.get("tool_choice", "auto"),
            "tools": kept.get("tools", []),
            "top_p": kept.get("top_p"),
            "truncation": "disabled",
            "usage": self._usage_object(),
            "user": kept.get("user"),
            "metadata": kept.get("metadata", {}),
        }

    def output(self) -> list[dict[str, Any]]:
        """What there is of the answer: a message, then tool calls."""
        live = self._ended is None
        items: list[dict[str, Any]] = []
        if self._text or (not live and self.state == "completed" and not self._calls):
            items.append(self.item("in_progress" if live else self._item_status()))
        if not live:
            items += [self.call(at) for at in range(len(self._calls))]
        return items

    def item(self, status: str, *, empty: bool = False) -> dict[str, Any]:
        """The answer's message."""
        content = [] if empty else [self.part()]
        return {"id": self.message, "type": "message", "status": status, "role": "assistant",
                "content": content}  # fmt: skip

    def part(self, *, empty: bool = False) -> dict[str, Any]:
        text = "" if empty else self.text
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def call(self, at: int) -> dict[str, Any]:
        """Tool call number ``at``."""
        call = self._calls[at]
        function = call["function"]
        return {
            "id": f"fc_{self.job}_{at}",
            "type": "function_call",
            "status": self._item_status(),
            "call_id": call.get("id") or f"call_{at}",
            "name": function.get("name", ""),
            "arguments": function.get("arguments", ""),
        }

    @property
    def calls(self) -> int:
        return len(self._calls)

    def _item_status(self) -> str:
        return "completed" if self.status == "completed" else "incomplete"

    def _error(self) -> dict[str, Any] | None:
        if self._ended is None or self.status != "failed":
            return None
        return {"code": self._ended.code or "server_error", "message": self._ended.message}

    def _usage_object(self) -> dict[str, Any] | None:
        usage = self._usage
        if usage is None:
            return None
        return {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }


# ------------------------------------------------------------------------ its events


class Encoder:
    """A response's events, from the job's first to its last.

    ``after``: the last ``sequence_number`` the client has, -1 for none: nothing up to it is
    encoded again."""

    def __init__(self, response: Response, after: int = -1) -> None:
        self._response = response
        self._after = after

    def opening(self) -> list[bytes]:
        """The events before the model's own."""
        whole = Response(
            job=self._response.job,
            model=self._response.model,
            kept=self._response.kept,
            state="running",
        )
        response = whole.object()
        item = {"output_index": 0, "item": whole.item("in_progress", empty=True)}
        part = {**self._place(), "part": whole.part(empty=True)}
        return self._events(
            0,
            ("response.created", {"response": response}),
            ("response.in_progress", {"response": response}),
            ("response.output_item.added", item),
            ("response.content_part.added", part),
        )

    def encode(self, event: OutputEvent) -> Sequence[bytes]:
        self._response.take(event)
        number = event.offset + OPENING - 1
        match event:
            case TextDelta():
                delta = {**self._place(), "delta": event.text, "logprobs": []}
                return self._events(number, ("response.output_text.delta", delta))
            case Ended():
                return self._end(number)
            case _:
                return ()

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._response.message, "output_index": 0, "content_index": 0}

    def _end(self, number: int) -> list[bytes]:
        response = self._response
        if response.status not in ("completed", "incomplete"):
            return self._events(number, ("response.failed", {"response": response.object()}))
        place = self._place()
        item = response.item("completed" if response.status == "completed" else "incomplete")
        events: list[tuple[str, dict[str, Any]]] = [
            ("response.output_text.done", {**place, "text": response.text, "logprobs": []}),
            ("response.content_part.done", {**place, "part": response.part()}),
            ("response.output_item.done", {"output_index": 0, "item": item}),
        ]
        for at in range(response.calls):
            events += self._call(at)
        events.append((f"response.{response.status}", {"response": response.object()}))
        return self._events(number, *events)

    def _call(self, at: int) -> list[tuple[str, dict[str, Any]]]:
        whole = self._response.call(at)
        index = at + 1  # the message, empty or not, is output 0
        place = {"item_id": whole["id"], "output_index": index}
        begun = {**whole, "status": "in_progress", "arguments": ""}
        arguments = whole["arguments"]
        return [
            ("response.output_item.added", {"output_index": index, "item": begun}),
            ("response.function_call_arguments.delta", {**place, "delta": arguments}),
            (
                "response.function_call_arguments.done",
                {**place, "arguments": arguments, "name": whole["name"]},
            ),
            ("response.output_item.done", {"output_index": index, "item": whole}),
        ]

    def _events(self, number: int, *events: tuple[str, dict[str, Any]]) -> list[bytes]:
        return [
            _sse(kind, {"type": kind, "sequence_number": number + at, **facts})
            for at, (kind, facts) in enumerate(events)
            if number + at > self._after
        ]


def _sse(kind: str, event: dict[str, Any]) -> bytes:
    number = event["sequence_number"]
    return b"event: %b\nid: %d\ndata: %b\n\n" % (
        kind.encode(), number, msgspec.json.encode(event, enc_hook=str),
    )  # fmt: skip
