"""The command line: parse and call. What the commands do lives in `forebay.commands`.

Everything but typer is imported inside the command that needs it, so that ``--help`` and a
mistyped option answer at once.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Annotated, cast

import typer
import typer.core
import typer.main

from forebay import __version__, cli_captions, cli_every, cli_operate, cli_photos, cli_text
from forebay.errors import CannotBoot, ConfigError, ForebayError, MissingEngine

__all__ = ["app", "main"]

app = typer.Typer(
    name="forebay",
    help="The gateway in front of your models: streaming, queueing and recovery.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
bench_app = typer.Typer(help="Measure a running server as its users would.", no_args_is_help=True)
chaos_app = typer.Typer(help="Break servers of its own on purpose; a scorecard of what held.")
jobs_app = typer.Typer(help="Look at a running server's jobs, and act on them.")
config_app = typer.Typer(help="What is set, by whom; reference, example and service files.")
models_app = typer.Typer(help="Weights of the local models.")
keys_app = typer.Typer(help="API keys.")
for _name, _group in (
    ("bench", bench_app),
    ("chaos", chaos_app),
    ("jobs", jobs_app),
    ("config", config_app),
    ("models", models_app),
    ("keys", keys_app),
):
    _group.info.no_args_is_help = True
    app.add_typer(_group, name=_name)
cli_text.register(bench_app, models_app)
cli_photos.register(app, bench_app)
cli_operate.register(app, config_app)
cli_captions.register(app, bench_app)
cli_every.register(bench_app)

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="TOML file (default: ./forebay.toml)."),
]
DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", metavar="DIR", help="Where the journal and the keys live."),
]
Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        envvar="FOREBAY_URL",
        show_envvar=True,
        help="A running server (default: the configured host and port).",
    ),
]
Key = Annotated[
    str | None,
    typer.Option("--key", envvar="FOREBAY_API_KEY", show_envvar=True, help="API key for it."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
FiguresFile = Annotated[Path | None, typer.Option(help="Write the figures here.")]
ReportFile = Annotated[Path | None, typer.Option(metavar="FILE.html", help="And a page.")]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"forebay {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """The gateway in front of your models: streaming, queueing and recovery."""


# ------------------------------------------------------------------------- processes


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one.")] = None,
    compat: Annotated[
        str | None,
        typer.Option(metavar="all|NAME,...", help="Also open the originals' ports."),
    ] = None,
    data_dir: DataDir = None,
    config: ConfigFile = None,
    gateways: Annotated[int | None, typer.Option(help="Gateway processes.")] = None,
    broker: Annotated[
        str | None,
        typer.Option(metavar="local|redis|URL", help="Where jobs and streams are kept."),
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND=NAME[:k=v,...]", help="Engine of a kind; may be repeated."),
    ] = None,
    workers: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND=N", help="Worker processes of a kind; may be repeated."),
    ] = None,
    insecure_no_auth: Annotated[
        bool | None,
        typer.Option(
            "--insecure-no-auth", help="Listen beyond loopback without keys.", show_default=False
        ),
    ] = None,
    log_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write events here; turned over by size (log.file_mib)."),
    ] = None,
) -> None:
    """Start everything: gateway, workers, console."""
    from forebay.commands import serve as command

    flags = command.flags(
        host=host,
        port=port,
        compat=compat,
        data_dir=data_dir,
        gateways=gateways,
        broker=broker,
        engines=engine or [],
        workers=workers or [],
        insecure_no_auth=insecure_no_auth or None,
        log_file=log_file,
    )
    raise typer.Exit(command.run(config, flags))


@app.command()
def worker(
    kind: Annotated[str, typer.Option(help="text, speech, recognition, image or kernel.")],
    engine: Annotated[str, typer.Option(metavar="NAME[:k=v,...]", help="Engine and options.")],
    broker: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="redis://HOST, or unix:///path of a gateway's link (or by setting)."
        ),
    ] = None,
    slots: Annotated[int | None, typer.Option(help="Concurrent steps.")] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, max=1000, help="So many, each replaced when it dies.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", hidden=True)] = None,
    worker_id: Annotated[str | None, typer.Option("--worker-id", hidden=True)] = None,
    standby: Annotated[bool, typer.Option("--standby", hidden=True)] = False,
    supervised: Annotated[bool, typer.Option("--supervised", hidden=True)] = False,
    steps_file: Annotated[str | None, typer.Option("--steps-file", hidden=True)] = None,
    row_file: Annotated[Path | None, typer.Option("--row-file", hidden=True)] = None,
    blobs_dir: Annotated[
        str | None,
        typer.Option(
            "--blobs-dir",
            envvar="FOREBAY_BLOBS_URL",
            help="The gateway's folder of large files, or the fsspec URL of its `blobs.url`.",
        ),
    ] = None,
) -> None:
    """Serve one kind with one engine, attached to a gateway."""
    from forebay.commands import worker as command

    raise typer.Exit(
        command.run(
            broker=broker,
            kind=kind,
            engine=engine,
            slots=slots,
            processes=processes,
            model=model,
            worker_id=worker_id,
            standby=standby,
            supervised=supervised,
            steps_file=steps_file,
            row_file=row_file,
            blobs_dir=blobs_dir,
        )
    )


@app.command(name="_gateway", hidden=True)
def gateway(
    spec: Annotated[Path, typer.Argument()],
    steps_file: Annotated[Path | None, typer.Option("--steps-file")] = None,
    standby: Annotated[bool, typer.Option("--standby")] = False,
) -> None:
    """A gateway process, as the supervisor starts it."""
    from forebay.commands import processes

    raise typer.Exit(processes.gateway(spec, steps_file, standby))


@app.command(name="_store", hidden=True)
def store(
    config: Annotated[Path, typer.Argument()],
    parent: Annotated[int, typer.Option("--parent")],
) -> None:
    """A private Valkey, as the supervisor starts it."""
    from forebay import store as process

    raise typer.Exit(process.run(config, parent))


# ----------------------------------------------------------------------------- bench


@bench_app.command("tts")
def bench_tts(
    url: Url = None,
    scenario: Annotated[str, typer.Option(help="baseline, mixed or heavy.")] = "baseline",
    concurrency: Annotated[int, typer.Option(min=1, help="Sessions at once.")] = 50,
    cps: Annotated[float, typer.Option(min=0.1, help="Characters a second, each.")] = 5.0,
    duration: Annotated[float, typer.Option(min=1, help="Seconds of typing.")] = 60.0,
    text_file: Annotated[Path | None, typer.Option(help="Text to type (UTF-8).")] = None,
    disconnect_percent: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share that drops and resumes, 0..1.")
    ] = None,
    cancel_percent: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share that cancels, 0..1.")
    ] = None,
    backpressure_percent: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share that stops reading, 0..1.")
    ] = None,
    backpressure_pause_s: Annotated[
        float | None, typer.Option(min=0, help="How long it stops reading.")
    ] = None,
    reconnect_delay_s: Annotated[
        float, typer.Option(min=0, help="How long a dropped one stays away.")
    ] = 0.2,
    output_json: FiguresFile = None,
    report: ReportFile = None,
    seed: Annotated[int, typer.Option(help="Who misbehaves, and when.")] = 1,
    key: Key = None,
) -> None:
    """Many people typing into /tts: delays, losses, repeats, neighbours."""
    from forebay.lab import tts as lab
    from forebay.lab.command import socket_url

    options = lab.Options(
        url=socket_url(url, "/tts"),
        scenario=scenario,
        concurrency=concurrency,
        cps=cps,
        duration_s=duration,
        text_file=text_file,
        disconnect_percent=disconnect_percent,
        cancel_percent=cancel_percent,
        backpressure_percent=backpressure_percent,
        backpressure_pause_s=backpressure_pause_s,
        reconnect_delay_s=reconnect_delay_s,
        key=key,
        seed=seed,
    )
    options.check()
    raise typer.Exit(lab.main(options, output_json=output_json, report=report))


@bench_app.command("asr")
def bench_asr(
    context: typer.Context,
    url: Url = None,
    scenario: Annotated[str, typer.Option(help="short, long, mixed or flat.")] = "short",
    concurrency: Annotated[int, typer.Option(min=1, help="Speakers.")] = 50,
    audio_s: Annotated[float, typer.Option(help="Seconds of speech each (flat).")] = 10.0,
    chunk_ms: Annotated[int, typer.Option(help="Sound in one message.")] = 100,
    duration: Annotated[
        float, typer.Option(min=1, help="No new attempt later than this, in seconds.")
    ] = 120.0,
    ramp: Annotated[float, typer.Option(min=0, help="All have come after so many seconds.")] = 1.0,
    drop_percent: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share that loses its line once, 0..1.")
    ] = None,
    words: Annotated[
        bool, typer.Option(help="Check every word (synthetic recogniser only).")
    ] = True,
    kill_every: Annotated[
        float | None,
        typer.Option(help="Kill a worker (SIGKILL) so often, in seconds, of a server of its own."),
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Its workers, with --kill-every.")] = None,
    rtf: Annotated[float, typer.Option(help="Its synthetic recogniser's RTF.")] = 0.1,
    output_json: FiguresFile = None,
    report: ReportFile = None,
    seed: Annotated[int, typer.Option(help="Who speaks how long, and who drops.")] = 1,
    key: Key = None,
) -> None:
    """Many people speaking at once: lag, queue, losses; is it a fault or a lack of workers?"""
    from forebay.lab import asr as lab
    from forebay.lab.command import socket_url

    options = lab.Options(
        url=socket_url(url, "/ws/asr"),
        scenario=scenario,
        concurrency=concurrency,
        audio_s=audio_s,
        chunk_ms=chunk_ms,
        duration_s=duration,
        ramp_s=ramp,
        drop_percent=drop_percent,
        words=words,
        key=key,
        seed=seed,
    )
    options.check()
    if kill_every is not None:
        given = context.get_parameter_source("url")
        if given is not None and given.name == "COMMANDLINE":
            raise typer.BadParameter("--kill-every starts a server of its own: leave --url out")
        from forebay.lab import asr_killed

        killing = asr_killed.Killing(every_s=kill_every, workers=workers, rtf=rtf)
        killing.check()
        raise typer.Exit(asr_killed.main(options, killing, output_json=output_json, report=report))
    raise typer.Exit(lab.main(options, output_json=output_json, report=report))


@app.command()
def capacity(
    streams: Annotated[int | None, typer.Option(min=1, help="Live streams at once.")] = None,
    rtf: Annotated[float | None, typer.Option(help="Model seconds per second of sound.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="How would so many do?")] = None,
    slots: Annotated[int, typer.Option(min=1, help="Concurrent steps of a worker.")] = 1,
    max_wait: Annotated[float, typer.Option(min=0, help="p95 wait to stay below, seconds.")] = 1.0,
    utilisation: Annotated[
        float, typer.Option(min=0.01, max=1, help="Of the simple rule shown beside it.")
    ] = 0.8,
    simulate: Annotated[bool, typer.Option("--simulate", help="Play a minute out too.")] = False,
    as_json: AsJson = False,
    url: Url = None,
    key: Key = None,
    config: ConfigFile = None,
) -> None:
    """Workers a load needs; without --streams, what a running server could still take."""
    from forebay.commands import capacity as command

    if streams is None and rtf is None:
        from forebay.commands import jobs

        raise typer.Exit(command.of_server(jobs.server(url, key, config), max_wait, as_json))
    if streams is None or rtf is None:
        raise ConfigError("--streams and --rtf belong together")
    raise typer.Exit(
        command.planned(
            streams,
            rtf,
            workers=workers,
            slots=slots,
            max_wait_s=max_wait,
            utilisation=utilisation,
            simulate=simulate,
            as_json=as_json,
        )
    )


# ----------------------------------------------------------------------------- chaos


@chaos_app.command("list")
def chaos_list() -> None:
    """Every scenario: its fault and what must happen."""
    from forebay.commands import chaos as command

    raise typer.Exit(command.listed())


@chaos_app.command("run")
def chaos_run(
    name: Annotated[list[str] | None, typer.Argument(help="Scenarios, one after another.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    scale: Annotated[float, typer.Option(help="Size of the load; 1 is the stated figures'.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Who is hit, and when.")] = 1,
    output_json: FiguresFile = None,
) -> None:
    """Break servers started for it on this machine, and say whether what was promised held."""
    from forebay.commands import chaos as command

    raise typer.Exit(
        command.run(
            name or [], everything=everything, scale=scale, seed=seed, output_json=output_json
        )
    )


# ------------------------------------------------------------------------------ jobs


@jobs_app.command("list")
def jobs_list(
    dead: Annotated[bool, typer.Option("--dead", help="Only those that crashed workers.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 50,
    as_json: AsJson = False,
    url: Url = None,
    key: Key = None,
    config: ConfigFile = None,
) -> None:
    """Jobs the server knows, newest first."""
    from forebay.commands import jobs

    raise typer.Exit(jobs.show_list(jobs.server(url, key, config), dead, limit, as_json))


@jobs_app.command("show")
def jobs_show(
    job: str, as_json: AsJson = False, url: Url = None, key: Key = None, config: ConfigFile = None
) -> None:
    """Everything known of one job."""
    from forebay.commands import jobs

    raise typer.Exit(jobs.show_one(jobs.server(url, key, config), job, as_json))


@jobs_app.command("cancel")
def jobs_cancel(job: str, url: Url = None, key: Key = None, config: ConfigFile = None) -> None:
    """Cancel a job; its slot frees."""
    from forebay.commands import jobs

    raise typer.Exit(jobs.act(jobs.server(url, key, config), job, "cancel"))


@jobs_app.command("retry")
def jobs_retry(
    job: Annotated[str | None, typer.Argument()] = None,
    dead: Annotated[bool, typer.Option("--dead", help="Every dead-letter job.")] = False,
    url: Url = None,
    key: Key = None,
    config: ConfigFile = None,
) -> None:
    """Put a failed job's input into the queue again, as a new job."""
    from forebay.commands import jobs

    raise typer.Exit(jobs.retry(jobs.server(url, key, config), job, dead))


# ---------------------------------------------------------------------------- config


@config_app.command("show")
def config_show(
    changed: Annotated[bool, typer.Option("--changed", help="Only what is not default.")] = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Every setting: value, unit, who set it; and names that have no effect here."""
    from forebay.commands import config as command

    raise typer.Exit(command.show(config, changed, as_json))


@config_app.command("check")
def config_check(config: ConfigFile = None) -> None:
    """Fail with every mistake in the file and the environment."""
    from forebay.commands import config as command

    raise typer.Exit(command.check(config))


@config_app.command("docs")
def config_docs(
    output: Annotated[Path | None, typer.Option("--output", help="Write here.")] = None,
    verify: Annotated[bool, typer.Option("--check", help="Fail if it differs.")] = False,
) -> None:
    """The reference page of all settings."""
    from forebay.commands import config as command

    raise typer.Exit(command.docs(output, verify))


@config_app.command("example")
def config_example(
    env: Annotated[bool, typer.Option("--env", help="A .env file instead of TOML.")] = False,
) -> None:
    """A commented example file with every setting and its default."""
    from forebay.commands import config as command

    raise typer.Exit(command.example(env))


# ---------------------------------------------------------------------------- models


@models_app.command("list")
def models_list(as_json: AsJson = False) -> None:
    """Engines and weights: what is here, what is missing, how to get it."""
    from forebay.commands import models

    raise typer.Exit(models.show(as_json))


@models_app.command("fetch")
def models_fetch(
    names: Annotated[list[str] | None, typer.Argument(help="Default: all of them.")] = None,
) -> None:
    """Fetch weights by pinned version and check their SHA-256."""
    from forebay.commands import models

    raise typer.Exit(models.fetch_all(names or []))


@models_app.command("verify")
def models_verify(names: Annotated[list[str] | None, typer.Argument()] = None) -> None:
    """Check the SHA-256 of what is here."""
    from forebay.commands import models

    raise typer.Exit(models.verify(names or []))


# ------------------------------------------------------------------------------ keys


@keys_app.command("create")
def keys_create(
    name: Annotated[str, typer.Argument(help="What the key is for.")] = "",
    tenant: Annotated[str, typer.Option(help="Whose jobs it may see.")] = "local",
    scope: Annotated[
        list[str] | None, typer.Option(help="submit, read, cancel, admin; may be repeated.")
    ] = None,
    days: Annotated[int | None, typer.Option(min=1, help="Expires after so many days.")] = None,
    data_dir: DataDir = None,
    config: ConfigFile = None,
) -> None:
    """Make a key. It is shown once; only its hash is kept."""
    from forebay.commands import keys

    raise typer.Exit(keys.create(config, data_dir, name, tenant, scope or [], days))


@keys_app.command("list")
def keys_list(as_json: AsJson = False, data_dir: DataDir = None, config: ConfigFile = None) -> None:
    """Keys by id, tenant, scopes, expiry."""
    from forebay.commands import keys

    raise typer.Exit(keys.show(config, data_dir, as_json))


@keys_app.command("rotate")
def keys_rotate(key_id: str, data_dir: DataDir = None, config: ConfigFile = None) -> None:
    """A second live secret for the same key; the older one still works until revoked."""
    from forebay.commands import keys

    raise typer.Exit(keys.rotate(config, data_dir, key_id))


@keys_app.command("revoke")
def keys_revoke(key_id: str, data_dir: DataDir = None, config: ConfigFile = None) -> None:
    """End a key."""
    from forebay.commands import keys

    raise typer.Exit(keys.revoke(config, data_dir, key_id))


@functools.cache
def _command() -> typer.core.TyperGroup:
    return cast(typer.core.TyperGroup, typer.main.get_command(app))


def prepare() -> None:
    """Build the command line, and load what parsing one loads, before it is needed: for a
    process that is copied, once for all its copies."""
    _command().make_context("forebay", ["doctor"]).close()


def main() -> None:
    """Console entry. What Forebay refuses on purpose is one line and a status, not a traceback."""
    try:
        _command()()
    except ForebayError as exc:
        # The server's own words, whatever class they came back as, speak of HTTP headers.
        how = "; give it with --key or FOREBAY_API_KEY" if "an api key:" in exc.message else ""
        typer.secho(f"forebay: {exc.message}{how}", fg="red", err=True)
        sys.exit(_status(exc))


def _status(exc: ForebayError) -> int:
    if isinstance(exc, MissingEngine | CannotBoot):
        return 78
    return 2 if isinstance(exc, ConfigError) else 1
