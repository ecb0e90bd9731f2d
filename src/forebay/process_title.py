"""Give a forked process its own command line, where ``ps`` and ``/proc`` look for it.

A process that was forked shows the words of the one it was forked from. On Linux those words
are memory of the process, and may be written over; there is as much room as the words took
that it was started with, so a fork server is started with `PADDING` behind them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

__all__ = ["PADDING", "set_title"]

PADDING = " " * 3072
"""A last word that makes room, and that nobody sees."""


def set_title(argv: Sequence[bytes]) -> bool:
    """Show ``argv`` as this process's command line, cut where there is no room for more.
    False where it cannot be shown; nothing else depends on it."""
    try:
        with open("/proc/self/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        with open("/proc/self/cmdline", "rb") as file:
            shown = file.read()
    except OSError:
        return False
    begin, end = int(fields[45]), int(fields[46])  # arg_start and arg_end
    room = end - begin
    # Written only where it is beyond doubt that these are the words.
    if room < 2 or len(shown) != room or ctypes.string_at(begin, room) != shown:
        return False
    words = b"\0".join(argv)[: room - 1]
    ctypes.memmove(begin, words.ljust(room, b"\0"), room)
    return True
