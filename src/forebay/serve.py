"""`forebay serve`, put together: settings and engines become sockets and processes.

`compose` decides everything and binds the sockets; `run` keeps what it composed running.
Neither reads the command line, so that both are tested without one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import structlog

from forebay.broker.local import default_store_bytes
from forebay.broker.local_base import Settings as BrokerSettings
from forebay.choice import ENGINES, MEMORY, EngineChoice, choose, models_dir
from forebay.choice_kernel import placed
from forebay.config import (
    Config,
    Setting,
    rows,
    table,
    table_access,
    table_captions,
    table_cluster,
    table_images,
    table_kernel,
    table_log,
    table_recognition,
    table_text,
)
from forebay.core.admission import JobLimits
from forebay.core.kinds import KINDS, Kind, Row
from forebay.errors import CannotBoot, ConfigError
from forebay.gateway.auth import refuse_open_bind
from forebay.gateway.bind import PortTaken, bind
from forebay.gateway.context import ChatOptions
from forebay.gateway.main import GatewaySpec, SocketSpec, write_spec
from forebay.gateway.options import GatewayOptions
from forebay.gateway.personality import MAIN, PERSONALITIES, Personality, personality
from forebay.screen import Facts
from forebay.serve_devices import on_devices
from forebay.serve_history import history_options, recognition_options
from forebay.serve_log import log_env, log_place
from forebay.serve_photos import blob_place, photo_options, worker_blobs
from forebay.serve_preload import is_light, preload
from forebay.serve_rooms import room_options, room_settings
from forebay.serve_store import PRIVATE, Store, is_shared, masked, open_store
from forebay.serve_text import operation_options
from forebay.supervisor import ProcessSpec

__all__ = ["Plan", "chat_options", "compose", "gateway_options", "raise_open_files"]

log = structlog.get_logger(__name__)

OPEN_FILES = 1 << 20
"""Asked for where the hard limit is infinite."""
LINK = "broker.sock"
SOCKET_PATH_BYTES = 100
"""A Unix socket's path may have 107 bytes on Linux, 103 on macOS."""
SAMPLING: tuple[Setting[Any], ...] = (
    table.MAX_TOKENS,
    table.TEMPERATURE,
    table.TOP_P,
    table.TOP_K,
    table.REPETITION_PENALTY,
    table.PRESENCE_PENALTY,
    table.FREQUENCY_PENALTY,
)
"""Settings whose key is the name of a text parameter."""
WORKERS = {
    Kind.TEXT: table.TEXT_WORKERS,
    Kind.SPEECH: table.SPEECH_WORKERS,
    Kind.RECOGNITION: table.RECOGNITION_WORKERS,
    Kind.IMAGE: table_images.IMAGE_WORKERS,
    Kind.KERNEL: table_kernel.KERNEL_WORKERS,
}


@dataclass(slots=True, kw_only=True)
class Plan:
    """Everything that `supervisor.serve` and the start screen need. Close it afterwards."""

    specs: list[ProcessSpec]
    facts: Facts
    link_path: Path
    run_dir: Path
    store: Store = Store()
    sockets: list[socket.socket] = field(default_factory=list)
    preload: list[str] = field(default_factory=list)
    lock: int | None = None

    def stop_listening(self) -> None:
        """Close our copies of the sockets: when the last gateway closes its own, whoever
        connects is refused at once instead of waiting for nobody."""
        for sock in self.sockets:
            sock.close()

    def close(self) -> None:
        self.stop_listening()
        if self.lock is not None:
            os.close(self.lock)
        shutil.rmtree(self.run_dir, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class _Port:
    personality: Personality
    sock: socket.socket


@dataclass(frozen=True, slots=True)
class _Places:
    """Folders of one start. ``run``: its own, gone at the end; ``data``: what stays."""

    run: Path
    data: Path
    store: Store

    @property
    def link(self) -> Path:
        """Where workers attach: in the data folder, so that ``forebay worker`` finds it by
        name, unless that path is longer than a Unix socket's may be."""
        path = self.data.absolute() / LINK
        return path if len(os.fsencode(path)) <= SOCKET_PATH_BYTES else self.run / LINK


def compose(config: Config, *, data_dir: Path, log_file: str = "") -> Plan:
    """Bind the ports and say what to run. Raises `ConfigError` for what cannot be meant and
    `CannotBoot` for what cannot be had; then nothing is left open."""
    is_shared(config[table.BROKER])  # refuses a word that means nothing
    options = gateway_options(config, data_dir)
    choices = [c for c in choose(config, models_dir(config)) if _asked(config, c.kind)]
    with contextlib.ExitStack() as undo:
        lock = _lock(data_dir)
        undo.callback(os.close, lock)
        store = open_store(config, data_dir)
        ports, notes = _bind_all(config, options, undo)
        notes += _few_files(config, options)
        run_dir = Path(tempfile.mkdtemp(prefix="forebay-"))
        undo.callback(shutil.rmtree, run_dir, ignore_errors=True)
        plan = _plan(config, options, choices, ports, _Places(run_dir, data_dir, store))
        plan.lock = lock
        plan.facts = replace(
            plan.facts, notes=[*notes, *plan.facts.notes], log_file=log_file, data_dir=str(data_dir)
        )
        undo.pop_all()
    return plan


def _asked(config: Config, kind: Kind) -> bool:
    """Whether workers of ``kind`` belong to this start: around a broker that other machines
    share, only where they were asked for."""
    if config[table.BROKER] == "local" or config[table.BROKER] in PRIVATE:
        return True
    return config.is_set(WORKERS[kind]) or config.is_set(ENGINES[kind])


def _few_files(config: Config, options: GatewayOptions) -> list[str]:
    """What to say where a gateway may open fewer files than its connections need."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    wanted = max(options.max_connections, config[table_recognition.MAX_CONNECTIONS])
    needed = wanted + options.reserve_fds
    if limit == resource.RLIM_INFINITY or limit >= needed:
        return []
    log.warning("open_files.few", limit=limit, needed=needed, connections=wanted)
    return [
        f"a process may open {limit} files, {wanted} connections need {needed}: raise the hard "
        "limit (ulimit -Hn, LimitNOFILE= of systemd, --ulimit nofile of a container)"
    ]


def raise_open_files() -> int:
    """Raise the limit of open files to the hard limit; the limit now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and wanted > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return soft


def _lock(data_dir: Path) -> int:
    """Hold the data folder: two servers in one folder would share a journal."""
    path = data_dir / "lock"
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        owner = os.pread(handle, 32, 0).decode("ascii", "replace").strip()
        os.close(handle)
        raise CannotBoot(
            f"{data_dir} is in use by process {owner or 'unknown'}, "
            "stop it or name another folder with --data-dir",
            stage="bind",
        ) from exc
    os.ftruncate(handle, 0)
    os.pwrite(handle, str(os.getpid()).encode(), 0)
    return handle


# ------------------------------------------------------------------------------ ports


def gateway_options(config: Config, data_dir: Path) -> GatewayOptions:
    """The gateway's numbers and access rules, as settled."""
    keys = config[table.KEYS_FILE] or data_dir / "keys.json"
    if config.is_set(table.KEYS_FILE) and not keys.is_file():
        raise ConfigError(f"server.keys_file is {keys}, which does not exist")
    tokens = config[table_access.JWT_KEYS_FILE]
    return GatewayOptions(
        **{setting.key: config[setting] for setting in table.LIMITS},
        keys_file=str(keys) if keys.is_file() else None,
        jwt_keys_file=str(tokens) if tokens is not None else None,
        jwt_audience=config[table_access.JWT_AUDIENCE],
        jwt_issuer=config[table_access.JWT_ISSUER],
        insecure_no_auth=config[table.INSECURE_NO_AUTH],
        allowed_hosts=_words(config, table.ALLOWED_HOSTS),
        allowed_origins=_words(config, table.ALLOWED_ORIGINS),
        trusted_proxies=_words(config, table.TRUSTED_PROXIES),
        trust_client_tenant=config[table.TRUST_CLIENT_TENANT],
        orch_api_key=config[table.CHAT_API_KEY],
        drain_s=config[table.DRAIN_S],
    )


def _words(config: Config, setting: Setting[list[str]]) -> tuple[str, ...]:
    words: list[str] = config[setting]
    return tuple(words)


def _wanted(config: Config) -> list[tuple[Personality, str, int, bool]]:
    """(personality, host, port, must) of every socket to bind, the main one first."""
    host = config[table.HOST]
    named = config[table.COMPAT]
    everything = "all" in named
    own = {
        "tts": (config[table.TTS_HOST] or host, config[table.TTS_PORT]),
        "chat": (config[table.CHAT_HOST] or host, config[table.CHAT_PORT]),
        "voice": (host, config[table_recognition.VOICE_PORT]),
        "notebook": (host, config[table_text.NOTEBOOK_PORT]),
        "api": (host, config[table_recognition.API_PORT]),
        "captions": (host, config[table_captions.CAPTIONS_PORT]),
    }
    found = [(MAIN, host, config[table.PORT], True)]
    for name in PERSONALITIES if everything else named:
        if name == MAIN.name:
            continue
        known = personality(name)
        at, port = own.get(name, (host, known.port))
        found.append((known, at, port, not everything or name in named))
    return found


def _bind_all(
    config: Config, options: GatewayOptions, undo: contextlib.ExitStack
) -> tuple[list[_Port], list[str]]:
    """Bind what was asked for. A port taken by another stops the start; under ``all`` it is
    left out and noted."""
    wanted = _wanted(config)
    refuse_open_bind([host for _, host, _, _ in wanted], options)
    ports, notes = [], []
    for known, host, port, must in wanted:
        try:
            sock = bind(host, port, sndbuf_bytes=options.sndbuf_bytes)
        except PortTaken as exc:
            if must:
                raise
            notes.append(f"{known.name} is left out: {exc.message}")
            continue
        undo.callback(sock.close)
        ports.append(_Port(known, sock))
    return ports, notes


def _address(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    if host in {"0.0.0.0", "::"}:
        host = "127.0.0.1"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


# -------------------------------------------------------------------------- processes


def _plan(
    config: Config,
    options: GatewayOptions,
    choices: list[EngineChoice],
    ports: list[_Port],
    places: _Places,
) -> Plan:
    able = [c for c in choices if c.state.ready]
    workers, spareless = on_devices(list(_workers(config, able, places)))
    gateways = _gateways(config, options, able, ports, places)
    store = [places.store.process] if places.store.process is not None else []
    lacks = [
        (f"{c.kind} has no engine: {c.name} cannot start", c.state.get)
        for c in choices
        if not c.state.ready
    ]
    return Plan(
        specs=[*store, *gateways, *workers],
        link_path=places.link,
        run_dir=places.run,
        store=places.store,
        sockets=[p.sock for p in ports],
        preload=preload(
            config,
            [(c.kind, c.name) for c in able if config[WORKERS[c.kind]]],
            gateways=True,
            shared=bool(places.store.url),
        ),
        facts=Facts(
            url=f"http://{_address(ports[0].sock)}/",
            workers={w.name: w.group for w in workers if not w.spare},
            gateways=[g.name for g in gateways if not g.spare],
            ports=[(p.personality.name, _address(p.sock), p.personality.about) for p in ports[1:]],
            lacks=lacks,
            notes=[
                *spareless,
                *_attach_notes(config, places),
                *(f"{i.name} ({i.where}): {i.reason}" for i in config.ignored if i.wrong),
            ],
            drain_s=config[table.DRAIN_S],
        ),
    )


def _attach_notes(config: Config, places: _Places) -> Iterator[str]:
    """How to bring the workers that are not started here."""
    missing = [
        kind for kind, setting in WORKERS.items() if not (config[setting] and _asked(config, kind))
    ]
    broker = masked(places.store.url) or f"unix://{places.link}"
    if places.store.url and not places.store.private:
        if missing:
            yield (
                f"no {', '.join(missing)} workers are started here; start them on any machine "
                f"with: forebay worker --broker {broker} --kind KIND --engine NAME"
            )
        return
    for kind in missing:
        yield (
            f"no {kind} workers are started here; attach them with: forebay worker "
            f"--broker {broker} --kind {kind} --engine NAME"
        )


def _gateways(
    config: Config,
    options: GatewayOptions,
    able: list[EngineChoice],
    ports: list[_Port],
    places: _Places,
) -> list[ProcessSpec]:
    pools = [c.pool for c in able if config[WORKERS[c.kind]]]
    spec = GatewaySpec(
        sockets=[SocketSpec(p.sock.fileno(), p.personality.name) for p in ports],
        link_path="" if places.store.url else str(places.link),
        broker_url=places.store.url,
        data_dir=str(places.data),
        parent_pid=os.getpid(),
        expected=list(dict.fromkeys(pool for pool in pools if pool)),
        options=options,
        broker=_broker_settings(config),
        chat=chat_options(config),
        recognition=recognition_options(config),
        photos=photo_options(config),
        blobs=blob_place(config),
        operations=operation_options(config),
        rooms=room_options(config),
        history=history_options(config),
        model_aliases=model_aliases(config),
        log_level=config[table.LOG_LEVEL],
        log_format=config[table.LOG_FORMAT],
        log_file=log_place(config),
        slow_stream_s=config[table_log.SLOW_STREAM_S],
        sharing=config[table.GATEWAYS] > 1,
    )
    path = places.run / "gateway.json"
    write_spec(spec, path)
    count = config[table.GATEWAYS]
    regular = [
        ProcessSpec(
            name=Facts.gateway if count == 1 else f"{Facts.gateway}-{n}",
            argv=[*_self(), "_gateway", str(path)],
            role="gateway",
            group="gateway",
            pass_fds=tuple(p.sock.fileno() for p in ports),
            env=log_env(config),
            light=True,
            overlaps=bool(places.store.url),  # the local broker lives in one process
        )
        for n in range(1, count + 1)
    ]
    if places.store.url and config[table_cluster.SPARE_GATEWAY]:
        regular.append(replace(regular[0], name=f"{Facts.gateway}-spare", spare=True))
    return regular


def _broker_settings(config: Config) -> BrokerSettings:
    store_mib = config[table.STORE_MIB]
    return BrokerSettings(
        store_bytes=default_store_bytes() if store_mib is None else store_mib << 20,
        rows=rows(config),
        limits=JobLimits(
            queue=config[table.QUEUE_JOBS],
            tenant_jobs=config[table.TENANT_JOBS],
            jobs=config[table.LIVE_JOBS],
        ),
        rooms=room_settings(config),
    )


def _workers(config: Config, able: list[EngineChoice], places: _Places) -> Iterator[ProcessSpec]:
    altered = rows(config)
    blobs_argv, blobs_env = worker_blobs(config, places.data)
    for index, choice in enumerate(able):
        group = f"{choice.kind}/{choice.name}"
        keeps_files = choice.kind is Kind.KERNEL
        argv = [
            *_self(), "worker",
            *(() if places.store.url else ("--broker", f"unix://{places.link}")),
            "--kind", str(choice.kind),
            *blobs_argv,
            "--engine", choice.text(
                _secret_files(choice, places.run, index)
                | (placed(config, choice.options, places.data) if keeps_files else {})
            ),
        ]  # fmt: skip
        if choice.pool:
            argv += ["--model", choice.pool.partition("/")[2]]
        if altered[choice.kind] != KINDS[choice.kind]:
            argv += ["--row-file", str(_row_file(altered[choice.kind], places.run))]
        count = config[WORKERS[choice.kind]]
        names = [f"{group}-{n}" for n in range(1, count + 1)]
        env = _worker_env(config, choice) | places.store.env | blobs_env
        facts: dict[str, Any] = {"argv": argv, "role": "worker", "group": group, "env": env}
        facts["light"] = is_light(choice.kind, choice.name)
        for name in names:
            yield ProcessSpec(name=name, **facts)
        # A spare for notebooks would help nobody: a kernel is lost with its worker.
        if names and config[table.SPARES] != "never" and not keeps_files:
            yield ProcessSpec(name=f"{group}-spare", spare=True, **facts)


def _self() -> list[str]:
    return [sys.executable, "-m", "forebay"]


def _worker_env(config: Config, choice: EngineChoice) -> dict[str, str]:
    """What a worker reads for itself."""
    memory = MEMORY.get(choice.kind)
    return log_env(config) | ({memory.env: memory.show(config[memory])} if memory else {})


def _secret_files(choice: EngineChoice, run_dir: Path, index: int) -> dict[str, str]:
    """Secrets as files in a folder that only this user can read."""
    found = {}
    for name, value in choice.secrets.items():
        path = run_dir / f"{name}-{index}"
        path.touch(mode=0o600)
        path.write_text(value, encoding="utf-8")
        found[f"{name}_file"] = str(path)
    return found


def _row_file(row: Row, run_dir: Path) -> Path:
    path = run_dir / f"row-{row.kind}.json"
    path.write_bytes(msgspec.json.encode(row))
    return path


def model_aliases(config: Config) -> dict[str, str]:
    """Alias to KIND or KIND/MODEL, as settled. Raises `ConfigError`."""
    found = {}
    for word in config[table.MODEL_ALIASES_SETTING]:
        name, _, target = word.partition("=")
        if not name or target.partition("/")[0] not in set(Kind):
            raise ConfigError(
                f"server.model_aliases has {word!r}, expected NAME=KIND or NAME=KIND/MODEL"
            )
        found[name] = target
    return found


def chat_options(config: Config) -> ChatOptions:
    """What `/chat` puts around a prompt, as settled."""
    sampling = {s.key: config[s] for s in SAMPLING if config[s] is not None}
    return ChatOptions(
        system_prompt=config[table.SYSTEM_PROMPT],
        sampling=sampling,
        tts_flush_min_chars=config[table.FLUSH_MIN_CHARS],
        tts_flush_on_punct=config[table.FLUSH_ON_PUNCT],
        retrieval_url=config[table_text.RETRIEVAL_URL] or "",
        retrieval_s=config[table_text.RETRIEVAL_S],
    )
