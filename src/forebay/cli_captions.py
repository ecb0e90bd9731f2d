"""The command line's part about captions: `caption`, and `bench captions`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from forebay.errors import ConfigError

__all__ = ["register"]

Key = Annotated[
    str | None, typer.Option(envvar="FOREBAY_API_KEY", help="API key, where one is asked for.")
]


def register(app: typer.Typer, bench: typer.Typer) -> None:
    """Add the commands to their groups."""
    app.command("caption")(caption)
    bench.command("captions")(bench_captions)


def bench_captions(
    url: Annotated[
        str, typer.Option(help="Address of the server.", envvar="FOREBAY_URL")
    ] = "http://127.0.0.1:8600",
    scenario: Annotated[str, typer.Option(help="fanout, rooms or network.")] = "fanout",
    displays: Annotated[int, typer.Option(min=1, help="Readers.")] = 1000,
    rooms: Annotated[int, typer.Option(min=2, help="Rooms, in the scenario rooms.")] = 100,
    rate: Annotated[float, typer.Option(min=0.1, help="Captions a second of a speaker.")] = 10.0,
    duration: Annotated[float, typer.Option(min=0.5, help="Seconds of speaking.")] = 10.0,
    size: Annotated[int, typer.Option(min=20, help="Characters of a caption.")] = 100,
    rtt: Annotated[float, typer.Option(help="Round trip of the scenario network, ms.")] = 100.0,
    loss: Annotated[float, typer.Option(help="Share of packets it loses.")] = 0.01,
    output_json: Annotated[Path | None, typer.Option(help="Write the figures here.")] = None,
    report: Annotated[Path | None, typer.Option(metavar="FILE.html", help="And a page.")] = None,
    key: Key = None,
) -> None:
    """Speakers and displays of rooms: lag to the last display, losses, order."""
    from forebay.lab import captions as lab

    options = lab.Options(
        url=url.rstrip("/"),
        scenario=scenario,
        displays=displays,
        rooms=rooms,
        rate=rate,
        duration_s=duration,
        size=size,
        rtt_ms=rtt,
        loss=loss,
        key=key,
    )
    options.check()
    raise typer.Exit(lab.main(options, output_json=output_json, report=report))


def caption(
    room: Annotated[str, typer.Option(help="Room that reads along.")],
    passphrase: Annotated[
        str, typer.Option(envvar="FOREBAY_PASSPHRASE", help="Of the room; makes a new one.")
    ],
    mic: Annotated[bool, typer.Option("--mic", help="Speak into the microphone.")] = False,
    wav: Annotated[Path | None, typer.Option(metavar="FILE", help="Or let a file speak.")] = None,
    url: Annotated[
        str, typer.Option(help="Who recognises.", envvar="FOREBAY_URL")
    ] = "http://127.0.0.1:8600",
    server: Annotated[
        str | None, typer.Option(help="Where the room is; an original's, too. Default: --url.")
    ] = None,
    name: Annotated[str, typer.Option(help="Who speaks, as displays show it.")] = "Speaker",
    sync: Annotated[bool, typer.Option(help="Send to the room, or show words here only.")] = True,
    previews: Annotated[bool, typer.Option(help="Send unfinished words, too.")] = True,
    language: Annotated[str | None, typer.Option(help="Spoken language, such as en or zh.")] = None,
    max_workers: Annotated[int, typer.Option(min=1, max=16, help="Requests at once.")] = 3,
    outbox: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keeps captions until they are sent.")
    ] = None,
    export: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Counters and lags, at the end.")
    ] = None,
    key: Key = None,
) -> None:
    """Microphone or file to captions in a room, words here at once."""
    from forebay.commands import caption as command

    if mic == (wav is not None):
        raise ConfigError("give --mic or --wav FILE")
    options = command.CaptionOptions(
        url=url.rstrip("/"),
        server=(server or url).rstrip("/"),
        room=room,
        passphrase=passphrase,
        name=name,
        wav=wav,
        sync=sync,
        previews=previews,
        language=language,
        max_workers=max_workers,
        outbox=outbox,
        key=key,
        export=export,
    )
    raise typer.Exit(command.main(options))
