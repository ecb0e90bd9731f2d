"""Which server a client command speaks to: an option, the environment, or this machine."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from forebay.cli import app
from forebay.lab import asr, asr_killed, compare, tts
from forebay.lab.command import socket_url

ASKED = (
    (tts, ["bench", "tts"], "ws://far:9/tts"),
    (asr, ["bench", "asr"], "ws://far:9/ws/asr"),
    (compare, ["models", "compare", "a", "b"], "http://far:9"),
)


@pytest.mark.parametrize(
    ("url", "meant"),
    [
        (None, "ws://127.0.0.1:8600/tts"),
        ("http://far:9", "ws://far:9/tts"),
        ("https://far/", "wss://far/tts"),
        ("far:9", "ws://far:9/tts"),
        ("wss://far/voice/tts", "wss://far/voice/tts"),
    ],
)
def test_a_server_is_named_by_any_of_its_addresses(url, meant):
    assert socket_url(url, "/tts") == meant


@pytest.mark.parametrize(("module", "words", "meant"), ASKED)
def test_the_environment_names_the_server_for_every_client_command(
    module, words, meant, monkeypatch
):
    seen = []
    monkeypatch.setattr(module, "main", lambda options, **_: seen.append(options.url) or 0)
    found = CliRunner().invoke(app, words, env={"FOREBAY_URL": "http://far:9"})
    assert found.exit_code == 0, found.output
    assert seen == [meant]


def test_a_bench_with_a_server_of_its_own_passes_over_the_environment(monkeypatch):
    seen = []
    monkeypatch.setattr(asr_killed, "main", lambda options, *_, **__: seen.append(options) or 0)
    words = ["bench", "asr", "--kill-every", "2"]
    found = CliRunner().invoke(app, words, env={"FOREBAY_URL": "http://far:9"})
    assert found.exit_code == 0, found.output
    assert len(seen) == 1
