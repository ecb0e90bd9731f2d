"""One engine step of one session, from the slot it was given to the slot it gives back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, cast

from forebay.core.events import (
    Notice,
    OutputEvent,
    Text,
    TextDelta,
    ToolCalls,
    Usage,
)
from forebay.errors import EngineFailed
from forebay.worker.session import Fate, Session

if TYPE_CHECKING:
    from forebay.worker.listen import Ear, Span
    from forebay.worker.runner import Runner

__all__ = ["run_step"]


async def run_step(runner: Runner, session: Session) -> None:
    """Run the session's ``work``. Never raises but when the runner itself is cancelled.

    Being cancelled with the session's fate decided means: stop this call. It returns when
    the engine has left, which is when the slot is free.
    """
    session.began = True
    if session.fate is not Fate.LIVE:
        return
    try:
        with runner.inside(session):
            runner.start_clock(session)
            await _open(runner, session)
            await _consume(runner, session)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if session.fate is not Fate.LIVE and task is not None:
            task.uncancel()
        elif task is not None and not task.cancelling():
            runner.fail(session, EngineFailed("engine cancelled its own call"))
        else:
            raise
    except Exception as exc:  # noqa: BLE001 - the boundary of one job
        runner.fail(session, exc)
    finally:
        session.leave_model(runner.now())


async def _open(runner: Runner, session: Session) -> None:
    if not session.opened:
        session.engine_session = await runner.engine.open(session.lease.spec.params, session.resume)
        session.opened = True


async def _consume(runner: Runner, session: Session) -> None:
    work = session.work
    assert work is not None
    if session.handler is not None:
        await session.handler.step(runner, session, work)
        return
    if session.ear is not None:
        await _listen(runner, session, session.ear)
        return
    if session.speech is not None:
        segment = work.items[0]
        assert isinstance(segment, Text)
        session.speech.begin(segment)
    events = runner.engine.step(session.engine_session, work.items)
    # Engines write `step` as an async generator; the contract only promises an iterator.
    async with aclosing(cast(Any, events)):
        async for event in events:
            await _pass_on(runner, session, event)
            if session.fate is not Fate.LIVE:
                return
    if session.speech is not None:
        await _write_all(runner, session, session.speech.end())
    session.cutter.finished(work)


async def _listen(runner: Runner, session: Session, ear: Ear) -> None:
    span, items = await ear.read(cast("Span", session.work))
    if items:
        events = runner.engine.step(session.engine_session, items)
        async with aclosing(cast(Any, events)):
            async for event in events:
                out = event if isinstance(event, Notice) else ear.event(event)
                if out is not None:
                    await runner.write(session, out, together=True)
                if session.fate is not Fate.LIVE:
                    return
    for heard in ear.finish(span):
        await runner.write(session, heard, together=True)
    if session.fate is Fate.LIVE:
        runner.flush(session)


async def _pass_on(runner: Runner, session: Session, event: OutputEvent) -> None:
    if isinstance(event, Notice):
        await runner.write(session, event)
    elif session.speech is not None:
        await _write_all(runner, session, session.speech.piece(event))
    elif isinstance(event, TextDelta | ToolCalls | Usage):
        # The count comes last: it leaves with the terminal event.
        await runner.write(session, event, together=isinstance(event, Usage))
    else:
        raise EngineFailed(f"engine yielded {type(event).__name__}, expected text events")


async def _write_all(runner: Runner, session: Session, pieces: AsyncIterator[OutputEvent]) -> None:
    async with aclosing(cast(Any, pieces)):
        async for piece in pieces:
            await runner.write(session, piece)
