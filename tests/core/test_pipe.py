"""The output of one job into the input of another, and on another gateway if need be."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.core.events import End, Ended, InputItem, Notice, OutputEvent, Text, TextDelta, Usage
from forebay.core.fence import IdentityFence
from forebay.core.kinds import Kind
from forebay.core.pipe import COPY_BYTES, PipeState
from forebay.core.spec import JobSpec, JobView, PipeSpec
from forebay.core.stream import Stamper, StreamLog
from forebay.errors import BadRequest, ProtocolError

DONE = Ended(state="completed")
USAGE = Usage(prompt_tokens=1, completion_tokens=2)


def stamped(*events: OutputEvent) -> list[OutputEvent]:
    stamper = Stamper(0, {}, {})
    return [stamper.stamp(event) for event in events]


def test_text_becomes_numbered_items_and_the_end_an_end() -> None:
    state = PipeState("speak")
    copies = state.receive(
        stamped(TextDelta(text="Hi "), TextDelta(text=""), TextDelta(text="you"), USAGE, DONE)
    )
    assert copies == [
        (
            [Text(text="Hi ", unit=0, seq=1), Text(text="you", unit=3, seq=2), End(seq=3)],
            5,
        )
    ]
    assert copies[0].source_offset == state.copied == 5
    assert state.source_end is not None and state.source_end.state == "completed"


def test_events_that_say_nothing_are_passed_over_and_not_recorded_as_copied() -> None:
    state = PipeState("speak")
    assert state.receive(stamped(Notice(code="c", message="m"), USAGE)) == []
    assert (state.copied, state.units, state.seq) == (0, 0, 0)


@pytest.mark.parametrize("end", ["failed", "cancelled", "expired"])
def test_a_source_that_did_not_complete_gives_no_end(end: str) -> None:
    ended = Ended(state=end, code="worker_lost")  # type: ignore[arg-type]
    state = PipeState("speak")
    copies = state.receive(stamped(TextDelta(text="Hi"), ended))
    assert copies == [([Text(text="Hi", unit=0, seq=1)], 1)]
    assert state.source_end is not None and state.source_end.code == "worker_lost"


def test_events_received_twice_are_copied_once_and_a_gap_is_refused() -> None:
    events = stamped(*(TextDelta(text="a") for _ in range(4)))
    state = PipeState("speak")
    state.receive(events[:2])
    assert state.receive(events[:3]) == [([Text(text="a", unit=2, seq=3)], 3)]
    with pytest.raises(ProtocolError, match="got source offset 6, expected 4"):
        state.receive([msgspec.structs.replace(events[3], offset=6)])


def test_much_text_goes_in_several_appends() -> None:
    size = COPY_BYTES // 2
    state = PipeState("speak")
    copies = state.receive(stamped(*(TextDelta(text="a" * size) for _ in range(5))))
    assert [copy.source_offset for copy in copies] == [2, 4, 5]


def test_an_unknown_map_is_refused() -> None:
    with pytest.raises(BadRequest, match="'sing', expected one of speak"):
        PipeState("sing")


class Target:
    """What the broker keeps of a pipe and its target."""

    def __init__(self) -> None:
        self.log: StreamLog[InputItem] = StreamLog("t")
        self.fence = IdentityFence()

    def append(self, items: list[InputItem], source_offset: int) -> str:
        answer = self.fence.check(source_offset)
        if answer == "append":
            self.log.append(self.log.numbered(items))
        return answer

    def taken_over(self) -> PipeState:
        spec = PipeSpec(id="p", source="a", target="b", map="speak", copied=self.fence.last)
        view = JobView(
            spec=JobSpec(id="b", kind=Kind.SPEECH, pool="speech/x", params={}),
            state="running",
            epoch="t",
            input_head=self.log.head,
            units=self.log.marks.get("units", 0),
        )
        return PipeState.rebuilt(spec, view)


deltas = st.one_of(
    st.text("ab ", max_size=5).map(lambda text: TextDelta(text=text)),
    st.just(USAGE),
)


@given(st.lists(deltas, max_size=30), st.data())
def test_a_pipe_carried_by_gateways_that_die_copies_everything_once(
    events: list[OutputEvent], data: st.DataObject
) -> None:
    source = stamped(*events, DONE)
    target = Target()
    state, at = target.taken_over(), 0
    while not target.log.ended:
        size = data.draw(st.integers(1, 6))
        copies = state.receive(source[at : at + size])
        at += size
        reached = len(copies) - data.draw(st.integers(0, len(copies)))
        for copy in copies[:reached]:
            assert target.append(*copy) == "append"
        if reached < len(copies) or data.draw(st.booleans()):
            for copy in copies[:reached]:  # a retry of what had landed
                assert target.append(*copy) == "repeat"
            state = target.taken_over()
            at = state.copied
    items = target.log.after(0)
    texts = [item for item in items if isinstance(item, Text)]
    assert "".join(item.text for item in texts) == "".join(
        event.text for event in events if isinstance(event, TextDelta)
    )
    unit = 0
    for number, item in enumerate(texts, 1):
        assert (item.unit, item.seq) == (unit, number)
        unit += len(item.text)
    assert isinstance(items[-1], End) and items[-1].seq == len(texts) + 1
