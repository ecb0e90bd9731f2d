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
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(BEAT_S):
            self._broker.beat(self._worker, self._load())

    def stop(self) -> None:
        """Returns when no more beats can follow; waits at most one beat's own deadline."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2.0)
