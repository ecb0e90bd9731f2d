"""The gateway process: what is opened at its start, in which order, and how it ends.

The supervisor binds the listening sockets, writes a `GatewaySpec` and starts
``forebay _gateway SPECFILE``; the process inherits the sockets by number. On SIGTERM it
drains (`leaving`). A second signal cuts at once. SIGHUP reads the keys again.
One that stands by opens everything and accepts nothing until SIGUSR1.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import structlog

from forebay import telemetry
from forebay.blobs import Blobs
from forebay.broker.journal import Journal
from forebay.broker.link_server import serve_link
from forebay.broker.local import LocalBroker
from forebay.broker.local_base import Settings
from forebay.core.kinds import Kind
from forebay.core.spec import PipeSpec
from forebay.errors import CannotBoot, ConfigError, ForebayError
from forebay.gateway.app import GatewayApp
from forebay.gateway.auth import Auth, refuse_open_bind
from forebay.gateway.capacity import needs
from forebay.gateway.context import (
    ChatOptions,
    GatewayContext,
    OperationOptions,
    PhotoOptions,
    RecognitionOptions,
)
from forebay.gateway.costs import process_costs
from forebay.gateway.dropping import Dropper
from forebay.gateway.endpoints import routes
from forebay.gateway.gate import raise_fd_limit
from forebay.gateway.hub import Hub
from forebay.gateway.keeping import BlobPlace, open_history, open_place
from forebay.gateway.keys import KeyFile
from forebay.gateway.leaving import drain
from forebay.gateway.metrics import GatewayMetrics
from forebay.gateway.options import MODEL_ALIASES, GatewayOptions
from forebay.gateway.personality import Personality, personality
from forebay.gateway.pipes import adopt, adopting
from forebay.gateway.rooms import RoomOptions, Rooms
from forebay.gateway.rooms_metrics import RoomsCollector
from forebay.gateway.server import GatewayServer
from forebay.history import HistoryOptions
from forebay.log_file import LogPlace
from forebay.process import EXIT_CANNOT_BOOT, die_with_parent, settle_heap

if TYPE_CHECKING:
    from forebay.broker.redis import RedisBroker

__all__ = ["GatewaySpec", "SocketSpec", "main", "read_spec", "run_gateway", "write_spec"]

WARN_EVERY_S = 60.0

log = structlog.get_logger(__name__)


class SocketSpec(msgspec.Struct, frozen=True, array_like=True):
    """An inherited listening socket and whose manners it has."""

    fd: int
    personality: str


class GatewaySpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything a gateway process is told.

    ``link_path``: where workers attach, with the local broker. ``broker_url``: a shared
    broker instead of it. ``data_dir``: where the journal lives; None: durable
    jobs end with the process. ``expected``: pools whose workers are being started; ready
    means that each has one. ``broker``: store limits and the kind table as the operator
    altered it. ``parent_pid``: the supervisor, with whom this process ends.
    ``sharing``: other gateways accept on the same sockets.
    ``stock_protocols``: uvicorn's own classes instead of ours, to tell whose fault a thing is.
    """

    sockets: list[SocketSpec]
    link_path: str = ""
    broker_url: str = ""
    data_dir: str | None = None
    gateway_id: str = ""
    parent_pid: int | None = None
    expected: list[str] = []
    options: GatewayOptions = GatewayOptions()
    broker: Settings = Settings()
    chat: ChatOptions = ChatOptions()
    model_aliases: dict[str, str] = msgspec.field(default_factory=lambda: dict(MODEL_ALIASES))
    recognition: RecognitionOptions = RecognitionOptions()
    photos: PhotoOptions = PhotoOptions()
    blobs: BlobPlace = BlobPlace()
    operations: OperationOptions = OperationOptions()
    rooms: RoomOptions = RoomOptions()
    history: HistoryOptions = HistoryOptions()
    log_level: str = "info"
    log_format: str = "auto"
    log_file: LogPlace = LogPlace()
    slow_stream_s: float = 0.0
    sharing: bool = False
    stock_protocols: bool = False


def write_spec(spec: GatewaySpec, path: Path) -> None:
    """Write ``spec`` for `read_spec`, readable by its owner only: it may hold keys."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(msgspec.json.encode(spec))


def read_spec(path: Path) -> GatewaySpec:
    """Raises `ConfigError` when the file is not one, or others may read it."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"gateway spec {path} cannot be read: {error.strerror}") from error
    if mode & 0o077:
        raise ConfigError(f"gateway spec {path} has mode {mode:o}, expected 600")
    try:
        return msgspec.json.decode(raw, type=GatewaySpec)
    except msgspec.DecodeError as error:
        raise ConfigError(f"gateway spec {path} is malformed: {error}") from error


async def run_gateway(
    spec: GatewaySpec,
    *,
    stop: asyncio.Event | None = None,
    on_ready: Callable[[], None] = lambda: None,
    standby: bool = False,
) -> int:
    """Serve until SIGTERM, SIGINT or ``stop``, then drain. Returns the exit code.
    ``on_ready`` is called when it accepts, or with ``standby`` when it could: then it
    accepts from SIGUSR1 on.

    Raises `CannotBoot` or `ConfigError` before anything listens. Signals are handled only
    where the event loop may (the main thread)."""
    async with AsyncExitStack() as stack:
        gateway = await _Gateway.open(spec, stack)
        signals = _Signals(gateway.reload_keys, stop)
        stack.callback(signals.close)
        if standby:
            on_ready()
            if not await signals.accept():
                return 0
        await gateway.accept()
        on_ready()
        await signals.stop.wait()
        await drain(gateway.ctx, gateway.server, spec.options, signals.hurry)
    log.info("gateway.stopped")
    return 0


class _Signals:
    """SIGTERM or SIGINT: stop, and at the second one hurry. SIGHUP: ``on_hangup``."""

    def __init__(self, on_hangup: Callable[[], None], stop: asyncio.Event | None) -> None:
        self.stop = stop or asyncio.Event()
        self.hurry = asyncio.Event()
        self._promoted = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._held: list[int] = []
        for number, callback in (
            (signal.SIGTERM, self._on_stop),
            (signal.SIGINT, self._on_stop),
            (signal.SIGHUP, on_hangup),
            (signal.SIGUSR1, self._promoted.set),
        ):
            try:
                self._loop.add_signal_handler(number, callback)
            except (ValueError, RuntimeError):  # not the main thread: the owner has ``stop``
                log.debug("signal.not_handled", number=int(number))
            else:
                self._held.append(number)

    async def accept(self) -> bool:
        """Wait until this process is wanted; false when it was told to go before that."""
        waits = [asyncio.ensure_future(e.wait()) for e in (self._promoted, self.stop)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        return not self.stop.is_set()

    def _on_stop(self) -> None:
        (self.hurry if self.stop.is_set() else self.stop).set()

    def close(self) -> None:
        for number in self._held:
            self._loop.remove_signal_handler(number)


class _Gateway:
    """The open parts of one process. What `open` has opened the stack closes, last first."""

    def __init__(
        self,
        spec: GatewaySpec,
        ctx: GatewayContext,
        server: GatewayServer,
        sockets: Sequence[tuple[socket.socket, Personality]],
    ) -> None:
        self._sockets = sockets
        self.spec = spec
        self.ctx = ctx
        self.server = server
        self._warning: asyncio.TimerHandle | None = None

    @classmethod
    async def open(cls, spec: GatewaySpec, stack: AsyncExitStack) -> _Gateway:
        sockets = _inherited(spec, stack)
        options = spec.options
        addresses = [str(sock.getsockname()[0]) for sock, _ in sockets]
        refuse_open_bind(addresses, options)
        auth = Auth(options)
        metrics = GatewayMetrics()
        blobs = await asyncio.to_thread(open_place, spec.blobs, spec.data_dir)
        broker = await _broker(spec, stack, blobs)
        gateway_id = spec.gateway_id or f"g-{secrets.token_hex(4)}"
        hub = await stack.enter_async_context(Hub(broker, gateway_id, time.monotonic))
        left: dict[str, PipeSpec] = {}
        await adopt(hub, left)  # what the journal brought back, or another left, flows on
        hub.on_freed(lambda push: metrics.slot_freed(push.pool.partition("/")[0], push.after_s))
        rooms = _rooms(broker, hub, gateway_id, spec)
        metrics.add(RoomsCollector(rooms))
        ctx = GatewayContext(
            broker=broker,
            hub=hub,
            gateway_id=gateway_id,
            metrics=metrics,
            rows=spec.broker.rows,
            chat=spec.chat,
            model_aliases=spec.model_aliases,
            options=options,
            auth=auth,
            version=version("forebay"),
            expected=tuple(spec.expected),
            queue_limit=spec.broker.limits.queue,
            blobs=blobs,
            recognition=spec.recognition,
            photos=spec.photos,
            operations=spec.operations,
            slow_stream_s=spec.slow_stream_s,
            scribe=await open_history(stack, hub, spec.history, spec.data_dir, blobs),
            rooms=rooms,
        )
        if not isinstance(broker, LocalBroker):
            ctx.hands_over = True
            ctx.store_up = lambda: broker.up
            await stack.enter_async_context(adopting(hub, left))
        metrics.pools = broker.pools
        metrics.needs = lambda: needs(ctx)
        metrics.workers = broker.workers
        metrics.processes = process_costs(spec.parent_pid)
        app = GatewayApp(ctx, routes())
        server = GatewayServer(app, options, metrics, stock=spec.stock_protocols)
        stack.push_async_callback(server.close)
        server.gate.limit = raise_fd_limit(options)
        gateway = cls(spec, ctx, server, sockets)
        stack.callback(gateway.stop_warning)
        return gateway

    async def accept(self) -> None:
        """From here on connections are taken."""
        ctx, server = self.ctx, self.server
        await server.start(self._sockets, sharing=self.spec.sharing)
        ctx.ports = server.ports
        self.warn_if_open([str(sock.getsockname()[0]) for sock, _ in self._sockets])
        connections = server.gate.limit
        log.info("gateway.ready", ports=ctx.ports, connections=connections, id=ctx.gateway_id)

    def reload_keys(self) -> None:
        """Read the key file again; a damaged one leaves the old keys in force."""
        auth = self.ctx.auth
        for held in (auth.keys, auth.tokens):
            if held is not None:
                _reload(held)

    def warn_if_open(self, addresses: list[str]) -> None:
        """Say once a minute that anyone may use this gateway, while that is so."""
        if not any(not listener.loopback for listener in self.server.listeners):
            return
        if not self.spec.options.insecure_no_auth:
            return
        self.ctx.metrics.insecure = True
        log.warning("gateway.unauthenticated", addresses=addresses)
        loop = asyncio.get_running_loop()
        self._warning = loop.call_later(WARN_EVERY_S, self.warn_if_open, addresses)

    def stop_warning(self) -> None:
        if self._warning is not None:
            self._warning.cancel()


def _inherited(spec: GatewaySpec, stack: AsyncExitStack) -> list[tuple[socket.socket, Personality]]:
    if not spec.sockets:
        raise ConfigError("a gateway needs at least one listening socket")
    found = []
    for entry in spec.sockets:
        manners = personality(entry.personality)
        try:
            sock = socket.socket(fileno=entry.fd)
        except OSError as error:
            raise CannotBoot(
                f"descriptor {entry.fd} is not an inherited socket", stage="bind"
            ) from error
        stack.callback(sock.close)
        found.append((sock, manners))
    return found


async def _broker(
    spec: GatewaySpec, stack: AsyncExitStack, blobs: Blobs | None
) -> LocalBroker | RedisBroker:
    if not spec.broker_url:
        return await _local(spec, stack, blobs)
    from forebay.gateway.shared import open_shared

    dropper = Dropper(blobs) if blobs is not None else None
    drop = dropper.drop_now if dropper is not None else None
    broker = await open_shared(spec.broker_url, spec.broker, drop)
    stack.push_async_callback(broker.close)
    broker.expect(spec.expected)
    return broker


async def _local(spec: GatewaySpec, stack: AsyncExitStack, blobs: Blobs | None) -> LocalBroker:
    journal = None
    dropper = Dropper(blobs) if blobs is not None else None
    if dropper is not None:
        stack.push_async_callback(dropper.close)
    if spec.data_dir is not None:
        journal = Journal(Path(spec.data_dir))
        stack.callback(journal.close)
    broker = LocalBroker(
        spec.broker,
        journal=journal,
        drop_blobs=dropper.drop if dropper is not None else lambda names: None,
    )
    stack.push_async_callback(broker.close)
    broker.expect(spec.expected)
    link = await serve_link(spec.link_path, broker)
    stack.push_async_callback(link.close)
    return broker


def _rooms(
    broker: LocalBroker | RedisBroker, hub: Hub, gateway_id: str, spec: GatewaySpec
) -> Rooms:
    """Captions."""
    return Rooms(
        broker.rooms,
        hub,
        gateway_id,
        spec.rooms,
        clock=time.monotonic,
        wall=time.time,
        room_row=spec.broker.rows[Kind.ROOM],
    )


def main(
    path: Path,
    *,
    on_ready: Callable[[], None] = lambda: None,
    on_failed: Callable[[str], None] = lambda reason: None,
    standby: bool = False,
) -> int:
    """Run the gateway process that the spec file at ``path`` describes. Returns its exit
    code: 0 after a drain, `EXIT_CANNOT_BOOT` with the reason in the log and told to
    ``on_failed``. ``on_ready`` is called when it accepts."""
    try:
        spec = read_spec(path)
    except ConfigError as error:
        telemetry.configure(process="gateway")
        log.error("gateway.cannot_boot", reason=error.message)
        return EXIT_CANNOT_BOOT
    if spec.parent_pid is not None:
        die_with_parent(spec.parent_pid)
    telemetry.configure(
        level=spec.log_level, form=spec.log_format, file=spec.log_file, process="gateway"
    )

    def ready() -> None:
        settle_heap()
        on_ready()

    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(run_gateway(spec, on_ready=ready, standby=standby))
    except (CannotBoot, ConfigError) as error:
        stage = str(error.details.get("stage", "boot"))
        log.error("gateway.cannot_boot", stage=stage, reason=error.message)
        on_failed(error.message)
        return EXIT_CANNOT_BOOT
    except ForebayError as error:
        log.error("gateway.failed", code=error.code, reason=error.message)
        return 1


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it exists, else asyncio's own."""
    if sys.platform == "win32":
        return None
    import uvloop

    return uvloop.new_event_loop


def _reload(held: KeyFile) -> None:
    try:
        held.reload()
    except ConfigError as error:
        log.error("keys.not_reloaded", reason=error.message)
    else:
        log.info("keys.reloaded", file=held.path.name, keys=len(held))
