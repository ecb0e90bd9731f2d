"""The gateway's counters, and their Prometheus face.

Hot paths pay one integer addition: numbers live in plain attributes and are turned into
samples only when somebody scrapes. One `GatewayMetrics` per process, used from its event
loop only.

Names (the ``ws_gateway_*`` family is S1's, kept as its dashboards know it):

=============================================  =========  ===============================
``ws_gateway_active_connections``              gauge      open voice WebSockets
``ws_gateway_sessions_total``                  counter    voice sessions started
``ws_gateway_errors_total{code}``              counter    errors told to voice clients
``ws_gateway_backpressure_total``              counter    sessions ended as too slow
``ws_gateway_ttfa_ms{quantile}``, _sum, _count summary    first audio, last 5000 sessions
``forebay_open_connections{type}``             gauge      open connections: http, websocket
``forebay_connections_total``                  counter    accepted ones
``forebay_connections_refused_total{reason}``  counter    and refused ones
``forebay_deadlines_total{which}``             counter    connections closed by a deadline
``forebay_requests_total{route,status}``       counter    HTTP requests answered
``forebay_first_byte_seconds{kind}``           histogram  request to first text or audio
``forebay_chunk_gap_seconds{kind}``            histogram  between two pieces of one stream
``forebay_cancel_to_slot_free_seconds{kind}``  histogram  cancel to the worker's free slot
``forebay_eta_error_ratio{kind}``              histogram  told wait against real, over 2 s
``forebay_resumes_total{answer}``              counter    resumes: exact, refused
``forebay_jobs{pool,state}``                   gauge      queued, running, parked
``forebay_workers{pool,state}``                gauge      known, ready
``forebay_slots{pool}``, forebay_free_credits  gauge      capacity and what is left of it
``forebay_service_seconds{pool}``, _rtf        gauge      measured model time a job
``forebay_needed_workers{pool}``               gauge      for a p95 wait of 1 s at this load
``forebay_spare_streams{pool}``                gauge      how many more would fit so
``forebay_worker_sessions{worker,pool}``       gauge      sessions a worker holds
``forebay_worker_load{worker,pool}``           gauge      share of its slots stepping now
``forebay_worker_rtf{worker,pool}``            gauge      its measured real-time factor
``forebay_worker_busy_seconds_total``          counter    its slot seconds: load over time
``forebay_worker_cpu_seconds_total``           counter    its processor time
``forebay_worker_resident_bytes``              gauge      its memory
``forebay_worker_gpu_bytes{worker,pool}``      gauge      its memory on a GPU, if it has one
``forebay_worker_gpu_busy{worker,pool}``       gauge      share of time that GPU works, all told
``forebay_worker_counts_total{worker,what}``   counter    answers, repeats, garbled, failovers
``forebay_cpu_seconds_total{role}``            counter    processor time, by role of process
``forebay_resident_bytes{role}``               gauge      memory, likewise
``forebay_insecure``                           gauge      1 while serving others unauthenticated
``forebay_draining``                           gauge      1 while shutting down
``process_cpu_seconds_total``                  counter    of this gateway process, as usual:
``process_resident_memory_bytes``              gauge      with ``process_virtual_memory_bytes``,
``process_start_time_seconds``                 gauge      ``process_open_fds``,
``process_max_fds``                            gauge      the limit of the former
=============================================  =========  ===============================
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import structlog
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from forebay.core.spec import PoolView, WorkerView

__all__ = ["CONTENT_TYPE", "FIRST_BYTE_BOUNDS_S", "GatewayMetrics", "Histogram", "quantile"]

log = structlog.get_logger(__name__)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FIRST_BYTE_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
TTFA_WINDOW = 5000
ETA_COUNTS_S = 2.0
ETA_ERROR_BOUNDS = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)
K = TypeVar("K")
MAX_LABELS = 200
"""Different label values kept per counter; whatever comes after is counted as ``other``."""


def quantile(ordered: Sequence[float], q: float) -> float:
    """The ``q`` quantile of an ascending sequence by nearest rank; 0 when empty."""
    if not ordered:
        return 0.0
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


class Histogram:
    """Counts per bucket, not cumulative; `samples` makes Prometheus's form of them."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def samples(self) -> tuple[list[tuple[str, float]], float]:
        """Cumulative ``(upper bound, count)`` pairs and the sum of all values."""
        running, pairs = 0, []
        for bound, count in zip((*self.bounds, None), self.counts, strict=True):
            running += count
            pairs.append(("+Inf" if bound is None else str(bound), float(running)))
        return pairs, self.total


class GatewayMetrics:
    """What this gateway has seen. Every method is a few additions; none can fail."""

    def __init__(self) -> None:
        self.voice_connections = 0
        self.voice_sessions = 0
        self.backpressure = 0
        self.errors: Counter[str] = Counter()
        self.accepted = 0
        self.refused: Counter[str] = Counter()
        self.deadlines: Counter[str] = Counter()
        self.requests: Counter[tuple[str, int]] = Counter()
        self.resumes: Counter[str] = Counter()
        self.first_byte: dict[str, Histogram] = {}
        self.gaps: dict[str, Histogram] = {}
        self.freed: dict[str, Histogram] = {}
        self.eta_errors: dict[str, Histogram] = {}
        self.insecure = False
        self.draining = False
        self.ttfa_ms: deque[float] = deque(maxlen=TTFA_WINDOW)
        self.ttft_ms: deque[float] = deque(maxlen=TTFA_WINDOW)
        self.connections: Callable[[], dict[str, int]] = dict
        self.pools: Callable[[], Iterable[PoolView]] = tuple
        self.workers: Callable[[], Iterable[WorkerView]] = tuple
        self.needs: Callable[[], Iterable[tuple[str, int, int]]] = tuple
        self.processes: Callable[[], dict[str, tuple[float, float]]] = dict
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Face(self))
        ProcessCollector(registry=self._registry)  # CPU, memory, descriptors of this gateway

    def add(self, collector: Collector) -> None:
        """Show another part's numbers beside these."""
        self._registry.register(collector)

    # ------------------------------------------------------------------ what happened
    def connection_opened(self) -> None:
        """A voice WebSocket (S1) was accepted."""
        self.voice_connections += 1

    def connection_closed(self) -> None:
        """And is gone: call in ``finally``, exactly once for each `connection_opened`."""
        self.voice_connections -= 1

    def session_started(self) -> None:
        """A voice session began; a resumed one is not a new one."""
        self.voice_sessions += 1

    def error(self, code: str) -> None:
        """A client was told an error with this code."""
        _count(self.errors, code, "other")

    def slow_client(self) -> None:
        """A session ended with `backpressure`."""
        self.backpressure += 1

    def resume(self, answer: str) -> None:
        """A client came back: ``exact``, or the reason of the refusal."""
        _count(self.resumes, answer, "other")

    def ttfa(self, seconds: float) -> None:
        """First text received to first audio handed to the transport."""
        self.ttfa_ms.append(seconds * 1000)
        self._first("speech", seconds)

    def ttft(self, seconds: float) -> None:
        """Request received to first text handed to the transport."""
        self.ttft_ms.append(seconds * 1000)
        self._first("text", seconds)

    def slot_freed(self, kind: str, seconds: float) -> None:
        """A cancelled job of this kind has left its worker."""
        self.freed.setdefault(kind, Histogram(FIRST_BYTE_BOUNDS_S)).observe(seconds)

    def gap(self, kind: str, seconds: float) -> None:
        """Two pieces of one stream's text or audio left so far apart."""
        histogram = self.gaps.get(kind)
        if histogram is None:
            histogram = self.gaps[kind] = Histogram(FIRST_BYTE_BOUNDS_S)
        histogram.observe(seconds)

    def refuse(self, reason: str) -> None:
        """A connection was turned away before any work."""
        _count(self.refused, reason, "other")

    def deadline(self, which: str) -> None:
        """A connection was closed because its peer did not keep a deadline."""
        _count(self.deadlines, which, "other")

    def request(self, route: str, status: int) -> None:
        """An HTTP request was answered. ``route``: the pattern, never the client's path."""
        _count(self.requests, (route, status), ("other", status))

    def waited(self, kind: str, told_s: float, real_s: float, *, begun: bool = True) -> None:
        """A client that had been told a wait of ``told_s`` waited ``real_s``, until its job
        had ``begun`` or its deadline had passed. Short waits do not count: nobody plans by
        them."""
        if max(told_s, real_s) < ETA_COUNTS_S:
            return
        if not begun or (told_s and real_s > 2 * told_s):
            log.info(
                "queue.longer_than_told",
                kind=kind,
                told_s=round(told_s, 1),
                real_s=round(real_s, 1),
                begun=begun,
            )
        histogram = self.eta_errors.get(kind)
        if histogram is None:
            histogram = self.eta_errors[kind] = Histogram(ETA_ERROR_BOUNDS)
        histogram.observe(abs(told_s - real_s) / max(real_s, 0.001))

    def _first(self, kind: str, seconds: float) -> None:
        histogram = self.first_byte.get(kind)
        if histogram is None:
            histogram = self.first_byte[kind] = Histogram(FIRST_BYTE_BOUNDS_S)
        histogram.observe(seconds)

    # --------------------------------------------------------------------- faces of it
    def render(self) -> bytes:
        """The text exposition format, `CONTENT_TYPE`."""
        return generate_latest(self._registry)

    def first_bytes(self) -> dict[str, dict[str, float]]:
        """``{ttfa_ms, ttft_ms: {p50, p95, p99, n}}`` of the last 5000, for the console."""
        answer = {}
        for name, values in (("ttfa_ms", self.ttfa_ms), ("ttft_ms", self.ttft_ms)):
            ordered = sorted(values)
            answer[name] = {
                "p50": round(quantile(ordered, 0.5), 3),
                "p95": round(quantile(ordered, 0.95), 3),
                "p99": round(quantile(ordered, 0.99), 3),
                "n": float(len(ordered)),
            }
        return answer


def _count(counter: Counter[K], key: K, other: K) -> None:
    if key not in counter and len(counter) >= MAX_LABELS:
        key = other
    counter[key] += 1


class _Face(Collector):
    """Turns the numbers into Prometheus samples at scrape time."""

    def __init__(self, metrics: GatewayMetrics) -> None:
        self._m = metrics

    def collect(self) -> Iterator[Metric]:
        yield from self._voice()
        yield from self._transport()
        yield from self._first_bytes()
        yield from self._pools()
        yield from self._workers()
        yield from self._processes()

    def _voice(self) -> Iterator[Metric]:
        m = self._m
        yield _gauge("ws_gateway_active_connections", "open voice WebSockets", m.voice_connections)
        yield _counter("ws_gateway_sessions", "voice sessions started", m.voice_sessions)
        yield _labelled("ws_gateway_errors", "errors told to voice clients", "code", m.errors)
        yield _counter("ws_gateway_backpressure", "sessions ended as too slow", m.backpressure)
        ordered = sorted(m.ttfa_ms)
        summary = Metric("ws_gateway_ttfa_ms", "ms to first audio, last 5000", "summary")
        for q in (0.5, 0.95, 0.99):
            value = quantile(ordered, q)
            summary.add_sample("ws_gateway_ttfa_ms", {"quantile": str(q)}, value)
        summary.add_sample("ws_gateway_ttfa_ms_sum", {}, float(sum(ordered)))
        summary.add_sample("ws_gateway_ttfa_ms_count", {}, float(len(ordered)))
        yield summary

    def _transport(self) -> Iterator[Metric]:
        m = self._m
        open_now = GaugeMetricFamily(
            "forebay_open_connections", "open connections", labels=["type"]
        )
        for kind, value in m.connections().items():
            open_now.add_metric([kind], value)
        yield open_now
        yield _counter("forebay_connections", "accepted connections", m.accepted)
        yield _labelled("forebay_connections_refused", "turned away", "reason", m.refused)
        yield _labelled("forebay_deadlines", "closed by a deadline", "which", m.deadlines)
        yield _labelled("forebay_resumes", "clients that came back", "answer", m.resumes)
        answered = CounterMetricFamily(
            "forebay_requests", "HTTP requests answered", labels=["route", "status"]
        )
        for (route, status), value in m.requests.items():
            answered.add_metric([route, str(status)], value)
        yield answered
        yield _gauge("forebay_insecure", "1: serves others unauthenticated", m.insecure)
        yield _gauge("forebay_draining", "1: shutting down", m.draining)

    def _first_bytes(self) -> Iterator[Metric]:
        for name, about, found in (
            ("forebay_first_byte_seconds", "request to first text or audio", self._m.first_byte),
            ("forebay_chunk_gap_seconds", "between two pieces of one stream", self._m.gaps),
            ("forebay_cancel_to_slot_free_seconds", "cancel to free slot", self._m.freed),
            ("forebay_eta_error_ratio", "told wait against real", self._m.eta_errors),
        ):
            family = HistogramMetricFamily(name, about, labels=["kind"])
            for kind, histogram in found.items():
                buckets, total = histogram.samples()
                family.add_metric([kind], buckets, total)
            yield family

    def _pools(self) -> Iterator[Metric]:
        jobs = GaugeMetricFamily("forebay_jobs", "jobs by state", labels=["pool", "state"])
        workers = GaugeMetricFamily("forebay_workers", "workers", labels=["pool", "state"])
        slots = GaugeMetricFamily("forebay_slots", "concurrent steps", labels=["pool"])
        free = GaugeMetricFamily("forebay_free_credits", "jobs that fit now", labels=["pool"])
        service = GaugeMetricFamily("forebay_service_seconds", "model time a job", labels=["pool"])
        rtf = GaugeMetricFamily("forebay_rtf", "real-time factor", labels=["pool"])
        for pool in self._m.pools():
            for state in ("queued", "running", "parked"):
                jobs.add_metric([pool.name, state], getattr(pool, state))
            workers.add_metric([pool.name, "known"], pool.workers)
            workers.add_metric([pool.name, "ready"], pool.ready)
            slots.add_metric([pool.name], pool.slots)
            free.add_metric([pool.name], pool.free_credits)
            if pool.service_s is not None:
                service.add_metric([pool.name], pool.service_s)
            if pool.rtf is not None:
                rtf.add_metric([pool.name], pool.rtf)
        needed = GaugeMetricFamily("forebay_needed_workers", "for p95 1 s", labels=["pool"])
        spare = GaugeMetricFamily("forebay_spare_streams", "that would fit", labels=["pool"])
        for name, wanted, left in self._m.needs():
            needed.add_metric([name], wanted)
            spare.add_metric([name], left)
        yield from (jobs, workers, slots, free, service, rtf, needed, spare)

    def _workers(self) -> Iterator[Metric]:
        """One worker is one pool's, in what `forebay serve` starts; more are joined by +."""
        labels = ["worker", "pool"]
        gauges = {
            "sessions": GaugeMetricFamily(
                "forebay_worker_sessions", "sessions held", labels=labels
            ),
            "load": GaugeMetricFamily("forebay_worker_load", "share of slots busy", labels=labels),
            "rtf": GaugeMetricFamily("forebay_worker_rtf", "real-time factor", labels=labels),
            "memory": GaugeMetricFamily(
                "forebay_worker_resident_bytes", "resident memory", labels=labels
            ),
            "gpu": GaugeMetricFamily("forebay_worker_gpu_bytes", "memory on a GPU", labels=labels),
            "gpu_busy": GaugeMetricFamily(
                "forebay_worker_gpu_busy", "share of time the GPU works", labels=labels
            ),
        }
        cpu = CounterMetricFamily("forebay_worker_cpu_seconds", "processor time", labels=labels)
        busy = CounterMetricFamily(
            "forebay_worker_busy_seconds", "slot seconds of finished steps", labels=labels
        )
        counts = CounterMetricFamily(
            "forebay_worker_counts", "what engines count", labels=[*labels, "what"]
        )
        for worker in self._m.workers():
            names = [worker.id, "+".join(worker.pools)]
            gauges["sessions"].add_metric(names, worker.held)
            gauges["load"].add_metric(names, worker.busy / max(1, worker.slots))
            gauges["memory"].add_metric(names, worker.resident_bytes)
            if worker.rtf is not None:
                gauges["rtf"].add_metric(names, worker.rtf)
            if worker.gpu_busy is not None:
                gauges["gpu"].add_metric(names, worker.gpu_bytes)
                gauges["gpu_busy"].add_metric(names, worker.gpu_busy)
            cpu.add_metric(names, worker.cpu_s)
            busy.add_metric(names, worker.busy_s)
            for what, number in worker.counts.items():
                counts.add_metric([*names, what], number)
        yield from (*gauges.values(), cpu, busy, counts)

    def _processes(self) -> Iterator[Metric]:
        cpu = CounterMetricFamily("forebay_cpu_seconds", "processor time", labels=["role"])
        memory = GaugeMetricFamily("forebay_resident_bytes", "memory", labels=["role"])
        for role, (seconds, resident) in self._m.processes().items():
            cpu.add_metric([role], seconds)
            memory.add_metric([role], resident)
        yield from (cpu, memory)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=float(value))


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=float(value))


def _labelled(name: str, text: str, label: str, values: Counter[str]) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family
