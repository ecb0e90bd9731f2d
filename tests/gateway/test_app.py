"""Routes, errors, health, metrics and the console's files, without a network."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from asgi_calls import LOADING, READY, Pools, application, call, context
from prometheus_client.parser import text_string_to_metric_families

from forebay.errors import QueueFull
from forebay.gateway.endpoints import routes
from forebay.gateway.keys import SCOPES
from forebay.gateway.options import GatewayOptions
from forebay.gateway.personality import PERSONALITIES
from forebay.gateway.responses import Receive, Scope, Send, reply
from forebay.gateway.routes import Route, Router

S1_HEALTH = {
    "status", "engine", "engine_resolved", "version", "started_at", "uptime_s", "piper_root",
    "piper_binary_exists", "piper_model_exists", "model_sample_rate", "default_model_name",
}  # fmt: skip


def route(handler: Any, **facts: Any) -> Route:
    base = {"method": "POST", "path": "/work", "needs": "submit", **facts}
    return Route(handler=handler, **base)


async def ok(scope: Scope, receive: Receive, send: Send, ctx: Any) -> None:
    size, more = 0, True
    while more:
        message = await receive()
        size += len(message["body"])
        more = message["more_body"]
    await reply(send, 200, str(size).encode())


# ---------------------------------------------------------------------------- errors


async def test_unknown_paths_and_methods_are_json_errors_with_an_id() -> None:
    app = application(context())
    missing = await call(app, "/nope")
    assert missing.status == 404
    assert missing.json["error"]["code"] == "not_found"
    assert missing.json["error"]["request_id"] == missing.headers["x-request-id"]
    wrong = await call(app, "/v1/models", method="DELETE")
    assert (wrong.status, wrong.headers["allow"]) == (405, "GET")
    assert (await call(app, "/tts")).status == 426
    assert (await call(app, "/healthz", method="WEBSOCKET")).status == 404


async def test_unknown_paths_of_an_originals_port_are_in_its_own_words() -> None:
    app = application(context())
    words = {"api": "detail", "api-alt": "detail", "notebook": "detail", "captions": "error"}
    for name, word in words.items():
        missing = await call(app, "/nope", personality=PERSONALITIES[name])
        assert (missing.status, missing.json[word]) == (404, "nothing is served at this path")
        wrong = await call(app, "/healthz", method="PUT", personality=PERSONALITIES[name])
        assert (wrong.status, wrong.json[word]) == (405, "method PUT is not one of GET")


async def test_a_refusal_keeps_its_words_and_its_retry_after() -> None:
    async def full(*_: Any) -> None:
        raise QueueFull("the queue holds 10, expected fewer than 10", retry_after_s=7, depth=10)

    answer = await call(application(context(), [route(full)]), "/work", method="POST")
    assert answer.status == 503
    assert 5 <= int(answer.headers["retry-after"]) <= 9
    error = answer.json["error"]
    assert (error["code"], error["retry_after_s"], error["details"]) == (
        "queue_full",
        7,
        {"depth": 10},
    )


async def test_a_bug_is_a_500_without_a_word_of_what_was_sent(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def crash(scope: Scope, receive: Receive, send: Send, ctx: Any) -> None:
        raise LookupError((await receive())["body"].decode())

    app = application(context(), [route(crash)])
    answer = await call(app, "/work", method="POST", body=b"PRIVATE words")
    assert answer.status == 500
    logged = "".join(capsys.readouterr())
    assert b"PRIVATE" not in answer.body and "PRIVATE" not in logged
    assert b"Traceback" not in answer.body and "Traceback" not in logged
    assert "LookupError" in logged and answer.json["error"]["request_id"] in logged


async def test_a_crash_after_the_answer_began_does_not_end_it_politely() -> None:
    async def half(scope: Scope, receive: Receive, send: Send, ctx: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise QueueFull("too late")

    with pytest.raises(QueueFull):  # a stock server breaks the connection off
        await call(application(context(), [route(half)]), "/work", method="POST")


async def test_bodies_over_the_limit_are_refused_by_length_and_by_count() -> None:
    app = application(context(GatewayOptions(body_bytes=10)), [route(ok)])
    assert (await call(app, "/work", method="POST", body=b"x" * 10)).body == b"10"
    said = {"content-length": "11"}
    assert (await call(app, "/work", method="POST", headers=said)).status == 413
    assert (await call(app, "/work", method="POST", body=b"x" * 11)).status == 413
    wide = application(context(), [route(ok, body_bytes=20)])
    assert (await call(wide, "/work", method="POST", body=b"x" * 20)).body == b"20"
    assert (await call(wide, "/work", method="POST", body=b"x" * 21)).status == 413


async def test_while_draining_work_is_refused_and_health_goes_on() -> None:
    ctx = context()
    app = application(ctx, [*routes(), route(ok, works=True)])
    ctx.draining = ctx.refusing = True
    for method, path in (("POST", "/work"), ("WEBSOCKET", "/tts"), ("WEBSOCKET", "/chat")):
        answer = await call(app, path, method=method)
        assert (answer.status, answer.json["error"]["code"]) == (503, "draining")
        assert "retry-after" in answer.headers
    assert (await call(app, "/healthz")).status == 200
    assert (await call(app, "/readyz")).status == 503


async def test_requests_are_counted_by_pattern_not_by_path() -> None:
    ctx = context()
    app = application(ctx)
    for path in ("/healthz", "/static/console.js", "/static/nope.js", "/x1", "/x2"):
        await call(app, path)
    assert ctx.metrics.requests == {
        ("/healthz", 200): 1,
        ("/static/{name:path}", 200): 1,
        ("/static/{name:path}", 404): 1,
        ("none", 404): 2,
    }


async def test_lifespan_is_answered() -> None:
    said: list[str] = []
    asked = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]

    async def receive() -> Any:
        return asked.pop(0)

    async def send(message: Any) -> None:
        said.append(message["type"])

    await application(context())({"type": "lifespan"}, receive, send)
    assert said == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


def test_exact_paths_win_and_variables_hold_what_they_matched() -> None:
    table = [
        route(ok, path="/v1/models/{model:path}", method="GET"),
        route(ok, path="/v1/models/special", method="GET", needs="admin"),
        route(ok, path="/jobs/{id}/cancel"),
    ]
    router = Router(table)
    assert router.find("GET", "/v1/models/special", "main")[0].needs == "admin"
    assert router.find("GET", "/v1/models/a/b", "main")[1] == {"model": "a/b"}
    assert router.find("HEAD", "/v1/models/a", "main")[1] == {"model": "a"}
    assert router.find("POST", "/jobs/7/cancel", "main")[1] == {"id": "7"}
    assert len(list(router)) == 3


# ---------------------------------------------------------------------------- health


async def test_healthz_has_the_original_fields_and_is_live_while_loading() -> None:
    app = application(context(pools=Pools([LOADING])))
    for path in ("/healthz", "/tts/healthz"):
        answer = await call(app, path)
        assert answer.status == 200
        assert S1_HEALTH <= answer.json.keys()
        assert answer.json["status"] == "ok"
        assert answer.json["model_sample_rate"] is None
        assert answer.json["synthetic"] is True
    answer = await call(application(context()), "/tts/healthz")
    assert answer.json["model_sample_rate"] == 22050
    assert answer.json["default_model_name"] == "tone"
    assert (await call(application(context(pools=Pools([]))), "/healthz")).status == 200


async def test_the_orchestrators_health_is_its_one_field() -> None:
    app = application(context())
    assert (await call(app, "/orch/healthz")).json == {"status": "ok"}
    chat = PERSONALITIES["chat"]
    assert (await call(app, "/healthz", personality=chat)).json == {"status": "ok"}


async def test_readyz_names_the_stage_until_every_pool_is_ready() -> None:
    pools = Pools([LOADING])
    ctx = context(pools=pools, expected=("speech/tone", "text/words"))
    app = application(ctx)
    answer = await call(app, "/readyz")
    assert answer.status == 503
    assert answer.json["missing"] == ["text/words"]
    stage = answer.json["pools"][0]["stages"]["w1"]
    assert (stage["stage"], stage["done"], stage["total"]) == ("weights", 1, 3)
    ctx.expected = ("speech/tone",)
    assert (await call(app, "/readyz")).status == 503
    pools.views = [READY]
    assert (await call(app, "/readyz")).status == 200
    pools.views = []
    assert (await call(app, "/readyz")).status == 503


BROWSER = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


async def test_ports_show_their_own_face() -> None:
    app = application(context())
    for name, face in (("main", "html"), ("voice", "html"), ("tts", "json"), ("chat", "json")):
        answer = await call(app, "/", headers=BROWSER, personality=PERSONALITIES[name])
        assert face in answer.headers["content-type"], name
    assert (await call(app, "/")).json["status"] == "running"
    captions = await call(app, "/", personality=PERSONALITIES["captions"])
    assert "html" in captions.headers["content-type"]
    model = PERSONALITIES["model"]
    assert (await call(app, "/health", personality=PERSONALITIES["tts"])).status == 404
    assert (await call(app, "/health", personality=model)).body == b""
    photo = (await call(app, "/health")).json
    assert photo["status"] == "healthy"
    assert photo["model_status"].keys() == {"initialized", "cuda_available", "device"}


async def test_status_shows_every_field_of_a_pool_even_zero() -> None:
    ctx = context(pools=Pools([LOADING]), ports={"main": 8600})
    answer = (await call(application(ctx), "/api/status")).json
    pool = answer["pools"][0]
    assert (pool["ready"], pool["queued"], pool["stages"]["w1"]["stage"]) == (0, 0, "weights")
    assert answer["first_bytes"]["ttfa_ms"] == {"p50": 0, "p95": 0, "p99": 0, "n": 0}
    assert answer["ready"] is False
    assert answer["ports"] == {"main": "console and every protocol"}
    assert answer["views"] == ["talk", "listen", "photos", "captions", "notebook", "pools"]


async def test_a_port_of_an_original_links_only_to_pages_that_work_there() -> None:
    app = application(context())
    offered = {
        name: (await call(app, "/api/status", personality=PERSONALITIES[name])).json["views"]
        for name in ("voice", "captions", "api")
    }
    assert offered == {"voice": ["talk", "listen", "captions"], "captions": [], "api": []}


# --------------------------------------------------------------------------- metrics


async def test_metrics_have_the_original_names_and_parse() -> None:
    ctx = context()
    metrics = ctx.metrics
    metrics.pools = ctx.broker.pools
    metrics.connections = lambda: {"http": 1, "websocket": 2}
    metrics.processes = lambda: {"gateway": (1.5, 1000.0)}
    metrics.connection_opened()
    metrics.session_started()
    metrics.error("bad_request")
    metrics.slow_client()
    for ms in range(1, 101):
        metrics.ttfa(ms / 1000)
    metrics.ttft(0.02)
    answer = await call(application(ctx), "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = {f.name: f for f in text_string_to_metric_families(answer.body.decode())}
    values = {
        (s.name, tuple(sorted(s.labels.items()))): s.value
        for family in families.values()
        for s in family.samples
    }
    assert values["ws_gateway_active_connections", ()] == 1
    assert values["ws_gateway_sessions_total", ()] == 1
    assert values["ws_gateway_errors_total", (("code", "bad_request"),)] == 1
    assert values["ws_gateway_backpressure_total", ()] == 1
    assert values["ws_gateway_ttfa_ms", (("quantile", "0.5"),)] == pytest.approx(51)
    assert values["ws_gateway_ttfa_ms", (("quantile", "0.95"),)] == pytest.approx(96)
    assert values["ws_gateway_ttfa_ms", (("quantile", "0.99"),)] == pytest.approx(100)
    assert values["ws_gateway_ttfa_ms_sum", ()] == pytest.approx(5050)
    assert values["ws_gateway_ttfa_ms_count", ()] == 100
    assert values["forebay_open_connections", (("type", "websocket"),)] == 2
    assert values["forebay_workers", (("pool", "speech/tone"), ("state", "ready"))] == 1
    assert values["forebay_free_credits", (("pool", "speech/tone"),)] == 200
    assert values["forebay_cpu_seconds_total", (("role", "gateway"),)] == 1.5
    key = ("forebay_first_byte_seconds_bucket", (("kind", "speech"), ("le", "0.05")))
    assert values[key] == 50
    assert values["forebay_first_byte_seconds_count", (("kind", "text"),)] == 1


def test_the_documented_names_are_the_ones_exported() -> None:
    import re

    from forebay.gateway import metrics as module

    ctx = context()
    made = ctx.metrics
    made.pools = lambda: [replace_rtf()]
    made.connections = lambda: {"http": 0}
    made.processes = lambda: {"gateway": (0.0, 0.0)}
    made.ttfa(0.1)
    for count in (made.error, made.refuse, made.deadline, made.resume):
        count("x")
    made.request("/", 200)
    exported = set(re.findall(rb"^# TYPE (\S+)", made.render(), re.M))
    for name in exported:
        word = name.decode().replace("forebay_free_credits", "free_credits")
        word = "_rtf" if word == "forebay_rtf" else word
        assert word in (module.__doc__ or ""), word


def replace_rtf() -> Any:
    import msgspec

    return msgspec.structs.replace(READY, rtf=0.1, service_s=1.0)


def test_labels_are_bounded() -> None:
    metrics = context().metrics
    for number in range(1000):
        metrics.error(f"made-up-{number}")
    assert len(metrics.errors) <= 201
    assert metrics.errors["other"] == 800


# --------------------------------------------------------------------------- console


async def test_the_console_is_served_under_a_strict_policy() -> None:
    app = application(context())
    answer = await call(app, "/", headers=BROWSER)
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    seen = {**BROWSER, "if-none-match": answer.headers["etag"]}
    again = await call(app, "/", headers=seen)
    assert (again.status, again.body) == (304, b"")


async def test_every_file_the_console_names_is_there_with_its_type() -> None:
    import re

    app = application(context())
    page = (await call(app, "/", headers=BROWSER)).body.decode()
    named = re.findall(r'(?:src|href)="(/static/[^"]+)"', page)
    assert named
    assert not re.search(r"<script(?![^>]*src=)|<style| on\w+=| style=", page)
    for path in named:
        answer = await call(app, path)
        assert answer.status == 200, path
        kind = path.rpartition(".")[2]
        expected = {
            "js": "text/javascript",
            "css": "text/css",
            "svg": "image/svg+xml",
            "html": "text/html",
        }
        assert answer.headers["content-type"].startswith(expected[kind])


@pytest.mark.parametrize("name", ["../main.py", "%2e%2e/main.py", "nope.js", "/etc/passwd", ""])
async def test_nothing_else_is_served(name: str) -> None:
    assert (await call(application(context()), f"/static/{name}")).status == 404


def test_routes_have_distinct_rows() -> None:
    rows = [(r.method, r.path, n) for r in routes() for n in (r.on or PERSONALITIES)]
    assert len(rows) == len(set(rows))
    assert all(replace(r).needs in ("", *SCOPES) for r in routes())
