"""A subset of the Centrifuge JSON protocol, so that its SDKs read and write rooms unmodified.

A frame carries commands, one JSON object a line, each with an ``id`` and one method:
connect, subscribe, unsubscribe, publish, presence, presence_stats, history, ping, send. The
answer has the same ``id``. What happens in a channel comes as ``{"push": ...}``. An empty
object is a ping, which clients need not answer: the WebSocket's own pings tell us that they
live. A channel is a room's name.

Positions are ours: ``offset`` and ``epoch`` of the room's stream. A recovery is answered with
the position that was asked for, and what follows it comes as publications, in order, before
anything newer. A position that cannot be recovered is answered ``recovered: false`` with the
oldest position there is, and everything kept follows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from forebay.core.events import Caption
from forebay.core.room import Member
from forebay.core.shown import REPORTS, Shown
from forebay.dialects.captions import shown
from forebay.errors import (
    BadRequest,
    Forbidden,
    ForebayError,
    NotFound,
    QuotaExceeded,
    Refused,
    ResumeNotAvailable,
    TooLarge,
    Unauthorized,
)

__all__ = [
    "COMMANDS",
    "PING",
    "SHUTDOWN",
    "SLOW",
    "STALE",
    "Command",
    "commands",
    "connected",
    "disconnect_code",
    "failure",
    "history",
    "presence",
    "presence_stats",
    "publication",
    "pushed",
    "reply",
    "reports",
    "resubscribe",
    "shown_push",
    "subscribed",
]

COMMANDS = 32
"""Commands that one frame may carry."""
PING = "{}"

METHODS = (
    "connect",
    "subscribe",
    "unsubscribe",
    "publish",
    "presence",
    "presence_stats",
    "history",
    "ping",
    "send",
    "refresh",
    "sub_refresh",
    "rpc",
)
SHUTDOWN, SLOW, BAD_REQUEST, STALE = 3001, 3008, 3501, 3502
"""Codes a connection is closed with: below 3500 its client comes back by itself."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


@dataclass(frozen=True, slots=True)
class Command:
    """One command. ``method``: one of `METHODS`, empty for a pong, "?" for any other."""

    id: int
    method: str
    params: Mapping[str, Any]

    def text(self, name: str) -> str:
        value = self.params.get(name)
        return value if isinstance(value, str) else ""

    def number(self, name: str) -> int:
        """A whole number, 0 where there is none. Raises `BadRequest` for anything else."""
        value = self.params.get(name, 0)
        if isinstance(value, bool) or not isinstance(value, int) or not -1 <= value < 2**63:
            raise BadRequest(f"{name} is no number")
        return value

    def fields(self, name: str = "data") -> dict[str, Any]:
        """An object among the parameters, empty where there is none."""
        value = self.params.get(name)
        return dict(value) if isinstance(value, dict) else {}

    def flag(self, name: str) -> bool:
        return self.params.get(name) is True


def commands(frame: str | bytes) -> list[Command]:
    """The commands of one frame. Raises `BadRequest`: the connection cannot go on."""
    lines = frame.strip().splitlines()
    if len(lines) > COMMANDS:
        raise BadRequest(f"a frame of {len(lines)} commands, expected no more than {COMMANDS}")
    found = []
    for line in lines:
        try:
            said = _decode(line)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            raise BadRequest("a command is no json object") from None
        if not isinstance(said, dict):
            raise BadRequest("a command is no json object")
        found.append(_command(said))
    return found


def _command(said: dict[str, Any]) -> Command:
    number = said.get("id", 0)
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 2**32:
        raise BadRequest("a command's id is no number")
    if not said:
        return Command(0, "", {})
    method = next((name for name in METHODS if name in said), "?")
    params = said.get(method)
    return Command(number, method, params if isinstance(params, dict) else {})


# ------------------------------------------------------------------------ answers


def reply(command: Command, result: Mapping[str, Any] | None = None) -> str:
    return _encode({"id": command.id, command.method: result or {}}).decode()


def failure(command: Command, error: ForebayError) -> str:
    """An error answer, in Centrifuge's numbers."""
    code, temporary = _code(error, command.method)
    message = str(error.details.get("word", error.message))
    body: dict[str, Any] = {"code": code, "message": message}
    if temporary:
        body["temporary"] = True
    return _encode({"id": command.id, "error": body}).decode()


def _code(error: ForebayError, method: str) -> tuple[int, bool]:
    if method in ("?", "rpc", "refresh", "sub_refresh"):
        return 104, False
    for kind, code, temporary in (
        (Unauthorized, 101, False),
        (NotFound, 102, False),
        (Forbidden, 103, False),
        (TooLarge, 106, False),
        (BadRequest, 107, False),
        (QuotaExceeded, 111, True),
        (ResumeNotAvailable, 112, False),
        (Refused, 100, True),
    ):
        if isinstance(error, kind):
            return code, temporary
    return 100, error.retryable


def disconnect_code(error: ForebayError) -> int:
    """What a connection that cannot go on is closed with."""
    return BAD_REQUEST if isinstance(error, BadRequest) else STALE


def connected(command: Command, *, client: str, version: str, ping_s: float) -> str:
    return reply(
        command,
        {"client": client, "version": f"forebay {version}", "ping": int(ping_s), "pong": False},
    )


def subscribed(
    command: Command,
    *,
    epoch: str,
    offset: int,
    recovered: bool,
    was_recovering: bool,
    shows: bool = False,
) -> str:
    """``offset``: the position from which publications follow. ``shows``: this display is
    asked to tell what it shows."""
    return reply(
        command,
        {
            **({"data": {"shows": True}} if shows else {}),
            "recoverable": True,
            "positioned": True,
            "epoch": epoch,
            "offset": offset,
            "recovered": recovered,
            "was_recovering": was_recovering,
        },
    )


def publication(caption: Caption) -> dict[str, Any]:
    body: dict[str, Any] = {"data": shown(caption)}
    if caption.offset:
        body["offset"] = caption.offset
    return body


def pushed(channel: str, caption: Caption) -> str:
    """One caption or preview as every reader of the channel gets it."""
    return _encode({"push": {"channel": channel, "pub": publication(caption)}}).decode()


def shown_push(channel: str, news: Shown) -> str:
    """That a caption stands on displays, for who speaks."""
    message = {"data": {"shown": news.body()}}
    return _encode({"push": {"channel": channel, "message": message}}).decode()


def reports(said: Mapping[str, Any]) -> list[tuple[int, float]]:
    """What a display tells: (offset, seconds since all up to it has stood there). Raises
    `BadRequest`."""
    found = said.get("at")
    if not isinstance(found, list) or len(found) > REPORTS:
        raise BadRequest(f"at is no list of at most {REPORTS}")
    told = []
    for pair in found:
        if not (isinstance(pair, list) and len(pair) == 2 and all(map(_is_count, pair))):
            raise BadRequest("at holds something else than pairs of offset and milliseconds")
        told.append((int(pair[0]), pair[1] / 1000))
    return told


def _is_count(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 2**53


def resubscribe(channel: str) -> str:
    """The room is not what it was: subscribe again, from wherever it now stands."""
    told = {"code": 2500, "reason": "insufficient state"}
    return _encode({"push": {"channel": channel, "unsubscribe": told}}).decode()


def history(command: Command, captions: Sequence[Caption], *, epoch: str, offset: int) -> str:
    publications = [publication(caption) for caption in captions]
    return reply(command, {"publications": publications, "epoch": epoch, "offset": offset})


def presence(command: Command, members: Sequence[Member]) -> str:
    there = {
        member.id: {
            "client": member.id,
            "user": member.user,
            "conn_info": {"role": member.role, "since": member.since_ms},
        }
        for member in members
    }
    return reply(command, {"presence": there})


def presence_stats(command: Command, members: Sequence[Member]) -> str:
    users = len({member.user for member in members})
    return reply(command, {"num_clients": len(members), "num_users": users})
