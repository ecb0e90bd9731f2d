"""The command line's photo commands: `forebay enhance` and `forebay bench photos`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["register"]

DEFAULT_URL = "http://127.0.0.1:8600"
Url = Annotated[
    str, typer.Option("--url", envvar="FOREBAY_URL", show_envvar=True, help="A running server.")
]
Key = Annotated[
    str | None,
    typer.Option("--key", envvar="FOREBAY_API_KEY", show_envvar=True, help="API key for it."),
]


def register(app: typer.Typer, bench: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("enhance")(_enhance)
    bench.command("photos")(_bench_photos)


def _enhance(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Photos.")],
    url: Url = DEFAULT_URL,
    form: Annotated[str, typer.Option("--format", help="jpeg, png or webp.")] = "jpeg",
    level: Annotated[str, typer.Option("--quality", help="fast, medium or high.")] = "high",
    mode: Annotated[
        str,
        typer.Option(
            help="photo; perceptual (sharper, further from the original than a filter); or face."
        ),
    ] = "photo",
    tile_size: Annotated[int, typer.Option(min=256, max=512, help="Pixels.")] = 400,
    uploads: Annotated[int, typer.Option(min=1, max=20, help="Photos sent at once.")] = 2,
    force: Annotated[bool, typer.Option("--force", help="Write over results.")] = False,
    key: Key = None,
) -> None:
    """Enhance photos; results are beside them as NAME_enhanced."""
    from forebay.commands import enhance as command

    wanted = command.Wanted(
        url=url, key=key, form=form, level=level, mode=mode, tile_size=tile_size,
        uploads=uploads, force=force,
    )  # fmt: skip
    raise typer.Exit(command.enhance(files, wanted))


def _bench_photos(
    url: Url = DEFAULT_URL,
    mode: Annotated[str, typer.Option(help="stream, batch or both.")] = "both",
    concurrency: Annotated[int, typer.Option(min=1, max=20, help="Clients: 1 to this.")] = 5,
    file: Annotated[Path | None, typer.Option(help="What is sent (default: made up).")] = None,
    width: Annotated[int, typer.Option(min=16, help="Of the made-up photo.")] = 1080,
    height: Annotated[int, typer.Option(min=16, help="Of the made-up photo.")] = 1440,
    level: Annotated[str, typer.Option("--quality", help="fast, medium or high.")] = "fast",
    output_json: Annotated[Path | None, typer.Option(help="Write the figures here.")] = None,
    report: Annotated[Path | None, typer.Option(metavar="FILE.html", help="And a page.")] = None,
    key: Key = None,
) -> None:
    """Photos from 1 to N clients, and as a batch: first result, total, timeline."""
    from forebay.lab import photos as lab

    options = lab.Options(
        url=url, mode=mode, concurrency=concurrency, file=file, width=width, height=height,
        quality_level=level, key=key,
    )  # fmt: skip
    raise typer.Exit(lab.bench(options, output_json, report))
