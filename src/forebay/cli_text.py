"""The command line's part about text and notebooks: `bench text`, `bench notebook` and `models
compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["register"]

Key = Annotated[
    str | None, typer.Option(envvar="FOREBAY_API_KEY", help="API key, where one is asked for.")
]


def register(bench: typer.Typer, models: typer.Typer) -> None:
    """Add the commands to their groups."""
    bench.command("text")(bench_text)
    bench.command("notebook")(bench_notebook)
    models.command("compare")(models_compare)


def bench_text(
    url: Annotated[
        str, typer.Option(help="Address of the server.", envvar="FOREBAY_URL")
    ] = "http://127.0.0.1:8600",
    surface: Annotated[
        str, typer.Option(help="operation (/send_operation) or chat (/v1/chat/completions).")
    ] = "operation",
    scenario: Annotated[str, typer.Option(help="baseline or mixed.")] = "baseline",
    concurrency: Annotated[int, typer.Option(min=1, help="Readers at once.")] = 32,
    duration: Annotated[float, typer.Option(min=1, help="Seconds of asking.")] = 30.0,
    prompt: Annotated[str | None, typer.Option(help="What everybody asks.")] = None,
    model: Annotated[str, typer.Option(help="Model of the surface chat.")] = "",
    output_json: Annotated[Path | None, typer.Option(help="Write the figures here.")] = None,
    report: Annotated[Path | None, typer.Option(metavar="FILE.html", help="And a page.")] = None,
    key: Key = None,
) -> None:
    """Many readers of streamed text: first text, gaps, losses across drops."""
    from forebay.lab import text as lab

    options = lab.Options(
        url=url,
        surface=surface,
        scenario=scenario,
        concurrency=concurrency,
        duration_s=duration,
        prompt=prompt or lab.PROMPT,
        model=model,
        key=key,
    )
    options.check()
    raise typer.Exit(lab.main(options, output_json=output_json, report=report))


def bench_notebook(
    url: Annotated[
        str, typer.Option(help="Address of the server.", envvar="FOREBAY_URL")
    ] = "http://127.0.0.1:8600",
    concurrency: Annotated[int, typer.Option(min=1, help="People, each with a kernel.")] = 2,
    duration: Annotated[float, typer.Option(min=1, help="Seconds of running cells.")] = 20.0,
    lines: Annotated[int, typer.Option(min=1, help="Flushed lines of every tenth cell.")] = 50,
    lines_per_s: Annotated[float, typer.Option(min=0.1, help="And how fast they come.")] = 100.0,
    output_json: Annotated[Path | None, typer.Option(help="Write the figures here.")] = None,
    report: Annotated[Path | None, typer.Option(metavar="FILE.html", help="And a page.")] = None,
    key: Key = None,
) -> None:
    """People running cells: cells a second, execute to first output, delay of flushed lines."""
    from forebay.lab import notebook as lab

    options = lab.Options(
        url=url,
        concurrency=concurrency,
        duration_s=duration,
        lines=lines,
        lines_per_s=lines_per_s,
        key=key,
    )
    options.check()
    raise typer.Exit(lab.main(options, output_json=output_json, report=report))


def models_compare(
    one: Annotated[str, typer.Argument(help="A served model, an address, or MODEL@URL.")],
    two: Annotated[str, typer.Argument(help="Likewise.")],
    url: Annotated[
        str,
        typer.Option(
            help="The server that serves them, where no address is given.", envvar="FOREBAY_URL"
        ),
    ] = "http://127.0.0.1:8600",
    prompt: Annotated[
        list[str] | None, typer.Option(help="Ask this instead; may be repeated.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 200,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
    key: Key = None,
) -> None:
    """Two models' answers, repeat rate and speed, side by side."""
    from forebay.lab import compare as lab

    options = lab.Options(
        one=one,
        two=two,
        url=url,
        prompts=prompt or lab.PROMPTS,
        max_tokens=max_tokens,
        key=key,
    )
    raise typer.Exit(lab.main(options, as_json=as_json))
