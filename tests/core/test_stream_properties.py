"""Any interleaving of append, trim, crash and resume: no gap, no duplicate, no silent loss."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from forebay.core.audio import trim_audio
from forebay.core.events import Audio, Ended, Notice, OutputEvent, marks, size_of
from forebay.core.fence import InputFence, OutputFence
from forebay.core.stream import Stamper, StreamLog, Window
from forebay.errors import Fenced, ResumeNotAvailable

SPAN = 60


def piece(unit: int, units: int) -> Audio:
    """Audio whose every frame says which unit it speaks: five frames a unit."""
    data = b"".join((u % 60_000).to_bytes(2, "little") * 5 for u in range(unit, unit + units))
    return Audio(data=data, text="x" * units, unit=unit, frames=5 * units)


class OutputMachine(RuleBasedStateMachine):
    """Writers that crash and come back from the dead, and a reader that comes and goes."""

    @initialize(bounded=st.booleans())
    def begin(self, bounded: bool) -> None:
        window = (
            Window(max_bytes=600)
            if bounded
            else Window(max_marks=("samples", SPAN), keep_undelivered=True)
        )
        self.log: StreamLog[OutputEvent] = StreamLog("e", window)
        self.truth: list[OutputEvent] = []
        self.attempt = 1
        self.stamper = Stamper(0, {}, {})
        self.zombies: list[tuple[int, Stamper]] = []
        self.unsent: list[OutputEvent] = []  # stamped by the runner, not committed yet
        self.last_batch: list[OutputEvent] = []
        self.read: list[OutputEvent] = []  # what the reader has
        self.units = 0

    def write(self, attempt: int, events: list[OutputEvent]) -> str:
        answer = OutputFence.check(
            attempt, [event.offset for event in events], self.attempt, self.log.head
        )
        if answer == "append":
            self.log.append(events)
            self.truth.extend(events)
        return answer

    def make(self, stamper: Stamper, units: int) -> OutputEvent:
        if units == 0:
            return stamper.stamp(Notice(code="n", message="m"))
        return stamper.stamp(piece(stamper.marks.get("units", 0), units))

    @precondition(lambda self: not self.log.ended)
    @rule(
        units=st.lists(st.integers(0, 6), min_size=1, max_size=6),
        land=st.booleans(),
        trim=st.booleans(),
    )
    def step(self, units: list[int], land: bool, trim: bool) -> None:
        """A model call; its commit may be lost with the worker."""
        self.unsent.extend(self.make(self.stamper, count) for count in units)
        if land:
            assert self.write(self.attempt, self.unsent) == "append"
            self.last_batch = self.unsent
            self.unsent = []
            if trim:
                self.trim()

    @precondition(lambda self: self.last_batch)
    @rule()
    def retry_a_write_that_landed(self) -> None:
        if self.last_batch[-1].offset == self.log.head and not self.unsent:
            before = self.log.head
            assert self.write(self.attempt, self.last_batch) == "already"
            assert self.log.head == before

    @precondition(lambda self: not self.log.ended)
    @rule()
    def crash(self) -> None:
        self.zombies.append((self.attempt, self.stamper))
        self.attempt += 1
        self.stamper = Stamper(self.log.head, self.log.counts, self.log.marks)
        self.unsent, self.last_batch = [], []

    @precondition(lambda self: self.zombies)
    @rule(data=st.data())
    def a_dead_worker_comes_back(self, data: st.DataObject) -> None:
        attempt, stamper = data.draw(st.sampled_from(self.zombies))
        try:
            self.write(attempt, [self.make(stamper, 1)])
        except Fenced:
            return
        raise AssertionError("an old attempt was let in")

    @precondition(lambda self: not self.log.ended and len(self.truth) > 25)
    @rule()
    def end(self) -> None:
        self.unsent.append(self.stamper.stamp(Ended(state="completed")))
        self.write(self.attempt, self.unsent)
        self.unsent, self.last_batch = [], []

    def trim(self) -> None:
        delivered = self.read[-1].offset if self.read else 0
        self.log.trim(delivered=delivered)
        if self.log.window.keep_undelivered:
            assert self.log.first <= delivered + 1

    @rule(limit=st.one_of(st.none(), st.integers(1, 3)))
    def read_on(self, limit: int | None) -> None:
        position = self.read[-1].offset if self.read else 0
        try:
            self.read.extend(self.log.after(position, limit))
        except ResumeNotAvailable as error:
            assert error.details["reason"] == "window_expired"
            assert self.log.first > position + 1
            self.read = self.truth[: self.log.first - 1]  # a new session, from what is kept

    @rule(data=st.data())
    def resume_by_units(self, data: st.DataObject) -> None:
        self.check_resume(data.draw(st.integers(0, self.log.marks.get("units", 0) + 1)))

    @invariant()
    def resume_at_the_edges(self) -> None:
        total, trimmed = self.log.marks.get("units", 0), self.trimmed_units()
        for have in {max(0, trimmed - 1), trimmed, trimmed + 1, total, total + 1}:
            self.check_resume(have)

    def trimmed_units(self) -> int:
        gone = self.truth[: self.log.first - 1]
        return max((event.units for event in gone if isinstance(event, Audio)), default=0)

    def check_resume(self, have: int) -> None:
        """A client with ``have`` units gets exactly the frames of the rest, or is refused."""
        total, trimmed = self.log.marks.get("units", 0), self.trimmed_units()
        try:
            events = self.log.after_mark("units", have)
        except ResumeNotAvailable as error:
            assert error.details["reason"] == (
                "ahead_of_head" if have > total else "window_expired"
            )
            assert have > total or have < trimmed
            return
        assert trimmed <= have <= total
        heard = b""
        for event in events:
            if isinstance(event, Audio):
                heard += trim_audio(event, have, 1).data
        assert heard == piece(have, total - have).data
        assert events or not self.truth or isinstance(self.truth[-1], Audio)
        assert not events or events[-1] == self.truth[-1]

    @invariant()
    def what_was_read_is_the_stream(self) -> None:
        assert self.read == self.truth[: len(self.read)]

    @invariant()
    def numbers_have_no_gap(self) -> None:
        assert [event.offset for event in self.truth] == list(range(1, len(self.truth) + 1))
        kept = self.truth[self.log.first - 1 :]
        assert self.log.after(self.log.first - 1) == kept
        assert self.log.bytes == sum(size_of(event) for event in kept)
        totals: dict[str, int] = {}
        for event in self.truth:
            totals.update(marks(event))
        assert self.log.marks == totals


TestOutput = OutputMachine.TestCase
TestOutput.settings = settings(max_examples=100, stateful_step_count=40)


class InputMachine(RuleBasedStateMachine):
    """A client that loses its connection and sends again what was not acknowledged."""

    @initialize()
    def begin(self) -> None:
        self.fence = InputFence()
        self.holder = self.fence.attach()
        self.stored: list[int] = []
        self.sent = 0  # last position the client has made
        self.acked = 0

    @rule(acknowledged=st.booleans())
    def send_next(self, acknowledged: bool) -> None:
        self.sent += 1
        if self.fence.check(self.holder, self.sent) == "append":
            self.stored.append(self.sent)
        if acknowledged:
            self.acked = self.sent

    @rule()
    def lose_the_next_and_reconnect(self) -> None:
        self.sent += 1  # never arrived
        old, self.holder = self.holder, self.fence.attach()
        for position in range(self.acked + 1, self.sent + 1):
            if self.fence.check(self.holder, position) == "append":
                self.stored.append(position)
        self.acked = self.sent
        try:
            self.fence.check(old, self.sent + 1)
        except Fenced:
            return
        raise AssertionError("an old attachment was let in")

    @invariant()
    def every_position_is_stored_once(self) -> None:
        assert self.stored == list(range(1, self.sent + 1))


TestInput = InputMachine.TestCase
