"""The command line's part for operators: `doctor`, and the files `config` prints for what
stands around a server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["register"]

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="TOML file (default: ./forebay.toml)."),
]


def register(root: typer.Typer, config: typer.Typer) -> None:
    """Add the commands to their groups."""
    root.command("doctor")(doctor)
    config.command("nginx")(nginx)
    config.command("systemd")(systemd)
    config.command("caddy")(caddy)


def nginx(config: ConfigFile = None) -> None:
    """An nginx file: port 80, and 18600 for notebook front ends, before the configured port."""
    from forebay.commands import config as command

    raise typer.Exit(command.service_file("nginx", config))


def systemd(config: ConfigFile = None) -> None:
    """A systemd unit for `forebay serve`."""
    from forebay.commands import config as command

    raise typer.Exit(command.service_file("systemd", config))


def caddy(config: ConfigFile = None) -> None:
    """A Caddyfile for the same ports as nginx's."""
    from forebay.commands import config as command

    raise typer.Exit(command.service_file("caddy", config))


def doctor(
    url: Annotated[
        str | None,
        typer.Option(help="Check a running server there instead of this installation."),
    ] = None,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch", help="Repeat every 5 s; with --url, keep printing the first chunk's latency."
        ),
    ] = False,
    idle_s: Annotated[
        float,
        typer.Option(
            min=0, max=590, help="With --url: the silence that streams and sockets must outlast."
        ),
    ] = 5.0,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
    key: Annotated[
        str | None,
        typer.Option("--key", envvar="FOREBAY_API_KEY", show_envvar=True, help="API key for it."),
    ] = None,
    config: ConfigFile = None,
) -> None:
    """Check this installation, or a running server and the way to it, and say what to do next."""
    from forebay.commands import doctor as command

    raise typer.Exit(
        command.run(url=url, watch=watch, idle_s=idle_s, as_json=as_json, key=key, config=config)
    )
