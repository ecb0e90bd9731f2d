"""What `forebay serve` composes from settings, and what it refuses."""

from __future__ import annotations

import json
import os
import resource
import socket
from pathlib import Path

import pytest

from forebay.choice import choose, parse_engine
from forebay.commands.serve import flags
from forebay.config import load
from forebay.core.kinds import Kind
from forebay.errors import CannotBoot, ConfigError
from forebay.serve import OPEN_FILES, compose, raise_open_files

KINDS = ("text", "speech", "recognition", "image")
SYNTHETIC = {f"{kind}.engines": ["synthetic"] for kind in KINDS} | {
    "server.port": 0,
    "workers.kernel": 0,
}


def settle(tmp_path: Path, environ: dict[str, str] | None = None, **more: object):
    named = SYNTHETIC | {name.replace("__", "."): value for name, value in more.items()}
    return load(environ=environ or {}, folder=tmp_path, flags=named)


@pytest.fixture
def composed(tmp_path):
    plans = []

    def make(environ=None, **more):
        plan = compose(settle(tmp_path, environ, **more), data_dir=tmp_path)
        plans.append(plan)
        return plan

    yield make
    for plan in plans:
        plan.close()


def test_one_gateway_and_a_worker_with_a_spare_for_each_kind(composed):
    plan = composed()
    assert [s.name for s in plan.specs] == [
        "gateway",
        "text/synthetic-1",
        "text/synthetic-spare",
        "speech/synthetic-1",
        "speech/synthetic-spare",
        "recognition/synthetic-1",
        "recognition/synthetic-spare",
        "image/synthetic-1",
        "image/synthetic-spare",
    ]
    assert [s.spare for s in plan.specs] == [False, *([False, True] * 4)]


def test_the_gateway_is_told_its_sockets_and_pools(composed):
    plan = composed()
    spec = json.loads((plan.run_dir / "gateway.json").read_text())
    assert spec["sockets"] == [[plan.sockets[0].fileno(), "main"]]
    assert spec["expected"] == [f"{kind}/synthetic" for kind in KINDS]
    assert plan.specs[0].pass_fds == (plan.sockets[0].fileno(),)
    port = plan.sockets[0].getsockname()[1]
    assert plan.facts.url == f"http://127.0.0.1:{port}/"


def test_several_workers_and_engines_of_one_kind(composed):
    plan = composed(
        workers__speech=2, speech__engines=["synthetic:rtf=0.5", "piper"], workers__spares="never"
    )
    names = [s.name for s in plan.specs if s.group.startswith("speech")]
    assert names == ["speech/synthetic-1", "speech/synthetic-2"]
    argv = plan.specs[2].argv
    assert argv[argv.index("--engine") + 1] == "synthetic:rtf=0.5"


def test_an_engine_that_lacks_something_is_named_with_the_command(composed, tmp_path):
    plan = composed(speech__engines=["piper"], server__models_dir=tmp_path)
    assert not any(s.group == "speech/piper" for s in plan.specs)
    ((what, command),) = plan.facts.lacks
    assert "piper" in what and "pip install" in command


def test_altered_rows_reach_workers_as_a_file(composed):
    plan = composed({"FOREBAY_SPEECH_PACE_S": "9"})
    worker = next(s for s in plan.specs if s.group == "speech/synthetic")
    path = Path(worker.argv[worker.argv.index("--row-file") + 1])
    assert json.loads(path.read_text())["pace_s"] == 9


def test_public_model_names_reach_the_gateway(composed):
    plan = composed()
    told = json.loads((plan.run_dir / "gateway.json").read_text())["model_aliases"]
    assert told["tts-1"] == "speech" and told["whisper-1"] == "recognition"


def test_a_name_may_mean_a_model_of_the_operators_choice(composed):
    plan = composed({"FOREBAY_SERVER_MODEL_ALIASES": "gpt-4o=text, say=speech/synthetic"})
    told = json.loads((plan.run_dir / "gateway.json").read_text())["model_aliases"]
    assert told == {"gpt-4o": "text", "say": "speech/synthetic"}


def test_a_name_that_means_no_kind_is_refused(composed):
    with pytest.raises(ConfigError, match="'gpt-4o=texts', expected NAME=KIND"):
        composed(server__model_aliases=["gpt-4o=texts"])


def test_a_key_of_an_upstream_is_never_on_a_command_line(composed):
    plan = composed(
        {"SGLANG_API_KEY": "sk-secret", "SGLANG_BASE_URL": "http://127.0.0.1:9"},
        text__engines=["openai"],
    )
    words = " ".join(w for s in plan.specs for w in s.argv)
    assert "sk-secret" not in words
    (path,) = plan.run_dir.glob("api_key-*")
    assert path.read_text() == "sk-secret" and path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("name", ["SGLANG_BASE_URL", "OPENAI_BASE_URL"])
def test_an_upstream_address_chooses_the_openai_engine(tmp_path, name):
    config = load(environ={name: "http://127.0.0.1:9"}, folder=tmp_path)
    first = choose(config, tmp_path)[0]
    assert (first.kind, first.name) == (Kind.TEXT, "openai")
    assert first.why == f"environment {name}"
    assert first.options["base_url"] == "http://127.0.0.1:9"


def test_settings_of_text_reach_the_engine_that_declares_them(tmp_path):
    environ = {"SGLANG_BASE_URL": "http://x:1", "SGLANG_TOP_P": "0.5", "MAX_MODEL_LEN": "4096",
               "SGLANG_ALLOW_AUTO_TRUNCATE": "true"}  # fmt: skip
    options = choose(load(environ=environ, folder=tmp_path), tmp_path)[0].options
    assert options["top_p"] == "0.5"
    assert options["context"] == "4096"
    assert options["allow_auto_truncate"] == "true"
    assert "temperature" not in options


def test_several_gateways_are_refused_and_redis_is_named(composed):
    with pytest.raises(ConfigError, match="redis"):
        composed(server__gateways=2)


def test_around_a_shared_broker_only_what_is_asked_for_is_started(composed, tmp_path):
    named = {"server.port": 0, "server.broker": "redis://:pw@127.0.0.1/1", "server.gateways": 2}
    plan = compose(load(environ={}, folder=tmp_path, flags=named), data_dir=tmp_path)
    try:
        assert [s.name for s in plan.specs] == ["gateway-1", "gateway-2", "gateway-spare"]
        assert list(plan.facts.gateways) == ["gateway-1", "gateway-2"]
        assert all(s.overlaps and s.role == "gateway" for s in plan.specs)
        assert len({s.pass_fds for s in plan.specs}) == 1, "they share their sockets"
        told = json.loads((plan.run_dir / "gateway.json").read_text())
        assert told["broker_url"].startswith("redis://:pw@127.0.0.1/1?")
        assert "pw" not in " ".join(plan.facts.notes)
        assert "on any machine" in plan.facts.notes[-1]
    finally:
        plan.close()


def test_workers_of_a_shared_broker_are_told_where_it_is_but_not_on_their_command_line(composed):
    plan = composed(server__broker="redis://:pass-word@127.0.0.1", workers__spares="never")
    workers = [s for s in plan.specs if s.role == "worker"]
    assert len(workers) == len(KINDS)
    for worker in workers:
        assert worker.env["FOREBAY_SERVER_BROKER"].startswith("redis://:pass-word@127.0.0.1?")
        assert "pass-word" not in " ".join(worker.argv)


def test_a_private_store_starts_before_everybody_and_is_named_nowhere(composed):
    plan = composed(server__broker="redis")
    assert plan.specs[0].role == "store"
    assert plan.store.private
    shown = " ".join(" ".join(s.argv) for s in plan.specs) + " ".join(plan.facts.notes)
    assert plan.store.url not in shown


def test_a_limit_of_files_that_is_too_low_is_said(composed):
    plan = composed(limits__max_connections=1_000_000)
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert any(f"may open {soft} files" in note for note in plan.facts.notes) == (soft < 1_000_064)


def test_the_limit_of_files_is_raised_to_the_hard_limit():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, hard), hard))
        assert raise_open_files() == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        assert raise_open_files() in (hard, OPEN_FILES)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_taken_port_stops_the_start_with_its_owner(composed):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(CannotBoot, match=str(os.getpid())):
            composed(server__port=taken.getsockname()[1])


def test_compat_ports_open_by_name_and_all_leaves_out_what_is_taken(composed):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        busy = taken.getsockname()[1]
        environ = {"WS_TTS_PORT": str(busy), "ORCH_PORT": "0"}
        with pytest.raises(CannotBoot):
            composed(environ, compat__ports=["tts"])
        plan = composed(environ, compat__ports=["chat"])
        assert [name for name, _, _ in plan.facts.ports] == ["chat"]


def test_other_addresses_than_loopback_need_keys(composed):
    with pytest.raises(CannotBoot, match="key"):
        composed(server__host="0.0.0.0")


def test_two_servers_may_not_share_a_data_folder(composed):
    composed()
    with pytest.raises(CannotBoot, match=str(os.getpid())):
        composed()


def test_what_was_opened_is_closed_when_composing_fails(composed, tmp_path):
    for _ in range(2):  # a lock that was left behind would change the second error
        with pytest.raises(CannotBoot, match="key"):
            composed(server__host="0.0.0.0")


def test_an_engines_options_may_hold_commas_and_colons():
    name, options = parse_engine(Kind.TEXT, "openai:base_url=http://a:1,model=x,api_key=z,1")
    assert name == "openai"
    assert options == {"base_url": "http://a:1", "model": "x", "api_key": "z,1"}


@pytest.mark.parametrize("text", ["nothing", "synthetic:slots"])
def test_a_malformed_engine_is_refused(text):
    with pytest.raises(ConfigError):
        parse_engine(Kind.SPEECH, text)


@pytest.mark.parametrize("text", ["speech", "speech=", "video=x"])
def test_a_malformed_engine_flag_is_refused(text):
    none = dict.fromkeys(
        ["host", "port", "compat", "data_dir", "gateways", "broker", "insecure_no_auth"]
    )
    with pytest.raises(ConfigError):
        flags(**none, engines=[text], workers=[])
