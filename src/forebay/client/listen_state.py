"""The client half of `/v1/listen`, without any I/O.

`ListenState` keeps what was said until the server has it, and knows which news has come. It
makes the messages and reads the answers; a caller moves them (`client.listen` over a socket,
tests by hand). Samples are counted at the session's rate, from 0, over its whole life.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from forebay.errors import BadRequest, ForebayError, JobFailed, by_code

__all__ = ["FRAME_BYTES", "ListenState", "Queued", "Transcript"]

FRAME_BYTES = 32 * 1024
"""Sound in one binary frame; the server takes up to 64 KiB."""

SAMPLE_BYTES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcript:
    """What was heard between two seconds of the session. ``final``: it will not change again;
    otherwise the next transcript replaces it. Finals are joined without a separator."""

    text: str
    start: float
    end: float
    final: bool
    language: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Queued:
    """The session waits at this place (1 = next); 0: it waits no more."""

    position: int
    eta_s: float | None = None


@dataclass(slots=True)
class ListenState:
    """One session as its client sees it. Methods return frames for the caller to send."""

    session_id: str
    sample_rate: int = 16_000
    extra: dict[str, Any] = field(default_factory=dict)  # language, model, partials, queue

    said: int = 0  # samples given to `say`
    stored: int = 0  # samples the server has
    last_event: int = 0  # number of the newest transcript received
    ended: bool = False
    cancelled: bool = False
    over: bool = False
    end_message: dict[str, Any] = field(default_factory=dict)
    finals: list[str] = field(default_factory=list)
    repeats: int = 0

    _held: deque[tuple[int, bytes]] = field(default_factory=deque)  # (first sample, sound)

    # ------------------------------------------------------------------ messages

    def start(self) -> dict[str, Any]:
        """The first message on any connection. The caller then waits for `started`."""
        return {
            "type": "start",
            "session_id": self.session_id,
            "sample_rate": self.sample_rate,
            "after_event": self.last_event,
            **self.extra,
        }

    def say(self, sound: bytes) -> list[bytes]:
        """Keep ``sound`` (whole s16le samples) and return it as frames."""
        if len(sound) % SAMPLE_BYTES:
            raise BadRequest(f"{len(sound)} bytes are not a whole number of 16-bit samples")
        frames = [sound[at : at + FRAME_BYTES] for at in range(0, len(sound), FRAME_BYTES)]
        for frame in frames:
            self._held.append((self.said, frame))
            self.said += len(frame) // SAMPLE_BYTES
        return frames

    @property
    def held_s(self) -> float:
        """Seconds of sound that the server is not known to have."""
        return (self.said - self.stored) / self.sample_rate

    def comeback(self, started: dict[str, Any]) -> list[dict[str, Any] | bytes]:
        """What to send after `started`: where sound goes on, the sound, the end."""
        self._has(int(started["samples"]))
        out: list[dict[str, Any] | bytes] = []
        if self._held:
            out.append({"type": "from", "sample": self._held[0][0]})
            out += [frame for _, frame in self._held]
        else:
            out.append({"type": "from", "sample": self.said})
        if self.cancelled:
            out.append({"type": "cancel"})
        elif self.ended:
            out.append({"type": "end"})
        return out

    def end(self) -> dict[str, Any]:
        self.ended = True
        return {"type": "end"}

    def cancel(self) -> dict[str, Any]:
        self.cancelled = True
        return {"type": "cancel"}

    # ------------------------------------------------------------------- answers

    def read(self, message: dict[str, Any]) -> Transcript | Queued | None:
        """What a message tells the user, if anything. Raises the server's named error."""
        match message.get("type"):
            case "ack":
                self._has(int(message["samples"]))
            case "partial" | "final":
                return self._transcript(message)
            case "queue_status":
                return Queued(position=int(message["position"]), eta_s=message.get("eta_s"))
            case "ended":
                self.over = True
                self.end_message = message
                if message.get("state") == "cancelled" and not self.cancelled:
                    why = str(message.get("message") or "not by this client")
                    raise JobFailed(f"the session was cancelled: {why}")
            case "error":
                self.over = True
                raise self.error(message)
        return None

    def _transcript(self, message: dict[str, Any]) -> Transcript | None:
        number = int(message["event"])
        if number <= self.last_event:
            self.repeats += 1
            return None
        self.last_event = number
        final = message["type"] == "final"
        if final:
            self.finals.append(str(message["text"]))
        return Transcript(
            text=str(message["text"]),
            start=float(message["start"]),
            end=float(message["end"]),
            final=final,
            language=str(message.get("language", "")),
        )

    def _has(self, samples: int) -> None:
        """The server has everything before sample ``samples``."""
        self.stored = max(self.stored, samples)
        while self._held:
            first, sound = self._held[0]
            if first + len(sound) // SAMPLE_BYTES > self.stored:
                break
            self._held.popleft()

    @property
    def text(self) -> str:
        """All finals received so far."""
        return "".join(self.finals)

    @staticmethod
    def error(message: dict[str, Any]) -> ForebayError:
        """The error that an `error` message stands for."""
        details = message.get("details")
        facts = (
            {k: v for k, v in details.items() if k not in ("message", "code")}
            if isinstance(details, dict)
            else {}
        )
        retry = facts.pop("retry_after_s", None)
        found = by_code(str(message.get("code")), str(message.get("message", "")), **facts)
        wait = message.get("retry_after_s", retry)
        found.retry_after_s = float(wait) if wait is not None else None
        return found
