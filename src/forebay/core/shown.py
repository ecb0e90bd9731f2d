"""When a caption stood on the last display: one gateway's account of one room.

Displays that can tell say "everything up to offset N stands on my screen, since so long".
A `Tally` knows for each caption which of them it was written for, and settles it when the
last one has told, or after `WAIT_S` with those who have. A display that told nothing `GIVE_UP`
times in a row (a hidden page, a lost line) is not waited for until it tells again.

What was settled travels to the speakers as an unstored signal, in the clothes of a preview by
nobody: no client can send one, because a name is required.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from forebay.core.events import Caption

__all__ = ["OPEN", "REPORTERS", "REPORTS", "WAIT_S", "Settled", "Shown", "Tally", "news", "signal"]

WAIT_S = 5.0
REPORTERS = 64
"""Displays of one room that are asked to tell; the others are a sample's remainder."""
OPEN = 256
"""Captions that are waited for at once."""
REPORTS = 16
"""Of one message by a display."""
GIVE_UP = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """The caption ``seq`` of ``client`` stands on ``displays`` of the ``of`` that were asked.
    ``ago_ms``: since when on the last of them."""

    client: str
    seq: int
    offset: int
    displays: int
    of: int
    ago_ms: int

    def body(self) -> dict[str, str | int]:
        """As speakers get it."""
        return {
            "client_id": self.client,
            "seq": self.seq,
            "id": self.offset,
            "displays": self.displays,
            "of": self.of,
            "ago_ms": self.ago_ms,
        }


@dataclass(frozen=True, slots=True)
class Settled:
    """``slowest_s``: from writing it to the last display that told; None where none did."""

    shown: Shown
    slowest_s: float | None


@dataclass(slots=True)
class _Open:
    caption: Caption
    at: float
    waiting: set[str]
    of: int
    last: float | None = None


@dataclass(slots=True)
class _Display:
    missed: int = 0


@dataclass(slots=True)
class Tally:
    """Times are one clock's seconds; captions come in the order of their offsets."""

    _displays: dict[str, _Display] = field(default_factory=dict)
    _open: dict[int, _Open] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        return not self._displays

    @property
    def due_at(self) -> float | None:
        """When `due` settles the next one."""
        first = next(iter(self._open.values()), None)
        return None if first is None else first.at + WAIT_S

    def come(self, display: str) -> bool:
        """A display that can tell is here; whether it is asked to."""
        if len(self._displays) >= REPORTERS:
            return False
        self._displays[display] = _Display()
        return True

    def go(self, display: str, now: float) -> list[Settled]:
        """It is gone: nobody waits for it. What is settled by that."""
        if self._displays.pop(display, None) is not None:
            for one in self._open.values():
                if display in one.waiting:
                    one.waiting.remove(display)
                    one.of -= 1
        return self._complete(now)

    def wrote(self, caption: Caption, now: float) -> list[Settled]:
        """It is on its way to everybody here. What was settled because too much is open."""
        waiting = {name for name, one in self._displays.items() if one.missed < GIVE_UP}
        if waiting:
            self._open[caption.offset] = _Open(caption, now, waiting, len(waiting))
        if len(self._open) <= OPEN:
            return []
        return [self._settle(next(iter(self._open)), now)]

    def told(self, display: str, reports: Sequence[tuple[int, float]], now: float) -> list[Settled]:
        """``reports``: (offset, seconds ago), each for all up to that offset."""
        known = self._displays.get(display)
        if known is None:
            return []
        known.missed = 0
        for offset, ago_s in sorted(reports)[:REPORTS]:
            for one in self._open.values():
                if one.caption.offset <= offset and display in one.waiting:
                    one.waiting.remove(display)
                    stood = max(one.at, now - max(0.0, ago_s))
                    one.last = stood if one.last is None else max(one.last, stood)
        return self._complete(now)

    def due(self, now: float) -> list[Settled]:
        """What has been waited for long enough."""
        late = [offset for offset, one in self._open.items() if one.at + WAIT_S <= now]
        for offset in late:
            for name in self._open[offset].waiting:
                self._displays[name].missed += 1
        return [self._settle(offset, now) for offset in late]

    def _complete(self, now: float) -> list[Settled]:
        done = [offset for offset, one in self._open.items() if not one.waiting]
        settled = [self._settle(offset, now) for offset in done]
        return [one for one in settled if one.shown.of]  # else everybody who was asked has left

    def _settle(self, offset: int, now: float) -> Settled:
        one = self._open.pop(offset)
        last = now if one.last is None else one.last
        shown = Shown(
            client=one.caption.client,
            seq=one.caption.seq,
            offset=offset,
            displays=one.of - len(one.waiting),
            of=one.of,
            ago_ms=round((now - last) * 1000),
        )
        return Settled(shown, None if one.last is None else one.last - one.at)


def signal(shown: Shown) -> Caption:
    """What travels between gateways."""
    facts = {"id": shown.offset, "displays": shown.displays, "of": shown.of, "ago": shown.ago_ms}
    return Caption(
        user="",
        text="",
        client=shown.client,
        seq=shown.seq,
        preview=True,
        style={name: str(value) for name, value in facts.items()},
    )


def news(caption: Caption) -> Shown | None:
    """What a signal says; None for a caption or a preview of somebody."""
    if not caption.preview or caption.user:
        return None
    facts = {name: int(value) for name, value in caption.style.items() if value.isdecimal()}
    return Shown(
        client=caption.client,
        seq=caption.seq,
        offset=facts.get("id", 0),
        displays=facts.get("displays", 0),
        of=facts.get("of", 0),
        ago_ms=facts.get("ago", 0),
    )
