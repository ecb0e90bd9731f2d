"""Settings: where a value comes from, and what is said about a wrong one."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from forebay.config import BY_NAME, NO_EFFECT, SETTINGS, load, reference, rows, table
from forebay.config.load import read_dotenv
from forebay.core.kinds import KINDS, Kind
from forebay.errors import ConfigError
from forebay.gateway.options import GatewayOptions


def settle(tmp_path: Path, environ: dict[str, str] | None = None, **flags: object):
    named = {name.replace("__", "."): value for name, value in flags.items()}
    return load(environ=environ or {}, folder=tmp_path, flags=named)


def test_without_anything_every_value_is_its_default(tmp_path):
    config = settle(tmp_path)
    assert all(config[s] == s.default and not config.is_set(s) for s in SETTINGS)


def test_each_layer_wins_over_the_one_before(tmp_path):
    (tmp_path / "forebay.toml").write_text("[server]\nport = 1\n[log]\nlevel='debug'\n")
    assert settle(tmp_path)[table.PORT] == 1
    (tmp_path / ".env").write_text("FOREBAY_SERVER_PORT=2\n")
    assert settle(tmp_path)[table.PORT] == 2
    environ = {"FOREBAY_SERVER_PORT": "3"}
    assert settle(tmp_path, environ)[table.PORT] == 3
    config = settle(tmp_path, environ, server__port=4)
    assert config[table.PORT] == 4
    assert config.source(table.PORT) == "command line --port"
    assert config.source(table.LOG_LEVEL) == f"file {tmp_path / 'forebay.toml'}"


def test_the_environment_wins_over_dotenv_even_under_another_name(tmp_path):
    (tmp_path / ".env").write_text("FOREBAY_TEXT_MAX_TOKENS=1\n")
    config = settle(tmp_path, {"SGLANG_MAX_TOKENS": "2"})
    assert config[table.MAX_TOKENS] == 2
    assert config.source(table.MAX_TOKENS) == "environment SGLANG_MAX_TOKENS"


def test_our_own_name_wins_over_an_originals_name_in_the_same_place(tmp_path):
    config = settle(tmp_path, {"SGLANG_MAX_TOKENS": "2", "FOREBAY_TEXT_MAX_TOKENS": "3"})
    assert config[table.MAX_TOKENS] == 3


def test_an_empty_environment_value_means_unset(tmp_path):
    assert not settle(tmp_path, {"SGLANG_TOP_P": ""}).is_set(table.TOP_P)


@pytest.mark.parametrize(
    ("name", "text", "setting", "value"),
    [
        ("WS_TTS_ENGINE", "dummy", "speech.engines", ["synthetic"]),
        ("WS_TTS_ENGINE", "piper", "speech.engines", ["piper"]),
        ("WS_TTS_PORT", "9001", "compat.tts_port", 9001),
        ("SGLANG_BASE_URL", "http://x:1", "upstream.base_url", "http://x:1"),
        ("OPENAI_API_BASE", "http://x:1/v1", "upstream.base_url", "http://x:1/v1"),
        ("BASE_URL", "http://x:1/v1", "upstream.base_url", "http://x:1/v1"),
        ("OPENAI_API_KEY", "secret", "upstream.api_key", "secret"),
        ("SGLANG_ALLOW_AUTO_TRUNCATE", "True", "text.allow_auto_truncate", True),
        ("SGLANG_MAX_TOTAL_TOKENS", "4096", "text.max_total_tokens", 4096),
        ("MAX_MODEL_LEN", "1024", "text.context_tokens", 1024),
        ("TTS_FLUSH_ON_PUNCT", "false", "chat.tts_flush_on_punct", False),
        ("ORCH_API_KEY", "k", "compat.chat_api_key", "k"),
        ("LOG_LEVEL", "WARN", "log.level", "warning"),
        ("MAX_CONNECTIONS", "500", "recognition.max_connections", 500),
        ("MIN_WORKERS", "0", "recognition.min_workers", 0),
        ("MAX_AUDIO_FILES_PER_USER", "3", "history.recordings", 3),
        ("DB_HOST", "db", "history.db_host", "db"),
        ("AUTO_CREATE_DB", "true", "history.create_database", True),
        ("ASR_BACKEND_PORT", "9999", "compat.voice_port", 9999),
    ],
)
def test_names_of_the_originals_take_effect(tmp_path, name, text, setting, value):
    assert settle(tmp_path, {name: text})[BY_NAME[setting]] == value


def test_names_without_effect_are_reported_with_the_reason(tmp_path):
    ignored = settle(tmp_path, {"REDIS_ADDR": "x:1", "FUNASR_ADDR": "y"}).ignored
    assert {i.name for i in ignored} == {"REDIS_ADDR", "FUNASR_ADDR"}
    assert all(i.reason and not i.wrong for i in ignored)


def test_a_misspelt_name_of_our_own_is_pointed_at(tmp_path):
    (item,) = settle(tmp_path, {"FOREBAY_SERVER_PROT": "1"}).ignored
    assert item.wrong and "FOREBAY_SERVER_PORT" in item.reason


def test_an_error_names_setting_value_range_and_source(tmp_path):
    with pytest.raises(ConfigError) as caught:
        settle(tmp_path, {"FOREBAY_SERVER_PORT": "70000"})
    assert caught.value.message == (
        "server.port is '70000', expected 0 to 65535 (from environment FOREBAY_SERVER_PORT)"
    )


def test_every_mistake_is_reported_at_once(tmp_path):
    (tmp_path / "forebay.toml").write_text("[server]\nprot = 1\nport = 'x'\n[log]\nlevel='loud'\n")
    with pytest.raises(ConfigError) as caught:
        settle(tmp_path, {"SGLANG_TOP_P": "nan"})
    assert len(caught.value.details["problems"]) == 4
    assert "did you mean server.port" in caught.value.message


def test_a_secret_is_neither_shown_nor_in_an_error():
    assert table.UPSTREAM_KEY.show("sk-1") == "********"
    with pytest.raises(ConfigError) as caught:
        table.UPSTREAM_KEY.parse(["sk-1"])
    assert "sk-1" not in caught.value.message


@pytest.mark.parametrize("text", ["true", "1", "YES", "on"])
def test_yes_has_several_words(text):
    assert table.INSECURE_NO_AUTH.parse(text) is True


@pytest.mark.parametrize(
    ("setting", "raw"),
    [
        (table.PORT, "1.5"),
        (table.PORT, True),
        (table.DRAIN_S, "soon"),
        (table.INSECURE_NO_AUTH, "maybe"),
        (table.HOST, ["a"]),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(setting, raw):
    with pytest.raises(ConfigError):
        setting.parse(raw)


def test_a_list_of_engines_keeps_their_options_together():
    setting = table.SPEECH_ENGINES
    assert setting.parse("synthetic:rtf=0.1,slots=2") == ["synthetic:rtf=0.1,slots=2"]
    assert setting.parse("voices piper:model=x") == ["voices", "piper:model=x"]
    assert table.COMPAT.parse("tts,chat") == ["tts", "chat"]


def test_dotenv_is_read_as_shells_write_it():
    text = "# c\nexport A=1\nB=\"x # y\"\nC='z'\nD=v # c\n\nnonsense\nE=\n"
    assert read_dotenv(text) == {"A": "1", "B": "x # y", "C": "z", "D": "v", "E": ""}


def test_a_named_file_must_exist(tmp_path):
    with pytest.raises(ConfigError):
        load(environ={}, folder=tmp_path, file=tmp_path / "none.toml")


def test_rows_carry_the_operators_numbers(tmp_path):
    altered = rows(settle(tmp_path, {"FOREBAY_SPEECH_TTL_S": "7"}))
    speech = altered[Kind.SPEECH]
    assert (speech.window_s, speech.after_end_s, speech.detach_s) == (7, 7, 7)
    assert rows(settle(tmp_path)) == KINDS


def test_every_limit_is_a_field_of_the_gateways_options():
    options = GatewayOptions()
    assert all(getattr(options, s.key) == s.default for s in table.LIMITS)


def test_every_setting_is_used_somewhere():
    """A setting nobody reads would be a promise that does not run."""
    package = Path(table.__file__).parent.parent
    text = "".join(
        p.read_text(encoding="utf-8") for p in package.rglob("*.py") if p != Path(table.__file__)
    )
    names = {
        id(v): f"{part.__name__.rpartition('.')[2]}.{k}"
        for part in (table, *table.PARTS)
        for k, v in vars(part).items()
        if k.isupper() and k != "SETTINGS"
    }
    limits = set(map(id, table.LIMITS))
    unused = [s.name for s in SETTINGS if id(s) not in limits and names[id(s)] not in text]
    assert unused == []


def test_a_name_has_either_an_effect_or_a_reason():
    taken = [n for s in SETTINGS for n in s.env_names]
    assert len(taken) == len(set(taken))
    assert not set(taken) & set(NO_EFFECT)


def test_the_example_files_are_valid_and_change_nothing(tmp_path):
    toml = reference.example_toml()
    assert set(tomllib.loads(toml)) == set(table.SECTIONS)
    lines = toml.splitlines()
    spoken = [
        line.removeprefix("# ") if " = " in line and line.startswith("# ") else line
        for line in lines
    ]
    keys = {s.key for s in SETTINGS}
    kept = [ln for ln in spoken if ln.startswith(("[", "#")) or ln.split(" = ")[0] in keys]
    (tmp_path / "forebay.toml").write_text("\n".join(kept))
    config = settle(tmp_path)
    assert all(config[s] == s.default for s in SETTINGS)
    env = [ln.removeprefix("# ") for ln in reference.example_env().splitlines()]
    (tmp_path / ".env").write_text("\n".join(ln for ln in env if ln.startswith("FOREBAY_")))
    config = settle(tmp_path)
    assert all(config[s] == s.default for s in SETTINGS)


def test_the_reference_page_names_every_setting_and_alias():
    page = reference.markdown()
    for setting in SETTINGS:
        assert f"`{setting.name}`" in page
        assert all(f"`{alias.name}`" in page for alias in setting.aliases)


def test_every_setting_stands_on_the_page():
    assert {setting.section for setting in table.SETTINGS} == set(table.SECTIONS)
