"""What a broker home says to the server end of the worker link: `WorkerHost`.

`broker.link` reads frames from a worker's socket and calls these methods; whatever comes
back (leases, input, byte credit, cancels) leaves through the sink given to
`worker_connect`. All of them are plain functions that run in the gateway's event loop,
return at once and push in order.

Rules of a worker's life, in the order they happen:

1. ``worker_connect`` with the sink; any number of ``worker_stage``; ``worker_register``.
   Registering again replaces what was said before: ``sessions=0`` means "no new jobs"
   (a worker that drains says this first, then parks or finishes what it holds).
2. `Assign` is pushed: one credit is held from then on, under (job, attempt).
   The lease carries the first 256 KiB of input; the rest follows as `InputPush`.
3. The credit comes back exactly once, by whichever of these the worker says first:
   a commit whose last event is `Ended`, or ``worker_park(job, attempt)``.
4. After `CancelJob` or `LeaseLost` the attempt is fenced at once: the terminal event (of a
   cancel) is already in the stream and every later commit of that attempt raises `Fenced`.
   The worker stops the step, closes the engine session and answers with
   ``worker_park(job, attempt)``: "session closed, credit back". Until then the credit
   stays held, because the slot is not free.
5. ``worker_gone`` when the socket ends. All leases of that worker are requeued.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from forebay.broker import WorkerSink
from forebay.core.events import Consumed, OutputEvent
from forebay.core.spec import LoadStage, WorkerInfo

__all__ = ["WorkerHost"]


class WorkerHost(Protocol):
    """The broker half of what workers and their supervisor say."""

    def worker_connect(self, worker: str, sink: WorkerSink) -> None:
        """A worker named itself on a new connection. A previous connection under the same
        id counts as gone, with every lease it had."""

    def worker_stage(self, worker: str, pools: Sequence[str], stage: LoadStage) -> None:
        """Loading progress; makes the pools known before the worker serves them."""

    def worker_register(self, info: WorkerInfo) -> None:
        """``info.sessions`` credits exist from now on, less those already held.

        Raises `ProtocolError` when ``info.id`` has not connected or a pool is no
        "kind/model"."""

    def worker_commit(
        self,
        worker: str,
        job: str,
        attempt: int,
        events: Sequence[OutputEvent],
        consumed: Consumed,
        *,
        model_s: float = 0.0,
    ) -> None:
        """Append and record consumed, as one step; push to watchers; give byte credit back.

        Events at or below the head are a retried write and change nothing. Raises `Fenced`
        when (job, attempt) is not this worker's lease: drop the commit and go on reading,
        the worker has been told already. Raises `OffsetGap` or `ProtocolError` (byte credit
        overrun, item too large, an event after `Ended`) when the worker broke the contract:
        log it and close that worker's connection.

        Byte credit is answered with `Credit` in lumps of 16 KiB or more."""

    def worker_park(self, worker: str, job: str, attempt: int) -> None:
        """The session is closed and its credit is back. Idempotent.

        On the current lease: the job is parked, or queued again where it has unread input.
        On a fenced attempt: only the credit returns."""

    def worker_keeps(self, worker: str, affinity: str, *, held: bool) -> None:
        """Something lives on in the worker for ``affinity``, or does not any more: then the
        credit it held is back, unless a cell of it is leased to this worker by now. One that
        keeps what another owns meanwhile is told to end it (`Control`)."""

    def worker_beat(self, worker: str, load: Mapping[str, Any]) -> None:
        """Still alive. A worker that was given up for silence is taken back by this."""

    def worker_gone(self, worker: str, reason: str = "") -> None:
        """Its connection ended. Idempotent; unknown ids are ignored.

        A `supervised` worker's leases are requeued when `exited` is heard, or after 50 ms,
        so that strikes are counted before anybody gets the job again."""

    def exited(
        self, worker: str, *, abnormal: bool, stepping: Iterable[tuple[str, int]], reason: str
    ) -> None:
        """The supervisor's word that the process is gone (`SupervisorBroker`). Leases are
        requeued when the socket has ended too, or after 50 ms, so that what the worker had
        written before it died is read first."""
