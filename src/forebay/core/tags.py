"""XML-like tags inside model text, taken apart while the text is still being written.

Text is never held back longer than a tag cannot be ruled out: of ``a <b`` the ``a `` leaves
at once, and ``<b`` as soon as no known tag begins so. Whitespace stays as it came. Text
inside a tag that was never closed has been given out like any other.

Known tags only: everything else, `<` included, is text. Inside a *verbatim* tag (code)
nothing but its own end is a tag, so code that talks about tags stays whole.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["MAX_TAG_CHARS", "CloseTag", "OpenTag", "Piece", "TagParser", "TagText"]

MAX_TAG_CHARS = 256
"""A tag with its attributes; what grows longer is text."""
MAX_OPEN = 16
"""Tags open inside each other; one more is text."""

_ATTRIBUTE = re.compile(r"""([\w:-]+)\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'>/]+))""")
_SPACE = " \t\r\n"


@dataclass(frozen=True, slots=True)
class TagText:
    """Text as it came. ``tag``: the innermost open one, "" outside of all."""

    text: str
    tag: str = ""


@dataclass(frozen=True, slots=True)
class OpenTag:
    tag: str
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CloseTag:
    tag: str


Piece = TagText | OpenTag | CloseTag


class TagParser:
    """`feed` text as it comes, `end` when no more will. One parser for one answer.

    ``known``: names that are tags. ``verbatim``: those of them whose inside is not markup.
    """

    def __init__(self, known: Collection[str], verbatim: Collection[str] = ()) -> None:
        self._known = frozenset(known)
        self._verbatim = frozenset(verbatim)
        self._open: list[str] = []
        self._held = ""  # begins with "<" and may still become a tag

    @property
    def held(self) -> int:
        """Characters that wait for their tag to be ruled out or completed."""
        return len(self._held)

    def feed(self, text: str) -> list[Piece]:
        """What ``text`` has made certain, in order."""
        pieces: list[Piece] = []
        rest, self._held = self._held + text, ""
        while rest:
            at = rest.find("<")
            if at != 0:
                self._say(pieces, rest if at < 0 else rest[:at])
                rest = "" if at < 0 else rest[at:]
                continue
            size, piece = self._tag(rest)
            if size == 0:
                self._held = rest
                break
            if piece is None:
                self._say(pieces, rest[:size])
            else:
                pieces.append(piece)
            rest = rest[size:]
        return pieces

    def end(self) -> list[Piece]:
        """What was held is text after all; open tags stay as they are: never closed."""
        pieces: list[Piece] = []
        rest, self._held = self._held, ""
        self._say(pieces, rest)
        return pieces

    # ------------------------------------------------------------------------ inside

    def _say(self, pieces: list[Piece], text: str) -> None:
        if not text:
            return
        tag = self._open[-1] if self._open else ""
        last = pieces[-1] if pieces else None
        if isinstance(last, TagText):
            pieces[-1] = TagText(last.text + text, tag)
        else:
            pieces.append(TagText(text, tag))

    def _tag(self, text: str) -> tuple[int, Piece | None]:
        """How many characters of ``text`` (which begins with ``<``) are decided, and the tag
        they are, None if they are text. 0: not known yet."""
        if text == "<":
            return (0, None) if self._known else (1, None)
        closing = text.startswith("</")
        begin = 2 if closing else 1
        name = _name(text, begin)
        after = begin + len(name)
        names = self._candidates(closing)
        if after == len(text):
            possible = any(known.startswith(name) for known in names)
            return (0, None) if possible else (1, None)
        if name not in names or text[after] not in f"{_SPACE}/>":
            return 1, None
        return self._whole(text, name, after, closing)

    def _whole(self, text: str, name: str, after: int, closing: bool) -> tuple[int, Piece | None]:
        end = _end_of_tag(text, after)
        if end is None:
            return (0, None) if len(text) <= MAX_TAG_CHARS else (1, None)
        if end > MAX_TAG_CHARS:
            return 1, None
        if closing:
            return end, self._close(name)
        if text[end - 2] == "/":
            return end, OpenTag(name, _attributes(text[after:end]))
        if len(self._open) >= MAX_OPEN:
            return 1, None
        self._open.append(name)
        return end, OpenTag(name, _attributes(text[after:end]))

    def _candidates(self, closing: bool) -> frozenset[str]:
        inside = self._open[-1] if self._open else ""
        if inside in self._verbatim:
            return frozenset({inside}) if closing else frozenset()
        return self._known

    def _close(self, name: str) -> CloseTag:
        """Ends ``name`` and whatever was left open inside it. One that was not open is markup
        all the same and changes nothing."""
        if name in self._open:
            while self._open.pop() != name:
                continue
        return CloseTag(name)


def _name(text: str, begin: int) -> str:
    end = begin
    while end < len(text) and (text[end].isalnum() or text[end] in "-_"):
        end += 1
    return text[begin:end]


def _end_of_tag(text: str, at: int) -> int | None:
    """Where the tag ends, one past its ``>``, which may also stand inside quotes."""
    quote = ""
    for index in range(at, min(len(text), MAX_TAG_CHARS + 1)):
        char = text[index]
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        elif char == ">":
            return index + 1
    return None


def _attributes(text: str) -> dict[str, str]:
    found: Sequence[tuple[str, str, str, str]] = _ATTRIBUTE.findall(text)
    return {name: double or single or bare for name, double, single, bare in found}
