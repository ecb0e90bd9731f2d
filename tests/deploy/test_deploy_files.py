"""The files of deploy/ pass the validators of the programs they are for.

No container engine is needed: each file is read by its own program or its published schema.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from forebay.config.service_files import STOP_GRACE_S
from forebay.config.table import DRAIN_S
from forebay.gateway.endpoints import routes
from forebay.gateway.gate import Gate
from forebay.gateway.keys import KeyStore
from forebay.gateway.metrics import GatewayMetrics
from forebay.gateway.options import GatewayOptions

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
TOOLS = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "forebay" / "tools"


def tool(name: str) -> str:
    """The program, from the environment, the system, or what scripts/system.sh unpacked."""
    places = [Path(sys.executable).parent, *os.environ["PATH"].split(os.pathsep)]
    places += [TOOLS / "usr/bin", TOOLS / "usr/sbin", "/usr/sbin"]
    found = shutil.which(name, path=os.pathsep.join(map(str, places)))
    if found is None:
        if os.environ.get("CI"):
            pytest.fail(f"{name} is not here: run scripts/system.sh")
        pytest.skip(f"{name} is not here: run scripts/system.sh")
    return found


def passes(*words: str | Path, cwd: Path = ROOT) -> str:
    run = subprocess.run(
        [str(word) for word in words], cwd=cwd, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_the_container_file_follows_good_practice():
    passes(tool("hadolint"), DEPLOY / "container/Dockerfile")


def test_the_compose_file_is_one():
    passes(
        tool("check-jsonschema"),
        *("--builtin-schema", "vendor.compose-spec", DEPLOY / "compose/compose.yaml"),
    )


def test_every_variable_of_the_compose_file_is_in_the_example():
    text = (DEPLOY / "compose/compose.yaml").read_text()
    used = set(re.findall(r"(?<!\$)\$\{([A-Z_]+)", text)) - {"FOREBAY_VERSION", "SGLANG_TAG"}
    example = (DEPLOY / "compose/.env.example").read_text()
    given = set(re.findall(r"^([A-Z_]+)=", example, re.MULTILINE))
    assert used == given


def test_two_gateways_fifty_recognisers_and_a_gpu_profile():
    services = yaml.safe_load((DEPLOY / "compose/compose.yaml").read_text())["services"]
    assert {"gateway-a", "gateway-b", "nginx", "valkey", "postgres"} <= set(services)
    assert services["worker-recognition"]["deploy"]["replicas"] == "${RECOGNITION_WORKERS:-50}"
    model = services["sglang"]
    assert model["profiles"] == ["gpu"]
    assert "../../models:/models" in model["volumes"]
    assert int(model["healthcheck"]["start_period"].rstrip("s")) >= 600


def test_the_start_scripts_are_sound():
    passes("bash", "-n", ROOT / "scripts/up.sh")
    text = (ROOT / "scripts/up.ps1").read_text()
    assert text.count("{") == text.count("}") and text.count("(") == text.count(")")


DOCKER = """#!/bin/bash
# What scripts/up.sh asks of docker, done here: a container is this machine.
[ "$1" = compose ] && shift
while [ "$1" = --profile ]; do shift 2; done
case "$1" in
  run)
    while [ "$1" != gateway-a ]; do shift; done
    exec sh "${@:2}" ;;
  *) echo "$@" >> "$CALLS" ;;
esac
"""


def test_a_first_start_makes_two_keys_and_the_next_one_none(tmp_path):
    for name in ("scripts/up.sh", "deploy/compose/.env.example"):
        (tmp_path / name).parent.mkdir(parents=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "bin").mkdir()
    docker = tmp_path / "bin/docker"
    docker.write_text(DOCKER)
    docker.chmod(0o755)
    data = tmp_path / "data"
    data.mkdir()
    env = {
        "PATH": f"{tmp_path}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "CALLS": str(tmp_path / "calls"),
        "FOREBAY_SERVER_DATA_DIR": str(data),
        "FOREBAY_SERVER_KEYS_FILE": str(data / "keys.json"),
    }
    made = []
    for _ in range(2):
        run = subprocess.run(
            ["bash", str(tmp_path / "scripts/up.sh")],
            env=env, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert run.returncode == 0, run.stdout + run.stderr
        made.append(re.findall(r"fb_\w+", run.stdout))
    assert [len(keys) for keys in made] == [1, 0]
    store = KeyStore(data / "keys.json")
    assert len(store) == 2
    for key in (made[0][0], (data / "prometheus.key").read_text().strip()):
        found = store.find(key, now=time.time(), clock=0.0)
        assert found is not None and "admin" in found.scopes
    secrets = re.findall(
        r"^(\w+_PASSWORD)=(\w+)$", (tmp_path / "deploy/compose/.env").read_text(), re.M
    )
    assert len({secret for _, secret in secrets}) == 3
    assert (tmp_path / "calls").read_text().count("up -d") == 2


def test_both_start_scripts_do_the_same_in_the_container():
    said = {
        name: re.findall(r"ontainer '(.*)'", (ROOT / "scripts" / name).read_text())
        for name in ("up.sh", "up.ps1")
    }
    assert len(said["up.ps1"]) == 3
    assert [line.replace('"', "") for line in said["up.sh"]] == said["up.ps1"]


def test_hundreds_of_people_fit_through_one_proxy():
    compose = yaml.safe_load((DEPLOY / "compose/compose.yaml").read_text())
    chart = yaml.safe_load((DEPLOY / "helm/forebay/values.yaml").read_text())
    for said in (
        compose["x-forebay"]["environment"]["FOREBAY_SERVER_TRUSTED_PROXIES"],
        chart["gateway"]["trustedProxies"],
    ):
        gate = Gate(GatewayOptions(trusted_proxies=tuple(said.split(","))), GatewayMetrics())
        for address in ("172.18.0.4", "10.244.1.7"):
            assert all(gate.enter(address, 0.0, loopback=False) is None for _ in range(500))


def nginx_takes(body: str, folder: Path) -> None:
    conf = folder / "nginx.conf"
    conf.write_text(
        f"pid {folder}/pid; error_log {folder}/error.log; events {{}}\n"
        f"http {{ access_log off; client_body_temp_path {folder}; proxy_temp_path {folder};\n"
        f"fastcgi_temp_path {folder}; uwsgi_temp_path {folder}; scgi_temp_path {folder};\n"
        f"{body}\n}}\n"
    )
    passes(tool("nginx"), "-t", "-q", "-c", conf)


@pytest.mark.parametrize(
    "file", ["compose/nginx/forebay.conf", "proxy/nginx-gateways.conf", "nginx_streaming.conf"]
)
def test_nginx_takes_its_files(file, tmp_path):
    body = (DEPLOY / file).read_text()
    nginx_takes(re.sub(r"gateway-[ab]", "127.0.0.1", body), tmp_path)


def test_caddy_takes_its_file():
    passes(
        tool("caddy"),
        *("validate", "--adapter", "caddyfile", "--config", DEPLOY / "proxy/Caddyfile"),
    )


def test_prometheus_takes_its_rules(tmp_path):
    passes(tool("promtool"), "check", "rules", DEPLOY / "prometheus/alerts.yml")
    (tmp_path / "prometheus.key").write_text("key")
    text = (DEPLOY / "prometheus/prometheus.yml").read_text()
    (tmp_path / "prometheus.yml").write_text(text.replace("/forebay/", f"{tmp_path}/"))
    shutil.copy(DEPLOY / "prometheus/alerts.yml", tmp_path)
    passes(tool("promtool"), "check", "config", tmp_path / "prometheus.yml")


def test_every_metric_asked_for_exists():
    from forebay.gateway import metrics

    known = set(re.findall(r"(?:forebay|ws_gateway|process)_[a-z_]+", metrics.__doc__ or ""))
    known |= {"forebay_free_credits", "forebay_rtf", "forebay_connections_total"}
    texts = [(DEPLOY / "prometheus/alerts.yml").read_text()]
    texts += [path.read_text() for path in DEPLOY.glob("grafana/*.json")]
    texts += [path.read_text() for path in DEPLOY.glob("helm/examples/*.yaml")]
    asked = set(re.findall(r"\b(?:forebay|process)_[a-z_]+", "\n".join(texts)))
    asked = {re.sub(r"_(bucket|count|sum)$", "", name) for name in asked}
    assert asked - known == set()


def test_dashboards_have_panels_with_questions():
    for path in DEPLOY.glob("grafana/*.json"):
        board = json.loads(path.read_text())
        assert board["panels"] and board["uid"].startswith("forebay")
        assert all(target["expr"] for panel in board["panels"] for target in panel["targets"])
    assert "asr_chunk_queue" in (DEPLOY / "grafana/overview.json").read_text()


@pytest.mark.parametrize("unit", ["forebay.service", "forebay-worker@.service"])
def test_systemd_takes_its_units(unit, tmp_path):
    verify = tool("systemd-analyze")
    for path in DEPLOY.glob("systemd/*"):
        shutil.copy(path, tmp_path)
    name = unit.replace("@.", "@recognition-1.")
    if name != unit:
        shutil.copy(DEPLOY / "systemd" / unit, tmp_path / name)
    run = subprocess.run(
        [verify, "verify", "--man=no", str(tmp_path / name)],
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | {"SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
    )
    ours = [line for line in run.stderr.splitlines() if "forebay" in line]
    assert run.returncode == 0 and not ours, run.stderr


CHART = DEPLOY / "helm/forebay"
STOP_S = int(DRAIN_S.default) + STOP_GRACE_S
PROXIES = ("compose/nginx/forebay.conf", "proxy/nginx-gateways.conf", "nginx_streaming.conf")


def chart(*changes: str) -> list[dict[str, Any]]:
    """What the chart makes with ``changes``."""
    words = [word for change in changes for word in ("--set", change)]
    made = passes(tool("helm"), "template", "forebay", CHART, *words)
    return [item for item in yaml.safe_load_all(made) if item]


def test_whatever_stops_forebay_gives_it_the_same_time():
    composed = yaml.safe_load((DEPLOY / "compose/compose.yaml").read_text())
    ours = {name: s for name, s in composed["services"].items() if "forebay" in s.get("image", "")}
    assert len(ours) >= 4
    assert {service["stop_grace_period"] for service in ours.values()} == {f"{STOP_S}s"}
    for unit in DEPLOY.glob("systemd/*.service"):
        assert f"\nTimeoutStopSec={STOP_S}\n" in unit.read_text(), unit.name
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert values["gateway"]["drainSeconds"] == DRAIN_S.default
    assert values["stopGraceSeconds"] == STOP_GRACE_S


@pytest.mark.parametrize("drain_s", [30, 300])
def test_a_pods_time_to_stop_follows_its_drain(drain_s):
    pods = [
        item for item in chart(f"gateway.drainSeconds={drain_s}") if item["kind"] == "Deployment"
    ]
    times = {pod["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] for pod in pods}
    assert len(pods) == 5 and times == {drain_s + STOP_GRACE_S}
    (gateway,) = [pod for pod in pods if pod["metadata"]["name"].endswith("-gateway")]
    env = gateway["spec"]["template"]["spec"]["containers"][0]["env"]
    assert {"name": "FOREBAY_SERVER_DRAIN_S", "value": str(drain_s)} in env


def test_no_proxy_refuses_what_forebay_takes_nor_cuts_what_it_streams():
    """A path's own limit is up to 1 GiB (a batch of photos); a proxy with one number for all
    would refuse what is allowed or allow what is refused."""
    assert max(route.body_bytes or 0 for route in routes()) > 1000 * 1024 * 1024
    for file in PROXIES:
        text = (DEPLOY / file).read_text()
        assert set(re.findall(r"client_max_body_size (\S+);", text)) == {"0"}, file
        assert set(re.findall(r"proxy_(?:read|send)_timeout (\S+);", text)) == {"3600s"}, file
        assert set(re.findall(r"proxy_(?:request_)?buffering (\S+);", text)) == {"off"}, file
    assert "max_size" not in (DEPLOY / "proxy/Caddyfile").read_text()
    (ingress,) = [item for item in chart("ingress.enabled=true") if item["kind"] == "Ingress"]
    notes = {k.rpartition("/")[2]: v for k, v in ingress["metadata"]["annotations"].items()}
    assert notes["proxy-body-size"] == "0"
    assert notes["proxy-read-timeout"] == notes["proxy-send-timeout"] == "3600"
    assert notes["proxy-buffering"] == notes["proxy-request-buffering"] == "off"


def test_the_chart_is_sound():
    passes(tool("helm"), "lint", "--strict", CHART)


@pytest.mark.parametrize(
    "changes",
    [
        (),
        ("ingress.enabled=true", "ingress.tlsSecretName=tls", "history.secretName=db"),
        ("gateway.autoscaling.enabled=false", "gateway.compat=all", "blobs.claimName=blobs"),
    ],
)
def test_kubernetes_takes_what_the_chart_makes(changes, tmp_path):
    words = [word for change in changes for word in ("--set", change)]
    made = passes(tool("helm"), "template", "forebay", CHART, *words)
    (tmp_path / "all.yaml").write_text(made)
    passes(tool("kubernetes-validate"), "--strict", tmp_path / "all.yaml")
    objects = [item for item in yaml.safe_load_all(made) if item]
    kinds = [item["kind"] for item in objects]
    assert kinds.count("Deployment") == 5
    scalers = [item for item in objects if item["kind"] == "HorizontalPodAutoscaler"]
    names = [m["external"]["metric"]["name"] for s in scalers for m in s["spec"]["metrics"]
             if m["type"] == "External"]  # fmt: skip
    assert names == ["forebay_needed_workers"]
