"""Settings of the log: what is written, where, and what counts as a slow stream. Part of
`config.table`."""

from __future__ import annotations

from forebay.config import declare
from forebay.config.declare import aliases
from forebay.config.setting import Alias

__all__ = [
    "LOG_FILE",
    "LOG_FILES",
    "LOG_FILE_MIB",
    "LOG_FORMAT",
    "LOG_LEVEL",
    "SLOW_STREAM_S",
]

LOG_LEVEL = declare.text(
    "log.level",
    "info",
    "Least severe level that is written.",
    choices=("debug", "info", "warning", "error"),
    aliases=aliases(Alias("LOG_LEVEL", {"warn": "warning", "critical": "error", "fatal": "error"})),
)
LOG_FORMAT = declare.text(
    "log.format",
    "auto",
    "`json` lines, `console` for people, `auto`: console on a terminal.",
    choices=("auto", "json", "console"),
)
LOG_FILE = declare.maybe_path(
    "log.file",
    "Where events are written. Unset: standard error. The processes of one machine share it.",
    flag="--log-file FILE",
)
LOG_FILE_MIB = declare.whole(
    "log.file_mib",
    20,
    "Size at which `log.file` is renamed to `FILE.1` and begun anew.",
    unit="MiB",
    low=1,
    high=100_000,
)
LOG_FILES = declare.whole("log.files", 5, "Older log files kept beside it.", low=0, high=1000)
SLOW_STREAM_S = declare.number(
    "log.slow_stream_s",
    5,
    "A stream whose first output comes later than this, or that pauses for longer, is logged as "
    "`stream.slow`; 0 logs none.",
    unit="s",
    low=0,
    high=3600,
)
