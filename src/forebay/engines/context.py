"""Making a conversation fit a model's context: pure, shared by every text engine.

What may be cut is whole turns, oldest first. A turn is a user message with everything up to
the next one, so a tool result never loses the call it answers. System and developer messages
and the last message always stay; no message is ever cut inside. If those alone do not fit,
the prompt is too long and says so with its tokens and the limit.

``limit`` is what prompt and answer may have together (SGLang's ``max_total_tokens``, a
model's context length); whether cutting is allowed at all is ``allow_auto_truncate``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from forebay.core.events import Notice
from forebay.errors import PromptTooLong

__all__ = ["Count", "Fitted", "Message", "answer_reserve", "check", "estimate", "fit"]

Message = dict[str, Any]
Count = Callable[[Sequence[Message]], int]

_KEPT_ROLES = frozenset({"system", "developer"})
_MESSAGE_TOKENS = 4  # role and separators of one message in the usual chat templates
_PICTURE_TOKENS = 512  # a part that is no text; nobody can know without the model


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """A conversation that fits. ``dropped``: the messages cut, oldest first.

    ``room``: tokens left for the answer; the caller lowers ``max_tokens`` to it.
    ``notice``: None when nothing was cut; otherwise the caller yields it first.
    """

    messages: list[Message]
    tokens: int
    room: int
    dropped: list[Message]
    notice: Notice | None = None


def answer_reserve(max_tokens: int | None, limit: int) -> int:
    """Tokens to keep free for the answer: what was asked for, at most a quarter of ``limit``.

    A client that asks for 100,000 tokens must not thereby lose its whole conversation.
    """
    quarter = max(1, limit // 4)
    return quarter if max_tokens is None else max(1, min(max_tokens, quarter))


def check(messages: Sequence[Message], count: Count, limit: int) -> int:
    """Tokens of ``messages``. Raises `PromptTooLong` when no token is left for an answer."""
    tokens = count(messages)
    if tokens >= limit:
        raise _too_long(tokens, limit)
    return tokens


def fit(messages: Sequence[Message], count: Count, limit: int, reserve: int) -> Fitted:
    """Cut the oldest turns until the prompt leaves ``reserve`` of ``limit`` tokens free.

    ``count`` is called about log2(turns) times, on candidate conversations. Where even the
    system prompt and the last message leave less than ``reserve`` they are still accepted
    as long as one token is free. Raises `PromptTooLong` otherwise.
    """
    whole = list(messages)
    tokens = count(whole)
    if tokens + reserve <= limit:
        return Fitted(messages=whole, tokens=tokens, room=limit - tokens, dropped=[])
    cuts = _cuts(whole)
    kept, left, now = whole, tokens, 0
    low, high = 1, len(cuts)
    while low <= high:  # the fewest turns whose loss is enough
        middle = (low + high) // 2
        candidate = _without(whole, cuts[middle - 1])
        size = count(candidate)
        if size + reserve <= limit:
            kept, left, now, high = candidate, size, middle, middle - 1
        else:
            low = middle + 1
    if not now and cuts:  # nothing leaves the whole reserve: keep the least
        kept = _without(whole, cuts[-1])
        left, now = count(kept), len(cuts)
    if left >= limit:
        raise _too_long(tokens, limit)
    if not now:
        return Fitted(messages=whole, tokens=tokens, room=limit - tokens, dropped=[])
    lost = cuts[now - 1]
    dropped = [m for i, m in enumerate(whole) if i in lost]
    return Fitted(
        messages=kept,
        tokens=left,
        room=limit - left,
        dropped=dropped,
        notice=Notice(
            code="prompt_truncated",
            message=f"prompt of {tokens} tokens is over the limit of {limit}, "
            f"dropped the oldest {len(dropped)} messages",
            details={"tokens": tokens, "limit": limit, "dropped": len(dropped), "kept": left},
        ),
    )


def estimate(messages: Sequence[Message]) -> int:
    """A guess at the tokens of ``messages`` where the tokenizer is out of reach.

    About four bytes of ASCII or one character of anything else is a token, which is within
    a fifth for English and Chinese; the caller scales it by what the model reports.
    """
    total = 0
    for message in messages:
        total += _MESSAGE_TOKENS + _content_tokens(message.get("content"))
        for call in message.get("tool_calls") or ():
            function = call.get("function") if isinstance(call, dict) else None
            if isinstance(function, dict):
                total += _text_tokens(str(function.get("name", "")))
                total += _text_tokens(str(function.get("arguments", "")))
    return total


def _content_tokens(content: Any) -> int:
    if isinstance(content, str):
        return _text_tokens(content)
    total = 0
    for part in content if isinstance(content, list) else ():
        text = part.get("text") if isinstance(part, dict) else None
        total += _text_tokens(text) if isinstance(text, str) else _PICTURE_TOKENS
    return total


def _text_tokens(text: str) -> int:
    if text.isascii():
        return (len(text) + 3) // 4
    plain = sum(1 for c in text if c < "\x80")
    return (plain + 3) // 4 + len(text) - plain


def _cuts(messages: list[Message]) -> list[frozenset[int]]:
    """Growing sets of message indexes that may be lost: the oldest turn, the two oldest..."""
    last = len(messages) - 1
    cuts: list[frozenset[int]] = []
    lost: list[int] = []
    for index, message in enumerate(messages):
        if index and message.get("role") == "user" and lost:
            cuts.append(frozenset(lost))
        if index < last and message.get("role") not in _KEPT_ROLES:
            lost.append(index)
    if lost and messages[last].get("role") != "tool":
        # the last message alone; a tool result alone would answer nothing
        cuts.append(frozenset(lost))
    return list(dict.fromkeys(cuts))


def _without(messages: list[Message], lost: frozenset[int]) -> list[Message]:
    return [m for i, m in enumerate(messages) if i not in lost]


def _too_long(tokens: int, limit: int) -> PromptTooLong:
    return PromptTooLong(
        f"prompt has {tokens} tokens, expected fewer than {limit}", tokens=tokens, limit=limit
    )
