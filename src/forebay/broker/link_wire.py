"""What is spoken on the Unix-socket link: greeting, frames and messages. No I/O here.

Greeting: each side sends four bytes, ``FBL`` and its version, before anything else. A side
that reads another version says which one it wanted and closes.

Frame: four bytes little-endian, then that many bytes of msgpack. The top bit of the four
says that the message goes on in the next frame of the same lane, the second bit names the
lane (control or data), so that a long message never holds up a short urgent one for more
than one frame. A frame is at most `FRAME_BYTES`; a message at most what the reader allows.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Literal

import msgspec

from forebay.broker import (
    Assign,
    CancelJob,
    Control,
    Credit,
    Delivered,
    Drain,
    InputPush,
    LeaseLost,
    WorkerPush,
)
from forebay.core.events import Consumed, OutputEvent
from forebay.core.spec import LoadStage, PoolView, WorkerInfo
from forebay.errors import ProtocolError, TooLarge

__all__ = [
    "CREDIT_BYTES",
    "FRAME_BYTES",
    "GREETING",
    "MESSAGE_BYTES",
    "Beat",
    "Commit",
    "Exited",
    "Failure",
    "FrameReader",
    "FromBroker",
    "FromWorker",
    "Hello",
    "Keeps",
    "Park",
    "Pools",
    "Register",
    "Stage",
    "check_greeting",
    "decode_from_broker",
    "decode_from_worker",
    "encode",
    "frames",
]

VERSION = 1
GREETING = b"FBL" + bytes([VERSION])
FRAME_BYTES = 512 * 1024
MESSAGE_BYTES = 4 * 1024 * 1024
"""Longest message to a worker: a lease with all its unread input and committed text."""
CREDIT_BYTES = 256 * 1024

_MORE = 1 << 31
_CONTROL = 1 << 30
_SIZE = _CONTROL - 1
_HEAD = struct.Struct("<I")


# ------------------------------------------------------- from a worker or supervisor


class Hello(msgspec.Struct, frozen=True, tag_field="p", tag="hello"):
    """First message. ``worker`` is its id; empty for a supervisor."""

    role: Literal["worker", "beat", "supervisor"]
    worker: str = ""


class Stage(msgspec.Struct, frozen=True, tag_field="p", tag="stage"):
    worker: str
    pools: list[str]
    stage: LoadStage


class Register(msgspec.Struct, frozen=True, tag_field="p", tag="register"):
    info: WorkerInfo


class Commit(msgspec.Struct, frozen=True, tag_field="p", tag="commit"):
    job: str
    attempt: int
    events: list[OutputEvent]
    consumed: Consumed
    model_s: float = 0.0


class Park(msgspec.Struct, frozen=True, tag_field="p", tag="park"):
    job: str
    attempt: int


class Keeps(msgspec.Struct, frozen=True, tag_field="p", tag="keeps"):
    affinity: str
    held: bool


class Beat(msgspec.Struct, frozen=True, tag_field="p", tag="beat"):
    worker: str
    load: dict[str, float | int | str]


class Exited(msgspec.Struct, frozen=True, tag_field="p", tag="exited"):
    worker: str
    abnormal: bool
    stepping: list[tuple[str, int]]
    reason: str


FromWorker = Hello | Stage | Register | Commit | Park | Keeps | Beat | Exited


# ------------------------------------------------------------------- from the broker


class Pools(msgspec.Struct, frozen=True, tag_field="p", tag="pools"):
    """To a supervisor: every pool as it stands now."""

    pools: list[PoolView]


class Failure(msgspec.Struct, frozen=True, tag_field="p", tag="failure"):
    """Why this connection is about to be closed."""

    code: str
    message: str


FromBroker = (
    Assign
    | InputPush
    | Delivered
    | Credit
    | CancelJob
    | LeaseLost
    | Drain
    | Control
    | Pools
    | Failure
)

_ENCODER = msgspec.msgpack.Encoder()
_FROM_WORKER: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)
_FROM_BROKER: msgspec.msgpack.Decoder[FromBroker] = msgspec.msgpack.Decoder(FromBroker)


encode: Callable[[FromWorker | FromBroker | WorkerPush], bytes] = _ENCODER.encode


def decode_from_worker(body: bytes | memoryview) -> FromWorker:
    """Raises `ProtocolError` for anything that is not one of these messages."""
    try:
        return _FROM_WORKER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise _unreadable(exc) from exc


def decode_from_broker(body: bytes | memoryview) -> FromBroker:
    """Raises `ProtocolError` for anything that is not one of these messages."""
    try:
        return _FROM_BROKER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise _unreadable(exc) from exc


def _unreadable(exc: Exception) -> ProtocolError:
    # The exception's text names the field, never its value; the value may be a user's.
    return ProtocolError(f"link message cannot be read: {exc}")


def check_greeting(got: bytes) -> None:
    """Raises `ProtocolError` naming both versions unless ``got`` is our own greeting."""
    if got == GREETING:
        return
    if got[:3] != GREETING[:3]:
        raise ProtocolError("peer on the worker socket does not speak forebay's link protocol")
    raise ProtocolError(f"peer speaks link version {got[3]}, expected {VERSION}")


def frames(body: bytes, *, control: bool, limit_bytes: int = MESSAGE_BYTES) -> list[bytes]:
    """``body`` as buffers to be written in this order (heads and slices of the body).

    Raises `TooLarge` when the peer would refuse a message of that length.
    """
    lane = _CONTROL if control else 0
    if len(body) <= FRAME_BYTES:
        return [_HEAD.pack(len(body) | lane), body]
    if len(body) > limit_bytes:
        raise TooLarge(
            f"link message of {len(body)} bytes, expected no more than {limit_bytes}",
            actual=len(body),
            limit=limit_bytes,
        )
    out: list[bytes] = []
    for start in range(0, len(body), FRAME_BYTES):
        part = body[start : start + FRAME_BYTES]
        more = _MORE if start + FRAME_BYTES < len(body) else 0
        out.append(_HEAD.pack(len(part) | lane | more))
        out.append(part)
    return out


class FrameReader:
    """Bytes in, whole messages out; keeps what is incomplete.

    `feed` takes bytes, iterating gives messages one at a time so that a reader may stop
    after any of them and go on later. At most one frame plus one read is buffered, plus at
    most ``limit_bytes`` of a message that comes in several frames.
    """

    __slots__ = ("_buffer", "_limit", "_parts", "_pos", "greeting")

    def __init__(self, limit_bytes: int = MESSAGE_BYTES) -> None:
        self._buffer = b""
        self._pos = 0
        self._limit = limit_bytes
        self._parts: dict[int, bytearray] = {}
        self.greeting: bytes | None = None

    def feed(self, data: bytes) -> None:
        """Add bytes. Next: iterate until exhausted, or remember to come back."""
        if self._pos == len(self._buffer):
            self._buffer = data
        else:
            self._buffer = self._buffer[self._pos :] + data
        self._pos = 0

    @property
    def pending(self) -> int:
        """Bytes fed and not yet given out as messages."""
        return len(self._buffer) - self._pos

    def _greet(self) -> bool:
        if self.pending < len(GREETING):
            return False
        self.greeting = self._buffer[self._pos : self._pos + len(GREETING)]
        self._pos += len(GREETING)
        check_greeting(self.greeting)
        return True

    def __iter__(self) -> Iterator[bytes | memoryview]:
        """Whole messages now in the buffer. Raises `ProtocolError` on a broken frame."""
        if self.greeting is None and not self._greet():
            return
        while True:
            start = self._pos + 4
            left = len(self._buffer) - start
            if left < 0:
                return
            (head,) = _HEAD.unpack_from(self._buffer, self._pos)
            size = head & _SIZE
            if size > FRAME_BYTES:
                raise ProtocolError(
                    f"link frame of {size} bytes, expected no more than {FRAME_BYTES}"
                )
            if left < size:
                return
            self._pos = start + size
            body = memoryview(self._buffer)[start : self._pos]
            if size <= self._limit and not head & _MORE and not self._parts:
                yield body  # a message in one frame, as nearly all are
                continue
            whole = self._join(head, body)
            if whole is not None:
                yield whole

    def _join(self, head: int, body: memoryview) -> bytes | memoryview | None:
        lane = head & _CONTROL
        parts = self._parts.get(lane)
        if parts is None:
            if not head & _MORE:
                return self._checked(body)
            parts = self._parts[lane] = bytearray()
        if len(parts) + len(body) > self._limit:
            raise ProtocolError(
                f"link message over {len(parts)} bytes, expected no more than {self._limit}"
            )
        parts += body
        if head & _MORE:
            return None
        del self._parts[lane]
        return bytes(parts)

    def _checked(self, body: memoryview) -> memoryview:
        if len(body) > self._limit:
            raise ProtocolError(
                f"link message of {len(body)} bytes, expected no more than {self._limit}"
            )
        return body
