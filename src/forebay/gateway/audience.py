"""All who read one job in this gateway: those a push is offered to, and those who sleep.

A reader whose wire takes nothing and whose hold is full has no use for a push: it will pull
what it lacks when the wire has drained. Until then it *sleeps*. A push costs the same whether
none sleep or a thousand: what they would have noted, how far the stream is and since when, is
noted once for all of them and told to each when it wakes, so that the slow rule is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING

from forebay.broker import GatewayPush, OutputPush
from forebay.core.flush import Arrivals

if TYPE_CHECKING:
    from forebay.gateway.reader import Frame, Reader

__all__ = ["Audience"]


class Audience:
    """The readers of one job. Used by `Hub` only; a reader is in here from `Hub.open` to its
    close."""

    __slots__ = ("_asleep", "_awake", "_clock", "_epoch", "_hearing", "_missed")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._awake: list[Reader] = []
        self._asleep: dict[Reader, None] = {}
        self._hearing: list[Reader] = []  # those who want to know what is not output
        self._epoch: str | None = None  # of all who sleep
        self._missed = Arrivals(last=True)  # since the first of them fell asleep

    def __len__(self) -> int:
        return len(self._awake) + len(self._asleep)

    def everybody(self) -> list[Reader]:
        return [*self._awake, *self._asleep]

    def add(self, reader: Reader) -> None:
        self._awake.append(reader)
        if reader.hears:
            self._hearing.append(reader)

    def remove(self, reader: Reader) -> None:
        """Idempotent."""
        if self._asleep.pop(reader, reader) is not None and reader in self._awake:
            self._awake.remove(reader)
        if reader in self._hearing:
            self._hearing.remove(reader)

    def rest(self, reader: Reader) -> None:
        """``reader``, which has noted the newest push, is offered no more until `wake`."""
        if reader not in self._awake:
            return
        if not self._asleep:
            self._missed, self._epoch = Arrivals(last=True), reader.epoch
        elif reader.epoch != self._epoch:
            self._epoch = None  # the next push tells who of them is wrong
        self._awake.remove(reader)
        self._asleep[reader] = None

    def wake(self, reader: Reader) -> None:
        """Offer it pushes again, after telling it what came since `rest`."""
        if self._asleep.pop(reader, reader) is not None:
            return
        self._awake.append(reader)
        for last, when in self._missed:
            reader.missed(last, when)

    def offer(self, push: OutputPush) -> None:
        """Give ``push`` to everybody who is awake. Frames are shared by several, or by nobody."""
        if self._asleep:
            self._note(push)
        awake = self._awake
        if len(awake) == 1:
            awake[0].offer(push)
        elif awake:
            shared: dict[tuple[Hashable, int], Sequence[Frame]] = {}
            for reader in tuple(awake):
                reader.offer(push, shared)

    def _note(self, push: OutputPush) -> None:
        if push.epoch != self._epoch:  # the store lost the stream: everybody has to know at once
            for reader in tuple(self._asleep):
                reader.offer(push)
            self._epoch = push.epoch
        if push.events:
            self._missed.note(push.events[-1].offset, self._clock())

    def hear(self, push: GatewayPush) -> None:
        for reader in tuple(self._hearing):
            reader.hear(push)
