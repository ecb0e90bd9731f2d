"""How jobs leave their workers and how they end in LocalBroker."""

from __future__ import annotations

import msgspec
import structlog

from forebay.broker import CancelJob, LeaseLost, LeasePush, OutputPush
from forebay.broker.local_dispatch import Dispatch
from forebay.broker.local_state import DeadLetter, Entry, Worker
from forebay.core.events import Consumed, Ended, OutputEvent, blobs_of
from forebay.core.job import (
    Move,
    Phase,
    Recover,
    competes,
    lost_code,
    move,
    recover,
    remaining_input,
)
from forebay.core.room import is_room
from forebay.core.spec import JobSpec
from forebay.core.stream import Stamper
from forebay.telemetry import debugging

__all__ = ["Core"]

log = structlog.get_logger(__name__)

MAX_DEAD = 200


class Core(Dispatch):
    """State and steps shared by the gateway's and the worker's half of LocalBroker."""

    # ----------------------------------------------------------- leases that end

    def unlease(self, entry: Entry) -> None:
        """The record no longer has a worker. Then move it on."""
        job, pool = entry.job, entry.pool
        pool.running -= 1
        job.last_worker, job.worker = job.worker, ""
        extra_s = job.model_s - entry.charged_s
        if extra_s > 0:  # it took more than was estimated: its tenant pays
            pool.queue.charge(job.spec.tenant, extra_s)
            entry.charged_s = job.model_s
        rate = job.row.media_rate or job.spec.params.get("sample_rate")
        samples = entry.out.marks.get(job.row.media, 0) - entry.lease_media
        if isinstance(rate, int) and rate > 0 and samples > 0:
            rtf = (job.model_s - entry.lease_model_s) * rate / samples
            pool.rtf.add(rtf)
            worker = self.workers.get(job.last_worker)
            if worker is not None:
                worker.rtf.add(rtf)

    def put_back(self, entry: Entry) -> None:
        """A lease ended before its job did: park it, queue it again, or end it by the
        failover rule."""
        job = entry.job
        self.unlease(entry)
        what = recover(
            job, prefix=entry.prefix, kept_whole=entry.out.first == 1, head=entry.out.head
        )
        if what is Recover.FINISH:
            self.finish(entry, Ended(state="completed"))
            return
        if what is Recover.FAIL:
            code = lost_code(job)
            self.finish(
                entry,
                Ended(
                    state="failed",
                    code=code,
                    message="the worker was lost and its work cannot be gone on with",
                    retryable=code == "worker_lost",
                ),
            )
            return
        if what is Recover.RESTART:
            self._restart(entry)
        if not competes(job):
            move(job, Move.PARK)
            entry.pool.parked += 1
            return
        move(job, Move.REQUEUE)
        self.tell(entry, LeasePush(job=entry.id, running=False))
        self.wait(entry)

    def _restart(self, entry: Entry) -> None:
        entry.out = self.new_log(entry.job.row, entry.job.spec.params, entry.out.epoch)
        entry.job.consumed = Consumed()
        entry.job.answered = entry.job.tools = False
        if self.journal is not None and entry.job.spec.durable:
            self.journal.restarted(entry.id)
        self.account(entry)

    def revoke(self, entry: Entry, worker: Worker) -> None:
        """Take a lease from a worker that may still be there."""
        if worker.sink is not None:
            worker.sink(LeaseLost(job=entry.id, attempt=entry.job.attempt))
        self.put_back(entry)

    # --------------------------------------------------------------------- ends

    def end(self, entry: Entry, ended: Ended) -> None:
        """End a job on the broker's word: the terminal event is written, the worker fenced
        and told to stop. Nothing happens to a job that is over."""
        job = entry.job
        if job.over:
            return
        worker, attempt = self.workers.get(job.worker), job.attempt
        if job.phase is Phase.RUNNING:
            self.unlease(entry)
            held = worker.held.get((entry.id, attempt)) if worker is not None else None
            if held is not None and ended.state == "cancelled":
                held.cancelled_s = self.clock()
        self.finish(entry, ended)
        if worker is not None and worker.sink is not None:
            worker.sink(CancelJob(job=entry.id, attempt=attempt, ended=ended))

    def finish(self, entry: Entry, ended: Ended) -> None:
        """Append and push the terminal event of a job that has no lease (any more)."""
        job = entry.job
        seq = ended.seq or job.seq
        stamper = Stamper(entry.out.head, entry.out.counts, entry.out.marks)
        event = stamper.stamp(msgspec.structs.replace(ended, seq=seq))
        if self.journal is not None and job.spec.durable:
            self.journal.output(entry.id, [event], job.consumed, job.model_s)
        entry.out.append([event])
        self.push_output(entry, [event])
        self.over(entry, ended)

    def push_output(self, entry: Entry, events: list[OutputEvent]) -> None:
        if entry.sinks:
            entry.job.exposed = entry.out.head
            push = OutputPush(job=entry.id, epoch=entry.out.epoch, events=events)
            for sink in entry.sinks:
                sink(push)

    def over(self, entry: Entry, ended: Ended) -> None:
        """The terminal event is in the stream: close the books of this job."""
        job, pool = entry.job, entry.pool
        if job.phase is Phase.QUEUED:
            pool.queue.remove(entry.id)
            self.places_soon(pool)
        elif job.phase is Phase.PARKED:
            pool.parked -= 1
        move(job, Move(ended.state))
        job.ended, job.ended_s = ended, self.clock()
        if job.phase is Phase.COMPLETED:
            pool.model.add(job.model_s)
        self.live_jobs -= 1
        self._count_tenant(job.spec.tenant, -1)
        for timer in (entry.wait_timer, entry.total_timer):
            if timer is not None:
                timer.cancel()
        if job.phase is not Phase.FAILED:
            entry.inp.drop_through(entry.inp.head)  # a failed job's input is kept for retry
        self.account(entry)
        self.watch(entry)
        self.input_moved(entry)
        if ended.code == "poison":
            self.bury(entry)
        if job.phase is Phase.CANCELLED:
            self._drop_blobs_of(entry)
        name, when = entry.id, job.ended_s  # not the entry: forgotten sooner, it is free then
        self.timers.at(when + job.row.after_end_s, lambda: self._forget_late(name, when))
        if debugging():
            log.debug("job.ended", job=entry.id, state=ended.state, code=ended.code)
        self._end_pipes(entry, cancel=ended.state == "cancelled")

    def _end_pipes(self, entry: Entry, *, cancel: bool) -> None:
        """Nothing flows into this job any more. Its cancel is its source's too; its failure
        is not: a voice that breaks leaves the text going on."""
        for pipe in entry.pipes:
            source = self.entries.get(pipe.spec.source)
            over, pipe.done = pipe.done, True
            if source is not None and cancel and not over:
                self.end(source, Ended(state="cancelled", message="what it fed is over"))

    def bury(self, entry: Entry) -> None:
        """Put a job among the dead letters, of which the oldest go."""
        start = Consumed() if entry.keeps_input else entry.job.consumed
        items = remaining_input(entry.inp.after(entry.inp.first - 1), start)
        self.dead[entry.id] = DeadLetter(entry.view(), items)
        while len(self.dead) > MAX_DEAD:
            self.discard(next(iter(self.dead)))

    def unbury(self, job: str) -> None:
        """No dead letter any more. Idempotent; its files are the caller's concern."""
        letter = self.dead.pop(job, None)
        if letter is not None and job not in self.entries:
            self._strike_out(letter.view.spec)

    def discard(self, job: str) -> None:
        """`unbury`, and its files go along where the job itself is gone."""
        letter = self.dead.get(job)
        self.unbury(job)
        blobs = {name for item in letter.items for name in blobs_of(item)} if letter else ()
        if blobs and job not in self.entries:
            self.drop_blobs(blobs)

    def _strike_out(self, spec: JobSpec) -> None:
        """Nothing will be asked of this job again, nor after a restart."""
        if spec.durable and self.journal is not None and spec.id not in self.dead:
            self.journal.forget(spec.id)

    def _drop_blobs_of(self, entry: Entry) -> None:
        names, entry.blobs = entry.blobs, set()
        if names:
            self.drop_blobs(names)

    def _forget_late(self, job: str, ended_s: float) -> None:
        entry = self.entries.get(job)
        if entry is not None and entry.job.ended_s == ended_s:  # else a newer one of that id
            self.forget(entry)

    def forget(self, entry: Entry) -> None:
        """The window after the end has passed."""
        self.entries.pop(entry.id, None)
        if entry.id not in self.dead:  # that one may be tried again
            self._drop_blobs_of(entry)
        spec = entry.job.spec
        key = (spec.tenant, spec.dialect, spec.name)
        if self.names.get(key) == entry.id:
            del self.names[key]
        rooms = [pipe for pipe in entry.feeds if is_room(pipe.spec.target)]
        for pipe in [*entry.pipes, *rooms]:
            self.pipes.pop(pipe.spec.id, None)
        self.used_bytes -= entry.accounted_bytes
        entry.accounted_bytes = 0
        self._strike_out(spec)
