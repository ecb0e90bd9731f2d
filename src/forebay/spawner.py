"""Start processes: as copies of a warm fork server where there is one, else each by itself.

`Spawner.spawn` is `subprocess.Popen` for Python programs, a hundred times as fast. Where the
fork server is not there (it was turned off, still loads, has died, does not answer, or this is
not Linux) the process is started plainly: it is never needed, only quick. One that died is
started again, ever later.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import structlog

from forebay.fork_wire import MAX_FDS, Answer, Request, receive, send
from forebay.process_title import PADDING

__all__ = ["Forked", "Process", "Spawner"]

AGAIN_FIRST_S = 0.5
AGAIN_MOST_S = 30.0
WARM_S = 60.0
"""How long the first processes wait for the fork server, which saves each of them its imports."""
ANSWER_S = 5.0
"""A fork takes milliseconds, half a second where something is being loaded; one that takes this
long on the busiest machine is not waited for."""
STARTERS = ("PYTHON", "LD_", "MALLOC_", "GLIBC_TUNABLES")
"""Variables that are read when an interpreter starts: a process with its own is not forked."""
_PR_SET_CHILD_SUBREAPER = 36

log = structlog.get_logger(__name__)


class Process(Protocol):
    """What is used of `subprocess.Popen`."""

    @property
    def pid(self) -> int: ...

    @property
    def returncode(self) -> int | None: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def send_signal(self, sig: int, /) -> None: ...


class Forked:
    """A child of this process that it did not start itself."""

    def __init__(self, pid: int, argv: Sequence[str]) -> None:
        self.pid = pid
        self.args = argv
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        end = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if end is not None and time.monotonic() > end:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            time.sleep(0.005)
        return code

    def send_signal(self, sig: int, /) -> None:
        if self.poll() is None:
            os.kill(self.pid, sig)


class Spawner:
    """``preload``: what the fork server imports, ``module`` or ``module:function``, and after
    ``--`` what it imports when it has nothing to do; nothing means that there is none. Use within a running event loop; `close` it."""

    def __init__(self, preload: Sequence[str] = ()) -> None:
        self._preload = [*preload] if sys.platform == "linux" else []
        self._loop = asyncio.get_running_loop()
        self._process: subprocess.Popen[bytes] | None = None
        self._line: socket.socket | None = None
        self._ready = False
        self._settled = asyncio.Event()  # it is warm, or it is known that it will not be
        self._failures = 0
        self._again: asyncio.TimerHandle | None = None

    @property
    def warm(self) -> bool:
        """Whether a process started now would be forked."""
        return self._ready

    async def warm_up(self) -> None:
        """Start the fork server, afresh where one runs: what it has loaded may have been
        replaced on the disk. Returns when it is warm, or when nobody should wait for it."""
        if not self._preload:
            return
        self._stop()
        self._start()
        try:
            await asyncio.wait_for(self._settled.wait(), WARM_S)
        except TimeoutError:
            log.warning("fork_server.slow", waited_s=WARM_S)

    def spawn(
        self, argv: Sequence[str], env: Mapping[str, str], pass_fds: Sequence[int] = ()
    ) -> Process:
        """Start ``argv`` with ``env`` added to this process's own, in a process group of its
        own, without standard input. ``pass_fds`` keep their numbers. Raises `OSError`."""
        if self._ready and _is_python(argv) and not _starts_otherwise(env) and _few(pass_fds):
            forked = self._fork(argv, {**os.environ, **env}, pass_fds)
            if forked is not None:
                return forked
        return subprocess.Popen(
            [*argv],
            env={**os.environ, **env},
            pass_fds=pass_fds,
            stdin=subprocess.DEVNULL,
            process_group=0,
        )

    def close(self) -> None:
        self._preload = []
        self._stop()

    # -------------------------------------------------------------- the fork server

    def _start(self) -> None:
        self._again = None
        self._settled.clear()
        ours, theirs = socket.socketpair()
        words = [sys.executable, "-m", "forebay.fork_server", str(theirs.fileno())]
        try:
            self._process = subprocess.Popen(
                [*words, *self._preload, PADDING],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                process_group=0,
            )
        except OSError as exc:
            ours.close()
            self._lost(f"cannot be started: {exc.strerror or exc}")
            return
        finally:
            theirs.close()
        ours.settimeout(ANSWER_S)
        self._line = ours
        self._loop.add_reader(ours, self._on_word)

    def _on_word(self) -> None:
        """The one thing it says unasked: that it is warm, or why not. Else it is gone."""
        assert self._line is not None and self._process is not None
        try:
            word, _ = receive(self._line, Answer)
        except (OSError, EOFError, ValueError):
            self._lost("it has died")
            return
        if word.why:
            self._preload = []  # it would be the same again
            self._lost(word.why)
            return
        self._ready = True
        self._failures = 0
        self._settled.set()
        log.info("fork_server.ready", pid=self._process.pid)

    def _fork(
        self, argv: Sequence[str], env: Mapping[str, str], pass_fds: Sequence[int]
    ) -> Forked | None:
        """The forked process; None where it must be started otherwise."""
        assert self._line is not None
        request = Request(
            [os.fsencode(word) for word in argv],
            {os.fsencode(name): os.fsencode(value) for name, value in env.items()},
            [1, 2, *pass_fds],
        )
        gate, opening = os.pipe()
        try:
            with _adopting():
                send(self._line, request, [gate, 1, 2, *pass_fds])
                answer, _ = receive(self._line, Answer)
            if not answer.pid:
                log.warning("fork_server.refused", reason=answer.why)
                return None
            # Raises `ChildProcessError` where it was not given to us; it never begins then.
            os.waitid(os.P_PID, answer.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            os.write(opening, b"1")
            return Forked(answer.pid, argv)
        except (OSError, EOFError, ValueError) as exc:
            self._lost(f"it does not answer: {type(exc).__name__}: {exc}")
            return None
        finally:
            os.close(gate)
            os.close(opening)

    def _lost(self, reason: str) -> None:
        """Without it from here on; another one later, where that may help."""
        self._stop()
        self._settled.set()
        if not self._preload:
            log.warning("fork_server.off", reason=reason)
            return
        wait_s = min(AGAIN_FIRST_S * 2.0**self._failures, AGAIN_MOST_S)
        self._failures = min(self._failures + 1, 16)
        log.warning("fork_server.lost", reason=reason, wait_s=wait_s)
        self._again = self._loop.call_later(wait_s, self._start)

    def _stop(self) -> None:
        self._ready = False
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if self._line is not None:
            self._loop.remove_reader(self._line)
            self._line.close()
            self._line = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextlib.contextmanager
def _adopting() -> Iterator[None]:
    """Children of children that lose their parent are this process's for so long. Only for
    so long: other orphans are not to gather here, where nobody waits for them."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def _is_python(argv: Sequence[str]) -> bool:
    """Whether it is a program of this interpreter."""
    if len(argv) < 2 or argv[0] != sys.executable:
        return False
    return (argv[1] == "-m" and len(argv) > 2) or argv[1].endswith(".py")


def _starts_otherwise(env: Mapping[str, str]) -> bool:
    return any(name.startswith(STARTERS) for name in env)


def _few(pass_fds: Sequence[int]) -> bool:
    return len(pass_fds) + 3 <= MAX_FDS
