"""What the settings say about the log, for this process and for its children."""

from __future__ import annotations

from forebay.config import Config, table_log
from forebay.log_file import LogPlace

__all__ = ["log_env", "log_place"]


def log_place(config: Config) -> LogPlace:
    """Where events go, as settled."""
    path = config[table_log.LOG_FILE]
    return LogPlace(
        path="" if path is None else str(path.expanduser().absolute()),
        size_bytes=config[table_log.LOG_FILE_MIB] << 20,
        files=config[table_log.LOG_FILES],
    )


def log_env(config: Config) -> dict[str, str]:
    """What this process settled about logging, so that its children write alike."""
    place = log_place(config)
    env = {
        table_log.LOG_LEVEL.env: config[table_log.LOG_LEVEL],
        table_log.LOG_FORMAT.env: config[table_log.LOG_FORMAT],
    }
    if place.path:
        env |= {
            table_log.LOG_FILE.env: place.path,
            table_log.LOG_FILE_MIB.env: str(place.size_bytes >> 20),
            table_log.LOG_FILES.env: str(place.files),
        }
    return env
