"""Where values come from: defaults < file < `.env` < environment < command line.

Nothing here is read at import; `load` is handed the environment and the folder, so that a
test, a worker and a server all say what they see.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from forebay.config.originals import NO_EFFECT
from forebay.config.setting import Setting
from forebay.config.table import BY_NAME, SETTINGS
from forebay.errors import ConfigError

__all__ = ["Config", "Ignored", "Value", "load", "read_dotenv"]

T = TypeVar("T")
FILE_NAME = "forebay.toml"
OTHER_NAMES = frozenset({"FOREBAY_CONFIG", "FOREBAY_URL", "FOREBAY_API_KEY"})
"""Our own names that are no settings: where the file is, and what commands ask a server with."""


@dataclass(frozen=True, slots=True)
class Value:
    """A value and who set it: ``default``, ``file PATH``, ``.env NAME``,
    ``environment NAME`` or ``command line FLAG``."""

    value: Any
    source: str


@dataclass(frozen=True, slots=True)
class Ignored:
    """A name that is set but does nothing here, and why."""

    name: str
    where: str
    reason: str
    wrong: bool = False  # probably a mistake: one of our own names, misspelt


class Config:
    """Settled values, each with its source. Read with ``config[table.PORT]``."""

    def __init__(self, values: Mapping[str, Value], ignored: Iterable[Ignored] = ()) -> None:
        self._values = dict(values)
        self.ignored = tuple(ignored)

    def __getitem__(self, setting: Setting[T]) -> T:
        return self._values[setting.name].value  # type: ignore[no-any-return]

    def source(self, setting: Setting[Any]) -> str:
        return self._values[setting.name].source

    def is_set(self, setting: Setting[Any]) -> bool:
        """Whether anything but the default decided it."""
        return self.source(setting) != "default"


def read_dotenv(text: str) -> dict[str, str]:
    """NAME=value lines; ``export``, quotes, blank lines and ``#`` comments as shells use them."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        line = line.strip()
        if not line or line.startswith("#") or "=" not in line:
            continue
        name, _, value = line.removeprefix("export ").partition("=")
        value = value.strip()
        if value[:1] in {'"', "'"}:
            quote = value[0]
            value = value[1:].partition(quote)[0]
        else:
            value = value.split(" #", 1)[0].rstrip()
        found[name.strip()] = value
    return found


def load(
    *,
    environ: Mapping[str, str],
    folder: Path,
    file: Path | None = None,
    flags: Mapping[str, Any] | None = None,
) -> Config:
    """Settle every setting.

    ``file`` None: FOREBAY_CONFIG from the environment, else ``forebay.toml`` in ``folder``
    if there is one. ``flags``: values of the command line by setting name; None is unset.
    Raises one `ConfigError` that lists everything wrong, one line each.
    """
    problems: list[str] = []
    ignored: list[Ignored] = []
    values = {s.name: Value(s.default, "default") for s in SETTINGS}
    path = _file_path(environ, folder, file)
    if path is not None:
        _apply_file(path, values, problems)
    dotenv = folder / ".env"
    if dotenv.is_file():
        layer = read_dotenv(dotenv.read_text(encoding="utf-8"))
        _apply_environment(layer, ".env", values, problems, ignored)
    _apply_environment(environ, "environment", values, problems, ignored)
    for name, raw in (flags or {}).items():
        if raw is not None:
            flag = BY_NAME[name].flag.partition(" ")[0]
            _set(BY_NAME[name], raw, f"command line {flag}", values, problems)
    if problems:
        raise ConfigError("\n".join(problems), problems=problems)
    return Config(values, ignored)


def _file_path(environ: Mapping[str, str], folder: Path, file: Path | None) -> Path | None:
    named = file or (Path(environ["FOREBAY_CONFIG"]) if environ.get("FOREBAY_CONFIG") else None)
    if named is not None:
        if not named.is_file():
            raise ConfigError(f"no configuration file {named}")
        return named
    return folder / FILE_NAME if (folder / FILE_NAME).is_file() else None


def _set(
    setting: Setting[Any], raw: Any, source: str, values: dict[str, Value], problems: list[str]
) -> None:
    if raw == "" and setting.default is None:
        values[setting.name] = Value(None, source)  # how a file says: unset
        return
    try:
        values[setting.name] = Value(setting.parse(raw), source)
    except ConfigError as exc:
        problems.append(f"{exc.message} (from {source})")


def _apply_file(path: Path, values: dict[str, Value], problems: list[str]) -> None:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path} is not valid TOML: {exc}") from exc
    for section, table in tables.items():
        if not isinstance(table, dict):
            problems.append(f"{section} stands outside a section (from file {path})")
            continue
        for key, raw in table.items():
            name = f"{section}.{key}"
            if name in BY_NAME:
                _set(BY_NAME[name], raw, f"file {path}", values, problems)
            else:
                problems.append(f"no setting is called {name}{_near(name)} (from file {path})")


def _near(name: str) -> str:
    close = difflib.get_close_matches(name, BY_NAME, n=1)
    return f", did you mean {close[0]}" if close else ""


def _apply_environment(
    layer: Mapping[str, str],
    where: str,
    values: dict[str, Value],
    problems: list[str],
    ignored: list[Ignored],
) -> None:
    for setting in SETTINGS:
        # An empty value means unset, as every compose file and unit file assumes.
        name = next((n for n in setting.env_names if layer.get(n, "").strip()), None)
        if name is not None:
            raw = setting.translate(name, layer[name])
            _set(setting, raw, f"{where} {name}", values, problems)
    known = {n for s in SETTINGS for n in s.env_names} | OTHER_NAMES
    for name in layer:
        if name in NO_EFFECT:
            ignored.append(Ignored(name, where, NO_EFFECT[name]))
        elif name.startswith("FOREBAY_") and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f", did you mean {near[0]}" if near else ""
            ignored.append(Ignored(name, where, f"no setting has this name{hint}", wrong=True))
