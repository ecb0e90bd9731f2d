"""Options of an engine: declared once, parsed once, refused by name.

On the command line an option arrives as text (``--engine speech=synthetic:rtf=0.1``), from
Python as a number. Both are accepted, and whatever is unknown, malformed or out of range
raises `ConfigError` that names the engine, the option, the value and what is allowed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from forebay.errors import ConfigError

__all__ = ["Option", "describe", "parse"]

_YES = frozenset({"1", "true", "yes", "on"})
_NO = frozenset({"0", "false", "no", "off"})


@dataclass(frozen=True, slots=True)
class Option:
    """One option of an engine.

    ``type`` is int, float, bool or str. ``default`` None means: not set. ``low`` and
    ``high`` bound a number, both inclusive; ``choices`` bounds a text.
    """

    name: str
    type: type
    default: Any
    help: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()


def parse(engine: str, options: Sequence[Option], given: Mapping[str, Any]) -> dict[str, Any]:
    """Every declared option with its value. Raises `ConfigError`.

    An empty text or None counts as not given.
    """
    known = {option.name for option in options}
    for name in given:
        if name not in known:
            raise ConfigError(
                f"engine {engine!r} has no option {name!r}, "
                f"expected one of {', '.join(sorted(known))}",
                option=name,
            )
    return {
        option.name: option.default
        if given.get(option.name) in (None, "")
        else _value(engine, option, given[option.name])
        for option in options
    }


def describe(options: Sequence[Option]) -> list[dict[str, Any]]:
    """The options as plain facts, for help screens and generated documentation."""
    return [
        {"name": o.name, "type": o.type.__name__, "default": o.default, "help": o.help}
        for o in options
    ]


def _value(engine: str, option: Option, given: Any) -> Any:
    try:
        value = _converted(option.type, given)
    except (TypeError, ValueError) as exc:
        raise _wrong(engine, option, given, f"expected {_expected(option)}") from exc
    if option.choices and value not in option.choices:
        raise _wrong(engine, option, given, f"expected one of {', '.join(option.choices)}")
    if option.type in (int, float) and not _inside(option, value):
        raise _wrong(engine, option, given, f"expected {_expected(option)}")
    return value


def _converted(kind: type, given: Any) -> Any:
    if kind is bool:
        word = str(given).strip().lower()
        if word in _YES:
            return True
        if word in _NO:
            return False
        raise ValueError(word)
    if kind is str:
        return str(given)
    if isinstance(given, bool):
        raise TypeError("a yes or no is not a number")
    return kind(given.strip()) if isinstance(given, str) else _number(kind, given)


def _number(kind: type, given: Any) -> Any:
    value = kind(given)
    if value != given:
        raise ValueError(given)
    return value


def _inside(option: Option, value: float) -> bool:
    return (option.low is None or value >= option.low) and (
        option.high is None or value <= option.high
    )


def _expected(option: Option) -> str:
    words = {int: "a whole number", float: "a number", bool: "yes or no", str: "a text"}
    text = words[option.type]
    if option.low is not None and option.high is not None:
        return f"{text} from {option.low:g} to {option.high:g}"
    if option.low is not None:
        return f"{text} of at least {option.low:g}"
    return text


def _wrong(engine: str, option: Option, given: Any, expected: str) -> ConfigError:
    return ConfigError(
        f"option {option.name!r} of engine {engine!r} is {given!r}, {expected}",
        option=option.name,
    )
