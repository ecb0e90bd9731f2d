"""What `forebay doctor` looks at on this machine: settings, limits, ports, engines.

Each check yields findings in the order in which things would go wrong. A finding says what
was found and, where it is not well, the likely cause and the next step.
"""

from __future__ import annotations

import os
import resource
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from forebay.choice import EngineChoice, choose, models_dir
from forebay.commands.common import data_dir
from forebay.config import SETTINGS, Config, table, table_access
from forebay.core.kinds import Kind
from forebay.engines import weights
from forebay.engines.openai import open_upstreams
from forebay.engines.openai_probe import probe
from forebay.errors import ForebayError
from forebay.process import available_bytes

__all__ = ["Finding", "engines", "machine"]

MIN_OPEN_FILES = 4096
ROOM_FACTOR = 1.3
ROOM_BYTES = 250_000_000
State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """``next``: what to do about it, a command where there is one."""

    name: str
    state: State
    detail: str
    next: str = ""


def machine(config: Config) -> Iterator[Finding]:
    """Everything that has nothing to do with models."""
    for item in config.ignored:
        state: State = "warn" if item.wrong else "ok"
        yield Finding(name="settings", state=state, detail=f"{item.name} ({item.where}): "
                      f"{item.reason}")  # fmt: skip
    changed = sum(config.is_set(s) for s in SETTINGS)
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding(name="settings", state="ok", detail=f"valid, {changed} set")
    yield Finding(name="python", state="ok", detail=f"{version} on {sys.platform}")
    yield _open_files()
    yield _memory()
    yield _folder(config)
    yield _exposure(config)
    yield from _ports(config)


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = hard if hard != resource.RLIM_INFINITY else 1 << 20
    if most < MIN_OPEN_FILES:
        return Finding(
            name="open files",
            state="warn",
            detail=f"at most {most}, which bounds connections to about {most - 64}",
            next="raise LimitNOFILE in the service file, or nofile in limits.conf",
        )
    return Finding(name="open files", state="ok", detail=f"{soft} now, {most} when serving")


def _memory() -> Finding:
    free = available_bytes()
    detail = f"{free / 1e9:.1f} GB available of {psutil.virtual_memory().total / 1e9:.1f}"
    if free < 1 << 30:
        return Finding(
            name="memory",
            state="warn",
            detail=detail,
            next="lower text.context_tokens and llama.slots, or set workers.spares = 'never'",
        )
    return Finding(name="memory", state="ok", detail=detail)


def _folder(config: Config) -> Finding:
    try:
        folder = data_dir(config)
    except OSError as exc:
        return Finding(
            name="data",
            state="fail",
            detail=f"cannot be made: {exc}",
            next="name another folder with --data-dir",
        )
    if not os.access(folder, os.W_OK):
        return Finding(
            name="data",
            state="fail",
            detail=f"{folder} cannot be written",
            next="change its owner, or name another folder with --data-dir",
        )
    return Finding(name="data", state="ok", detail=str(folder))


def _exposure(config: Config) -> Finding:
    host = config[table.HOST]
    if host.startswith("127.") or host in {"localhost", "::1"}:
        return Finding(name="address", state="ok", detail=f"{host}, this machine only")
    keys = config[table.KEYS_FILE] or data_dir(config) / "keys.json"
    if keys.is_file():
        return Finding(name="address", state="ok", detail=f"{host}, with keys in {keys}")
    tokens = config[table_access.JWT_KEYS_FILE]
    if tokens is not None:
        return Finding(name="address", state="ok", detail=f"{host}, with tokens by {tokens}")
    if config[table.INSECURE_NO_AUTH]:
        return Finding(
            name="address",
            state="warn",
            detail=f"{host} without any key: whoever reaches it may use everything",
            next="forebay keys create NAME, and drop insecure_no_auth",
        )
    return Finding(
        name="address",
        state="fail",
        detail=f"{host} without keys: serve refuses to start",
        next="forebay keys create NAME",
    )


def _ports(config: Config) -> Iterator[Finding]:
    host, port = config[table.HOST], config[table.PORT]
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
        except OSError as exc:
            yield Finding(
                name="port",
                state="warn",
                detail=f"{host}:{port} {exc.strerror or exc}{_owner(port)}",
                next="stop that process, or choose another port with --port",
            )
        else:
            yield Finding(name="port", state="ok", detail=f"{host}:{port} is free")


def _owner(port: int) -> str:
    """Whose the port is, where this user may know."""
    try:
        for found in psutil.net_connections("tcp"):
            here = found.status == psutil.CONN_LISTEN and found.laddr and found.laddr.port == port
            if here and found.pid:
                return f", held by {psutil.Process(found.pid).name()} (pid {found.pid})"
    except psutil.Error:
        return ""
    return ""


# --------------------------------------------------------------------------- engines


async def engines(config: Config) -> AsyncIterator[Finding]:
    """The engines that `forebay serve` would start, each in order."""
    folder = models_dir(config)
    for choice in choose(config, folder):
        name = f"{choice.kind}={choice.name}"
        yield Finding(name=name, state="ok", detail=f"chosen by {choice.why}")
        if choice.name == "openai":
            async for finding in _upstream(choice, name):
                yield finding
        else:
            for finding in _local(choice, name, folder):
                yield finding


def _local(choice: EngineChoice, name: str, folder: Path) -> Iterator[Finding]:
    state = choice.state
    if not state.packages:
        yield Finding(
            name=name, state="fail", detail="its packages are not installed", next=state.get
        )
        return
    own = choice.options.get("model")
    if own and choice.name == "llama" and own not in weights.CATALOGUE:
        yield from _own_model(choice, name, Path(own).expanduser())
        return
    for weight, there in state.weights.items():
        if not there:
            yield Finding(
                name=name,
                # The first are needed; the others bring more modes or languages.
                state="fail" if state.get and weight == next(iter(state.weights)) else "warn",
                detail=f"weights {weight} are not here ({folder})",
                next=weights.command(weight),
            )
            continue
        wrong = weights.verify(weight, folder)
        yield Finding(
            name=name,
            state="fail" if wrong else "ok",
            detail="; ".join(wrong) or f"weights {weight}: size and sha256 are right",
            next=f"delete {folder / weight}, then: {weights.command(weight)}" if wrong else "",
        )
    size = sum(weights.get(w).size_bytes for w, there in state.weights.items() if there)
    if size:
        yield _room(choice, name, size)


def _own_model(choice: EngineChoice, name: str, path: Path) -> Iterator[Finding]:
    if not path.is_file():
        yield Finding(
            name=name,
            state="fail",
            detail=f"model {path} is no file",
            next="set llama.model to a GGUF file",
        )
        return
    yield Finding(name=name, state="ok", detail=f"model {path}")
    yield _room(choice, name, path.stat().st_size)


def _room(choice: EngineChoice, name: str, size_bytes: int) -> Finding:
    """Weights, what the runtime adds, and something for contexts: an estimate, said as one."""
    needed = int(size_bytes * ROOM_FACTOR) + ROOM_BYTES
    free = available_bytes()
    detail = f"needs about {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} are available"
    if needed <= free:
        return Finding(name=name, state="ok", detail=detail)
    lower = "take a smaller model"
    if choice.kind is Kind.TEXT:
        context = choice.options.get("context", "its default")
        slots = choice.options.get("slots", "its default")
        lower = f"lower text.context_tokens ({context}) or llama.slots ({slots}), or {lower}"
    return Finding(name=name, state="fail", detail=detail, next=lower)


GATED = (
    "if its log speaks of 401, 403 or a gated model: set HF_TOKEN where that server runs, and "
    "accept the model's terms with that account"
)


async def _upstream(choice: EngineChoice, name: str) -> AsyncIterator[Finding]:
    try:
        pool, values = open_upstreams(choice.options | choice.secrets)
    except ForebayError as exc:
        yield Finding(name=name, state="fail", detail=exc.message, next="see upstream.*")
        return
    try:
        for number, member in enumerate(pool.members, 1):
            one = f"{name} {number}" if len(pool.members) > 1 else name
            async for step in probe(member.upstream, model=member.model or values["model"]):
                hint = step.hint
                if not step.ok and step.name in {"address", "health"}:
                    hint = f"{hint}; {GATED}" if hint else GATED
                yield Finding(
                    name=f"{one} {step.name}",
                    state="ok" if step.ok else "fail",
                    detail=f"{step.detail} ({step.ms:.0f} ms)",
                    next=hint,
                )
    finally:
        await pool.close()
