"""One Jupyter kernel: its process, its sockets, the cell it runs, its end.

jupyter_client makes the connection file, starts the process and signs what is sent; the
sockets are Unix ones in a folder of the kernel's own, read when something arrives. That the
process has ended is heard from the system (a pidfd), not asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import zmq
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager

from forebay.engines.kernel_channel import Channel
from forebay.engines.kernel_jail import (
    BOOT,
    HOME,
    Cgroup,
    Jail,
    Limits,
    boot_settings,
    kept_environment,
    usable_cgroup,
)
from forebay.engines.kernel_output import CellOutput
from forebay.errors import EngineFailed, ForebayError, KernelLost

__all__ = ["Housing", "Kernel"]

ASK_AGAIN_S = 0.5
SHUTDOWN_S = 1.0
DISK_EVERY_S = 0.5
MAX_ENTRIES = 50_000
"""Files and folders of one notebook; more count as a full disk."""
STDERR_BYTES = 2000


class _Head(msgspec.Struct):
    msg_type: str = ""
    msg_id: str = ""


_HEAD = msgspec.json.Decoder(_Head)
_CONTENT = msgspec.json.Decoder(dict[str, Any])
DELIMITER = b"<IDS|MSG>"
PROTOCOL = "5.3"


@dataclass(frozen=True, slots=True, kw_only=True)
class Housing:
    """How kernels are kept here. ``jail``: None runs them as this user."""

    jail: Jail | None
    limits: Limits
    flush_s: float
    start_s: float
    interrupt_s: float
    groups: bool = True


class _Specs(KernelSpecManager):  # type: ignore[misc, unused-ignore]
    """The one kernel there is: Python, as we start it."""

    def __init__(self, spec: KernelSpec) -> None:
        super().__init__()
        self._spec = spec

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        return self._spec


class Kernel:
    """Call `start` once, then `begin` for each cell, one at a time; end with `stop`.

    ``on_end`` is called once when the process has ended, whoever ended it."""

    def __init__(
        self, name: str, work: Path, housing: Housing, on_end: Callable[[Kernel], None]
    ) -> None:
        self.work = work
        self.alive = False
        self.why = ""  # why we ended it, where we did
        self._name = name
        self._housing = housing
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._folder = Path(tempfile.mkdtemp(prefix=f"fbk-{os.getpid()}-"))
        self._manager: Any = None
        self._process: subprocess.Popen[bytes] | None = None
        self._group: Cgroup | None = None
        self._context = zmq.Context(io_threads=1)
        self._channels: dict[str, Channel] = {}
        self._greeted = asyncio.Event()
        self._listening = asyncio.Event()
        self._ended = asyncio.Event()
        self._cell: CellOutput | None = None
        self._cell_id = ""
        self._sent = 0
        self._replied = self._idle = False
        self._stderr: deque[bytes] = deque(maxlen=8)
        self._pidfd = -1
        self._guard: asyncio.Task[None] | None = None

    # ------------------------------------------------------------------------- start

    async def start(self) -> None:
        """Return when the kernel can run a cell. Raises `EngineFailed`."""
        try:
            await self._launch()
            self._connect()
            async with asyncio.timeout(self._housing.start_s):
                await self._greet()
        except (TimeoutError, OSError, RuntimeError) as error:
            said = self._last_words()
            await self.stop(now=True)
            raise EngineFailed(
                f"the kernel did not start: {said or error or 'no answer'}"
            ) from error
        except BaseException:
            await self.stop(now=True)
            raise

    async def _launch(self) -> None:
        housing = self._housing
        argv = [
            sys.executable,
            str(BOOT),
            "-f",
            "{connection_file}",
            "--HistoryManager.enabled=False",
        ]
        home = HOME if housing.jail is not None else str(self.work)
        environment = kept_environment(home, jailed=housing.jail is not None)
        environment["IPYTHONDIR"] = str(self._folder / "ipython")
        if housing.groups and housing.jail is not None:
            self._group = await asyncio.to_thread(usable_cgroup, self._name, housing.limits)
            if self._group is None and os.geteuid() == 0:
                raise OSError("no cgroup can be made, and nothing else bounds root's processes")
        environment["FOREBAY_KERNEL"] = boot_settings(
            housing.limits,
            flush_s=housing.flush_s,
            bound_processes=housing.jail is not None and self._group is None,
        )
        if housing.jail is not None:
            argv = housing.jail.wrap(
                argv,
                work=self.work,
                sockets=self._folder,
                environment=environment,
                limits=housing.limits,
            )
        if self._group is not None:
            argv = self._group.wrap(argv)
        spec = KernelSpec(
            argv=argv, display_name="Python 3", language="python", interrupt_mode="message"
        )
        self._manager = AsyncKernelManager(
            kernel_name="python3",
            kernel_spec_manager=_Specs(spec),
            transport="ipc",
            ip=str(self._folder / "s"),
            connection_file=str(self._folder / "kernel.json"),
        )
        await self._manager.start_kernel(
            env=environment,
            cwd=str(self.work),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        self.alive = True
        self._process = self._manager.provisioner.process
        self._watch(self._process)

    def _watch(self, process: Any) -> None:
        """Hear of the process's end, and keep the end of what it says beside the kernel."""
        if process.stderr is not None:
            os.set_blocking(process.stderr.fileno(), False)
            self._loop.add_reader(process.stderr.fileno(), self._hear_stderr)
        if hasattr(os, "pidfd_open"):
            self._pidfd = os.pidfd_open(process.pid)
            self._loop.add_reader(self._pidfd, self._died)
            return

        def wait() -> None:
            process.wait()
            with contextlib.suppress(RuntimeError):  # the loop is gone: nobody waits
                self._loop.call_soon_threadsafe(self._died)

        threading.Thread(target=wait, name="kernel end", daemon=True).start()

    def _hear_stderr(self) -> None:
        assert self._process is not None and self._process.stderr is not None
        try:
            data = os.read(self._process.stderr.fileno(), 4096)
        except OSError:
            data = b""
        if data:
            self._stderr.append(data[-STDERR_BYTES:])
        else:
            self._loop.remove_reader(self._process.stderr.fileno())

    def _last_words(self) -> str:
        text = b"".join(self._stderr)[-STDERR_BYTES:].decode("utf-8", "replace").strip()
        return text.rpartition("\n")[2][:300]

    def _connect(self) -> None:
        urls = self._manager.get_connection_info()

        def url(name: str) -> str:
            return f"{urls['transport']}://{urls['ip']}-{urls[f'{name}_port']}"

        me = self._manager.session.bsession
        self._channels = {
            "iopub": Channel(self._context, url("iopub"), self._on_iopub, subscribe=True),
            "shell": Channel(self._context, url("shell"), self._on_shell, identity=me),
            "control": Channel(self._context, url("control"), lambda _: None, identity=me + b"c"),
        }

    async def _greet(self) -> None:
        """Until it answers and we hear its output socket, which comes up on its own."""
        ended = asyncio.ensure_future(self._ended.wait())
        try:
            while not (self._greeted.is_set() and self._listening.is_set()):
                self._send("shell", "kernel_info_request", {})
                both = asyncio.ensure_future(self._both())
                await asyncio.wait(
                    {both, ended}, timeout=ASK_AGAIN_S, return_when=asyncio.FIRST_COMPLETED
                )
                both.cancel()
                if self._ended.is_set():
                    raise RuntimeError("its process ended")
        finally:
            ended.cancel()

    async def _both(self) -> None:
        await self._greeted.wait()
        await self._listening.wait()

    # ------------------------------------------------------------------------- cells

    def begin(self, code: str, output: CellOutput) -> None:
        """Run ``code``; ``output`` is fed from now on and ends when the cell has."""
        self._cell, self._replied, self._idle = output, False, False
        if not self.alive:
            output.end(self._lost())
            return
        self._cell_id = self._send(
            "shell",
            "execute_request",
            {
                "code": code,
                "silent": False,
                "store_history": True,
                "user_expressions": {},
                "allow_stdin": False,
                "stop_on_error": False,  # nothing ever waits behind it
            },
        )
        if self._housing.jail is not None and self._guard is None:
            self._guard = asyncio.create_task(self._watch_disk(), name="notebook disk")

    def interrupt(self) -> None:
        """Raise KeyboardInterrupt in what runs. Harmless where nothing does."""
        if self.alive:
            self._send("control", "interrupt_request", {})

    async def leave(self, output: CellOutput) -> None:
        """End a cell that nobody waits for any more: interrupted, else with its kernel."""
        if output.over or output.failure is not None or self._cell is not output:
            return
        self.interrupt()
        loop = self._loop
        until = loop.time() + self._housing.interrupt_s
        while not (output.over or output.failure) and loop.time() < until:
            while output.take() is not None:
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    await output.wait()
        if not (output.over or output.failure):
            self.why = f"it took no interrupt within {self._housing.interrupt_s:g} s"
            await self.stop(now=True)

    def _send(self, channel: str, kind: str, content: dict[str, Any]) -> str:
        session = self._manager.session
        self._sent += 1
        ident = f"{session.session}_{self._sent}"
        head = {
            "msg_id": ident,
            "msg_type": kind,
            "username": session.username,
            "session": session.session,
            "date": datetime.now(UTC).isoformat(),
            "version": PROTOCOL,
        }
        parts = [msgspec.json.encode(head), b"{}", b"{}", msgspec.json.encode(content)]
        self._channels[channel].send([DELIMITER, session.sign(parts), *parts])
        return ident

    def _on_shell(self, frames: list[bytes]) -> None:
        read = _read(frames)
        if read is None:
            return
        kind, parent, content = read
        if kind == "kernel_info_reply":
            self._greeted.set()
        elif kind == "execute_reply" and parent == self._cell_id and self._cell is not None:
            self._cell.status = str(content.get("status", "ok"))
            self._cell.count = content.get("execution_count")
            self._replied = True
            self._maybe_over()

    def _on_iopub(self, frames: list[bytes]) -> None:
        self._listening.set()
        read = _read(frames)
        if read is None or self._cell is None:
            return
        kind, parent, content = read
        if parent != self._cell_id:
            return  # of a thread that an earlier cell left running
        if kind == "status":
            if content.get("execution_state") == "idle":
                self._idle = True
                self._maybe_over()
        else:
            self._cell.feed(kind, content)

    def _maybe_over(self) -> None:
        if self._replied and self._idle and self._cell is not None:
            cell, self._cell = self._cell, None
            cell.end()

    # --------------------------------------------------------------------------- end

    def _died(self) -> None:
        if self._ended.is_set():
            return
        self.alive = False
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        if self._process is not None:
            self._process.poll()
        self._ended.set()
        cell, self._cell = self._cell, None
        if cell is not None:
            cell.end(self._lost())
        self._on_end(self)

    def _lost(self) -> ForebayError:
        if self.why:
            return KernelLost(f"the kernel was ended: {self.why}", reason=self.why)
        if self._group is not None and self._group.killed_for_memory():
            mib = self._housing.limits.memory_bytes // (1024 * 1024)
            return KernelLost(
                f"the kernel was ended: it used more than {mib} MiB of memory", reason="memory"
            )
        code = None if self._process is None else self._process.returncode
        return KernelLost(f"the kernel died (exit code {code})", reason="died")

    async def stop(self, *, now: bool = False) -> None:
        """End the process and everything it started; wait until it is gone. ``now``: without
        asking it. Idempotent."""
        if self.alive and not now and self._channels:
            self._send("control", "shutdown_request", {"restart": False})
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SHUTDOWN_S):
                    await self._ended.wait()
        self._adopt()
        if self._process is not None and not self._ended.is_set():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._ended.wait()
        await self._tidy()

    def _adopt(self) -> None:
        """Take over a process whose start was broken off after it had been made."""
        made = getattr(getattr(self._manager, "provisioner", None), "process", None)
        if self._process is None and made is not None:
            self._process = made
            self._watch(made)

    async def _tidy(self) -> None:
        guard, self._guard = self._guard, None
        if guard is not None and guard is not asyncio.current_task():
            guard.cancel()
            await asyncio.gather(guard, return_exceptions=True)
        for channel in self._channels.values():
            channel.close()
        self._channels = {}
        if not self._context.closed:
            self._context.destroy(linger=0)
        if self._process is not None and self._process.stderr is not None:
            self._loop.remove_reader(self._process.stderr.fileno())
            self._process.stderr.close()
            if self._process.stdin is not None:
                self._process.stdin.close()
            self._process = None
        manager, self._manager = self._manager, None
        if manager is not None:
            await manager.cleanup_resources()
        group, self._group = self._group, None
        await asyncio.to_thread(_remove, self._folder, group)

    async def _watch_disk(self) -> None:
        """End a kernel whose folder outgrows its bound. A quota of the file system would be
        exact; this one is late by what is written in half a second."""
        limit = self._housing.limits.disk_bytes
        while self.alive:
            # Seldom while nothing runs: what writes then is a thread that a cell has left.
            await asyncio.sleep(DISK_EVERY_S if self._cell is not None else 5 * DISK_EVERY_S)
            used = await asyncio.to_thread(_usage, self.work)
            if used > limit and self.alive:
                self.why = f"its folder has over {limit // (1024 * 1024)} MiB"
                self._kill()
                return

    def _kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)


def _read(frames: list[bytes]) -> tuple[str, str, dict[str, Any]] | None:
    """(type, id of what it answers, content) of a kernel's message; None for what is none.

    Its signature is not looked at: the socket's folder is open to this user and to the
    kernel only, and what the kernel says is its user's in any case."""
    try:
        at = frames.index(DELIMITER)
        head, parent = _HEAD.decode(frames[at + 2]), _HEAD.decode(frames[at + 3])
        return head.msg_type, parent.msg_id, _CONTENT.decode(frames[at + 5])
    except (ValueError, IndexError):  # msgspec's errors are ValueErrors
        return None


def _usage(folder: Path) -> int:
    """Bytes on disk below ``folder``; as good as infinite for too many files."""
    total = entries = 0
    left = [str(folder)]
    while left:
        try:
            with os.scandir(left.pop()) as found:
                for entry in found:
                    entries += 1
                    if entries > MAX_ENTRIES:
                        return sys.maxsize
                    if entry.is_dir(follow_symlinks=False):
                        left.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_blocks * 512
        except OSError:
            continue  # it went away while we looked
    return total


def _remove(folder: Path, group: Cgroup | None) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if group is not None:
        group.remove()
