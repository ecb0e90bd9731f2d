"""Durable jobs come back from the journal with the same epoch and offsets."""

from __future__ import annotations

import structlog

from forebay.broker.journal import Journal, Saved
from forebay.broker.local_core import Core
from forebay.broker.local_state import Entry, PipeRecord
from forebay.core.events import Ended, blobs_of
from forebay.core.job import Job, Phase
from forebay.core.room import is_room
from forebay.core.stream import IdentityFence, InputFence, StreamLog
from forebay.errors import Fenced

__all__ = ["restore"]

log = structlog.get_logger(__name__)


def restore(core: Core, journal: Journal) -> None:
    """Put every saved job back: finished ones for the rest of their window, dead letters among
    those, live ones into the queue. Nobody is attached, so each has its detach time to be come back for."""
    for saved in journal.load():
        try:
            _restore_job(core, journal, saved)
        except Fenced as error:
            raise journal.unusable(f"job {saved.spec.id}: {error.message}") from error
    for spec in journal.load_pipes():
        target, source = core.entries.get(spec.target), core.entries.get(spec.source)
        if source is None or (target is None and not is_room(spec.target)):
            journal.piped(spec, done=True)
            continue
        record = PipeRecord(spec, IdentityFence(spec.copied), carried=False)
        core.pipes[spec.id] = record
        if target is not None:
            target.pipes.append(record)
        source.feeds.append(record)


def _restore_job(core: Core, journal: Journal, saved: Saved) -> None:
    now, wall = core.clock(), journal.wall()
    pool = core.make_pool(saved.spec.pool)
    left_s = pool.row.after_end_s
    if saved.ended is not None:
        left_s -= max(0.0, wall - saved.ended)
        if _poison(saved):
            letter = _entry(core, saved, now - max(0.0, wall - saved.created))
            if left_s > 0:
                core.add(letter)
                core.watch(letter)
                core.timers.at(now + left_s, lambda: core.forget(letter))
            core.bury(letter)
            return
        if left_s <= 0:
            journal.forget(saved.spec.id)
            core.drop_blobs({b for i in [*saved.input, *saved.output] for b in blobs_of(i)})
            return
    pool.expected_until_s = now + core.settings.expect_s
    entry = _entry(core, saved, now - max(0.0, wall - saved.created))
    core.add(entry)
    core.watch(entry)
    job = entry.job
    if job.over:
        core.timers.at(now + left_s, lambda: core.forget(entry))
        return
    log.info("job.restored", job=entry.id, attempt=job.attempt, head=entry.out.head)
    core.leave_in(entry, max(job.spec.detach_s, job.row.detach_s))
    if job.attempt > 0:
        # It was leased: the failover rule decides, as for any worker that is lost.
        job.phase = Phase.RUNNING
        pool.begin()
        core.put_back(entry)
    else:
        core.feed(entry)


def _poison(saved: Saved) -> bool:
    last = saved.output[-1] if saved.output else None
    return isinstance(last, Ended) and last.code == "poison"


def _entry(core: Core, saved: Saved, created_s: float) -> Entry:
    pool = core.make_pool(saved.spec.pool)
    job = Job(
        spec=saved.spec,
        row=pool.row,
        created_s=created_s,
        attempt=saved.attempt,
        strikes=saved.strikes,
        consumed=saved.consumed,
        model_s=saved.model_s,
    )
    entry = Entry(
        job=job,
        pool=pool,
        out=core.new_log(pool.row, saved.spec.params, saved.epoch),
        inp=StreamLog(saved.epoch),
        fence=InputFence(saved.number, saved.client_pos),
        prefix=saved.prefix,
    )
    entry.inp.append(saved.input)
    entry.note_input(saved.input)
    job.units = max(job.units, saved.units)
    entry.out.append(saved.output)
    entry.note_output(saved.output)
    entry.out.trim(delivered=0)
    if not entry.keeps_input:
        entry.inp.drop_through(saved.consumed.offset)
    job.exposed = entry.out.head  # whether anybody saw it is not known: assume so
    if saved.attempt > 0:
        job.started_s = created_s
    last = saved.output[-1] if saved.output else None
    if isinstance(last, Ended):
        job.ended, job.ended_s = last, core.clock()
        job.phase = Phase(last.state)
    return entry
