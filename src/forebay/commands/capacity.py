"""`forebay capacity`: how many workers a load needs, or what a running server could take."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.table import Table

from forebay.commands.common import console, dump
from forebay.commands.jobs import Server
from forebay.core.capacity import Plan, counted, plan
from forebay.errors import ConfigError
from forebay.lab.simulate import play

__all__ = ["of_server", "planned"]


def planned(
    streams: int,
    rtf: float,
    *,
    workers: int | None,
    slots: int,
    max_wait_s: float,
    utilisation: float,
    simulate: bool,
    as_json: bool,
) -> int:
    """Answer from the model alone; with ``simulate`` beside a play-through of a minute."""
    try:
        found = plan(
            streams,
            rtf,
            workers=workers,
            slots=slots,
            max_wait_s=max_wait_s,
            utilisation=utilisation,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    facts: dict[str, Any] = asdict(found)
    if simulate:
        held = min(streams, found.held)
        played = play(held, rtf, workers=found.workers, slots=slots, for_s=60.0)
        facts["simulated"] = asdict(played)
    if as_json:
        dump(facts)
    else:
        _show(found, facts.get("simulated"), given=workers is not None)
    return 0


def _show(found: Plan, played: dict[str, Any] | None, *, given: bool) -> None:
    table = Table(show_header=False)
    table.add_row(
        "needed workers", f"[bold]{found.needed}[/]", f"p95 wait <= {found.max_wait_s:g} s"
    )
    table.add_row(
        "simple rule", str(found.simple), f"streams x RTF / {found.utilisation:g} / slots, no waits"
    )
    table.add_row("at full load", str(found.full_load), "the same with nothing left over")
    title = f"with {counted(found.workers, 'worker')} x {counted(found.slots, 'slot')}"
    table.add_section()
    table.add_row(title if given else f"{title}, as needed", f"{found.load:.0%} busy", "")
    table.add_row("held at once", str(found.held), f"{found.waiting} of {found.streams} would wait")
    table.add_row("room for", str(found.spare), "more streams")
    lag = "without end" if found.lag_p95_s is None else f"{found.lag_p95_s * 1000:.1f} ms"
    table.add_row("a step's lag, p95", lag, "model; random arrivals")
    if played is not None:
        table.add_row("a step's wait, p95", f"{played['p95_s'] * 1000:.1f} ms", "played out")
    console.print(table)
    console.print(found.why)


def of_server(server: Server, max_wait_s: float, as_json: bool) -> int:
    """Show ``GET /v1/capacity`` of a running server."""
    found = server.ask("GET", "/v1/capacity", max_wait=f"{max_wait_s:g}")
    if as_json:
        dump(found)
        return 0
    table = Table("pool", "workers", "load", "RTF", "queued", "wait now", "needed", "room for")
    for pool in found["pools"]:
        load = pool.get("load")
        wait = pool.get("wait_now_s")
        table.add_row(
            pool["name"],
            str(pool["workers"]),
            "-" if load is None else f"{load:.0%}",
            _said(pool.get("rtf")),
            str(pool["queued"]),
            "-" if wait is None else f"{wait:g} s",
            _said(pool.get("needed_workers")),
            _said(pool.get("spare_streams")),
        )
    console.print(table)
    return 0


def _said(value: Any) -> str:
    return "-" if value is None else str(value)
