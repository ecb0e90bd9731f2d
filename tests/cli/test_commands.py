"""The commands as a person or a script meets them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from forebay import cli
from forebay.cli import app
from forebay.errors import ForebayError

SURFACE = {
    "capacity": None,
    "caption": None,
    "chaos": {"list", "run"},
    "serve": None,
    "worker": None,
    "doctor": None,
    "enhance": None,
    "bench": {"all", "tts", "asr", "text", "photos", "captions", "notebook"},
    "jobs": {"list", "show", "cancel", "retry"},
    "config": {"show", "check", "docs", "example", "nginx", "systemd", "caddy"},
    "models": {"list", "fetch", "verify", "compare"},
    "keys": {"create", "list", "rotate", "revoke"},
}


@pytest.fixture
def forebay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    for name in ("SGLANG_BASE_URL", "OPENAI_BASE_URL", "OPENAI_API_KEY", "BASE_URL"):
        monkeypatch.delenv(name, raising=False)

    def run(*words, env=None):
        return subprocess.run(
            [sys.executable, "-m", "forebay", *map(str, words)],
            capture_output=True,
            text=True,
            timeout=240,
            env=None if env is None else {**os.environ, **env},
        )

    return run


def test_who_is_asked_for_a_key_is_told_how_to_give_one(monkeypatch, capsys):
    def refused() -> None:
        raise ForebayError("expected an api key: Authorization: Bearer fb_...")

    monkeypatch.setattr(cli, "_command", lambda: refused)
    with pytest.raises(SystemExit):
        cli.main()
    said = capsys.readouterr().err.strip()
    assert said.endswith("Bearer fb_...; give it with --key or FOREBAY_API_KEY")


def test_the_surface_is_the_documented_one_and_holds_no_stub():
    import typer.main

    root = typer.main.get_command(app)
    visible = {name: c for name, c in root.commands.items() if not c.hidden}
    assert set(visible) == set(SURFACE)
    for name, expected in SURFACE.items():
        if expected is not None:
            assert set(visible[name].commands) == expected


@pytest.mark.parametrize("words", [["serve"], ["bench", "tts"], ["jobs", "list"], ["config"]])
def test_help_is_there(words):
    result = CliRunner().invoke(app, [*words, "--help"])
    assert result.exit_code == 0 and "Usage" in result.output


def test_a_mistake_is_one_line_and_status_2(forebay):
    result = forebay("config", "check", env={"FOREBAY_SERVER_PORT": "70000"})
    assert result.returncode == 2
    assert result.stderr.strip() == (
        "forebay: server.port is '70000', expected 0 to 65535 "
        "(from environment FOREBAY_SERVER_PORT)"
    )


def test_config_show_says_value_unit_source_and_hides_secrets(forebay):
    env = {"SGLANG_API_KEY": "sk-1", "SGLANG_MAX_TOKENS": "99", "REDIS_ADDR": "x:1"}
    found = json.loads(forebay("config", "show", "--json", env=env).stdout)
    assert found["settings"]["text.max_tokens"] == {
        "value": 99,
        "unit": "tokens",
        "source": "environment SGLANG_MAX_TOKENS",
    }
    assert found["settings"]["upstream.api_key"]["value"] == "********"
    assert "REDIS_ADDR" in found["no_effect"]
    shown = forebay("config", "show", env=env).stdout
    assert "sk-1" not in shown and "REDIS_ADDR (environment) has no effect" in shown


@pytest.mark.parametrize("which", ["nginx", "systemd", "caddy"])
def test_service_files_carry_the_configured_address(forebay, which):
    result = forebay("config", which, env={"FOREBAY_SERVER_PORT": "8765"})
    assert result.returncode == 0
    assert ("127.0.0.1:8765" in result.stdout) or (which == "systemd")
    if which == "systemd":
        assert "forebay" in result.stdout and "RestartPreventExitStatus=2 78" in result.stdout


def test_keys_are_made_listed_rotated_and_revoked(forebay):
    made = forebay("keys", "create", "laptop", "--scope", "read")
    key = made.stdout.strip()
    assert key.startswith("fb_") and key not in made.stderr
    (record,) = json.loads(forebay("keys", "list", "--json").stdout)
    assert record["scopes"] == ["read"] and record["name"] == "laptop"
    assert forebay("keys", "rotate", record["id"]).returncode == 0
    assert forebay("keys", "revoke", record["id"]).returncode == 0
    found = {r["id"]: r["revoked"] for r in json.loads(forebay("keys", "list", "--json").stdout)}
    assert found.pop(record["id"]) is True
    assert list(found.values()) == [False]
    path = Path("share/forebay/keys.json")
    assert path.stat().st_mode & 0o077 == 0 and key not in path.read_text()


def test_jobs_without_a_server_says_so(forebay):
    result = forebay("jobs", "list", "--url", "http://127.0.0.1:9")
    assert result.returncode == 1
    assert "is forebay serve running?" in result.stderr
    assert "Traceback" not in result.stderr


def test_doctor_names_what_is_missing_and_the_command(forebay, tmp_path):
    env = {"FOREBAY_MODELS": str(tmp_path / "none"), "FOREBAY_SPEECH_ENGINES": "synthetic",
           "FOREBAY_SERVER_PORT": "0"}  # fmt: skip
    result = forebay("doctor", "--json", env=env)
    assert result.returncode == 1
    failed = [f for f in json.loads(result.stdout) if f["state"] == "fail"]
    assert [f["name"] for f in failed] == ["text=llama", "image=waifu2x"]
    assert all(f["next"] for f in failed)


def test_doctor_finds_a_model_server_that_is_not_there(forebay):
    env = {"SGLANG_BASE_URL": "http://127.0.0.1:9", "FOREBAY_SPEECH_ENGINES": "synthetic"}
    result = forebay("doctor", "--json", env=env)
    failed = [f for f in json.loads(result.stdout) if f["state"] == "fail"]
    assert [f["name"] for f in failed] == ["text=openai health"]
    assert "HF_TOKEN" in failed[0]["next"]


def test_doctor_of_a_wrong_configuration_names_each_mistake(forebay):
    result = forebay("doctor", env={"LOG_LEVEL": "loud"})
    assert result.returncode == 1 and "log.level is 'loud'" in result.stdout


def test_models_list_says_where_weights_lie(forebay, tmp_path):
    env = {"FOREBAY_MODELS": str(tmp_path / "none")}
    found = json.loads(forebay("models", "list", "--json", env=env).stdout)
    assert found["folder"] == str(tmp_path / "none")
    names = {f"{e['kind']}={e['name']}" for e in found["engines"]}
    assert {"text=llama", "speech=voices", "text=openai"} <= names


def test_serve_refuses_what_this_build_has_not(forebay):
    result = forebay("serve", "--gateways", "2")
    assert result.returncode == 2 and "redis" in result.stderr


def test_doctor_says_what_to_lower_where_memory_is_short(tmp_path, monkeypatch):
    from forebay.choice import choose
    from forebay.commands import checks
    from forebay.config import load

    model = tmp_path / "big.gguf"
    model.touch()
    os.truncate(model, 50_000_000_000)  # sparse: takes no disk
    environ = {"FOREBAY_LLAMA_MODEL": str(model), "MAX_MODEL_LEN": "8192"}
    choice = choose(load(environ=environ, folder=tmp_path), tmp_path)[0]
    monkeypatch.setattr(checks, "available_bytes", lambda: 8_000_000_000)
    last = list(checks._local(choice, "text=llama", tmp_path))[-1]
    assert last.state == "fail"
    assert "text.context_tokens (8192)" in last.next and "llama.slots (2)" in last.next
