"""What a setting is: one declaration, from which every face of it derives.

Name, type, default, unit, range, help and environment names stand together here and
nowhere else; the command line, the TOML file, the environment, `forebay config show`, the
reference page and `doctor` all read the declaration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from forebay.errors import ConfigError

__all__ = ["Alias", "Setting"]

T = TypeVar("T")

TRUE = frozenset({"1", "true", "yes", "on"})
FALSE = frozenset({"0", "false", "no", "off"})


@dataclass(frozen=True, slots=True)
class Alias:
    """Another environment name of a setting, as one of the original systems called it.

    ``words`` translates that system's values into ours (``dummy`` into ``synthetic``).
    """

    name: str
    words: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting(Generic[T]):
    """One setting. ``type`` is str, int, float, bool, Path or list (of str).

    ``default`` None means: not set, and ``help`` says what follows. ``low`` and ``high``
    bound numbers, both inclusive; ``choices`` bounds words. ``secret`` values are never
    printed. ``flag`` is the command-line option that sets it, where there is one.
    """

    name: str
    type: type[Any]
    default: T
    help: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    aliases: tuple[Alias, ...] = ()
    secret: bool = False
    flag: str = ""

    @property
    def section(self) -> str:
        return self.name.partition(".")[0]

    @property
    def key(self) -> str:
        return self.name.partition(".")[2]

    @property
    def env(self) -> str:
        """Our own environment name of it: ``server.port`` is FOREBAY_SERVER_PORT."""
        return "FOREBAY_" + self.name.upper().replace(".", "_")

    @property
    def env_names(self) -> tuple[str, ...]:
        """Every environment name, ours first: the first one present in a layer counts."""
        return (self.env, *(a.name for a in self.aliases))

    @property
    def range(self) -> str:
        """What is accepted, in words for people."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if self.type is bool:
            return "true or false"
        unit = f" {self.unit}" if self.unit else ""
        if self.low is not None and self.high is not None:
            return f"{_plain(self.low)} to {_plain(self.high)}{unit}"
        if self.low is not None:
            return f"at least {_plain(self.low)}{unit}"
        return ""

    def translate(self, env_name: str, text: str) -> str:
        """A value of the original's environment name, in our words."""
        for alias in self.aliases:
            if alias.name == env_name:
                return alias.words.get(text.strip().lower(), text)
        return text

    def parse(self, raw: Any) -> T:
        """``raw`` (text, or a TOML value) as this setting's type, inside its range.

        Raises `ConfigError` that names the setting, the value and what is accepted.
        """
        try:
            value = _READERS[self.type](raw)
        except (TypeError, ValueError) as exc:
            raise self._error(raw, f"not {_TYPE_WORDS[self.type]}") from exc
        if self.choices:
            for word in value if isinstance(value, list) else [value]:
                if word not in self.choices:
                    raise self._error(raw, f"expected {self.range}")
        if isinstance(value, int | float) and not isinstance(value, bool):
            below = self.low is not None and value < self.low
            above = self.high is not None and value > self.high
            if below or above or value != value:
                raise self._error(raw, f"expected {self.range}")
        return value  # type: ignore[no-any-return]

    def show(self, value: Any) -> str:
        """``value`` for people and for files; secrets are masked."""
        if value is None:
            return ""
        if self.secret:
            return "********"
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, list):
            return ", ".join(value)
        return _plain(value) if isinstance(value, float) else str(value)

    def _error(self, raw: Any, why: str) -> ConfigError:
        said = "(hidden)" if self.secret else repr(raw)
        return ConfigError(f"{self.name} is {said}, {why}", setting=self.name)


def _plain(number: float) -> str:
    return f"{number:g}" if abs(number) < 1e6 else f"{number:.0f}"


def _str(raw: Any) -> str:
    if isinstance(raw, bool) or not isinstance(raw, str | int | float):
        raise TypeError("not text")
    return str(raw)


def _int(raw: Any) -> int:
    if isinstance(raw, bool) or (isinstance(raw, float) and not raw.is_integer()):
        raise TypeError("not a whole number")
    return int(raw.strip().replace("_", "") if isinstance(raw, str) else raw)


def _float(raw: Any) -> float:
    if isinstance(raw, bool):
        raise TypeError("not a number")
    return float(raw)


def _bool(raw: Any) -> bool:
    if isinstance(raw, bool):
        return raw
    word = str(raw).strip().lower()
    if word in TRUE or word in FALSE:
        return word in TRUE
    raise ValueError("neither true nor false")


def _path(raw: Any) -> Path:
    return (raw if isinstance(raw, Path) else Path(_str(raw))).expanduser()


def _list(raw: Any) -> list[str]:
    if isinstance(raw, list | tuple):
        return [_str(item) for item in raw]
    # Engine options contain commas themselves, so a list in one line is split at blanks
    # when there are any, otherwise at commas outside "name:key=value,key=value".
    text = _str(raw).strip()
    if ":" in text or " " in text:
        return [word.rstrip(",") for word in text.split()]
    return [part.strip() for part in text.split(",") if part.strip()]


_READERS: dict[type[Any], Callable[[Any], Any]] = {
    str: _str,
    int: _int,
    float: _float,
    bool: _bool,
    Path: _path,
    list: _list,
}
_TYPE_WORDS: dict[type[Any], str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    Path: "a path",
    list: "a list of words",
}
