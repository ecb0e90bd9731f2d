"""Jupyter's kernel as it runs inside: what a cell says leaves at once, on the thread that says it.

Loaded by `kernel_boot`, inside the jail where there is one: it imports nothing of forebay but
`kernel_quick`, the file beside it.

As it comes, the kernel hands every message to a thread of its own, and a flush waits for
that thread; each line costs two switches between threads that want the same interpreter lock.
Here whoever has something to say sends it, under one lock, whole messages only. A line that
is not flushed leaves at once when nothing has left lately, so that a lone line never waits;
what follows soon after it is sent together, ``flush_s`` later at the latest. What our side
never reads (that a cell is busy, what its code was) is not said, and requests are read by the
main thread itself: nobody speaks to subshells here.

Where the reader falls behind, the kernel waits instead of dropping what was printed.
"""

# mypy: allow-untyped-calls
# (Jupyter's kernel is not typed.)

from __future__ import annotations

import _signal  # type: ignore[import-not-found, unused-ignore]
import asyncio
import contextlib
import contextvars
import logging
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import zmq
from ipykernel import kernelapp
from ipykernel.iostream import IOPubThread, OutStream
from ipykernel.ipkernel import IPythonKernel
from ipykernel.kernelapp import IPKernelApp

if TYPE_CHECKING:
    from forebay.engines.kernel_quick import quicken, send
else:
    from kernel_quick import quicken, send  # the boot has loaded it by this name

__all__ = ["launch"]

SIGINT = int(signal.SIGINT)
RESTS_AFTER = 100
"""Ticks without anything to send, after which the ticker sleeps until it is woken."""


@contextlib.contextmanager
def _undivided() -> Iterator[None]:
    """An interrupt waits until the block is through: half a message would end them all."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    # Without the names that `signal` gives to numbers: they cost more than the rest.
    before = _signal.signal(SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        if before is not None:  # None: set by something that is not Python
            _signal.signal(SIGINT, before)
        if came:
            signal.raise_signal(signal.SIGINT)


class Publisher(IOPubThread):  # type: ignore[misc, unused-ignore]
    """Sends on the thread of whoever speaks. Its own thread hears forked processes only."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.speaking = threading.RLock()
        self._unsent: deque[tuple[Any, Any, Any]] = deque()
        self._sending = False
        super().__init__(*args, **kwargs)
        os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        self.speaking = threading.RLock()  # another thread may have held it
        self._sending = False
        self._unsent.clear()

    def _setup_xpub_listener(self) -> None:
        """Only this class touches the socket; who subscribes is not news."""

    def send_multipart(self, message: Any, *args: Any, **kwargs: Any) -> None:
        if not self._is_master_process() or not self.thread.is_alive():
            super().send_multipart(message, *args, **kwargs)
            return
        with _undivided(), self.speaking:
            self._unsent.append((message, args, kwargs))
            if self._sending:
                return  # a signal's handler speaks in the middle of a message: after it
            self._sending = True
            try:
                while self._unsent:
                    message, args, kwargs = self._unsent.popleft()
                    self._really_send(message, *args, **kwargs)
            finally:
                self._sending = False

    def _handle_pipe_msg(self, msg: Any) -> None:
        """A forked process says something. What was printed here before it was forked may
        still wait: that was said first."""
        for stream in Prompt.ticker.waiting()[:1]:
            stream.flush()
        super()._handle_pipe_msg(msg)

    def _really_send(self, msg: Any, *args: Any, **kwargs: Any) -> None:
        if args or kwargs != {"copy": True} or self.closed or not self._is_master_process():
            super()._really_send(msg, *args, **kwargs)
            return
        try:
            send(self.socket, msg)
        except zmq.ZMQError as error:
            if error.errno != zmq.ENOTSOCK:  # it was closed meanwhile: the kernel is ending
                raise


class _Ticker(threading.Thread):
    """Sends what was printed and waits, every ``every_s`` while there is anything."""

    def __init__(self, every_s: float) -> None:
        super().__init__(name="Flush", daemon=True)
        self.every_s = every_s
        self._streams: list[Prompt] = []
        self._awake = threading.Event()

    def add(self, stream: Prompt) -> None:
        self._streams.append(stream)

    def waiting(self) -> list[Prompt]:
        """Streams with something to send, the longest first."""
        found = [stream for stream in self._streams if stream.waits]
        return found if len(found) < 2 else sorted(found, key=lambda stream: stream.since)

    def wake(self) -> None:
        if not self._awake.is_set():
            self._awake.set()

    def run(self) -> None:
        while True:
            self._awake.wait()
            idle = 0
            while idle < RESTS_AFTER:
                time.sleep(self.every_s)
                waiting = self.waiting()
                idle = 0 if waiting else idle + 1
                try:
                    for stream in waiting[:1]:
                        stream.flush()
                except zmq.ZMQError:
                    return  # the kernel is ending
            self._awake.clear()
            if self.waiting():
                self._awake.set()  # it was written between the last look and the rest


class Prompt(OutStream):  # type: ignore[misc, unused-ignore]
    """Standard output or error."""

    ticker: _Ticker

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.since = 0.0  # when something last began to wait
        self._left_s = 0.0  # when something last left
        super().__init__(*args, **kwargs)
        self.ticker.add(self)
        os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        """What waits here is the parent's to send."""
        self._buffer_lock = threading.RLock()
        self._rotate_buffers()
        self._flush_pending = False

    @property
    def waits(self) -> bool:
        return bool(self._flush_pending)

    def _ours(self) -> bool:
        thread = self.pub_thread
        return thread is not None and thread._is_master_process() and thread.thread.is_alive()

    def _schedule_flush(self) -> None:
        if not self._flush_pending:
            self.since = time.monotonic()
            self._flush_pending = True
            self.ticker.wake()

    def write(self, string: str) -> Any:
        written = super().write(string)
        if (
            "\n" in string
            and time.monotonic() - self._left_s >= self.ticker.every_s
            and self._ours()
        ):
            self.flush()
        return written

    def flush(self) -> None:
        """Send what waits, of the other stream too: it was said before."""
        if not self._ours():
            super().flush()
            return
        with self.pub_thread.speaking:
            if not self.ticker.waiting():
                return
        # Taking what waits and sending it is one act: nothing said later may overtake it.
        with _undivided(), self.pub_thread.speaking:
            for stream in self.ticker.waiting():
                stream._left_s = time.monotonic()
                stream._flush()


class _NoShellThread:
    """Stands where the thread would be that hands requests to subshells. There is none;
    cells that await still ask whose thread they run on."""

    def __init__(self) -> None:
        self.parent_thread = threading.main_thread()

    def __bool__(self) -> bool:
        return False


class Kernel(IPythonKernel):  # type: ignore[misc, unused-ignore]
    """Says only what is read."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._requests: set[asyncio.Task[None]] = set()
        shell: Any = self.shell
        quicken(self.session, shell)
        self._once = shell.transform_cell

    _supports_kernel_subshells = False
    _execute_sleep = 0.0
    """Seconds before each reply, for output that comes late: here it has left."""

    def start(self) -> None:
        """As it comes, with one task for each request instead of two, one for the other."""
        super().start()
        self._context = contextvars.copy_context()  # all requests see what one of them sets
        requests: Any = self.shell_stream
        requests.on_recv(self._asked, copy=False)

    def _asked(self, message: Any) -> None:
        work = self.shell_main(None, message)
        task = asyncio.get_running_loop().create_task(work, context=self._context)
        self._requests.add(task)
        task.add_done_callback(self._answered)

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._requests.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.log.error("a request failed", exc_info=error)

    async def do_execute(self, code: str, *args: Any, **kwargs: Any) -> Any:
        self._once.expect(code)
        return await super().do_execute(code, *args, **kwargs)

    @contextlib.contextmanager
    def _cancel_on_sigint(self, cell: Any) -> Iterator[None]:
        """An interrupt ends a cell that awaits: cancelled from the loop it runs in. As it comes,
        the kernel hands the signal to a future of a loop that does not hear of it."""
        loop = asyncio.get_running_loop()

        def interrupted(*_: Any) -> None:
            loop.call_soon_threadsafe(cell.cancel)

        before = signal.signal(signal.SIGINT, interrupted)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _publish_execute_input(self, *args: Any) -> None:
        """Whoever sent the code knows it."""

    def _publish_status(self, status: str, *args: Any) -> None:
        if status != "busy":
            super()._publish_status(status, *args)


class App(IPKernelApp):  # type: ignore[misc, unused-ignore]
    def init_control(self, context: Any) -> None:
        super().init_control(context)  # type: ignore[no-untyped-call, unused-ignore]
        unused, self.shell_channel_thread = self.shell_channel_thread, _NoShellThread()
        unused.io_loop.close(all_fds=True)

    def initialize(self, argv: Any = None) -> None:
        super().initialize(argv)  # type: ignore[no-untyped-call, unused-ignore]
        # Each request writes several debug records, which no handler takes.
        self.log.setLevel(logging.WARNING)

    def init_iopub(self, context: Any) -> None:
        super().init_iopub(context)  # type: ignore[no-untyped-call, unused-ignore]
        self.iopub_thread.socket.setsockopt(zmq.XPUB_NODROP, 1)


def launch(flush_s: float) -> None:
    """Be a kernel until told to end. The command line is Jupyter's."""
    Prompt.ticker = _Ticker(flush_s)
    Prompt.ticker.start()
    kernelapp.IOPubThread = Publisher  # type: ignore[attr-defined, misc, unused-ignore]
    # Jupyter takes the class of its streams by name.
    App.launch_instance(kernel_class=Kernel, outstream_class=f"{__name__}.Prompt")
