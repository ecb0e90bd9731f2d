"""`forebay chaos`: list the scenarios, run some, say what held."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from forebay.commands.common import console
from forebay.errors import ConfigError
from forebay.lab import chaos

__all__ = ["listed", "run"]


def listed() -> int:
    chaos.listing(console)
    return 0


def run(
    names: Sequence[str], *, everything: bool, scale: float, seed: int, output_json: Path | None
) -> int:
    """Run these scenarios, or every one; 1 when something did not hold."""
    if bool(names) == everything:
        raise ConfigError("name the scenarios to run, or say --all")
    options = chaos.Options(scale=scale, seed=seed)
    return chaos.main(names, options, output_json=output_json, console=console)
