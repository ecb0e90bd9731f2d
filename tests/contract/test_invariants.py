"""Any interleaving of clients, workers, deaths and time keeps the broker's promises."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

from homes import Hand, Home, speech_spec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from forebay.core.events import Audio, End, Ended, Text
from forebay.core.job import Phase
from forebay.errors import ForebayError

T = TypeVar("T")


def now(call: Coroutine[Any, Any, T]) -> T:
    """Run what never waits: the local broker's async methods."""
    try:
        call.send(None)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    raise AssertionError("the local broker waited")


class Interleavings(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.home = Home()
        self.core = self.home.broker._core
        self.alive: list[Hand] = []
        self.dead: list[Hand] = []
        self.numbers: dict[str, int] = {}
        self.count = 0
        self.new_worker(sessions=2, standby=False)

    # ------------------------------------------------------------------- workers

    @precondition(lambda self: len(self.alive) < 4)
    @rule(sessions=st.integers(1, 3), standby=st.booleans())
    def new_worker(self, sessions: int, standby: bool) -> None:
        self.count += 1
        hand = now(self.home.worker(f"w{self.count}", sessions=sessions, standby=standby))
        self.alive.append(hand)

    def some(self, data: st.DataObject) -> tuple[Hand, str] | None:
        """A worker (dead ones are zombies) and a job it once had."""
        pairs = [(h, job) for h in self.alive + self.dead for job in h.leases]
        return data.draw(st.sampled_from(pairs)) if pairs else None

    @rule(data=st.data(), size=st.integers(1, 3))
    def speak(self, data: st.DataObject, size: int) -> None:
        picked = self.some(data)
        if picked is None:
            return
        hand, job = picked
        unit = hand._stampers[job].marks.get("units", 0)
        text = "".join(i.text for i in hand.input[job] if isinstance(i, Text) and i.unit >= unit)
        done = [i for i in hand.input[job] if not isinstance(i, Text) or i.unit < unit + size]
        through = max((i.offset for i in done if isinstance(i, Text)), default=0)
        if text[:size]:
            hand.speak(job, text[:size], frames=1600, through=max(0, through - 1))

    @rule(data=st.data())
    def consume_all_and_park(self, data: st.DataObject) -> None:
        picked = self.some(data)
        if picked is not None:
            hand, job = picked
            head = max((item.offset for item in hand.input[job]), default=0)
            at = hand._consumed[job]
            hand.commit(job, consumed=type(at)(max(head, at.offset), at.fine))
            hand.park(job)

    @rule(data=st.data())
    def park(self, data: st.DataObject) -> None:
        picked = self.some(data)
        if picked is not None:
            picked[0].park(picked[1])

    @rule(data=st.data(), state=st.sampled_from(["completed", "failed"]))
    def end(self, data: st.DataObject, state: str) -> None:
        picked = self.some(data)
        if picked is not None:
            picked[0].end(picked[1], state)

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), abnormal=st.booleans(), word=st.booleans(), first=st.booleans())
    def die(self, data: st.DataObject, abnormal: bool, word: bool, first: bool) -> None:
        hand = data.draw(st.sampled_from(self.alive))
        stepping = data.draw(st.lists(st.sampled_from(sorted(hand.leases) or ["none"]), max_size=2))
        inside = [(job, hand.leases[job].attempt) for job in stepping if job in hand.leases]
        hand.beating = False
        say = lambda: self.home.exited(hand.id, abnormal=abnormal, stepping=inside, reason="x")  # noqa: E731
        if word and first:
            say()
        now(hand.port.close())
        if word and not first:
            say()
        self.alive.remove(hand)
        self.dead.append(hand)

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def fall_silent_or_speak_up(self, data: st.DataObject) -> None:
        hand = data.draw(st.sampled_from(self.alive))
        hand.beating = not hand.beating

    @rule(seconds=st.sampled_from([0.01, 0.06, 0.5, 1.5, 30, 130]))
    def time_passes(self, seconds: float) -> None:
        now(self.home.advance(seconds))

    @rule()
    def everything_stood_still(self) -> None:
        self.home.time.freeze(5)

    # ------------------------------------------------------------------- clients

    @precondition(lambda self: len(self.numbers) < 8)
    @rule(text=st.sampled_from(["", "abc"]), detach=st.sampled_from([0.0, 1.0, 60.0]))
    def submit(self, text: str, detach: float) -> None:
        name = f"j{len(self.numbers)}"
        items = [Text(text=text, unit=0)] if text else []
        spec = speech_spec(name, tenant="ab"[len(self.numbers) % 2], detach_s=detach)
        try:
            now(self.home.broker.submit(spec, items, gateway="g1"))
            attachment = now(self.home.broker.attach(name, gateway="g1", write=True))
        except ForebayError:
            return
        self.numbers[name] = attachment.number or 0

    @precondition(lambda self: self.numbers)
    @rule(data=st.data(), last=st.booleans())
    def append(self, data: st.DataObject, last: bool) -> None:
        job = data.draw(st.sampled_from(sorted(self.numbers)))
        entry = self.core.entries.get(job)
        unit = entry.inp.marks.get("units", 0) if entry is not None else 0
        items = [Text(text="xy", unit=unit), *([End()] if last else [])]
        try:
            now(self.home.broker.append(job, items, attachment=self.numbers[job]))
        except ForebayError as refused:
            assert refused.code in {"bad_request", "not_found"}

    @precondition(lambda self: self.numbers)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(sorted(self.numbers)))
        if job in self.core.entries:
            now(self.home.broker.cancel(job))

    @precondition(lambda self: self.numbers)
    @rule(data=st.data())
    def leave_or_come_back(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(sorted(self.numbers)))
        entry = self.core.entries.get(job)
        if entry is None:
            return
        attachment = now(self.home.broker.attach(job, gateway="g1", write=True))
        self.numbers[job] = attachment.number or 0
        if data.draw(st.booleans()):
            now(self.home.broker.detach(attachment))

    # ----------------------------------------------------------------- promises

    @invariant()
    def output_is_gapless_and_ends_once(self) -> None:
        for job in self.numbers:
            pushed = self.home.output(job)
            offsets = [event.offset for event in pushed]
            assert offsets == sorted(set(offsets))
            for before, after in zip(pushed, pushed[1:], strict=False):
                assert not isinstance(before, Ended)
                assert after.offset > before.offset
            entry = self.core.entries.get(job)
            if entry is None:
                continue
            kept = entry.out.after(entry.out.first - 1)
            assert [e.offset for e in kept] == list(range(entry.out.first, entry.out.head + 1))
            audio = [e for e in kept if isinstance(e, Audio)]
            for one, two in zip(audio, audio[1:], strict=False):
                assert two.unit == one.units
            assert entry.job.over == (bool(kept) and isinstance(kept[-1], Ended))

    @invariant()
    def the_books_agree(self) -> None:
        core = self.core
        phases = [entry.job.phase for entry in core.entries.values()]
        for pool in core.pools.values():
            assert pool.running == phases.count(Phase.RUNNING)
            assert pool.parked == phases.count(Phase.PARKED)
            waiting = {n for n, e in core.entries.items() if e.job.phase is Phase.QUEUED}
            assert set(pool.queue) == waiting
            away = [e for e in core.entries.values() if not e.job.over and not e.attached]
            assert pool.detached == len(away)
            # Work is conserved: nobody waits beside a free credit.
            assert not (pool.queue and pool.free > 0)
        live = sum(not e.job.over for e in core.entries.values())
        assert core.live_jobs == live == sum(core.tenant_jobs.values())
        assert core.used_bytes == sum(e.accounted_bytes for e in core.entries.values())

    @invariant()
    def every_lease_holds_one_credit(self) -> None:
        core = self.core
        for name, entry in core.entries.items():
            if entry.job.phase is Phase.RUNNING:
                worker = core.workers[entry.job.worker]
                assert (name, entry.job.attempt) in worker.held
        for worker in core.workers.values():
            assert worker.info is not None
            assert len(worker.held) <= worker.info.sessions

    def teardown(self) -> None:
        now(self.home.broker.close())


Interleavings.TestCase.settings = settings(
    settings.get_profile("fixed"), max_examples=60, stateful_step_count=40
)
TestInterleavings = Interleavings.TestCase
