"""What `forebay config nginx|systemd|caddy` prints works as it is printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_deploy_files import DEPLOY, nginx_takes, passes, tool

from forebay.config import service_files
from forebay.supervisor import KILL_WAIT_S, STORE_STOP_S, WORKER_DRAIN_S

DEFAULTS = service_files.Facts(
    host="127.0.0.1",
    port=8600,
    program=sys.executable,
    folder="/tmp",
    data_dir="/tmp",
    user="root",
    drain_s=30.0,
)


def printed(which: str, **env: str) -> str:
    run = subprocess.run(
        [sys.executable, "-m", "forebay", "config", which],
        env={k: v for k, v in os.environ.items() if not k.startswith("FOREBAY")} | env,
        capture_output=True,
        text=True,
        timeout=240,
        cwd="/",
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_the_nginx_file_in_the_repository_is_what_the_command_prints(tmp_path):
    kept = (DEPLOY / "nginx_streaming.conf").read_text()
    assert kept == printed("nginx") == service_files.render("nginx", DEFAULTS)
    nginx_takes(kept, tmp_path)
    ports = re.findall(r"^    listen (\d+);", kept, re.MULTILINE)
    assert ports == ["80", "18600"]
    for needed in ("proxy_buffering off", "gzip off", "proxy_http_version 1.1", "_timeout 3600s"):
        assert kept.count(needed) >= len(ports)


@pytest.mark.parametrize(
    ("host", "address"),
    [("0.0.0.0", "127.0.0.1:8765"), ("::", "[::1]:8765"), ("192.0.2.4", "192.0.2.4:8765")],
)
def test_a_proxy_asks_where_the_server_listens(host, address, tmp_path):
    env = {"FOREBAY_SERVER_HOST": host, "FOREBAY_SERVER_PORT": "8765"}
    text = printed("nginx", **env)
    assert f"server {address};" in text
    nginx_takes(text, tmp_path)
    assert printed("caddy", **env).count(f"reverse_proxy {address} ") == 2


def test_caddy_takes_what_is_printed(tmp_path):
    file = tmp_path / "Caddyfile"
    file.write_text(printed("caddy"))
    passes(tool("caddy"), "validate", "--adapter", "caddyfile", "--config", file)


def test_systemd_takes_what_is_printed(tmp_path):
    text = printed("systemd")
    facts = dict(line.split("=", 1) for line in text.splitlines() if re.match(r"\w+=", line))
    assert "network.target" in facts["After"].split()
    assert facts["Environment"] == "PYTHONUNBUFFERED=1"
    assert (facts["Restart"], facts["RestartSec"]) == ("always", "3")
    assert int(facts["LimitNOFILE"]) >= 65536
    assert facts["User"] and facts["WorkingDirectory"] == "/"
    unit = tmp_path / "forebay.service"
    unit.write_text(text)
    run = subprocess.run(
        [tool("systemd-analyze"), "verify", "--man=no", unit],
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | {"SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
    )
    ours = [line for line in run.stderr.splitlines() if "forebay" in line]
    assert run.returncode == 0 and not ours, run.stderr


def test_a_stop_has_the_time_that_draining_takes():
    from forebay.commands.serve import GATEWAY_GRACE_S

    after_drain = GATEWAY_GRACE_S + WORKER_DRAIN_S + STORE_STOP_S + KILL_WAIT_S
    assert after_drain <= service_files.STOP_GRACE_S
    text = service_files.render("systemd", DEFAULTS)
    assert f"TimeoutStopSec={30 + service_files.STOP_GRACE_S}" in text
    kept = (Path(DEPLOY) / "systemd/forebay.service").read_text()
    assert f"TimeoutStopSec={30 + service_files.STOP_GRACE_S}" in kept


def test_a_path_with_a_percent_sign_is_no_specifier():
    from dataclasses import replace

    text = service_files.render("systemd", replace(DEFAULTS, data_dir="/srv/50%"))
    assert '--data-dir "/srv/50%%"' in text
