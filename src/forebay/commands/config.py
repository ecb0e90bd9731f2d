"""`forebay config`: what is set and by whom, and files made from the declarations."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import typer
from rich.table import Table

from forebay.commands.common import console, data_dir, dump, settled
from forebay.config import SETTINGS, Config, Setting, reference, service_files, table
from forebay.errors import ConfigError

__all__ = ["check", "docs", "example", "service_file", "show"]


def show(file: Path | None, changed: bool, as_json: bool) -> int:
    config = settled(file)
    picked = [s for s in SETTINGS if config.is_set(s) or not changed]
    if as_json:
        dump(
            {
                "settings": {s.name: _facts(config, s) for s in picked},
                "no_effect": {i.name: f"{i.reason} ({i.where})" for i in config.ignored},
            }
        )
        return 0
    rows = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("setting", "value", "unit", "set by"):
        rows.add_column(title, overflow="fold")
    for setting in picked:
        source = config.source(setting)
        style = "dim" if source == "default" else ""
        shown = setting.show(config[setting]) or "(unset)"
        rows.add_row(setting.name, shown, setting.unit, source, style=style)
    console.print(rows)
    for item in config.ignored:
        mark = "[yellow]?[/]" if item.wrong else "[dim]-[/]"
        console.print(f"{mark} {item.name} ({item.where}) has no effect: {item.reason}")
    return 0


def _facts(config: Config, setting: Setting[Any]) -> dict[str, Any]:
    value = config[setting]
    if setting.secret and value is not None:
        value = setting.show(value)
    return {
        "value": str(value) if isinstance(value, Path) else value,
        "unit": setting.unit,
        "source": config.source(setting),
    }


def check(file: Path | None) -> int:
    config = settled(file)
    wrong = [item for item in config.ignored if item.wrong]
    if wrong:
        raise ConfigError("\n".join(f"{i.name} ({i.where}): {i.reason}" for i in wrong))
    number = sum(config.is_set(s) for s in SETTINGS)
    console.print(f"configuration is right: {number} of {len(SETTINGS)} settings set")
    for item in config.ignored:
        console.print(f"  {item.name} ({item.where}) has no effect: {item.reason}")
    return 0


def docs(output: Path | None, verify: bool) -> int:
    text = reference.markdown()
    if verify:
        target = output or Path("docs/reference/settings.md")
        if not target.is_file() or target.read_text(encoding="utf-8") != text:
            raise ConfigError(f"{target} is not what the settings say, run: make docs")
        return 0
    if output is None:
        typer.echo(text, nl=False)
    else:
        output.write_text(text, encoding="utf-8")
    return 0


def example(env: bool) -> int:
    typer.echo(reference.example_env() if env else reference.example_toml(), nl=False)
    return 0


def service_file(which: str, file: Path | None) -> int:
    config = settled(file)
    beside = Path(sys.executable).with_name("forebay")  # not on PATH: a virtual environment's
    program = shutil.which("forebay") or str(
        beside if beside.is_file() else Path(sys.argv[0]).absolute()
    )
    facts = service_files.Facts(
        host=config[table.HOST],
        port=config[table.PORT],
        program=program,
        folder=str(Path.cwd()),
        data_dir=str(data_dir(config)),
        user=os.environ.get("USER", "forebay"),
        drain_s=config[table.DRAIN_S],
    )
    typer.echo(service_files.render(which, facts), nl=False)
    return 0
