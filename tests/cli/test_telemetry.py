"""What the log shows of what happened, and what it never shows."""

from __future__ import annotations

import io
import json
import logging

import pytest
import structlog

from forebay import telemetry
from forebay.telemetry import redact


@pytest.fixture
def lines():
    stream = io.StringIO()
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    telemetry.configure(level="info", form="json", stream=stream, process="test")
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.handlers[:] = before
    root.setLevel(level)
    structlog.reset_defaults()


def test_an_event_is_one_json_line_with_its_facts(lines):
    structlog.get_logger("x").info("worker.exited", pid=3, reason="killed")
    (line,) = lines()
    assert line["event"] == "worker.exited" and line["pid"] == 3
    assert line["process"] == "test" and line["level"] == "info" and line["ts"]


def test_less_severe_events_are_left_out(lines):
    structlog.get_logger("x").debug("a.b")
    assert lines() == []


@pytest.mark.parametrize("key", ["authorization", "api_key", "ticket", "Cookie", "token"])
def test_secrets_are_masked_by_the_name_of_their_fact(lines, key):
    structlog.get_logger("x").info("a.b", **{key: "s3cret", "nested": {key: ["s3cret"]}})
    assert "s3cret" not in json.dumps(lines())


@pytest.mark.parametrize(
    "text",
    [
        "GET /chat?api_key=s3cretvalue&x=1",
        "Authorization: Bearer s3cretvalue",
        "upstream said: bearer s3cretvalue is wrong",
        "ticket=s3cretvalue",
    ],
)
def test_secrets_are_masked_inside_longer_texts(text):
    assert "s3cretvalue" not in redact(text)


def test_nothing_a_client_sends_can_forge_a_line(lines):
    structlog.get_logger("x").info("a.b", path='/\n{"event":"forged"}\x1b[2J\u2028')
    (line,) = lines()
    assert "\n" not in line["path"] and "\x1b" not in line["path"] and "\u2028" not in line["path"]


def test_bytes_are_counted_and_long_texts_are_cut(lines):
    structlog.get_logger("x").info("a.b", audio=b"\0" * 10, text="x" * 10_000)
    (line,) = lines()
    assert line["audio"] == "<10 bytes>" and len(line["text"]) < 5000


def test_other_libraries_write_the_same_lines(lines):
    logging.getLogger("other").warning("said %s", "api_key=s3cretvalue")
    (line,) = lines()
    assert line["event"] == "library.said" and line["logger"] == "other"
    assert "s3cretvalue" not in line["said"]


def test_other_libraries_are_never_heard_at_debug():
    stream, root = io.StringIO(), logging.getLogger()
    before, level = root.handlers[:], root.level
    loud = logging.getLogger("driver.of.its.own.level")
    try:
        telemetry.configure(level="debug", form="json", stream=stream)
        loud.setLevel(logging.DEBUG)
        for name in ("aiosqlite", "asyncpg", "sqlalchemy.engine", loud.name):
            logging.getLogger(name).debug("executing INSERT ... ('what somebody said')")
        logging.getLogger("sqlalchemy.engine").info("('what somebody said')")
        structlog.get_logger("forebay.x").debug("job.ended", job="a")
        logging.getLogger("aiosqlite").warning("gone")
    finally:
        loud.setLevel(logging.NOTSET)
        root.handlers[:] = before
        root.setLevel(level)
        structlog.reset_defaults()
        telemetry._level = logging.NOTSET
    events = [json.loads(line)["event"] for line in stream.getvalue().splitlines()]
    assert events == ["job.ended", "library.said"]
    assert "somebody" not in stream.getvalue()


def test_an_exception_is_one_line(lines):
    try:
        raise ValueError("x")
    except ValueError:
        structlog.get_logger("x").exception("a.b")
    (line,) = lines()
    assert "ValueError" in line["exception"]
