"""What the commands share: the settled configuration, where output goes, the data folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from forebay import config as configuration
from forebay.config import table

__all__ = [
    "base_url",
    "console",
    "data_dir",
    "default_data_dir",
    "dump",
    "keys_file",
    "notes",
    "settled",
]

console = Console(
    highlight=False,
    soft_wrap=True,
    # Into a pipe or a file, tables keep whole lines instead of folding at 80 columns.
    width=None if sys.stdout.isatty() else 200,
)


notes = Console(highlight=False, soft_wrap=True, stderr=True)
"""For people, where standard output is for a program."""


def settled(file: Path | None, flags: Mapping[str, Any] | None = None) -> configuration.Config:
    """Settings of this process: its environment, its folder, its command line."""
    return configuration.load(environ=os.environ, folder=Path.cwd(), file=file, flags=flags)


def data_dir(config: configuration.Config) -> Path:
    """The data folder, made when absent, readable by its owner only."""
    path = config[table.DATA_DIR] or default_data_dir()
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def default_data_dir() -> Path:
    """The data folder where no setting names one. It may not be there."""
    named = os.environ.get("XDG_DATA_HOME")
    return (Path(named) if named else Path.home() / ".local" / "share") / "forebay"


def keys_file(config: configuration.Config) -> Path:
    return config[table.KEYS_FILE] or data_dir(config) / "keys.json"


def base_url(config: configuration.Config) -> str:
    """Where the configured server would be reached from this machine."""
    host = config[table.HOST]
    if host in {"0.0.0.0", "::", ""}:
        host = "127.0.0.1"
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{config[table.PORT]}"


def dump(facts: Any) -> None:
    """One JSON document on standard output."""
    text = msgspec.json.format(msgspec.json.encode(facts), indent=2).decode()
    console.print(text, markup=False, soft_wrap=True)
