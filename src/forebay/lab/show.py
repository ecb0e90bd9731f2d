"""How a bench result is shown: a table on the terminal, a JSON file, one HTML page."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from forebay.lab.stats import percentile

__all__ = ["page", "table", "timeline", "write_json"]

_TIMES = ("p50_ms", "p95_ms", "p99_ms", "max_ms", "count")


def table(console: Console, title: str, figures: Mapping[str, Any]) -> None:
    """Print times first, then counts, in the order given."""
    times = Table(title=title, title_justify="left")
    for column in ("", "p50 ms", "p95 ms", "p99 ms", "max ms", "n"):
        times.add_column(column, justify="left" if not column else "right")
    counts = Table(show_header=False)
    for name, value in flat(figures):
        if isinstance(value, dict) and "p50_ms" in value:
            times.add_row(name, *(f"{value[key]:g}" for key in _TIMES))
        else:
            counts.add_row(name, _said(value))
    console.print(times)
    console.print(counts)


def flat(figures: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Names as people read them; a list of times becomes one row a third."""
    rows: list[tuple[str, Any]] = []
    for key, value in figures.items():
        name = key.replace("_", " ")
        if isinstance(value, list):
            rows += [(f"{name} {i}/{len(value)}", item) for i, item in enumerate(value, 1)]
        else:
            rows.append((name, value))
    return rows


def _said(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {v}" for k, v in value.items()) or "none"
    return str(value)


def write_json(path: Path, result: Any) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2))


def page(
    path: Path,
    title: str,
    result: Any,
    points: Sequence[tuple[float, float]],
    verdict: str,
    what: str = "unit latency",
    more: str = "",
) -> None:
    """One self-contained page: verdict, plot of ``what`` over the run, all figures. ``more``:
    further drawings, as markup of this module."""
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(_said(value))}</td></tr>"
        for name, value in flat(result.figures)
    )
    facts = " · ".join(f"{k}: {v}" for k, v in {**result.machine, **result.options}.items())
    path.write_text(
        f"""<!doctype html><meta charset="utf-8"><title>{html.escape(title)}</title>
<style>body{{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;
color:#1b2a33;background:#fbfcfc}}svg{{width:100%;height:auto;background:#fff;border:1px solid
#d5dee2}}th{{text-align:left;font-weight:500;padding-right:2rem}}td{{font-variant-numeric:
tabular-nums}}@media(prefers-color-scheme:dark){{body{{background:#12191d;color:#dbe5e9}}
svg{{background:#182227;border-color:#2c3a41}}}}</style>
<h1>{html.escape(title)}</h1><p><strong>{html.escape(verdict)}</strong></p>
<p>{html.escape(facts)}</p>{plot(points, what)}{more}<table>{rows}</table>""",
        encoding="utf-8",
    )


def plot(
    points: Sequence[tuple[float, float]], what: str = "unit latency", buckets: int = 120
) -> str:
    """``what`` over the run as SVG: p50 and p99 of each slice of time."""
    if not points:
        return "<p>no latencies were measured</p>"
    end = max(at for at, _ in points) or 1.0
    slices: list[list[float]] = [[] for _ in range(buckets)]
    for at, value in points:
        slices[min(int(at / end * buckets), buckets - 1)].append(value)
    top = max(percentile(values, 99) for values in slices if values) or 1e-3
    lines = []
    for q, colour in ((99, "#c8553d"), (50, "#2f7f93")):
        spots = " ".join(
            f"{60 + 830 * i / (buckets - 1):.1f},{270 - 240 * percentile(values, q) / top:.1f}"
            for i, values in enumerate(slices)
            if values
        )
        lines.append(f'<polyline points="{spots}" fill="none" stroke="{colour}" stroke-width="2"/>')
    return (
        f'<svg viewBox="0 0 920 320" role="img" aria-label="{html.escape(what)} over the run">'
        + "".join(lines)
        + '<g font-size="13" fill="currentColor">'
        f'<text x="8" y="36">{top * 1000:.0f} ms</text><text x="8" y="274">0</text>'
        f'<text x="60" y="305">0 s</text><text x="860" y="305">{end:.0f} s</text>'
        f'<text x="400" y="24">{html.escape(what)}: p50 (blue), p99 (red)</text></g></svg>'
    )


_COLOURS = ("#8fb7c2", "#d9c27a", "#2f7f93", "#c8553d")


def timeline(rows: Sequence[Mapping[str, Any]], spans: Sequence[str]) -> str:
    """Where the time of each row went, as SVG: one bar a row, one colour a span of seconds.

    A row has ``run`` (its label), ``begun_s``, and each of ``spans``, None where it did not
    come so far."""
    ends = [row["begun_s"] + sum(row[name] or 0.0 for name in spans) for row in rows]
    top = max(ends, default=0.0) or 1.0
    bars = []
    for index, row in enumerate(rows):
        at, y = float(row["begun_s"]), 30 + 16 * index
        bars.append(f'<text x="8" y="{y + 10}">{html.escape(str(row["run"]))}</text>')
        for colour, name in zip(_COLOURS, spans, strict=False):
            width = row[name] or 0.0
            bars.append(
                f'<rect x="{110 + 780 * at / top:.1f}" y="{y}" height="12" fill="{colour}" '
                f'width="{max(0.5, 780 * width / top):.1f}"/>'
            )
            at += width
    words = "".join(
        f'<text x="{110 + 140 * i}" y="18" fill="{colour}">{html.escape(name[:-2])}</text>'
        for i, (colour, name) in enumerate(zip(_COLOURS, spans, strict=False))
    )
    return (
        f'<svg viewBox="0 0 920 {60 + 16 * len(rows)}" role="img" aria-label="timeline">'
        f'<g font-size="12" fill="currentColor">{words}{"".join(bars)}'
        f'<text x="860" y="{50 + 16 * len(rows)}">{top:.1f} s</text></g></svg>'
    )
