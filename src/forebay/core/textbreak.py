"""Where text may be broken: grapheme clusters, numbers, words, sentence and clause marks.

Pure functions of a string. ``open_end`` says that more text may follow what is given; then
the last place of the string is judged only as far as it can be.

The cluster rule follows UAX 29 with character categories from `unicodedata` and errs on the
side of not breaking (every place it allows is a cluster boundary; it denies a few that are).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

__all__ = [
    "Mark",
    "forced_break",
    "is_break",
    "is_cluster_break",
    "is_number_break",
    "last_break",
    "marks_in",
    "speakable",
]

SENTENCE = frozenset(".!?。！？…｡．؟۔।॥။።‼⁇⁈⁉\n")
CLAUSE = frozenset(",;:，；：、､﹑،؛፣၊—")
WIDE = frozenset("。！？，；：、､｡﹑")
CLOSERS = frozenset("\"')]}»”’›」』】》〉）］｝﹂﹄〕｣")
OPENERS = frozenset("([{«“‘‹「『【《〈（［｛﹁﹃〔｢")
NUMBER_JOINTS = frozenset(".,:'’．，：/-")
MARK_RUN = re.compile("[" + re.escape("".join(sorted(SENTENCE | CLAUSE))) + "]+")
ENDING_WORD = re.compile(r"[^\W_]+(?:\.[^\W_]+)*$")

# Written with a point that ends no sentence. Single letters and inner points ("e.g.") are
# recognised without being listed.
ABBREVIATIONS = frozenset(
    "mr mrs ms dr prof rev hon st sr jr vs etc approx dept est inc ltd corp co gen col sgt capt "
    "lt gov sen rep pres ed eds al cf jan feb mar apr jun jul aug sep sept oct nov dec mon tue "
    "wed thu fri hr hrs ca bzw usw".split()
)
# The same, but only before a number: "No. 5" against "He said no."
NUMBERED = frozenset("no nos fig figs eq vol vols pp p ch sec art nr abs".split())

HAN_DIGITS = frozenset("〇零一二三四五六七八九十百千万萬亿億两兩点點")
# Kana and marks that continue the syllable before them.
KANA_TAIL = frozenset("々ーゝゞヽヾぁぃぅぇぉっゃゅょゎゕゖァィゥェォッャュョヮヵヶｧｨｩｪｫｬｭｮｯｰ")
UNSPACED = re.compile(
    "[\u3005-\u3007\u3040-\u30ff\u3105-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U0001b000-\U0001b16f\U00020000-\U000323af]"
)


# ------------------------------------------------------------------- grapheme clusters

ZWJ = "\u200d"
PREPEND = frozenset(
    "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\u0d4e"
    "\U000110bd\U000110cd\U000111c2\U000111c3\U000113d1\U0001193f\U00011941\U00011a3a"
    "\U00011a84\U00011a85\U00011a86\U00011a87\U00011a88\U00011a89\U00011d46\U00011f02"
)
SPACING_LETTERS = frozenset("\u0e33\u0eb3\uff9e\uff9f")  # letters that count as marks


@lru_cache(maxsize=4096)
def _joins_back(char: str) -> bool:
    """Never begins a cluster: marks, joiners, skin tones, tags."""
    return (
        unicodedata.category(char) in ("Mn", "Me", "Mc")
        or char in SPACING_LETTERS
        or char in "\u200c\u200d"
        or "\U0001f3fb" <= char <= "\U0001f3ff"
        or "\U000e0020" <= char <= "\U000e007f"
    )


@lru_cache(maxsize=4096)
def _joins_on(char: str) -> bool:
    """Never ends a cluster: the joiner, prefixed signs, a virama (its conjunct goes on)."""
    return char == ZWJ or char in PREPEND or unicodedata.combining(char) == 9


def _hangul(char: str) -> str:
    """The syllable type of UAX 29: L, V, T, LV or LVT; "" for anything else."""
    code = ord(char)
    if 0xAC00 <= code <= 0xD7A3:
        return "LV" if (code - 0xAC00) % 28 == 0 else "LVT"
    if 0x1100 <= code <= 0x115F or 0xA960 <= code <= 0xA97C:
        return "L"
    if 0x1160 <= code <= 0x11A7 or 0xD7B0 <= code <= 0xD7C6:
        return "V"
    if 0x11A8 <= code <= 0x11FF or 0xD7CB <= code <= 0xD7FB:
        return "T"
    return ""


HANGUL_JOINS = {
    "L": ("L", "V", "LV", "LVT"),
    "LV": ("V", "T"),
    "V": ("V", "T"),
    "LVT": ("T",),
    "T": ("T",),
}


def _is_flag(char: str) -> bool:
    return "\U0001f1e6" <= char <= "\U0001f1ff"


def _flags_before(text: str, at: int) -> int:
    count = 0
    while count < at and _is_flag(text[at - count - 1]):
        count += 1
    return count


def is_cluster_break(text: str, at: int) -> bool:
    """Whether ``text`` may be broken before index ``at`` (0 < at < len) between clusters."""
    before, after = text[at - 1], text[at]
    if _joins_back(after) or _joins_on(before):
        return False
    if before < "\u0300" and after < "\u0300":
        return not (before == "\r" and after == "\n")
    if _is_flag(before) and _is_flag(after):
        return _flags_before(text, at) % 2 == 0
    if _conjunct_open(text, at):
        return False
    return _hangul(after) not in HANGUL_JOINS.get(_hangul(before), ())


def _conjunct_open(text: str, at: int) -> bool:
    """Whether the marks right before ``at`` hold a virama or joiner that goes on past them."""
    while at and _joins_back(text[at - 1]):
        at -= 1
        if _joins_on(text[at]):
            return True
    return False


# --------------------------------------------------------------------- words, numbers


def speakable(text: str) -> bool:
    """Whether there is anything to say: a letter, a digit or a symbol."""
    return any(unicodedata.category(char)[0] in "LNS" for char in text)


def _is_unspaced(char: str) -> bool:
    return UNSPACED.match(char) is not None


def _is_numeral(char: str) -> bool:
    return char.isdigit() or char in HAN_DIGITS


def _is_joint(char: str) -> bool:
    return char in NUMBER_JOINTS or char.isspace()


def is_number_break(text: str, at: int, *, open_end: bool = False) -> bool:
    """Whether a break before index ``at`` (0 < at <= len) is not inside a number.

    Inside: between digits; before or after the joint of "3.14", "1,000", "12:30"; between
    digits with one space ("10 000"); between Han numerals. What could become one of these
    when more follows (``open_end``) counts as inside.
    """
    after = text[at] if at < len(text) else ""
    if not after and not open_end:
        return True
    before = text[at - 1]
    if _is_numeral(before):
        if _is_joint(after):
            after = text[at + 1] if at + 1 < len(text) else ""
        return not (_is_numeral(after) or (open_end and not after))
    if at > 1 and _is_numeral(text[at - 2]) and _is_joint(before):
        return not (_is_numeral(after) or not after)
    return True


def is_break(text: str, at: int, *, open_end: bool = False) -> bool:
    """Whether a word ends before index ``at`` (0 < at <= len), and nothing that belongs to
    it follows: spaces and closing marks stay with the word before."""
    before = text[at - 1]
    after = text[at] if at < len(text) else ""
    if after and not is_cluster_break(text, at):
        return False
    if not after and not open_end:
        return True
    if after.isspace() or after in CLOSERS or after in SENTENCE or after in CLAUSE:
        return False
    if not is_number_break(text, at, open_end=open_end) or before in OPENERS:
        return False
    if before.isspace():
        return True
    if _is_unspaced(before):
        return after not in KANA_TAIL
    return bool(after) and _is_unspaced(after) and not before.isdigit()


def _enough(text: str) -> bool:
    """At least one whole word of a spaced script, or two characters of Han or kana."""
    chars = 0
    for char in text:
        kind = unicodedata.category(char)[0]
        if kind in "LNS" and not _is_unspaced(char):
            return True
        chars += kind in "LN"
    return chars >= 2


def last_break(text: str, open_end: bool, longest: int) -> int:
    """The last index up to ``longest`` where a word ends and enough lies before; 0 if none."""
    for at in range(min(len(text), longest), 0, -1):
        if is_break(text, at, open_end=open_end):
            return at if _enough(text[:at]) else 0
    return 0


def forced_break(text: str, longest: int) -> int:
    """Where to break text that has no end in sight, ``text`` being longer than ``longest``.

    The last word boundary; else the last place between clusters outside a number; else the
    last between clusters; else ``longest`` (one cluster of that size is no honest text).
    """
    word = last_break(text, True, longest)
    if word:
        return word
    clusters = [at for at in range(1, longest + 1) if is_cluster_break(text, at)]
    whole = [at for at in clusters if is_number_break(text, at, open_end=True)]
    return (whole or clusters or [longest])[-1]


# ------------------------------------------------------------------------------- marks


@dataclass(frozen=True, slots=True)
class Mark:
    """A mark that ends a sentence or clause.

    ``end``: index past it, with the closing marks and spaces that belong to it.
    ``certain``: nothing that follows can change that. ``prompt``: uncertain, but only in
    whether closing marks or spaces follow; good enough for who cannot wait.
    """

    end: int
    sentence: bool
    certain: bool
    prompt: bool = False


def marks_in(text: str, open_end: bool) -> Iterator[Mark]:
    """The marks of ``text`` in order. One that may yet turn out to be inside a number, or
    to follow an abbreviation, is left out until more is known."""
    for run in MARK_RUN.finditer(text):
        mark = _judge(text, run.start(), run.end(), open_end)
        if mark is not None:
            yield mark


def _judge(text: str, start: int, end: int, open_end: bool) -> Mark | None:
    run = text[start:end]
    if len(run) == 1 and not _stands_alone(text, start, open_end):
        return None
    closed = _past_closers(text, end)
    full_end = len(text) - len(text[closed:].lstrip())
    while full_end < len(text) and not is_cluster_break(text, full_end):
        full_end += 1
    if "\n" in text[start:full_end]:
        return Mark(full_end, True, True)
    sentence = not SENTENCE.isdisjoint(run)
    if run[0] == "." and CLAUSE.issuperset(run[1:]) and _abbreviates(text, start, open_end):
        sentence = False  # "e.g., this"
    if open_end and full_end == closed == len(text):
        # Nobody waits for what follows a full-width mark: a closing quote that comes later is
        # silent, and leads the next segment unheard.
        return Mark(full_end, sentence, run[-1] in WIDE, closed > end or run[-1] not in ".:")
    return Mark(full_end, sentence, True)


def _past_closers(text: str, at: int) -> int:
    """Past closing quotes and brackets. A straight quote right before a word opens one."""
    while at < len(text) and text[at] in CLOSERS:
        if text[at] in "\"'" and text[at + 1 : at + 2].isalnum():
            break
        at += 1
    return at


def _stands_alone(text: str, at: int, open_end: bool) -> bool:
    """Whether the single mark at ``at`` is one, and no part of a number, word or address."""
    mark = text[at]
    before = text[at - 1] if at else ""
    after = text[at + 1] if at + 1 < len(text) else ""
    if before.isdigit() and mark in NUMBER_JOINTS and (after.isdigit() or (not after and open_end)):
        return False
    if mark in ".:!?" and after and not after.isspace() and after not in CLOSERS:
        return _is_unspaced(after) or unicodedata.category(after) in ("So", "Lo")
    return mark != "." or not _abbreviates(text, at, open_end)


def _abbreviates(text: str, at: int, open_end: bool) -> bool:
    """Whether the point at ``at`` belongs to the word before it, or numbers a list item."""
    word = ENDING_WORD.search(text, 0, at)
    if word is None:
        return False
    found = word.group()
    if found.isdigit() and not text[: word.start()].strip():
        return True
    if found.lower() in NUMBERED:
        follows = text[at + 1 :].lstrip()[:1]
        return follows.isdigit() or (open_end and not follows)
    parts = found.split(".")
    if len(parts) > 1:
        return all(part.isalpha() and len(part) <= 2 for part in parts)
    return found.lower() in ABBREVIATIONS or (len(found) == 1 and found.isupper() and found != "I")
