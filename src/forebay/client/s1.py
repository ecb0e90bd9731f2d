"""The client half of the voice protocol `/tts`, without any I/O.

`SpeechState` knows what was sent, what the server said it heard, and what came back. It
makes the messages and reads the answers; a caller moves them (`client.speech` over a
socket, `lab.tts` with injected faults, tests by hand).

A unit is one Unicode code point. Units are numbered from 0 over the whole utterance, also
when the server had to be given a new session for the rest of it (`restarts`).
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Any

from forebay.errors import ForebayError, by_code

__all__ = ["Chunk", "SpeechState"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Audio for the units ``[unit, unit + len(text))``: s16le PCM without a header."""

    unit: int
    text: str
    audio: bytes
    sample_rate: int
    channels: int
    chunk_seq: int


@dataclass(slots=True)
class SpeechState:
    """One utterance as its client sees it. Methods return messages for the caller to send."""

    session_id: str
    sample_rate: int = 16000
    channels: int = 1
    extra: dict[str, Any] = field(default_factory=dict)  # additive start fields (voice, notices)

    sent: list[str] = field(default_factory=list)  # text of each delta, in order
    seq: int = 0  # newest number used
    next_unit: int = 0  # first unit not received yet
    ended: bool = False  # text_end was asked for
    cancelled: bool = False  # cancel was asked for
    over: bool = False  # tts_end or a fatal error was received
    restarts: int = 0
    duplicates: int = 0
    mismatched: int = 0
    gaps: int = 0
    out_of_order: int = 0

    _text: str = ""  # all units sent so far
    _base: int = 0  # global unit of the current session's unit 0
    _heard: int = 0  # units known to be sent on the current session
    _last_chunk_seq: int = 0

    # ------------------------------------------------------------------ messages

    def start(self) -> dict[str, Any]:
        """The first message on any connection. The caller then waits for `start_ack`."""
        return {
            "type": "start",
            "session_id": self.session_id,
            "audio_format": "pcm16_wav",
            "sample_rate": self.sample_rate,
            "channels": self.channels,
            **self.extra,
        }

    def delta(self, text: str) -> dict[str, Any]:
        """Say more. Call `remember` alone instead while there is no connection."""
        self.remember(text)
        return self._delta_message(text)

    def remember(self, text: str) -> None:
        """Add text that will be sent by `resent` after the next start_ack."""
        self.sent.append(text)
        self._text += text

    def end(self) -> dict[str, Any]:
        self.ended = True
        self.seq += 1
        return {"type": "text_end", "session_id": self.session_id, "seq": self.seq}

    def cancel(self) -> dict[str, Any]:
        self.cancelled = True
        self.seq += 1
        return {"type": "cancel", "session_id": self.session_id, "seq": self.seq}

    def resume(self) -> dict[str, Any]:
        """Ask for everything after what was received."""
        return {
            "type": "resume",
            "session_id": self.session_id,
            "last_unit_index_received": self.next_unit - self._base - 1,
        }

    def opening(self, *, known: bool) -> list[dict[str, Any]]:
        """What to send first on a connection. ``known``: the server has answered a start of
        this session before. Then where we stand is said in the same breath: a server that
        hears nothing for a second goes on where it believes us to be."""
        return [self.start(), self.resume()] if known else [self.start()]

    def resent(self, ack: dict[str, Any]) -> list[dict[str, Any]]:
        """What the server had not heard, given its `start_ack`, end and cancel included.

        An original server does not say what it heard: then everything handed to the old
        connection counts as heard.
        """
        heard = int(ack.get("units_received", self._heard))
        self.seq = max(self.seq, int(ack.get("last_seq_received", 0)))
        rest = self._text[self._base + heard :]
        self._heard = heard
        messages = [self._delta_message(rest)] if rest else []
        if self.cancelled:
            messages.append(self.cancel())
        elif self.ended:
            messages.append(self.end())
        return messages

    def restart(self, session_id: str) -> None:
        """The server cannot resume: go on in a new session from the first unit not received.

        The caller then sends `start`, and after its ack what `resent` gives.
        """
        self.session_id = session_id
        self._base = self.next_unit
        self._heard = 0
        self._last_chunk_seq = 0
        self.restarts += 1

    def _delta_message(self, text: str) -> dict[str, Any]:
        self.seq += 1
        self._heard += len(text)
        return {
            "type": "text_delta",
            "session_id": self.session_id,
            "seq": self.seq,
            "text": text,
        }

    # ------------------------------------------------------------------- answers

    @property
    def units_sent(self) -> int:
        return len(self._text)

    @property
    def text(self) -> str:
        return self._text

    @property
    def missing(self) -> int:
        """Units sent and not received: 0 after a good end."""
        return len(self._text) - self.next_unit

    def chunk(self, message: dict[str, Any]) -> Chunk | None:
        """Read an `audio_chunk`; None when it brings nothing new (a duplicate, counted)."""
        first = int(message["unit_index_start"]) + self._base
        text = str(message["units_text"])
        number = int(message["chunk_seq"])
        if number <= self._last_chunk_seq - (first + len(text) > self.next_unit):
            self.out_of_order += 1
        self._last_chunk_seq = max(number, self._last_chunk_seq)
        if self._text[first : first + len(text)] != text:
            self.mismatched += 1
        if first < self.next_unit:
            self.duplicates += min(self.next_unit - first, len(text))
            if first + len(text) <= self.next_unit:
                return None
        elif first > self.next_unit:
            self.gaps += first - self.next_unit
        self.next_unit = first + len(text)
        return Chunk(
            unit=first,
            text=text,
            audio=base64.b64decode(message["audio_base64"]),
            sample_rate=int(message["sample_rate"]),
            channels=int(message["channels"]),
            chunk_seq=number,
        )

    @staticmethod
    def error(message: dict[str, Any]) -> ForebayError:
        """The error that an `error` message stands for."""
        details = {k: v for k, v in message.items() if k in {"detail_code", "reason"}}
        code = str(message.get("detail_code") or message.get("code", "internal_error"))
        found = by_code(code, str(message.get("message", "")), **details)
        retry = message.get("retry_after_s")
        found.retry_after_s = float(retry) if retry is not None else None
        return found
