"""Beats from a thread of their own, so that neither a busy model nor a blocked event loop
makes a living worker look dead."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from forebay.broker import WorkerBroker

__all__ = ["BEAT_S", "Heartbeat"]

BEAT_S = 0.25


class Heartbeat:
    """Calls ``broker.beat`` every `BEAT_S` until stopped. ``load`` is called in the thread
    and must only read plain values."""

    def __init__(
        self, broker: WorkerBroker, worker: str, load: Callable[[], Mapping[str, Any]]
    ) -> None:
        self._broker = broker
        self._worker = worker
        self._load = load
        # Held until the end. Waiting for a lock runs no code of ours, as an event does: this
        # happens four times a second in every worker, mostly when others want the processor.
        self._over = threading.Lock()
        self._over.acquire()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        while not self._over.acquire(timeout=BEAT_S):
            self._broker.beat(self._worker, self._load())

    def stop(self) -> None:
        """Returns when no more beats can follow; waits at most one beat's own deadline."""
        if not self._stopped:
            self._stopped = True
            self._over.release()
        if self._thread.is_alive():
            self._thread.join(timeout=2.0)
