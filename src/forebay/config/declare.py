"""How the table declares: one function per type of value.

A setting is added to `declared` as it is made, so the order of the table is the order of
every page made from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from forebay.config.setting import Alias, Setting

__all__ = [
    "aliases",
    "declared",
    "maybe_number",
    "maybe_path",
    "maybe_text",
    "maybe_whole",
    "number",
    "text",
    "whole",
    "words",
    "yes_no",
]

T = TypeVar("T")

declared: list[Setting[Any]] = []


def _add(setting: Setting[T]) -> Setting[T]:
    declared.append(setting)
    return setting


def aliases(*names: str | Alias) -> tuple[Alias, ...]:
    return tuple(n if isinstance(n, Alias) else Alias(n) for n in names)


def text(name: str, default: str, help: str, **facts: Any) -> Setting[str]:
    return _add(Setting(name=name, type=str, default=default, help=help, **facts))


def maybe_text(name: str, help: str, **facts: Any) -> Setting[str | None]:
    return _add(Setting(name=name, type=str, default=None, help=help, **facts))


def whole(name: str, default: int, help: str, **facts: Any) -> Setting[int]:
    return _add(Setting(name=name, type=int, default=default, help=help, **facts))


def maybe_whole(name: str, help: str, **facts: Any) -> Setting[int | None]:
    return _add(Setting(name=name, type=int, default=None, help=help, **facts))


def number(name: str, default: float, help: str, **facts: Any) -> Setting[float]:
    return _add(Setting(name=name, type=float, default=default, help=help, **facts))


def maybe_number(name: str, help: str, **facts: Any) -> Setting[float | None]:
    return _add(Setting(name=name, type=float, default=None, help=help, **facts))


def yes_no(name: str, default: bool, help: str, **facts: Any) -> Setting[bool]:
    return _add(Setting(name=name, type=bool, default=default, help=help, **facts))


def words(name: str, help: str, default: Sequence[str] = (), **facts: Any) -> Setting[list[str]]:
    return _add(Setting(name=name, type=list, default=list(default), help=help, **facts))


def maybe_path(name: str, help: str, **facts: Any) -> Setting[Path | None]:
    return _add(Setting(name=name, type=Path, default=None, help=help, **facts))
