"""A recognition step without a task, for engines that have `begin` (see `forebay.engines`).

Live sound comes in many small steps: making a task, an iterator and their wake-ups for each
costs more than all the rest of the worker. Here a step is two plain calls, one that begins it
and one that the engine makes at its end; what it wrote is one commit. Steps that decode a
file, or open the session first, go the long way (`worker.step`), and so does the rest of a
step that has to wait for byte credit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from forebay.core.events import InputItem, OutputEvent
from forebay.worker.session import Fate, Session

if TYPE_CHECKING:
    from forebay.worker.listen import Ear
    from forebay.worker.runner import Runner

__all__ = ["Begin", "Swift", "swift_of"]

Events = Sequence[OutputEvent] | Exception
Begin = Callable[[Any, Sequence[InputItem], Callable[[Events], None]], Callable[[], None]]


def swift_of(runner: Runner, session: Session) -> Swift | None:
    """How ``session`` may step without a task; None where it may not."""
    begin: Begin | None = getattr(runner.engine, "begin", None)
    if begin is None or session.ear is None:
        return None
    return Swift(runner, session, session.ear, begin)


class Swift:
    """The steps of one session, one after the other."""

    __slots__ = ("_began_s", "_begin", "_ear", "_inside", "_runner", "_session", "_slot", "_stop")

    def __init__(self, runner: Runner, session: Session, ear: Ear, begin: Begin) -> None:
        self._runner = runner
        self._session = session
        self._ear = ear
        self._begin = begin
        self._inside = False  # while it steps
        self._slot = 0  # of the steps table
        self._stop: Callable[[], None] | None = None  # while the engine works
        self._began_s = 0.0

    def step(self, now: float) -> bool:
        """Begin the session's `work`; False for one that needs a task."""
        runner, session = self._runner, self._session
        span: Any = session.work
        if span.file is not None or not session.opened:
            return False
        if session.fate is not Fate.LIVE:
            runner.stepped(session, now)
            return True
        if runner.steps is not None:
            self._slot = runner.steps.enter(session.job, session.attempt)
        self._began_s, self._inside = now, True
        if session.clock.start(now) is not None:
            runner.start_clock(session)
        try:
            items = self._ear.give(span)
            if not items:
                self._over(())
                return True
            stop = self._begin(session.engine_session, items, self._over)
        except Exception as exc:  # noqa: BLE001 - the boundary of one job
            self._over(exc)
            return True
        if self._inside:  # `begin` may have called `_over` already
            self._stop = stop
        return True

    def cancel(self) -> None:
        """The session's fate is decided: stop the engine. Nothing happens to a step whose
        engine has left already."""
        stop, self._stop = self._stop, None
        if stop is not None:
            stop()
            self._end()

    def abandon(self) -> None:
        """The runner itself is stopped: nothing is to be called any more."""
        stop, self._stop = self._stop, None
        if stop is not None:
            stop()
            self._leave()

    def _over(self, events: Events) -> None:
        """The engine's word: what it has heard, or what went wrong."""
        self._stop = None
        runner, session = self._runner, self._session
        try:
            if isinstance(events, Exception):
                raise events
            work: Any = session.work
            found = self._ear.heard(work, events)
            for index, event in enumerate(found):
                fits = runner.fits(session, event)
                if fits:
                    runner.stamp(session, event)
                elif fits is not None:
                    runner.go_on(session, self._slowly(found[index:]))
                    return
            runner.flush(session)
        except Exception as exc:  # noqa: BLE001 - the boundary of one job
            runner.fail(session, exc)
        self._end()

    async def _slowly(self, events: Sequence[OutputEvent]) -> None:
        """Write ``events`` as byte credit comes. Never raises but when the runner itself is
        cancelled."""
        session, runner = self._session, self._runner
        session.began = True
        try:
            for event in events:
                await runner.write(session, event, together=True)
            if session.fate is Fate.LIVE:
                runner.flush(session)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if session.fate is Fate.LIVE or task is None:
                self._leave()
                raise
            task.uncancel()
        except Exception as exc:  # noqa: BLE001 - the boundary of one job
            runner.fail(session, exc)
        self._end()

    def _end(self) -> None:
        self._leave()
        self._runner.stepped(self._session, self._began_s)

    def _leave(self) -> None:
        steps = self._runner.steps
        if self._inside and steps is not None:
            steps.leave(self._slot)
        self._inside = False
        self._session.leave_model(self._runner.now())
