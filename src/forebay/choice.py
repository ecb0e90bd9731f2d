"""Which engines serve, with which options, and whether they could start.

Settings say what an operator wants (``text.max_tokens``); each engine declares what it
takes (`engines.options`). This module hands each engine what both know.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forebay import choice_kernel
from forebay.config import Config, Setting, table, table_images, table_kernel, table_text
from forebay.core.kinds import Kind
from forebay.engines import REGISTRY, names, weights
from forebay.engines.options import Option, parse
from forebay.errors import ConfigError

__all__ = [
    "MEMORY",
    "SERVED",
    "EngineChoice",
    "EngineState",
    "choose",
    "engine_state",
    "kind_of",
    "models_dir",
    "parse_engine",
    "with_defaults",
]

SERVED = (Kind.TEXT, Kind.SPEECH, Kind.RECOGNITION, Kind.IMAGE, Kind.KERNEL)
"""The kinds this build has engines and dialects for."""

DEFAULT_MODELS = {
    "listener": "listener",
    "llama": "smollm2",
    "moonshine": "moonshine",
    "piper": "piper",
    "python": "python",
    "realesrgan": "x4plus",
    "synthetic": "synthetic",
    "voices": "voices",
    "waifu2x": "waifu2x-photo",
    "whisper": "whisper-base",
}
"""What a pool is called where the operator names no model."""

ENGINES: dict[Kind, Setting[list[str]]] = {
    Kind.TEXT: table.TEXT_ENGINES,
    Kind.SPEECH: table.SPEECH_ENGINES,
    Kind.RECOGNITION: table.RECOGNITION_ENGINES,
    Kind.IMAGE: table_images.IMAGE_ENGINES,
    Kind.KERNEL: table_kernel.KERNEL_ENGINES,
}
MEMORY: dict[Kind, Setting[int]] = {Kind.IMAGE: table_images.IMAGE_MEMORY_MIB}
"""Address space of a worker, for the kinds whose input decides how much they need."""

_DEFAULTS = {
    Kind.TEXT: "llama",
    Kind.SPEECH: "voices",
    Kind.RECOGNITION: "listener",
    Kind.IMAGE: "waifu2x",
    Kind.KERNEL: "python",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineState:
    """Whether an engine could start: ``get`` is the exact command that brings what lacks."""

    kind: Kind
    name: str
    about: str
    packages: bool
    weights: dict[str, bool]
    get: str

    @property
    def ready(self) -> bool:
        return not self.get


def models_dir(config: Config) -> Path:
    """Where weights are looked for and fetched to."""
    return config[table.MODELS_DIR] or weights.default_dir(os.environ)


def engine_state(kind: Kind, name: str, folder: Path, *, own_model: bool = False) -> EngineState:
    """What is there for an engine, from the file system alone: nothing is imported.

    ``own_model``: the operator named a file, so the shipped weights are not needed.
    """
    entry = REGISTRY[kind, name]
    packages = all(importlib.util.find_spec(module) is not None for module in entry.modules)
    found = {
        w.name: weights.locate(w.name, folder) is not None
        for w in weights.CATALOGUE.values()
        if f"{kind}/{name}" in w.used_by.split()
    }
    get = ""
    if not packages:
        get = entry.install
    elif not own_model and found and not next(iter(found.values())):
        get = weights.command(next(iter(found)))
    return EngineState(
        kind=kind, name=name, about=entry.about, packages=packages, weights=found, get=get
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineChoice:
    """One engine that is to serve. ``why``: who chose it, for the start screen.

    ``secrets`` are options that may not stand on a command line, where every user of the
    machine reads them; they are handed over in files.
    """

    kind: Kind
    name: str
    options: dict[str, str]
    why: str
    state: EngineState
    secrets: dict[str, str] = field(default_factory=dict)

    @property
    def pool(self) -> str:
        """The pool it will serve, "" where only a model server can tell."""
        model = self.options.get("model") or DEFAULT_MODELS.get(self.name, "")
        if model.endswith(".gguf"):
            model = Path(model).stem
        return f"{self.kind}/{model}" if model else ""

    def text(self, extra: Mapping[str, str] | None = None) -> str:
        """NAME:key=value,... as ``forebay worker --engine`` takes it."""
        options = self.options | dict(extra or {})
        listed = ",".join(f"{k}={v}" for k, v in options.items())
        return f"{self.name}:{listed}" if listed else self.name


def kind_of(word: str) -> Kind:
    """Raises `ConfigError` for a word that is no kind, or none that is served here."""
    try:
        kind = Kind(word)
    except ValueError:
        kind = None
    if kind not in SERVED:
        raise ConfigError(f"{word!r} is not served here, expected one of {', '.join(SERVED)}")
    return kind


def parse_engine(kind: Kind, text: str, *, check: bool = True) -> tuple[str, dict[str, str]]:
    """``NAME[:key=value,...]``. A value may hold ``:`` and ``=``; a piece without ``=``
    belongs to the value before it, so that values may hold commas too.

    Raises `ConfigError` for an engine that does not exist, or an option that it does not
    take: a worker that refuses it would be started for ever. ``check``: whether the options are
    looked at here; a worker whose supervisor did it says its own refusal with its stage.
    """
    name, _, rest = text.strip().partition(":")
    if (kind, name) not in REGISTRY:
        raise ConfigError(
            f"no {kind} engine is called {name!r}, expected one of {', '.join(names(kind))}"
        )
    options: dict[str, str] = {}
    key = ""
    for piece in rest.split(",") if rest else []:
        if "=" in piece:
            key, _, value = piece.partition("=")
            options[key.strip()] = value
        elif key:
            options[key] += "," + piece
        else:
            raise ConfigError(f"engine {text!r}: {piece!r} is not key=value")
    if check:
        parse(name, _declared(kind, name), options)
    return name, options


def choose(config: Config, folder: Path) -> list[EngineChoice]:
    """The engines of every kind, in order. Raises `ConfigError` for unknown ones.

    An engine whose packages or weights lack is chosen all the same, with its state: the
    start screen and `doctor` say what to run.
    """
    return [choice for kind in SERVED for choice in _of_kind(config, kind, folder)]


def _of_kind(config: Config, kind: Kind, folder: Path) -> Iterable[EngineChoice]:
    setting = ENGINES[kind]
    asked = config[setting]
    why = config.source(setting)
    if not asked and kind is Kind.TEXT and config[table.UPSTREAM_URL]:
        asked, why = ["openai"], config.source(table.UPSTREAM_URL)
    if not asked:
        default = choice_kernel.by_default(config) if kind is Kind.KERNEL else _by_default(kind)
        asked, why = default, "default"
    for text in asked:
        name, own = parse_engine(kind, text)
        options = with_defaults(config, kind, name, folder, own)
        secret = {k: options.pop(k) for k in ("api_key",) if k in options}
        own_model = "model" in options
        yield EngineChoice(
            kind=kind,
            name=name,
            options=options,
            secrets=secret,
            why=why,
            state=engine_state(kind, name, folder, own_model=own_model),
        )


def _by_default(kind: Kind) -> list[str]:
    """Text and speech always have an engine, if only to say what it lacks; the others have
    one where its packages are installed."""
    name = _DEFAULTS[kind]
    if kind in (Kind.TEXT, Kind.SPEECH):
        return [name]
    entry = REGISTRY.get((kind, name))
    if entry is None or any(importlib.util.find_spec(m) is None for m in entry.modules):
        return []
    return [name]


_OPENAI: dict[str, Setting[Any]] = {
    "base_url": table.UPSTREAM_URL,
    "api_key": table.UPSTREAM_KEY,
    "model": table.UPSTREAM_MODEL,
    "slots": table.UPSTREAM_SLOTS,
    "prefix": table.UPSTREAM_PREFIX,
    "first_token_timeout_s": table.UPSTREAM_FIRST_TOKEN_S,
    "stall_timeout_s": table.UPSTREAM_STALL_S,
    "cache_s": table_text.CACHE_S,
    "cache_mib": table_text.CACHE_MIB,
}
_LLAMA: dict[str, Setting[Any]] = {
    "model": table_text.LLAMA_MODEL,
    "slots": table_text.LLAMA_SLOTS,
    "threads": table_text.LLAMA_THREADS,
}
_TEXT: dict[str, Setting[Any]] = {
    "max_tokens": table.MAX_TOKENS,
    "temperature": table.TEMPERATURE,
    "top_p": table.TOP_P,
    "top_k": table.TOP_K,
    "repetition_penalty": table.REPETITION_PENALTY,
    "presence_penalty": table.PRESENCE_PENALTY,
    "frequency_penalty": table.FREQUENCY_PENALTY,
    "context": table.CONTEXT_TOKENS,
    "max_total_tokens": table.MAX_TOTAL_TOKENS,
    "allow_auto_truncate": table.ALLOW_AUTO_TRUNCATE,
}


def with_defaults(
    config: Config, kind: Kind, name: str, folder: Path, own: Mapping[str, str]
) -> dict[str, str]:
    """An engine's ``own`` options and, beneath them, those that settings decide; only what
    the engine declares."""
    if name == "synthetic":
        return dict(own)
    wanted = dict(_TEXT) if kind is Kind.TEXT else {}
    wanted |= {"openai": _OPENAI, "llama": _LLAMA, "python": choice_kernel.OPTIONS}.get(name, {})
    declared = {option.name for option in _declared(kind, name)}
    found = {
        key: setting.show(config[setting]) if not setting.secret else str(config[setting])
        for key, setting in wanted.items()
        if key in declared and config[setting] is not None
    }
    if "models_dir" in declared:
        found["models_dir"] = str(folder)
    return found | dict(own)


def _declared(kind: Kind, name: str) -> tuple[Option, ...]:
    """What an engine declares. Its module is cheap: models are imported when loaded."""
    module, _, cls = REGISTRY[kind, name].target.partition(":")
    options: tuple[Option, ...] = getattr(importlib.import_module(module), cls).OPTIONS
    return options
