"""Tags inside model text: nothing is lost, nothing waits longer than it must."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from forebay.core.tags import MAX_TAG_CHARS, CloseTag, OpenTag, Piece, TagParser, TagText

KNOWN = ("add-text", "add-code", "answer", "a")
VERBATIM = ("add-code",)


def parsed(*parts: str) -> list[Piece]:
    parser = TagParser(KNOWN, VERBATIM)
    pieces = [piece for part in parts for piece in parser.feed(part)]
    return merged([*pieces, *parser.end()])


def merged(pieces: list[Piece]) -> list[Piece]:
    out: list[Piece] = []
    for piece in pieces:
        last = out[-1] if out else None
        if isinstance(piece, TagText) and isinstance(last, TagText) and piece.tag == last.tag:
            out[-1] = TagText(last.text + piece.text, piece.tag)
        else:
            out.append(piece)
    return out


def test_text_around_and_inside_tags_keeps_its_whitespace() -> None:
    assert parsed(" x \n<add-text>  hi\n </add-text>\n y") == [
        TagText(" x \n"),
        OpenTag("add-text"),
        TagText("  hi\n ", "add-text"),
        CloseTag("add-text"),
        TagText("\n y"),
    ]


def test_text_in_a_tag_leaves_before_the_tag_is_closed() -> None:
    parser = TagParser(KNOWN)
    assert parser.feed("<add-text>Hel") == [OpenTag("add-text"), TagText("Hel", "add-text")]
    assert parser.feed("lo") == [TagText("lo", "add-text")]
    assert parser.end() == []


def test_only_what_may_be_a_tag_waits() -> None:
    parser = TagParser(KNOWN)
    assert parser.feed("1 <") == [TagText("1 ")]
    assert parser.held == 1
    assert parser.feed(" 2 and <ad") == [TagText("< 2 and ")]
    assert parser.held == 3
    assert parser.feed("x") == [TagText("<adx")]
    assert parser.feed("</") == []
    assert parser.feed("p>") == [TagText("</p>")]
    assert parser.feed("<an") == []
    assert parser.end() == [TagText("<an")]


def test_attributes_of_every_spelling_are_read() -> None:
    text = """<add-code language="py>thon" id='x y' n=3 >print(1 < 2)</add-code>"""
    assert parsed(text) == [
        OpenTag("add-code", {"language": "py>thon", "id": "x y", "n": "3"}),
        TagText("print(1 < 2)", "add-code"),
        CloseTag("add-code"),
    ]


def test_code_is_verbatim_until_its_own_end() -> None:
    assert parsed("<add-code><answer></answer></add-codex></add-code>") == [
        OpenTag("add-code"),
        TagText("<answer></answer></add-codex>", "add-code"),
        CloseTag("add-code"),
    ]


def test_the_end_of_code_is_found_wherever_it_is_cut() -> None:
    text = "<add-code>x <- 1</add-code>y"
    assert parsed(*text) == parsed(text)
    assert parsed(text)[-1] == TagText("y")


def test_an_outer_end_ends_what_is_open_inside_and_a_stray_end_is_markup() -> None:
    assert parsed("<answer><add-text>x</answer>y</add-text>z") == [
        OpenTag("answer"),
        OpenTag("add-text"),
        TagText("x", "add-text"),
        CloseTag("answer"),
        TagText("y"),
        CloseTag("add-text"),
        TagText("z"),
    ]


def test_an_empty_tag_opens_nothing() -> None:
    assert parsed("<answer/>x") == [OpenTag("answer"), TagText("x")]


def test_a_tag_that_grows_too_long_is_text() -> None:
    open_end = "<answer " + "x" * MAX_TAG_CHARS
    assert parsed(open_end) == [TagText(open_end)]
    closed = open_end + ">y"
    assert parsed(closed) == [TagText(closed)]
    just = "<answer " + "x" * (MAX_TAG_CHARS - 8) + ">"
    assert parsed(just) == [TagText(just)]


def test_depth_is_bounded() -> None:
    text = "<answer>" * 17
    assert parsed(text) == [*[OpenTag("answer")] * 16, TagText("<answer>", "answer")]


_bits = st.sampled_from(
    ["<", "</", ">", "/", "add-text", "add-code", "a", " ", "\n", "x", "é", '"', "=", "<answer>",
     "</answer>", "<add-code language=py>", "</add-code>"]
)  # fmt: skip


@given(st.lists(_bits, max_size=25), st.lists(st.integers(0, 200), max_size=8))
def test_how_text_is_cut_into_pieces_changes_nothing(bits: list[str], cuts: list[int]) -> None:
    text = "".join(bits)
    at = sorted({0, len(text), *(c for c in cuts if c < len(text))})
    parts = [text[a:b] for a, b in zip(at, at[1:], strict=False)]
    assert parsed(*parts) == parsed(text)


@given(st.lists(_bits, max_size=25))
def test_letter_by_letter_is_the_same_as_at_once(bits: list[str]) -> None:
    text = "".join(bits)
    assert parsed(*text) == parsed(text)


@given(st.text(alphabet="<>/ab -\n", max_size=60))
def test_without_known_tags_all_text_comes_through_at_once(text: str) -> None:
    parser = TagParser(())
    pieces = parser.feed(text)
    said = "".join(p.text for p in pieces if isinstance(p, TagText))
    assert said == text[: len(said)]
    assert len(text) - len(said) == parser.held <= 2
