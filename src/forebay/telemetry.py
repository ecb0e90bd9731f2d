"""Logging: what happened, as events with facts, without what users said.

``log = structlog.get_logger(__name__)``, then ``log.info("process.exited", pid=..., reason=...)``.
JSON lines on standard error, or a console form on a terminal. Event names are
``noun.verb``; facts are key=value. Prompts, texts and audio are never facts. As a second
fence, values of keys that carry secrets are masked here, and control characters are
escaped, so that nothing a client sends can forge a line or move a terminal's cursor.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, TextIO

import structlog

from forebay.log_file import Forgiving, LogPlace

__all__ = ["configure", "debugging", "redact"]

MASK = "********"
_SECRET_KEYS = frozenset(
    {"authorization", "api_key", "apikey", "cookie", "set-cookie", "ticket", "token", "password"}
)
# The same secrets inside a longer text: a query string, a header line, an upstream's message.
_SECRET_TEXT = re.compile(
    r"(?i)\b(api[_-]?key|ticket|token|password|authorization)(=|:\s*)(bearer\s+)?[^\s&\"',;]+"
)
_BEARER = re.compile(r"(?i)\b(bearer)\s+[A-Za-z0-9._~+/=-]{8,}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_level = logging.NOTSET
MAX_TEXT_CHARS = 4000
"""A longer value is cut: a log line is not a place to keep a document."""


def debugging() -> bool:
    """Whether debug lines are kept. For paths that many take: a line that is dropped costs
    them more than this question."""
    return _level <= logging.DEBUG


def redact(text: str) -> str:
    """``text`` without secrets and control characters, at most `MAX_TEXT_CHARS` long."""
    text = _SECRET_TEXT.sub(lambda m: f"{m[1]}{m[2]}{m[3] or ''}{MASK}", text)
    text = _BEARER.sub(lambda m: f"{m[1]} {MASK}", text)
    text = _CONTROL.sub(lambda m: m[0].encode("unicode_escape").decode("ascii"), text)
    if len(text) > MAX_TEXT_CHARS:
        text = f"{text[:MAX_TEXT_CHARS]}... ({len(text)} characters)"
    return text


def _clean(key: str, value: Any, depth: int = 0) -> Any:
    if key.lower().replace("-", "_") in _SECRET_KEYS and value:
        return MASK
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if depth < 4 and isinstance(value, dict):
        return {str(k): _clean(str(k), v, depth + 1) for k, v in value.items()}
    if depth < 4 and isinstance(value, list | tuple | set | frozenset):
        return [_clean("", item, depth + 1) for item in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return redact(str(value))


def _clean_event(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    for key in list(event):
        event[key] = _clean(key, event[key])
    return event


def configure(
    *,
    level: str = "info",
    form: str = "auto",
    stream: TextIO | None = None,
    file: LogPlace | None = None,
    **facts: Any,
) -> None:
    """Set up logging for this process, once, at its start.

    ``form``: json, console, or auto (console when ``stream`` is a terminal). ``file``: written
    instead of standard error; one that cannot be opened is said there, and not used.
    ``facts`` are added to every event (``process="gateway"``). Python's own loggers (uvicorn,
    asyncio, aiohttp) go through the same chain, so one process writes one kind of line, and are
    heard from warnings on: what a library says below that holds what users said.
    """
    out = stream or _opened(file) or sys.stderr
    pretty = form == "console" or (form == "auto" and out.isatty())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
        structlog.processors.format_exc_info,
        _with(facts),
        _clean_event,
    ]
    renderer: Any = (
        structlog.dev.ConsoleRenderer(colors=True, pad_event_to=24)
        if pretty
        else structlog.processors.JSONRenderer(ensure_ascii=False)
    )
    global _level
    number = _level = logging.getLevelNamesMapping()[level.upper()]
    safe: Any = Forgiving(out, _lost_lines)
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(file=safe),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(safe)
    # A logger with a level of its own passes by the root's: it is held back here.
    handler.setLevel(max(number, logging.INFO))
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processor=renderer,
            foreign_pre_chain=[_foreign, *shared],
            # The renderer alone runs last: the chain above has already cleaned the event.
            keep_exc_info=False,
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # A database driver at debug writes its statements with all that is put into them.
    root.setLevel(max(number, logging.WARNING))


def _lost_lines(count: int) -> str:
    """A line about lines that could not be written: what the log lacks, it says."""
    return f'{{"event": "log.lost", "level": "warning", "lines": {count}}}\n'


def _opened(place: LogPlace | None) -> TextIO | None:
    try:
        return place.open() if place is not None else None
    except OSError as exc:
        sys.stderr.write(f"log file {exc.filename} cannot be written: {exc.strerror}\n")
        return None


def _with(facts: dict[str, Any]) -> Any:
    def add(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> Any:
        for key, value in facts.items():
            event.setdefault(key, value)
        return event

    return add


def _foreign(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """A line of another library becomes the event ``library.said``, its words a fact."""
    record = event.get("_record")
    event["said"] = event.get("event", "")
    event["event"] = "library.said"
    if record is not None:
        event["logger"] = record.name
    return event
