"""What was said in a room, as a file: SubRip, WebVTT or plain text.

A caption is shown from when it was taken until the next one, at most `SHOWN_S`, at least
`LEAST_S`. Times count from the first caption.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from forebay.core.events import Caption
from forebay.errors import BadRequest

__all__ = ["EXPORTS", "export"]

SHOWN_S = 7.0
LEAST_S = 0.7

EXPORTS = {
    "srt": b"application/x-subrip; charset=utf-8",
    "vtt": b"text/vtt; charset=utf-8",
    "txt": b"text/plain; charset=utf-8",
}
"""Each form and its media type."""


def export(captions: Sequence[Caption], form: str) -> str:
    """The whole file. Raises `BadRequest` for a form that is none."""
    if form == "txt":
        lines = [f"[{c.timestamp}] {c.user}: {_line(c.text)}" for c in captions]
        return "".join(line + "\n" for line in lines)
    if form not in EXPORTS:
        raise BadRequest(f"export is {form[:10]!r}, expected one of {', '.join(EXPORTS)}")
    cues = list(_cues(captions))
    if form == "srt":
        parts = [
            f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{c.user}: {_cue(c.text)}\n"
            for number, (start, end, c) in enumerate(cues, 1)
        ]
        return "\n".join(parts)
    parts = [
        f"{_clock(start, '.')} --> {_clock(end, '.')}\n<v {_escaped(c.user)}>{_escaped(_cue(c.text))}\n"
        for start, end, c in cues
    ]
    return "\n".join(["WEBVTT\n", *parts])


def _cues(captions: Sequence[Caption]) -> Iterable[tuple[int, int, Caption]]:
    if not captions:
        return
    begin = captions[0].created_ms
    starts: list[int] = []
    for caption in captions:  # a late one stands in the order it was taken
        starts.append(max(caption.created_ms - begin, starts[-1] if starts else 0))
    for index, caption in enumerate(captions):
        start = starts[index]
        later = next((at for at in starts[index + 1 :] if at > start), None)
        end = start + int(SHOWN_S * 1000)
        if later is not None:
            end = min(end, max(later, start + int(LEAST_S * 1000)))
        yield start, end, caption


def _clock(ms: int, mark: str) -> str:
    seconds, ms = divmod(ms, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}{mark}{ms:03}"


def _line(text: str) -> str:
    return " ".join(text.split())


def _cue(text: str) -> str:
    """A blank line would end the cue, and an arrow would begin another."""
    lines = [line.strip() for line in text.splitlines()]
    return "\n".join(line for line in lines if line).replace("-->", "→")


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
