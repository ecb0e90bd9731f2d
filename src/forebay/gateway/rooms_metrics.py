"""What is counted about rooms, at scrape time."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from forebay.gateway.rooms import Rooms
from forebay.gateway.showing import BOUNDS_S, ShownCounts

__all__ = ["RoomsCollector"]


class RoomsCollector(Collector):
    """Register it once with the gateway's metrics."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms

    def collect(self) -> Iterator[Metric]:
        rooms, counts = self._rooms, self._rooms.counts
        yield GaugeMetricFamily(
            "forebay_rooms_read", "rooms that somebody reads here", value=rooms.rooms_read()
        )
        yield GaugeMetricFamily("forebay_displays", "readers of rooms here", value=rooms.readers())
        yield _counter("forebay_captions_published", "messages taken", rooms.published)
        yield _counter("forebay_captions_held", "taken while one before was missing", rooms.held)
        yield _counter("forebay_captions_repeats", "messages sent again", rooms.repeats)
        yield _counter("forebay_captions_refused", "messages refused", rooms.refused)
        yield _counter(
            "forebay_captions_delivered", "messages written to readers", counts.delivered
        )
        yield _counter("forebay_previews_delivered", "previews written to readers", counts.previews)
        yield _counter(
            "forebay_previews_dropped",
            "previews not written to slow readers",
            counts.previews_dropped,
        )
        yield _counter("forebay_displays_behind", "times a reader fell behind", counts.behind)
        yield _counter("forebay_displays_cut", "readers cut as too slow", counts.cut)
        yield _shown(rooms.showing.counts)
        yield _counter(
            "forebay_caption_not_shown",
            "displays that told nothing of a caption in time",
            rooms.showing.counts.missing,
        )


def _shown(counts: ShownCounts) -> Metric:
    total, buckets = 0, []
    for bound, count in zip([*map(str, BOUNDS_S), "+Inf"], counts.buckets, strict=True):
        total += count
        buckets.append((bound, float(total)))
    return HistogramMetricFamily(
        "forebay_caption_shown_seconds",
        "from writing a caption to readers here until the last display that tells shows it",
        buckets=buckets,
        sum_value=counts.sum_s,
    )


def _counter(name: str, text: str, value: int) -> Metric:
    return CounterMetricFamily(name, text, value=float(value))
