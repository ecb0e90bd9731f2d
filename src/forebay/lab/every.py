"""`forebay bench all`: every kind of work a server does, shortly, one after another, one table.

A first look at a machine, a model or a change: it takes a minute, and says of each kind how
long its users wait and whether anything was lost. What a kind can bear is for its own tool to
say (`forebay bench tts`, `asr`, ...). A kind that the server does not serve is named and left
out.
"""

from __future__ import annotations

import asyncio
import contextlib
import html
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console
from rich.live import Live
from rich.table import Table

from forebay.errors import ConfigError
from forebay.lab import asr, captions, notebook, photos, show, text, tts
from forebay.lab.chaos_cluster import SPEECH, Cluster
from forebay.lab.command import Conclusion, Shown, all_held, bearer
from forebay.lab.stats import machine, summary

__all__ = ["KINDS", "Options", "Row", "main", "run"]

READY_S = 60.0
OWN = (
    "text=synthetic",
    f"speech={SPEECH}",
    "recognition=synthetic",
    "image=synthetic",
    "kernel=python",
)
"""Engines of a server of our own. Notebooks have no others that run code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """``url``: a running server; None: one of our own, ended afterwards. ``seconds``: of load
    on each kind. ``people``: at once on each kind."""

    url: str | None = "http://127.0.0.1:8600"
    seconds: float = 5.0
    people: int = 4
    only: Sequence[str] = ()
    key: str | None = None

    def check(self) -> None:
        """Raises `ConfigError`."""
        for name in self.only:
            if name not in KINDS:
                raise ConfigError(f"kind is {name!r}, expected one of {', '.join(KINDS)}")
        if not 1 <= self.seconds <= 3600:
            raise ConfigError(f"duration is {self.seconds:g} s, expected 1..3600")
        if not 1 <= self.people <= 100:
            raise ConfigError(f"concurrency is {self.people}, expected 1..100")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one kind came to. ``state``: held, failed, or left out. ``waits``: summary of
    ``what``, the wait that matters to this kind's users."""

    kind: str
    load: str
    what: str
    state: str
    said: str
    waits: dict[str, float] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    points: list[tuple[float, float]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Asked:
    """Where to go, and whether the server's own words can be checked there."""

    options: Options
    url: str
    synthetic: bool

    def ws(self, path: str) -> str:
        return self.url.replace("http", "ws", 1) + path


@dataclass(frozen=True, slots=True)
class _Kind:
    """``pool``: kind of the pool it needs; empty: none."""

    pool: str
    what: str
    load: Callable[[Options], str]
    run: Callable[[_Asked], Awaitable[tuple[Shown, Conclusion]]]


async def _tts(asked: _Asked) -> tuple[Shown, Conclusion]:
    options = asked.options
    result = await tts.run(
        tts.Options(
            url=asked.ws("/tts"), concurrency=options.people, cps=15.0, key=options.key,
            duration_s=options.seconds, ramp_s=0.5,
            # Without faults and yet not "baseline", which compares thirds of a long run.
            scenario="mixed", disconnect_percent=0.0, cancel_percent=0.0,
            backpressure_percent=0.0,
        )
    )  # fmt: skip
    return result, all_held(result.failed, result.warnings)


async def _text(asked: _Asked) -> tuple[Shown, Conclusion]:
    options = asked.options
    result = await text.run(
        text.Options(
            url=asked.url, surface="chat", concurrency=options.people,
            duration_s=options.seconds, key=options.key,
        )
    )  # fmt: skip
    return result, all_held(result.failed)


async def _asr(asked: _Asked) -> tuple[Shown, Conclusion]:
    options = asked.options
    result = await asr.run(
        asr.Options(
            url=asked.ws("/ws/asr"), scenario="flat", concurrency=options.people,
            audio_s=options.seconds, duration_s=6 * options.seconds, ramp_s=0.5,
            words=asked.synthetic, key=options.key,
        )
    )  # fmt: skip
    verdict = result.verdict
    status = 1 if verdict.kind == "fault" else 0
    return result, Conclusion(said=verdict.said, style="", status=status, facts={})


async def _photos(asked: _Asked) -> tuple[Shown, Conclusion]:
    options = asked.options
    result = await photos.run(
        photos.Options(
            url=asked.url, mode="stream", concurrency=min(options.people, 3), width=256,
            height=256, key=options.key,
        )
    )  # fmt: skip
    return result, all_held([photo.error for photo in result.photos if photo.error])


async def _captions(asked: _Asked) -> tuple[Shown, Conclusion]:
    options = asked.options
    result = await captions.run(
        captions.Options(
            url=asked.url, displays=25 * options.people, rooms=1, duration_s=options.seconds,
            key=options.key,
        )
    )  # fmt: skip
    return result, captions.judge(result)


async def _notebook(asked: _Asked) -> tuple[Shown, Conclusion]:
    options = asked.options
    result = await notebook.run(
        notebook.Options(
            url=asked.url, concurrency=min(options.people, 2), duration_s=options.seconds,
            key=options.key,
        )
    )  # fmt: skip
    return result, all_held(result.failed)


KINDS: dict[str, _Kind] = {
    "text": _Kind("text", "first text", lambda o: f"{o.people} readers", _text),
    "tts": _Kind("speech", "typed to heard", lambda o: f"{o.people} people typing", _tts),
    "asr": _Kind("recognition", "spoken to read", lambda o: f"{o.people} speakers", _asr),
    "photos": _Kind("image", "first result", lambda o: f"1 to {min(o.people, 3)} at once", _photos),
    "captions": _Kind("", "to the last display", lambda o: f"{25 * o.people} displays", _captions),
    "notebook": _Kind(
        "kernel", "first output", lambda o: f"{min(o.people, 2)} notebooks", _notebook
    ),
}


# ------------------------------------------------------------------------------- run


async def run(options: Options, progress: Callable[[str], None] = lambda _: None) -> list[Row]:
    """Every kind asked for, one after another. Raises `ConfigError` for options out of range
    and for a server that does not answer."""
    options.check()
    wanted = options.only or tuple(KINDS)
    async with _server(options, wanted, progress) as url:
        serves = await _pools(url, options.key)
        rows = []
        for name in wanted:
            progress(name)
            rows.append(await _one(name, options, url, serves))
        return rows


async def _one(name: str, options: Options, url: str, serves: dict[str, bool]) -> Row:
    kind = KINDS[name]
    row = Row(kind=name, load=kind.load(options), what=kind.what, state="left out", said="")
    if kind.pool and kind.pool not in serves:
        return replace(row, load="", said=f"no {kind.pool} worker is ready")
    asked = _Asked(options, url, serves.get(kind.pool, False))
    try:
        result, end = await kind.run(asked)
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        return replace(row, state="failed", said=f"{type(error).__name__}: {error}".rstrip(": "))
    return replace(
        row,
        state="failed" if end.status else "held",
        said=end.said,
        waits=summary([wait for _, wait in result.points]),
        figures=dict(result.figures),
        points=list(result.points),
    )


async def _pools(url: str, key: str | None) -> dict[str, bool]:
    """Kinds with a worker that is ready; whether it is a synthetic one."""
    try:
        async with aiohttp.ClientSession(headers=bearer(key)) as http:
            async with http.get(f"{url}/api/status") as answer:
                answer.raise_for_status()
                found = await answer.json()
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise ConfigError(f"no server answers at {url} ({error}); --own starts one") from error
    ready = [pool for pool in found.get("pools", ()) if pool.get("ready")]
    return {pool["name"].partition("/")[0]: bool(pool.get("synthetic")) for pool in ready}


@contextlib.asynccontextmanager
async def _server(
    options: Options, wanted: Sequence[str], progress: Callable[[str], None]
) -> AsyncIterator[str]:
    """Where to measure: the server named, or one of our own with synthetic engines."""
    if options.url is not None:
        yield options.url.rstrip("/")
        return
    progress("a server of its own")
    needed = {KINDS[name].pool for name in wanted}
    engines = [engine for engine in OWN if engine.partition("=")[0] in needed] or [OWN[0]]
    words = [word for engine in engines for word in ("--engine", engine)]
    async with Cluster() as cluster:
        try:
            server = await cluster.serve(*words)
        except RuntimeError as error:
            raise ConfigError(f"no server of its own came up: {error}") from error
        for engine in engines:
            # What cannot be had here, such as kernels as root, is named in the table.
            with contextlib.suppress(RuntimeError):
                await cluster.ready(server, kind=engine.partition("=")[0], limit_s=READY_S)
        yield server.http


# ------------------------------------------------------------------------------ face


def _table(rows: Sequence[Row]) -> Table:
    table = Table(title="all kinds", title_justify="left")
    for column in ("", "load", "wait", "p50 ms", "p95 ms", "n", ""):
        right = column.endswith("ms") or column == "n"
        table.add_column(column, justify="right" if right else "left")
    colours = {"held": "green", "failed": "red", "left out": "yellow"}
    for row in rows:
        waits = [
            f"{row.waits[key]:g}" if row.waits else "" for key in ("p50_ms", "p95_ms", "count")
        ]
        state = f"[{colours[row.state]}]{row.state}[/]"
        table.add_row(row.kind, row.load, row.what, *waits, state)
    return table


def _write_page(path: Path, shown: dict[str, Any], rows: Sequence[Row], verdict: str) -> None:
    """One page: the table's figures, and how the wait went over each run."""
    drawings = "".join(
        f"<h2>{html.escape(row.kind)}: {html.escape(row.what)}</h2>{show.plot(row.points, row.what)}"
        for row in rows[1:]
        if row.points
    )
    result = _Page(shown, machine(), {row.kind: row.waits or {row.state: row.said} for row in rows})
    first = rows[0]
    what = f"{first.kind}: {first.what}"
    show.page(path, "all kinds", result, first.points, verdict, what=what, more=drawings)


@dataclass(slots=True)
class _Page:
    options: dict[str, Any]
    machine: dict[str, Any]
    figures: dict[str, Any]


def main(options: Options, *, output_json: Path | None = None, report: Path | None = None) -> int:
    """Run, show, write what was asked for. Returns the exit status: 0 when nothing failed and
    something was measured."""
    console = Console()
    with Live("", console=console, refresh_per_second=4, transient=True) as live:
        rows = asyncio.run(run(options, lambda what: live.update(f"measuring {what}")))
    console.print(_table(rows))
    for row in rows:
        if row.state != "held":
            console.print(f"{row.kind}: {row.said}", markup=False)
    failed = [row.kind for row in rows if row.state == "failed"]
    measured = any(row.state == "held" for row in rows)
    verdict = "failed: " + ", ".join(failed) if failed else "what is served held"
    if not measured and not failed:
        verdict = "nothing was measured: no worker is ready"
    shown = {
        "url": options.url or "own server, synthetic engines",
        "seconds": options.seconds,
        "people": options.people,
    }
    console.print(verdict, style="green" if measured and not failed else "red")
    if output_json is not None:
        kinds = {
            row.kind: {
                "state": row.state, "said": row.said, "load": row.load, "what": row.what,
                "waits": row.waits, "figures": row.figures,
            }
            for row in rows
        }  # fmt: skip
        facts = {"options": shown, "machine": machine(), "kinds": kinds, "failed": failed}
        show.write_json(output_json, facts)
    if report is not None:
        _write_page(report, shown, rows, verdict)
    return 0 if measured and not failed else 1
