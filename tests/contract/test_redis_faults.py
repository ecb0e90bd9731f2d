"""Redis itself fails, in real time: killed, emptied, frozen, failed over; and what is refused."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from benchmarks.harness import free_port
from homes import SPEECH, Hand, speech_spec
from redis_homes import program

from forebay.broker import OutputPush
from forebay.broker.local import Settings
from forebay.broker.redis import RedisBroker, RedisOptions, open_gateway_broker
from forebay.broker.redis_address import find_master, parse_url
from forebay.broker.redis_checks import prepare
from forebay.broker.redis_worker import RedisWorker
from forebay.config.load import load
from forebay.core.admission import JobLimits
from forebay.core.audio_quota import AudioLimits
from forebay.core.events import OutputEvent, Prompt, Text
from forebay.core.spec import PipeSpec, WorkerInfo
from forebay.errors import (
    CannotBoot,
    ConfigError,
    QuotaExceeded,
    ResumeNotAvailable,
    StateLost,
    StoreDown,
)
from forebay.gateway.audio_door import AudioDoor
from forebay.gateway.hub import Hub
from forebay.gateway.pipes import adopting, carry
from forebay.lab.redis_server import PrivateRedis
from forebay.serve_store import with_options

from homes import TEXT, text_spec  # isort: skip


class Site:
    """Gateways and workers around one private server, in real time."""

    def __init__(self, server: PrivateRedis, url: str = "", **options: Any) -> None:
        self.server = server
        self.url = url or server.url
        self.options = RedisOptions(**options)
        self.pushes: dict[str, list[Any]] = {}
        self.hands: list[Hand] = []
        self._stack = AsyncExitStack()

    async def gateway(self, name: str, settings: Settings | None = None) -> RedisBroker:
        broker = await open_gateway_broker(self.url, settings, options=self.options)
        self._stack.push_async_callback(broker.close)
        broker.open(name, self.pushes.setdefault(name, []).append)
        return broker

    async def worker(self, name: str, pools: list[str] | None = None) -> Hand:
        port = RedisWorker(parse_url(self.url), name, options=self.options)
        hand = Hand(None, name, port)  # type: ignore[arg-type]
        await port.connect(hand.take)
        pools = pools or [SPEECH]
        port.register(WorkerInfo(id=name, pools=pools, slots=4, sessions=9))
        await port.drained()
        self.hands.append(hand)
        beats = asyncio.create_task(self._beat(hand))
        self._stack.push_async_callback(port.close)
        self._stack.callback(beats.cancel)
        return hand

    async def _beat(self, hand: Hand) -> None:
        while True:
            if hand.beating:
                await asyncio.to_thread(hand.port.beat, hand.id, {})
            await asyncio.sleep(0.1)

    def output(self, gateway: str, job: str) -> list[OutputEvent]:
        pushes = [p for p in self.pushes[gateway] if isinstance(p, OutputPush) and p.job == job]
        return [event for push in pushes for event in push.events]

    def lost(self, gateway: str, job: str) -> bool:
        return any(
            isinstance(p, OutputPush) and p.job == job and not p.epoch for p in self.pushes[gateway]
        )

    async def close(self) -> None:
        await self._stack.aclose()


async def until(what: Callable[[], Any], limit_s: float = 60.0) -> float:
    """Seconds until ``what`` is true."""
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < limit_s, "it did not happen in time"
        await asyncio.sleep(0.005)
    return time.monotonic() - began


async def eventually(call: Callable[[], Awaitable[Any]], limit_s: float = 60.0) -> Any:
    """The answer, once the store answers again."""
    began = time.monotonic()
    while True:
        try:
            return await call()
        except StoreDown:
            assert time.monotonic() - began < limit_s
            await asyncio.sleep(0.02)


@pytest.fixture(params=["redis", "valkey"])
async def server(request: pytest.FixtureRequest) -> AsyncIterator[PrivateRedis]:
    made = await asyncio.to_thread(PrivateRedis, program(request.param))
    yield made
    made.close()


@pytest.fixture
async def site(server: PrivateRedis) -> AsyncIterator[Site]:
    made = Site(server)
    yield made
    await made.close()


async def begin(site: Site) -> tuple[RedisBroker, Hand, int]:
    """A gateway, a worker, and a session that is fed and half spoken."""
    broker = await site.gateway("g1")
    hand = await site.worker("w1")
    await broker.submit(speech_spec("a"), [Text(text="abcdef", unit=0)], gateway="g1")
    attachment = await broker.attach("a", gateway="g1", write=True)
    await until(lambda: "a" in hand.leases)
    hand.speak("a", "ab")
    await until(lambda: len(site.output("g1", "a")) == 1)
    return broker, hand, attachment.number or 0


def written(server: PrivateRedis) -> None:
    """Wait until everything answered is in the file: on a slow disk that may take a moment."""
    with server.client() as client:
        while client.info("persistence")["aof_buffer_length"]:
            time.sleep(0.01)


async def test_a_killed_server_that_wrote_down_everything_is_a_pause(site: Site) -> None:
    broker, hand, number = await begin(site)
    await asyncio.to_thread(written, site.server)
    site.server.kill()
    hand.speak("a", "cd")  # is said again when there is somebody to say it to
    with pytest.raises(StoreDown):
        await broker.status("a")
    await asyncio.to_thread(site.server.start)
    await until(lambda: len(site.output("g1", "a")) == 2)
    hand.speak("a", "ef", through=1)
    await until(lambda: len(site.output("g1", "a")) == 3)
    assert [event.offset for event in site.output("g1", "a")] == [1, 2, 3]
    assert not site.lost("g1", "a") and hand.lost == []
    await broker.append("a", [Text(text="g", unit=6)], attachment=number)
    await until(lambda: len(hand.input["a"]) == 2)


async def test_a_server_that_forgot_everything_is_told_to_everybody(site: Site) -> None:
    broker, hand, number = await begin(site)
    epoch = (await broker.status("a")).epoch
    site.server.kill()
    site.server.forget()
    await asyncio.to_thread(site.server.start)
    await until(lambda: site.lost("g1", "a"))
    with pytest.raises(ResumeNotAvailable) as refused:
        await eventually(lambda: broker.read_after("a", 1, epoch=epoch))
    assert refused.value.details["reason"] == "state_lost"
    with pytest.raises(StateLost):
        await broker.append("a", [Text(text="g", unit=6)], attachment=number)
    await until(lambda: hand.lost == [("a", 1)])
    # And work goes on, for those who begin anew.
    await until(lambda: broker.pools() and broker.pools()[0].ready == 1)
    await broker.submit(speech_spec("b"), [Text(text="x", unit=0)], gateway="g1")
    await until(lambda: "b" in hand.leases)


async def test_who_begins_while_an_emptied_server_is_met_again_waits_for_the_workers(
    site: Site,
) -> None:
    broker, hand, _ = await begin(site)
    site.server.kill()
    site.server.forget()
    await asyncio.to_thread(site.server.start)
    # Only that the store is away may be said, never that the model is unknown.
    for name in "bcd":
        spec = speech_spec(name)
        items = [Text(text="x", unit=0)]
        await eventually(partial(broker.submit, spec, items, gateway="g1"))
    await until(lambda: set(hand.leases) >= {"b", "c", "d"})


async def test_a_frozen_server_blocks_no_call_and_kills_nobody(site: Site) -> None:
    broker, hand, _ = await begin(site)
    os.kill(site.server.pid, signal.SIGSTOP)
    try:
        for call in (broker.status("a"), broker.submit(speech_spec("b"), [])):
            with pytest.raises(StoreDown):  # while the server still stands
                async with asyncio.timeout(60):
                    await call
        await asyncio.sleep(0.5)
    finally:
        os.kill(site.server.pid, signal.SIGCONT)
    assert (await eventually(lambda: broker.status("a"))).state == "running"
    hand.speak("a", "cd")
    await until(lambda: len(site.output("g1", "a")) == 2)
    assert hand.lost == [] and (await broker.status("a")).attempts == 1


async def test_work_that_was_refused_while_the_server_stood_still_is_not_done_after_it(
    site: Site,
) -> None:
    broker = await site.gateway("g1")
    hand = await site.worker("w1", [TEXT, SPEECH])
    os.kill(site.server.pid, signal.SIGSTOP)
    try:
        refused = [broker.submit(text_spec(f"t{n}"), [Prompt(messages=[])]) for n in range(3)]
        named = broker.submit(speech_spec("named"), [Text(text="ab", unit=0)], gateway="g1")
        found = await asyncio.gather(*refused, named, return_exceptions=True)
        assert [type(error) for error in found] == [StoreDown] * 4
    finally:
        os.kill(site.server.pid, signal.SIGCONT)
    await eventually(lambda: broker.submit(text_spec("after"), [Prompt(messages=[])]))
    await until(lambda: "after" in hand.leases)
    alive = {view.spec.id for view in await broker.jobs() if view.state in ("queued", "running")}
    assert alive <= {"after", "named"}
    assert (await broker.submit(speech_spec("named"), [])).spec.id == "named"


async def test_a_lost_push_is_found_within_a_second_or_so(site: Site) -> None:
    broker, hand, _ = await begin(site)
    take, took_s = broker._store._on_push, []
    for n, word in enumerate("cdef", 1):
        began = time.monotonic()
        broker._store._on_push = lambda where, message: None
        hand.speak("a", word)
        await hand.port.drained()
        await asyncio.sleep(0.05)
        broker._store._on_push = take
        await until(lambda n=n: len(site.output("g1", "a")) == n + 1)
        took_s.append(time.monotonic() - began)
        if took_s[-1] < 1.7:
            return  # a busy machine may need a second try, not a fifth
    raise AssertionError(f"found after {took_s} s")


async def test_a_session_goes_on_at_another_gateway_when_its_own_has_died(site: Site) -> None:
    broker, hand, _ = await begin(site)
    other = await site.gateway("g2")
    for task in broker._tasks:
        task.cancel()  # the process is gone: it says nothing more
    broker._store._url = parse_url("unix+redis:///nowhere")
    broker._store._wire.connection_lost(None)  # type: ignore[union-attr]
    found = await other.find("local", "tts", "a")
    assert found is not None and found.head == 1
    attachment = await other.attach("a", gateway="g2", write=True)
    seen = await other.read_after("a", 0, epoch=found.epoch)
    hand.speak("a", "cd")
    await until(lambda: len(site.output("g2", "a")) == 1)
    assert [e.offset for e in [*seen, *site.output("g2", "a")]] == [1, 2]
    ack = await other.append("a", [Text(text="g", unit=6)], attachment=attachment.number or 0)
    assert ack.offset == 2


async def test_what_a_dead_gateway_held_is_let_go_of(site: Site) -> None:
    broker = await site.gateway("g1")
    other = await site.gateway("g2")
    hand = await site.worker("w1", [TEXT, SPEECH])
    await broker.submit(text_spec("t", detach_s=60), [Prompt(messages=[])], gateway="g1")
    await broker.submit(speech_spec("s"), gateway="g1")
    await broker.submit(speech_spec("gone", detach_s=0.2), [Text(text="x", unit=0)], gateway="g1")
    await broker.pipe(PipeSpec(id="p", source="t", target="s", map="speak"), gateway="g1")
    assert await other.pipes("g2") == []
    for task in broker._tasks:
        task.cancel()
    await until(lambda: any(c.job == "gone" for c in hand.cancels))
    assert [pipe.id for pipe in await other.pipes("g2")] == ["p"]
    await until(lambda: "t" in hand.leases)
    hand.say("t", "hi")
    await until(lambda: len(site.output("g2", "t")) == 1)


async def test_what_a_dead_gateway_carried_another_carries_on_without_loss_or_repeat(
    site: Site,
) -> None:
    hand = await site.worker("w1", [TEXT, SPEECH])
    async with AsyncExitStack() as living, AsyncExitStack() as dying:
        hubs = []
        for name, stack in (("g1", dying), ("g2", living)):
            broker = await open_gateway_broker(site.url, options=site.options)
            stack.push_async_callback(broker.close)
            hubs.append(await stack.enter_async_context(Hub(broker, name, time.monotonic)))
        one, two = hubs
        await living.enter_async_context(adopting(two))
        await one.broker.submit(text_spec("t", detach_s=60), [Prompt(messages=[])], gateway="g1")
        await one.broker.submit(speech_spec("s"), gateway="g1")
        carrier = await carry(one, PipeSpec(id="p", source="t", target="s", map="speak"))
        await until(lambda: "t" in hand.leases)
        hand.say("t", "It rains. ")
        await until(lambda: fed(hand, "s") == "It rains. ")
        for task in one.broker._tasks:  # type: ignore[attr-defined]
            task.cancel()  # it says nothing any more, as if it had been killed
        carrier.close()
        hand.say("t", "It pours. ")
        hand.say("t", "It stops.")
        hand.end("t")
        await until(lambda: fed(hand, "s") == "It rains. It pours. It stops.")


def fed(hand: Hand, job: str) -> str:
    """The text that the worker has been given for this job, in order."""
    return "".join(item.text for item in hand.input.get(job, ()) if isinstance(item, Text))


async def test_fifty_submits_of_one_job_at_two_gateways_make_one(site: Site) -> None:
    one, two = await site.gateway("g1"), await site.gateway("g2")
    await site.worker("w1")
    items = [Text(text="x", unit=0)]
    views = await asyncio.gather(
        *(b.submit(speech_spec("a"), items) for _ in range(25) for b in (one, two))
    )
    assert len({view.epoch for view in views}) == 1
    assert len(await one.jobs()) == 1


async def test_a_tenants_quota_holds_over_gateways(site: Site) -> None:
    settings = Settings(limits=JobLimits(tenant_jobs=2))
    one, two = await site.gateway("g1", settings), await site.gateway("g2", settings)
    await site.worker("w1")
    await one.submit(speech_spec("a"), [Text(text="x", unit=0)])
    await two.submit(speech_spec("b"), [Text(text="x", unit=0)])
    with pytest.raises(QuotaExceeded):
        await two.submit(speech_spec("c"), [Text(text="x", unit=0)])


async def test_a_tenants_hour_of_audio_is_one_for_all_gateways(site: Site) -> None:
    one, two = await site.gateway("g1"), await site.gateway("g2")
    await site.worker("w1")
    await one.submit(speech_spec("a"), [Text(text="x", unit=0)])
    limits = AudioLimits(tenant_s=10.0)
    tasks: list[asyncio.Task[None]] = []
    doors = [
        AudioDoor(
            limits, time.monotonic, (b.audio, lambda work: tasks.append(asyncio.create_task(work)))
        )
        for b in (one, two)
    ]
    await doors[1].admit("t")
    doors[0].ledger.open("a", "t")
    for total_s in (2.0, 6.0, 10.0):
        doors[0].count("a", total_s)  # what comes while the book is asked goes along next time
    assert len(tasks) == 1
    await asyncio.gather(*tasks)
    with pytest.raises(QuotaExceeded) as refused:
        await doors[1].admit("t")
    assert refused.value.retry_after_s is not None and refused.value.retry_after_s > 3000
    with pytest.raises(QuotaExceeded):
        await doors[1].allowance("t")
    await doors[1].admit("another")
    os.kill(site.server.pid, signal.SIGSTOP)
    try:
        with pytest.raises(StoreDown):
            await doors[1].admit("t")
        doors[0].count("a", 11.0)
        await asyncio.sleep(1.2)
    finally:
        os.kill(site.server.pid, signal.SIGCONT)
    await until(lambda: not doors[0].ledger.unsaid("t"))
    await asyncio.gather(*tasks)
    await eventually(lambda: two.audio("t", {}))
    assert sum(seconds for _, seconds in await two.audio("t", {})) == 11.0


# --------------------------------------------------------------------------------- failover


class Pair:
    """A master and its replica behind one name, which is turned over by hand."""

    def __init__(self, make: str) -> None:
        self.master = PrivateRedis(program(make))
        self.replica = PrivateRedis(program(make), aof=True)
        with self.master.client() as client:
            client.config_set("repl-diskless-sync-delay", 0)
            client.config_set("port", free_port())
            self.port = int(client.config_get("port")["port"])
        with self.replica.client() as client:
            client.execute_command("REPLICAOF", "127.0.0.1", self.port)
        self.name = Path(self.master.dir) / "name"
        self.name.symlink_to(self.master.path)
        self.caught_up()

    def caught_up(self) -> None:
        with self.master.client() as client:
            for _ in range(1000):
                if client.execute_command("WAIT", 1, 50) >= 1:
                    return
        raise AssertionError("the replica did not follow")

    def part(self) -> None:
        """The replica hears no more of what the master is told."""
        with self.replica.client() as client:
            client.execute_command("REPLICAOF", "NO", "ONE")

    def fail_over(self) -> None:
        self.master.kill()
        os.kill(self.replica.pid, signal.SIGCONT)
        self.part()
        self.name.unlink()
        self.name.symlink_to(self.replica.path)

    def close(self) -> None:
        self.replica.close()
        self.master.close()


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    made = await asyncio.to_thread(Pair, "redis")
    yield made
    made.close()


async def test_a_failover_to_a_replica_that_lags_is_found_and_told(pair: Pair) -> None:
    site = Site(pair.master, f"unix+redis://{pair.name}")
    try:
        broker, hand, _ = await begin(site)
        await asyncio.to_thread(pair.caught_up)
        await asyncio.to_thread(pair.part)
        hand.speak("a", "cd")
        await until(lambda: len(site.output("g1", "a")) == 2)
        before = (await broker.status("a")).epoch
        await asyncio.to_thread(pair.fail_over)
        await until(lambda: site.lost("g1", "a"))
        view = await eventually(lambda: broker.status("a"))
        assert view.epoch != before and view.head == 1
        await until(lambda: ("a", 1) in hand.lost)
        await until(lambda: hand.attempt("a") == 2)  # what was lost is done again
        hand.speak("a", "cd")
        attached = await broker.attach("a", gateway="g1", write=True)
        assert attached.view.epoch == view.epoch
    finally:
        await site.close()


async def test_a_failover_that_lost_nothing_goes_unnoticed(pair: Pair) -> None:
    site = Site(pair.master, f"unix+redis://{pair.name}")
    try:
        broker, hand, _ = await begin(site)
        await asyncio.to_thread(pair.caught_up)
        await asyncio.to_thread(pair.fail_over)
        hand.speak("a", "cd")
        await until(lambda: len(site.output("g1", "a")) == 2)
        assert not site.lost("g1", "a") and hand.lost == []
        assert (await broker.status("a")).attempts == 1
    finally:
        await site.close()


async def test_with_durability_wait_an_answer_means_that_a_replica_has_it(pair: Pair) -> None:
    site = Site(pair.master, f"unix+redis://{pair.name}", wait_replicas=1, deadline_s=3.0)
    try:
        broker, _, number = await begin(site)
        await broker.append("a", [Text(text="g", unit=6)], attachment=number)
        os.kill(pair.replica.pid, signal.SIGSTOP)
        with pytest.raises(StoreDown):
            await broker.append("a", [Text(text="h", unit=7)], attachment=number)
        await asyncio.to_thread(pair.fail_over)
        view = await eventually(lambda: broker.status("a"))
        assert view.input_head >= 2
    finally:
        await site.close()


async def test_sentinel_says_who_the_master_is(pair: Pair) -> None:
    port = free_port()
    watch = f"sentinel monitor pool 127.0.0.1 {pair.port} 1"
    sentinel = await asyncio.to_thread(
        lambda: PrivateRedis(program("redis"), watch, port=port, sentinel=True)
    )
    try:
        url = parse_url(f"redis+sentinel://127.0.0.1:{port}/pool")
        assert await find_master(url, 1.0) == ("127.0.0.1", pair.port)
        broker = await open_gateway_broker(f"redis+sentinel://127.0.0.1:{port}/pool")
        assert broker.up
        await broker.close()
        with pytest.raises(StoreDown):
            await find_master(parse_url(f"redis+sentinel://127.0.0.1:{port}/other"), 1.0)
    finally:
        sentinel.close()


# ------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("appendonly", "no", "append-only persistence is off"),
        ("maxmemory-policy", "allkeys-lru", "maxmemory-policy is allkeys-lru"),
    ],
)
async def test_a_server_that_would_lose_jobs_is_refused(
    server: PrivateRedis, name: str, value: str, reason: str
) -> None:
    with server.client() as client:
        client.config_set(name, value)
    with pytest.raises(CannotBoot, match=reason):
        await open_gateway_broker(server.url)
    if name == "appendonly":
        await prepare(parse_url(server.url), RedisOptions(need_aof=False))


async def test_functions_are_loaded_once_and_never_under_a_newer_major(
    server: PrivateRedis,
) -> None:
    url = parse_url(server.url)
    await prepare(url, RedisOptions())
    with server.client() as client:
        await prepare(url, RedisOptions())
        assert client.info("commandstats")["cmdstat_function|load"]["calls"] == 1
        client.function_load(
            "#!lua name=forebay_v2\nredis.register_function('fb2_x', function() return 1 end)"
        )
    with pytest.raises(CannotBoot, match="newer version"):
        await prepare(url, RedisOptions())


async def test_a_server_that_is_not_there_is_said_in_one_line() -> None:
    with pytest.raises(StoreDown, match="does not answer"):
        await open_gateway_broker("unix+redis:///nowhere/s")


@pytest.mark.parametrize(
    "url",
    [
        "http://x",
        "redis://a,b",
        "redis://h/1/2",
        "redis://h/x",
        "redis://h:x/1",
        "redis+sentinel://h",
    ],
)
def test_a_bad_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        parse_url(url)


def test_urls_say_where_and_hide_the_password() -> None:
    url = parse_url("redis://me:p%40ss@db.example:7000/3")
    assert (url.hosts, url.username, url.password, url.db) == (
        (("db.example", 7000),),
        "me",
        "p@ss",
        3,
    )
    assert "p@ss" not in str(url) and not url.loopback
    assert parse_url("rediss://h").tls and parse_url("redis://127.0.0.1").loopback
    assert parse_url("valkey://localhost").loopback
    many = parse_url("redis+sentinel://a,b:1/pool/2")
    assert (many.hosts, many.service, many.db) == ((("a", 26379), ("b", 1)), "pool", 2)
    assert str(many) == "redis+sentinel://a:26379,b:1/pool"
    assert parse_url("redis://[::1]:7").hosts == (("::1", 7),)
    assert parse_url("unix+redis:///run/s?db=2").db == 2


def test_options_stand_in_the_url_and_settings_fill_what_it_does_not_say() -> None:
    where = parse_url("redis://h/1?shard=two&wait_replicas=1&need_aof=false")
    options = RedisOptions.of(where)
    assert (options.shard, options.wait_replicas, options.need_aof) == ("two", 1, False)
    assert options.need_password and where.db == 1
    assert RedisOptions.of(parse_url("unix+redis:///s?db=3&shard=x")).shard == "x"
    for bad in ("colour=red", "shard=a%20b", "wait_replicas=many", "need_aof=perhaps"):
        with pytest.raises(ConfigError):
            RedisOptions.of(parse_url(f"redis://h?{bad}"))
    environ = {"FOREBAY_REDIS_SHARD": "s", "FOREBAY_REDIS_NEED_AOF": "false"}
    config = load(environ=environ, folder=Path("/nowhere"))
    settled = RedisOptions.of(parse_url(with_options("redis://h/1?need_aof=true", config)))
    assert (settled.shard, settled.need_aof) == ("s", True)
