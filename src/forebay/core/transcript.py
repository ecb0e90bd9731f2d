"""The finals of one recognition job, joined: what was said so far, within a bound.

Finals are joined without a separator, so a final of a spaced script begins with its space.
`joint` decides that, in one place, for every engine.
"""

from __future__ import annotations

from forebay.core.textbreak import UNSPACED

__all__ = ["TRANSCRIPT_BYTES", "Transcript", "joint"]

TRANSCRIPT_BYTES = 160 * 1024
"""The most of a transcript that a lease or a terminal event carries (about three hours of
unbroken English speech). It must fit one frame of the link beside everything else."""


def _spaced(char: str) -> bool:
    wide = "\u3000" <= char <= "\u303f" or "\uff00" <= char <= "\uffef"  # 。，！ and the like
    return not wide and UNSPACED.match(char) is None


def joint(before: str, text: str) -> str:
    """``text`` as it must be appended to ``before``: stripped, with its space where needed."""
    text = text.strip()
    if not text or not before or before[-1].isspace():
        return text
    return f" {text}" if _spaced(before[-1]) and _spaced(text[0]) else text


class Transcript:
    """All finals so far. Of more than `TRANSCRIPT_BYTES` it keeps the newest part.

    ``text``: what is kept; it begins at character ``chars - len(text)`` of the whole.
    """

    __slots__ = ("_bytes", "_chars", "_parts", "chars")

    def __init__(self, text: str = "", chars: int | None = None) -> None:
        self._parts = [text] if text else []
        self._bytes = len(text.encode("utf-8", "surrogatepass"))
        self._chars = len(text)
        self.chars = self._chars if chars is None else chars

    def add(self, text: str) -> None:
        self._parts.append(text)
        self._bytes += len(text.encode("utf-8", "surrogatepass"))
        self._chars += len(text)
        self.chars += len(text)
        if self._bytes > 2 * TRANSCRIPT_BYTES:
            kept = self.text
            self._parts = [kept]
            self._bytes = len(kept.encode("utf-8", "surrogatepass"))
            self._chars = len(kept)

    @property
    def tail(self) -> str:
        """The newest final, to judge what may follow it."""
        return self._parts[-1] if self._parts else ""

    @property
    def text(self) -> str:
        if self._bytes <= TRANSCRIPT_BYTES:
            return "".join(self._parts)
        whole = "".join(self._parts).encode("utf-8", "surrogatepass")
        return whole[-TRANSCRIPT_BYTES:].decode("utf-8", "ignore")
