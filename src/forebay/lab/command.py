"""What every load tool does around its people: let them run, read the server's own figures,
show the run while it lasts, and write down what it came to.

A tool brings its people, its figures and its judgement.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import aiohttp
from rich.console import Console
from rich.live import Live

from forebay.lab import show

__all__ = [
    "Conclusion",
    "ServerMeter",
    "all_held",
    "bearer",
    "http_base",
    "run_all",
    "run_and_tell",
    "socket_url",
]

DEFAULT_URL = "http://127.0.0.1:8600"
TICK_S = 0.5

Outcome = TypeVar("Outcome")


class Person(Protocol):
    async def run(self) -> object: ...


class Shown(Protocol):
    """What a tool's result has at least. ``points``: (s into the run, latency in s)."""

    options: dict[str, Any]
    machine: dict[str, Any]
    figures: dict[str, Any]
    points: list[tuple[float, float]]


Result = TypeVar("Result", bound=Shown)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conclusion:
    """``said``: the sentence a report ends with; ``style``: its colour; ``facts`` go into the
    JSON file beside the figures; ``status``: of the process."""

    said: str
    style: str
    status: int
    facts: Mapping[str, Any]
    warnings: Sequence[str] = field(default=())


def all_held(
    failed: Sequence[str], warnings: Sequence[str] = (), *, well: str = "all checks held"
) -> Conclusion:
    """Of a run whose checks were all to hold; ``failed`` names those that did not, ``well``
    is said when there are none."""
    return Conclusion(
        said="failed: " + "; ".join(failed) if failed else well,
        style="red" if failed else "green",
        status=1 if failed else 0,
        facts={"failed": list(failed)},
        warnings=warnings,
    )


def bearer(key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


def http_base(url: str) -> str:
    """A WebSocket address as the HTTP address of the same place."""
    return url.replace("ws://", "http://").replace("wss://", "https://")


def socket_url(url: str | None, path: str) -> str:
    """The WebSocket address that people mean by ``url``: an address of a page or of a socket,
    with or without a path of its own. None: a server on this machine."""
    scheme, _, rest = (url or DEFAULT_URL).rpartition("://")
    socket = {"http": "ws", "https": "wss", "": "ws"}.get(scheme, scheme)
    place, _, own = rest.partition("/")
    return f"{socket}://{place}/{own}" if own else f"{socket}://{place}{path}"


# ------------------------------------------------------------------------------- run


async def run_all(
    people: Sequence[Person],
    outcomes: Sequence[Outcome],
    progress: Callable[[Sequence[Outcome], float], None] | None,
    clock: Callable[[], float],
) -> tuple[float, float]:
    """Everybody at once, to their end. Returns when it began by ``clock``, and how many
    seconds it took. ``progress`` is called twice a second."""
    begin = clock()
    ticker = asyncio.ensure_future(_tick(outcomes, begin, progress, clock))
    try:
        await asyncio.gather(*(person.run() for person in people))
    finally:
        ticker.cancel()
    return begin, clock() - begin


async def _tick(
    outcomes: Sequence[Outcome],
    begin: float,
    progress: Callable[[Sequence[Outcome], float], None] | None,
    clock: Callable[[], float],
) -> None:
    while progress is not None:
        progress(outcomes, clock() - begin)
        await asyncio.sleep(TICK_S)


class ServerMeter:
    """CPU and memory of the server over the run, where its `/metrics` answers."""

    def __init__(self, url: str, http: aiohttp.ClientSession, key: str | None) -> None:
        self._url = http_base(url).rsplit("/", 1)[0] + "/metrics"
        self._http = http
        self._headers = bearer(key)
        self._begin: dict[str, float] = {}
        self._at = 0.0

    async def begin(self) -> None:
        self._begin, self._at = await self._read(), time.monotonic()

    async def end(self) -> dict[str, float]:
        now = await self._read()
        if not now or not self._begin:
            return {}
        used = now.get("process_cpu_seconds_total", 0.0) - self._begin.get(
            "process_cpu_seconds_total", 0.0
        )
        elapsed = max(time.monotonic() - self._at, 1e-9)
        return {
            "gateway_cpu_cores": round(used / elapsed, 3),
            "gateway_memory_mb": round(now.get("process_resident_memory_bytes", 0.0) / 1e6, 1),
        }

    async def _read(self) -> dict[str, float]:
        try:
            async with self._http.get(self._url, headers=self._headers) as answer:
                text = await answer.text() if answer.status == 200 else ""
        except (aiohttp.ClientError, OSError):
            return {}
        found = {}
        for line in text.splitlines():
            name, _, value = line.partition(" ")
            if name in {"process_cpu_seconds_total", "process_resident_memory_bytes"}:
                found[name] = float(value)
        return found


# ------------------------------------------------------------------------------ face


def run_and_tell(
    run: Callable[[Callable[[Sequence[Outcome], float], None]], Coroutine[Any, Any, Result]],
    live_line: Callable[[Sequence[Outcome], float], str],
    conclude: Callable[[Result], Conclusion],
    *,
    title: str,
    output_json: Path | None,
    report: Path | None,
) -> int:
    """Run, show, write what was asked for. Returns the exit status `conclude` gives."""
    console = Console()
    with Live("connecting", console=console, refresh_per_second=4, transient=True) as live:
        result = asyncio.run(run(lambda found, at: live.update(live_line(found, at))))
    end = conclude(result)
    for warning in end.warnings:
        console.print(f"[yellow]warning:[/] {warning}")
    show.table(console, title, result.figures)
    console.print(end.said, style=end.style)
    if output_json is not None:
        figures = {"machine": result.machine, "figures": result.figures}
        show.write_json(output_json, {"options": result.options, **figures, **end.facts})
    if report is not None:
        show.page(report, title, result, result.points, end.said)
    return end.status
