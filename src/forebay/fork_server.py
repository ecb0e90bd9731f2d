"""The fork server: a process that has loaded everything, and is copied in milliseconds.

A gateway takes more than a second of a processor to import, a worker half a second. This
process imports what they need once, opens no loop, thread, socket or model, and forks a
child each time its supervisor asks: a process that is killed has a successor at once, and all
of them share the memory of what was imported. Engines load their libraries after the fork.

The child is no child of this process. It is forked twice and its parent leaves at once, so
that the kernel gives it to the supervisor, which asks for that while it waits
(``PR_SET_CHILD_SUBREAPER``). The supervisor reaps it, signals it and takes it along when it
dies, as any process that it started itself; this one may be killed without hurting anybody.

Run as ``python -m forebay.fork_server FD MODULE... [-- MODULE...]``; Linux only. What stands
after ``--`` is loaded once nobody has asked for a while: it is not needed at the start.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import importlib
import os
import runpy
import select
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Sequence

from forebay.fork_wire import Answer, Request, receive, send
from forebay.process import die_with_parent
from forebay.process_title import set_title

__all__ = ["main"]

ONE_THREAD = ("OPENBLAS_NUM_THREADS",)
"""NumPy's library starts a thread for each processor when it is loaded: a process with
threads cannot be forked safely. What an operator has set counts nevertheless."""
IGNORED = (signal.SIGTERM, signal.SIGINT)
"""Told to a whole group or control group: it leaves when its supervisor has, not before."""
QUIET_S = 1.0
"""So long nobody must have asked before something is loaded that is not needed at once."""
_PID = struct.Struct("!i")


def main(argv: Sequence[str]) -> int:
    """Serve forks until the supervisor closes the line. Comes back in every child too, where
    it goes on as the program that was asked for."""
    die_with_parent(os.getppid())
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    line = socket.socket(fileno=int(argv[0]))
    names = [name for name in argv[1:] if name.strip()]
    first = names[: names.index("--")] if "--" in names else names
    failed = _load(first)
    try:
        send(line, Answer(why=failed))
        if failed:
            return 1
        request = _serve(line, names[len(first) + 1 :])
    except (OSError, EOFError):
        return 0  # the supervisor is gone
    return _run(request)


def _load(names: Sequence[str]) -> str:
    """Import ``names``, and call what stands behind a colon. What failed, or nothing."""
    gc.enable()
    failed = _import(names)
    threads = len(os.listdir("/proc/self/task"))
    sys.stdout.flush()
    sys.stderr.flush()
    gc.collect()
    gc.freeze()  # a collection would write into every page that is shared
    gc.disable()
    return failed or (f"{threads} threads after loading, expected 1" if threads > 1 else "")


def _import(names: Sequence[str]) -> str:
    added = [name for name in ONE_THREAD if name not in os.environ]
    os.environ.update(dict.fromkeys(added, "1"))
    try:
        for name in names:
            module, _, function = name.partition(":")
            found = importlib.import_module(module)
            if function:
                getattr(found, function)()
    except Exception as exc:  # noqa: BLE001 - a module may fail in any way; it is told by name
        return f"{name} cannot be loaded: {type(exc).__name__}: {exc}"
    finally:
        for name in added:
            del os.environ[name]
    return ""


def _serve(line: socket.socket, later: list[str]) -> Request:
    """Fork whatever is asked for. Returns in a child, with the request that it carries out.
    Raises `EOFError` when the supervisor has closed the line, or what came ``later`` made it
    impossible to go on."""
    while True:
        while later and not select.select([line], [], [], QUIET_S)[0]:
            name = later.pop(0)
            if failed := _load([name]):
                sys.stderr.write(f"fork server: {failed}\n")
                raise EOFError(failed)
        request, fds = receive(line, Request)
        if _fork(request, fds, line):
            line.detach()  # closed with all else that is not the child's
            return request
        for fd in fds:
            os.close(fd)


def _fork(request: Request, fds: list[int], line: socket.socket) -> bool:
    """One child, given to the supervisor, which is told its number. True in the child."""
    told_r, told_w = os.pipe()
    try:
        middle = os.fork()
    except OSError as exc:
        for fd in (told_r, told_w):
            os.close(fd)
        send(line, Answer(why=f"cannot fork: {exc.strerror}", errno=exc.errno or 0))
        return False
    if middle == 0:
        _leave_child()
        try:
            _become(request, fds, told_w)
        except BaseException:  # noqa: BLE001 - a copy of the fork server must not serve
            traceback.print_exc()
            os._exit(1)
        return True
    os.close(told_w)
    said = os.read(told_r, _PID.size)
    os.close(told_r)
    os.waitpid(middle, 0)  # from here on the child is the supervisor's
    if len(said) == _PID.size:
        send(line, Answer(_PID.unpack(said)[0]))
    else:
        send(line, Answer(why="the child ended before it began", errno=errno.EAGAIN))
    return False


def _leave_child() -> None:
    """Fork once more and leave: who is parentless is given to the supervisor."""
    try:
        if os.fork():
            os._exit(0)
    except OSError:
        os._exit(1)


def _become(request: Request, fds: list[int], told: int) -> None:
    """In the child: everything as if it had been started by the supervisor itself."""
    os.setpgid(0, 0)
    for number in IGNORED:
        signal.signal(
            number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        )
    os.write(told, _PID.pack(os.getpid()))
    if os.read(fds[0], 1) != b"1":
        os._exit(1)  # the supervisor has died, or has started somebody else meanwhile
    _place(fds[1:], request.targets)
    os.environ.clear()
    for name, value in request.env.items():
        os.environb[name] = value
    set_title(request.argv)
    gc.enable()


def _place(fds: Sequence[int], targets: Sequence[int]) -> None:
    """Put ``fds`` where ``targets`` say, nothing at standard input, and close all else."""
    above = max([64, *targets]) + 1
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above) for fd in fds]
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for fd, target in zip(moved, targets, strict=True):
        os.dup2(fd, target)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in targets:
            with contextlib.suppress(OSError):  # the listing's own
                os.close(int(name))


def _run(request: Request) -> int:
    """Be the program: ``python -m MODULE ...``, or ``python FILE ...``."""
    words = [os.fsdecode(word) for word in request.argv[1:]]
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
