"""What the functions in Redis remember of a job between calls never counts for more than what
the store holds: another may have written it, and a call that failed wrote nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from homes import speech_spec
from redis_homes import RedisHome, ValkeyHome

from forebay.broker.keys import key
from forebay.core.events import Audio, Consumed, Text
from forebay.errors import Fenced, NotFound

RECORDS = 2048  # so many are remembered, see `MAX_RECORDS`


@pytest.fixture(params=[RedisHome, ValkeyHome])
async def home(request: pytest.FixtureRequest) -> AsyncIterator[RedisHome]:
    made: RedisHome = request.param()
    await made.start()
    yield made
    await made.close()


def record(home: RedisHome, job: str) -> tuple[Any, str]:
    return home.server.client(), key(home.options.shard, "job", job)


def sound(unit: int) -> Audio:
    return Audio(data=b"\0" * 100, text="x", unit=unit, frames=50)


async def test_a_record_that_somebody_else_wrote_is_the_one_that_counts(home: RedisHome) -> None:
    await home.worker("w1")
    await home.speech("a", "one")
    client, where = record(home, "a")
    before = client.hget(where, "hot")
    attachment = await home.broker.attach("a", gateway="g1", write=True)
    await home.broker.append("a", [Text(text="two", unit=3)], attachment=attachment.number or 0)
    assert (await home.broker.status("a")).input_head == 2
    client.hset(where, "hot", before)  # as a replica that lagged would have it
    assert (await home.broker.status("a")).input_head == 1
    client.delete(where)
    with pytest.raises(NotFound):
        await home.broker.status("a")
    client.close()


async def test_a_call_that_was_refused_leaves_the_record_as_it_was(home: RedisHome) -> None:
    await home.worker("w1")
    await home.speech("a", "one")
    old = await home.broker.attach("a", gateway="g1", write=True)
    new = await home.broker.attach("a", gateway="g1", write=True)
    for _ in range(3):
        with pytest.raises(Fenced):
            await home.broker.append("a", [Text(text="x", unit=3)], attachment=old.number or 0)
        ack = await home.broker.append("a", [Text(text="x", unit=3)], attachment=new.number or 0)
    assert ack.offset == 4
    assert (await home.broker.status("a")).input_head == 4


async def test_jobs_that_take_turns_keep_to_their_own_records(home: RedisHome) -> None:
    worker = await home.worker("w1", sessions=9, slots=9)
    for name in "abc":
        await home.broker.submit(speech_spec(name), [Text(text="x" * 9, unit=0)], gateway="g1")
    await home.settle()
    for turn in range(5):
        for name in "abc":
            worker.commit(name, sound(turn), consumed=Consumed(0, turn + 1))
        if turn % 2:
            await home.settle()
    await home.settle()
    views = [await home.broker.status(name) for name in "abc"]
    assert [view.head for view in views] == [5, 5, 5]
    assert len({view.epoch for view in views}) == 3
    for view in views:
        assert [e.offset for e in await home.broker.read_after(view.spec.id, 0)] == [1, 2, 3, 4, 5]


async def test_a_name_that_is_used_again_begins_a_new_record(home: RedisHome) -> None:
    await home.worker("w1")
    await home.speech("a", "one")
    epoch = (await home.broker.status("a")).epoch
    await home.broker.cancel("a")
    await home.broker.forget("a")
    await home.speech("a", "another")
    view = await home.broker.status("a")
    assert view.epoch != epoch
    assert (view.head, view.input_head, view.state) == (0, 1, "running")


async def test_more_jobs_than_are_remembered_are_all_there(home: RedisHome) -> None:
    # Asked of the functions at once, as a gateway does for what it watches.
    await home.worker("w1")
    for n in range(4):
        await home.speech(f"t{n}", "one")
    client, where = record(home, "t0")
    fields = client.hgetall(where)
    names = [f"copy{n}" for n in range(RECORDS + 100)]
    with client.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.hset(key(home.options.shard, "job", name), mapping=fields)
        pipe.execute()
    for start in range(0, len(names), 300):
        page = names[start : start + 300]
        heads = await home.real._ask_heads("g1", page)
        assert len(heads) == len(page) and all(heads)
    assert [(await home.broker.status(f"t{n}")).spec.id for n in range(4)] == [
        f"t{n}" for n in range(4)
    ]
    client.delete(*(key(home.options.shard, "job", name) for name in names))
    client.close()
