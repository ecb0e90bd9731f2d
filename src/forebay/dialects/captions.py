"""Captions over HTTP: what senders post, what they are answered, how a caption is written.

The field names are the original caption servers'. ``client_id``, ``seq``, ``message_id``,
``settled``, ``skip`` and ``messages`` are ours (docs/reference/captions-protocol.md).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from forebay.core.events import Caption
from forebay.core.room import RoomAnswer, RoomItem, valid_room
from forebay.core.shown import Shown
from forebay.errors import BadRequest, ForebayError, TooLarge

__all__ = [
    "MESSAGES",
    "TEXT_CHARS",
    "Message",
    "Posted",
    "answer_one",
    "answer_many",
    "caption_of",
    "missing_fields",
    "parse_post",
    "parse_message",
    "room_name",
    "shown",
    "shown_event",
    "shown_json",
]

TEXT_CHARS = 2000
USER_CHARS = 64
STAMP_CHARS = 32
PASSPHRASE_CHARS = 256
ROOM_CHARS = 200
MESSAGES = 64
MAX_SEQ = 2**53 - 1

CLIENT = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
COLOR = re.compile(r"#[0-9A-Fa-f]{6}([0-9A-Fa-f]{2})?")
FONT = re.compile(r"[\w][\w -]{0,63}")
FONT_TYPES = frozenset({"websafe", "google", "custom"})
COLORS = ("user_color", "text_color", "background_color")
STYLE = ("font_family", "font_type", *COLORS)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")


def missing_fields() -> BadRequest:
    return BadRequest("a required field is missing or empty", word="Missing required fields")


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message of a post. ``caption`` None: a skip, or refused with ``error``."""

    caption: Caption | None = None
    seq: int = 0
    error: ForebayError | None = None

    @property
    def preview(self) -> bool:
        return self.caption is not None and self.caption.preview

    def item(self, client: str, settled: int) -> RoomItem:
        """What goes into the room. Ask only where neither ``preview`` nor ``error`` is."""
        name = client if self.seq else self.caption.client if self.caption else ""
        return RoomItem(client=name, seq=self.seq, settled=settled, caption=self.caption)


@dataclass(frozen=True, slots=True, kw_only=True)
class Posted:
    """One post. ``many``: it had ``messages``, and is answered for each of them."""

    room: str
    passphrase: str
    client: str
    settled: int
    messages: tuple[Message, ...]
    many: bool
    persist: bool | None = None


def room_name(text: str, *, lenient: bool) -> str:
    """The room called ``text``. Raises `BadRequest` for a name that is none.

    ``lenient``: any text is a name, as the originals had it; those that are not plain are
    filed under a hash, which no plain name can equal."""
    name = text.strip()
    if valid_room(name):
        return name
    if not lenient or not name:
        raise BadRequest("room is not 1 to 64 characters of A-Z a-z 0-9 _ -")
    if len(name) > ROOM_CHARS:
        raise BadRequest(f"room has {len(name)} characters, expected no more than {ROOM_CHARS}")
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    return f"~{digest[:32]}"


def _text(fields: Mapping[str, Any], name: str) -> str:
    """A text field, trimmed; numbers are written out, as the originals' loose typing did."""
    value = fields.get(name)
    if isinstance(value, str):
        return _CONTROL.sub("", value).strip()
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return ""


def _bounded(fields: Mapping[str, Any], name: str, limit: int) -> str:
    text = _text(fields, name)
    if len(text) > limit:
        raise TooLarge(f"{name} has {len(text)} characters, expected no more than {limit}")
    return text


def _yes(value: Any) -> bool:
    return value is True or value in (1, "1", "true", "True")


def _whole(fields: Mapping[str, Any], name: str) -> int:
    value = fields.get(name)
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_SEQ:
        raise BadRequest(f"{name} is not a whole number from 0 to {MAX_SEQ}")
    return value


def _client(fields: Mapping[str, Any]) -> str:
    value = fields.get("client_id")
    if value is None or value == "":
        return ""
    if not isinstance(value, str) or CLIENT.fullmatch(value) is None:
        raise BadRequest("client_id is not 1 to 64 characters of A-Z a-z 0-9 _ . : -")
    return value


def style_of(fields: Mapping[str, Any]) -> dict[str, str]:
    """Colours and fonts that are what they should be; anything else is left out, because a
    display must not guess."""
    style = {}
    for name in COLORS:
        value = fields.get(name)
        if isinstance(value, str) and COLOR.fullmatch(value.strip()):
            style[name] = value.strip()
    family = fields.get("font_family")
    if isinstance(family, str) and FONT.fullmatch(family.strip()):
        style["font_family"] = family.strip()
    kind = fields.get("font_type")
    if isinstance(kind, str) and kind in FONT_TYPES:
        style["font_type"] = kind
    return style


def parse_post(body: bytes, *, lenient: bool, now_ms: int, stamp: str) -> Posted:
    """One post. ``stamp``: the local time, for messages that bring none.

    Raises `BadRequest` or `TooLarge` for what is wrong with the whole of it."""
    try:
        fields = msgspec.json.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        raise BadRequest("body is no json object") from None
    if not isinstance(fields, dict):
        raise BadRequest("body is no json object")
    return parse_fields(fields, lenient=lenient, now_ms=now_ms, stamp=stamp)


def parse_fields(fields: dict[str, Any], *, lenient: bool, now_ms: int, stamp: str) -> Posted:
    """`parse_post` of an object that has been decoded."""
    room, passphrase = _text(fields, "room"), fields.get("passphrase")
    if isinstance(passphrase, int | float) and not isinstance(passphrase, bool):
        passphrase = str(passphrase)
    if not room or not isinstance(passphrase, str) or not passphrase:
        raise missing_fields()
    if len(passphrase) > PASSPHRASE_CHARS:
        raise TooLarge(
            f"passphrase has {len(passphrase)} characters, expected no more than {PASSPHRASE_CHARS}"
        )
    client = _client(fields)
    listed = fields.get("messages")
    many = listed is not None
    if many:
        if not isinstance(listed, list) or not 1 <= len(listed) <= MESSAGES:
            raise BadRequest(f"messages is not a list of 1 to {MESSAGES} objects")
        messages = tuple(_one_of_many(fields, one, client, now_ms, stamp) for one in listed)
    else:
        messages = (parse_message(fields, client, now_ms=now_ms, stamp=stamp),)
    persist = fields.get("persist")
    return Posted(
        room=room_name(room, lenient=lenient),
        passphrase=passphrase,
        client=client,
        settled=_whole(fields, "settled"),
        messages=messages,
        many=many,
        persist=persist if isinstance(persist, bool) else None,
    )


def _one_of_many(
    shared: Mapping[str, Any], one: Any, client: str, now_ms: int, stamp: str
) -> Message:
    """One of ``messages``; what is wrong with it is its own affair."""
    seq = 0
    try:
        if not isinstance(one, dict):
            raise BadRequest("a message is no object")
        seq = _whole(one, "seq") if client else 0
        given = {name: shared[name] for name in ("user_name", *STYLE) if name in shared}
        return parse_message({**given, **one}, client, now_ms=now_ms, stamp=stamp)
    except ForebayError as error:
        return Message(seq=seq, error=error)


def parse_message(fields: Mapping[str, Any], client: str, *, now_ms: int, stamp: str) -> Message:
    """One message. Raises `BadRequest` or `TooLarge`."""
    seq = _whole(fields, "seq")
    if seq and not client:
        raise BadRequest("seq needs a client_id")
    if _yes(fields.get("skip")):
        if not seq:
            raise BadRequest("skip needs a seq")
        return Message(seq=seq)
    user = " ".join(_bounded(fields, "user_name", USER_CHARS).split())
    text = _bounded(fields, "text", TEXT_CHARS)
    if not user or not text:
        raise missing_fields()
    preview = _yes(fields.get("is_preview"))
    named = _text(fields, "message_id")[:USER_CHARS] if not preview and not seq else ""
    caption = Caption(
        user=user,
        text=text,
        timestamp=" ".join(_bounded(fields, "timestamp", STAMP_CHARS).split()) or stamp,
        created_ms=now_ms,
        client=f"{client}#{named}" if named else client if preview else "",
        preview=preview,
        style=style_of(fields),
    )
    return Message(caption=caption, seq=0 if preview else seq)


# ------------------------------------------------------------------------ answers


def answer_one(posted: Posted, answer: RoomAnswer | str) -> dict[str, Any]:
    """The answer to a post of one message that was taken; a word stands for a preview."""
    said: dict[str, Any] = {"status": "ok", "message": "Transcription received"}
    said.update(_facts(posted.messages[0], answer))
    if isinstance(answer, RoomAnswer) and answer.next_seq:
        said["next_seq"] = answer.next_seq
    return said


def answer_many(
    posted: Posted, answers: Sequence[RoomAnswer | ForebayError | str]
) -> dict[str, Any]:
    """The answer to ``messages``, one result for each."""
    results, next_seq = [], 0
    for message, answer in zip(posted.messages, answers, strict=True):
        if isinstance(answer, ForebayError):
            refused: dict[str, Any] = {"status": answer.http_status}
            if message.seq:
                refused["seq"] = message.seq
            refused["error"] = answer.details.get("word", answer.message)
            refused["code"] = answer.code
            if answer.retry_after_s is not None:
                refused["retry_after_s"] = round(answer.retry_after_s, 3)
            results.append(refused)
        else:
            results.append({"status": 200, **_facts(message, answer)})
            if isinstance(answer, RoomAnswer) and answer.next_seq:
                next_seq = answer.next_seq
    said: dict[str, Any] = {"status": "ok", "message": "Transcriptions received"}
    if next_seq:
        said["next_seq"] = next_seq
    return {**said, "results": results}


def _facts(message: Message, answer: RoomAnswer | str) -> dict[str, Any]:
    if isinstance(answer, str):
        return {"result": answer}
    facts: dict[str, Any] = {"result": answer.result}
    if answer.offset:
        facts["offset"] = answer.offset
    if message.seq:
        facts["seq"] = message.seq
    return facts


# ----------------------------------------------------------------------- captions


def shown(caption: Caption) -> dict[str, Any]:
    """A caption as readers get it, every field of the originals' present."""
    style = caption.style
    body: dict[str, Any] = {
        "user_name": caption.user,
        "text": caption.text,
        "timestamp": caption.timestamp,
        "is_preview": caption.preview,
        **{name: style.get(name) for name in STYLE},
        "created_at": caption.created_ms,
    }
    if caption.offset:
        body["id"] = caption.offset
    if caption.seq:
        body["client_id"] = caption.client
        body["seq"] = caption.seq
    return body


shown_json = msgspec.json.Encoder().encode


def shown_event(news: Shown) -> str:
    """That a caption stands on displays, among server-sent captions."""
    return f"event: shown\ndata: {shown_json(news.body()).decode()}\n\n"


def caption_of(event: Any) -> Caption | None:
    """The event, if it is a caption; a room holds nothing else."""
    return event if isinstance(event, Caption) else None
