"""The command line's `bench all`: every kind of work shortly, in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["register"]


def register(bench: typer.Typer) -> None:
    """Add the command to its group."""
    bench.command("all")(bench_all)


def bench_all(
    url: Annotated[
        str, typer.Option(help="Address of the server.", envvar="FOREBAY_URL")
    ] = "http://127.0.0.1:8600",
    own: Annotated[
        bool, typer.Option("--own", help="Start a server for it, with synthetic engines.")
    ] = False,
    duration: Annotated[float, typer.Option(min=1, help="Seconds of load on each kind.")] = 5.0,
    concurrency: Annotated[int, typer.Option(min=1, help="People at once on each kind.")] = 4,
    kind: Annotated[list[str] | None, typer.Option(help="Only this kind; may be repeated.")] = None,
    output_json: Annotated[Path | None, typer.Option(help="Write the figures here.")] = None,
    report: Annotated[Path | None, typer.Option(metavar="FILE.html", help="And a page.")] = None,
    key: Annotated[
        str | None, typer.Option(envvar="FOREBAY_API_KEY", help="API key, where one is asked for.")
    ] = None,
) -> None:
    """Text, voice, recognition, photos, captions and notebooks, a few seconds each: one table."""
    from forebay.lab import every as lab

    options = lab.Options(
        url=None if own else url,
        seconds=duration,
        people=concurrency,
        only=tuple(kind or ()),
        key=key,
    )
    options.check()
    raise typer.Exit(lab.main(options, output_json=output_json, report=report))
