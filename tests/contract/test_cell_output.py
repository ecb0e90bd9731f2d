"""A cell's output is kept whole for whoever reads it later; progress lines give way by line."""

from __future__ import annotations

from homes import Hand, Home

from forebay.core.events import Cell, Display, OutputEvent, size_of
from forebay.core.kinds import KINDS, Kind
from forebay.core.spec import JobSpec

POOL = "kernel/python"


def said(text: str, name: str = "stdout") -> Display:
    return Display(what="stream", name=name, data={"text/plain": text})


def texts(events: list[OutputEvent]) -> list[str]:
    return [str(e.data.get("text/plain", "")) for e in events if isinstance(e, Display)]


async def cell(home: Home) -> Hand:
    hand = await home.worker("w1", pools=[POOL], sessions=2, slots=2)
    spec = JobSpec(
        id="a", kind=Kind.KERNEL, pool=POOL, params={}, detach_s=600, affinity="local/book"
    )
    await home.broker.submit(spec, [Cell(code="1")], gateway="g1")
    await home.settle()
    return hand


async def test_lines_pictures_and_errors_do_not_replace_each_other(home: Home) -> None:
    hand = await cell(home)
    hand.commit("a", said("line 1\n"))
    hand.commit("a", said("line 2\n"), said("warning\n", "stderr"))
    hand.commit("a", Display(what="display", data={"text/html": "<b>1</b>"}))
    hand.commit("a", said("line 3\n"))
    hand.end("a")
    stored = await home.stored("a")
    assert texts(stored) == ["line 1\n", "line 2\n", "warning\n", "", "line 3\n"]
    assert stored[3].data == {"text/html": "<b>1</b>"}  # type: ignore[union-attr]
    assert home.output("a") == stored


async def test_a_progress_line_gives_way_to_the_next_on_its_own_stream(home: Home) -> None:
    hand = await cell(home)
    hand.commit("a", said("begin\n"), said("\r10%"), said("\r1/9", "stderr"))
    await home.settle()
    hand.commit("a", said("\r20%"))
    assert texts(await home.stored("a")) == ["begin\n", "", "\r1/9", "\r20%"]
    hand.commit("a", said("\r100%\n"), said("\r2/9", "stderr"), said("over\n"))
    hand.end("a")
    stored = await home.stored("a")
    assert texts(stored) == ["begin\n", "", "", "", "\r100%\n", "\r2/9", "over\n"]
    assert [event.offset for event in stored] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert await home.broker.read_after("a", 4) == stored[4:]


async def test_a_progress_line_that_other_text_follows_stays(home: Home) -> None:
    hand = await cell(home)
    hand.commit("a", said("\r50%"))
    hand.commit("a", said(" done\n"))
    hand.commit("a", said("\rnext"))
    hand.commit("a", said("\rlast"))
    assert texts(await home.stored("a")) == ["\r50%", " done\n", "", "\rlast"]


async def test_replaced_lines_do_not_fill_the_window(home: Home) -> None:
    hand = await cell(home)
    window = KINDS[Kind.KERNEL].window_bytes
    assert window is not None
    bar = said("\r" + "#" * 60_000)
    hand.commit("a", said("first\n"))
    bars = 2 * window // size_of(bar) + 1
    for _ in range(bars):
        hand.commit("a", bar)
        await home.settle()
    kept = texts(await home.stored("a"))
    assert kept[0] == "first\n"
    assert not any(kept[1:])
    assert texts(await home.broker.read_after("a", bars)) == [bar.data["text/plain"]]
