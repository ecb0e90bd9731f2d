"""What a supervisor and its fork server say to each other, over one Unix stream socket.

Every message is four bytes of length and MessagePack. A `Request` carries descriptors beside
its first byte; the answer to it is the number of the new process, or why there is none. The
first message of all is the fork server's own: empty when it is warm, else why it cannot fork.
"""

from __future__ import annotations

import socket
import struct
from typing import TypeVar

import msgspec

__all__ = ["MAX_FDS", "MAX_MESSAGE_BYTES", "Answer", "Request", "receive", "send"]

MAX_MESSAGE_BYTES = 8 << 20
"""Arguments and environment together: the kernel allows about 2 MiB for both."""
MAX_FDS = 250
"""The kernel passes 253 descriptors at once."""
_LENGTH = struct.Struct("!I")


class Request(msgspec.Struct, frozen=True, array_like=True):
    """A process to start. The first descriptor beside it is a gate: the process begins when a
    byte comes through, and ends when nobody holds the other end any more. ``targets``: the
    numbers under which it finds the others, in their order. ``env``: all of its environment."""

    argv: list[bytes]
    env: dict[bytes, bytes]
    targets: list[int]


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """``pid``: the new process, 0 where there is none; then ``why`` says what stood in the
    way and ``errno`` what the system called it."""

    pid: int = 0
    why: str = ""
    errno: int = 0


M = TypeVar("M", Request, Answer)


def send(sock: socket.socket, message: Request | Answer, fds: list[int] | None = None) -> None:
    """Raises `OSError` when the other side is gone, or does not read in time."""
    payload = msgspec.msgpack.encode(message)
    data = _LENGTH.pack(len(payload)) + payload
    if fds:
        sent = socket.send_fds(sock, [data], fds)
        data = data[sent:]
    sock.sendall(data)


def receive(sock: socket.socket, form: type[M]) -> tuple[M, list[int]]:
    """The next message and its descriptors. Raises `EOFError` when the other side is gone,
    `OSError` when it says nothing in time, `ValueError` for what is no message."""
    head, fds, _, _ = socket.recv_fds(sock, _LENGTH.size, MAX_FDS)
    if len(head) < _LENGTH.size:
        head += _exactly(sock, _LENGTH.size - len(head))
    (length,) = _LENGTH.unpack(head)
    if length > MAX_MESSAGE_BYTES:
        raise ValueError(f"a message has {length} bytes, expected up to {MAX_MESSAGE_BYTES}")
    return msgspec.msgpack.decode(_exactly(sock, length), type=form), list(fds)


def _exactly(sock: socket.socket, count: int) -> bytes:
    found = bytearray()
    while len(found) < count:
        piece = sock.recv(count - len(found))
        if not piece:
            raise EOFError("the other side has closed the line")
        found += piece
    return bytes(found)
