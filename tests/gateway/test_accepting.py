"""Connections from a listening socket, which several gateways may share."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Any

import pytest

from forebay.gateway import accepting
from forebay.gateway.accepting import Door


class Hello(asyncio.Protocol):
    """Says whose connection it is, and closes."""

    def __init__(self, word: bytes) -> None:
        self._word = word

    def connection_made(self, transport: Any) -> None:
        transport.write(self._word)
        transport.close()


def listening() -> socket.socket:
    sock = socket.create_server(("127.0.0.1", 0), backlog=128)
    sock.setblocking(False)
    return sock


async def visit(sock: socket.socket) -> bytes:
    reader, writer = await asyncio.open_connection(*sock.getsockname()[:2])
    try:
        return await reader.read()
    finally:
        writer.close()


def test_each_connection_is_taken_by_one_of_those_that_share_the_socket() -> None:
    async def body() -> None:
        loop = asyncio.get_running_loop()
        first = listening()
        second = first.dup()
        second.setblocking(False)
        turns = [
            Door(loop, sock, lambda word=word: Hello(word))  # type: ignore[misc]
            for sock, word in ((first, b"a"), (second, b"b"))
        ]
        where = first.dup()
        try:
            async with asyncio.timeout(20):
                words = await asyncio.gather(*(visit(where) for _ in range(60)))
            assert set(words) <= {b"a", b"b"}
            assert len(words) == 60
            turns[0].close()
            async with asyncio.timeout(20):
                assert await asyncio.gather(*(visit(where) for _ in range(10))) == [b"b"] * 10
        finally:
            for one in turns:
                one.close()
                one.close()
            where.close()

    asyncio.run(body())


class Crowded:
    """A socket at which so many wait, what it gives, and a loop that only counts them."""

    def __init__(self, waiting: int) -> None:
        self.waiting = waiting
        self.opened = 0

    def accept(self) -> Any:
        if not self.waiting:
            raise BlockingIOError
        self.waiting -= 1
        return self, None

    def setblocking(self, blocking: bool) -> None:
        assert not blocking

    def fileno(self) -> int:
        return -1

    def add_reader(self, sock: Any, call: Any) -> None:
        self.ready = call

    def create_task(self, work: Any, name: str) -> asyncio.Future[None]:
        work.close()
        self.opened += 1
        return asyncio.get_running_loop().create_future()


@pytest.mark.parametrize("most", [1, 16])
async def test_so_many_are_taken_in_one_turn_and_the_others_in_the_next(most: int) -> None:
    crowd: Any = Crowded(40)
    door = Door(crowd, crowd, lambda: Hello(b"a"), most)
    crowd.ready()
    assert crowd.waiting == 40 - most
    for _ in range(40):
        crowd.ready()
    assert crowd.opened == 40
    door.close()


class Full:
    """A socket whose process has no descriptor left, once."""

    def __init__(self, sock: socket.socket, number: int) -> None:
        self._sock = sock
        self._left: int | None = number
        self.tried = 0
        self.told = asyncio.Event()

    def accept(self) -> Any:
        self.tried += 1
        self.told.set()
        number, self._left = self._left, None
        if number is not None:
            raise OSError(number, "told so")
        return self._sock.accept()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


class Broken(Crowded):
    """A socket that gives nothing but this error."""

    def __init__(self, number: int) -> None:
        super().__init__(1)
        self._number = number
        self.waits_s: list[float] = []

    def accept(self) -> Any:
        raise OSError(self._number, "told so")

    def remove_reader(self, sock: Any) -> None:
        del self.ready

    def call_later(self, wait_s: float, call: Any) -> None:
        self.waits_s.append(wait_s)


@pytest.mark.parametrize(
    ("number", "lasts"), [(errno.ENFILE, True), (errno.EINVAL, True), (errno.ECONNABORTED, False)]
)
def test_what_may_last_is_not_asked_again_at_once(number: int, lasts: bool) -> None:
    broken: Any = Broken(number)
    Door(broken, broken, lambda: Hello(b"a"))
    broken.ready()
    assert hasattr(broken, "ready") is not lasts
    assert broken.waits_s == [accepting.FULL_WAIT_S] * lasts


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EPROTO])
def test_a_connection_that_cannot_be_taken_now_is_taken_later(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accepting, "FULL_WAIT_S", 0.05)

    async def body() -> None:
        sock = listening()
        full = Full(sock, number)
        turns = Door(asyncio.get_running_loop(), full, lambda: Hello(b"a"))  # type: ignore[arg-type]
        try:
            async with asyncio.timeout(20):
                assert await visit(sock) == b"a"
            assert full.tried >= 2
        finally:
            turns.close()

    asyncio.run(body())


def test_closing_while_no_descriptor_is_left_ends_the_wait() -> None:
    async def body() -> None:
        sock = listening()
        full = Full(sock, errno.EMFILE)
        turns = Door(asyncio.get_running_loop(), full, lambda: Hello(b"a"))  # type: ignore[arg-type]
        _, writer = await asyncio.open_connection(*sock.getsockname()[:2])
        async with asyncio.timeout(20):
            await full.told.wait()
        turns.close()
        assert sock.fileno() == -1
        writer.close()

    asyncio.run(body())
