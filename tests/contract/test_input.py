"""Feeding a job: who may, what is a repeat, how much, and through pipes."""

from __future__ import annotations

import asyncio

import pytest
from homes import TEXT, Home, speech_spec, text_spec

from forebay.broker import SupersededPush
from forebay.core.events import Consumed, End, Prompt, Text
from forebay.core.spec import PipeSpec
from forebay.errors import BadRequest, Fenced, NotFound, TooLarge


async def writer(home: Home, job: str, gateway: str = "g1") -> int:
    attachment = await home.broker.attach(job, gateway=gateway, write=True)
    assert attachment.number is not None
    return attachment.number


def text(words: str, unit: int = 0, seq: int = 0) -> Text:
    return Text(text=words, unit=unit, seq=seq)


async def test_input_reaches_the_worker_in_order_and_once(home: Home) -> None:
    worker = await home.worker("w1")
    await home.speech("a", "one ")
    number = await writer(home, "a")
    for at in range(5):
        await home.broker.append(
            "a", [text("x", 4 + at)], attachment=number, client_pos=at + 2, units=5 + at
        )
    ack = await home.broker.append("a", [End(seq=7)], attachment=number, client_pos=7)
    assert (ack.offset, ack.client_pos, ack.units) == (7, 7, 9)
    await home.settle()
    assert [item.offset for item in worker.input["a"]] == [1, 2, 3, 4, 5, 6, 7]
    view = await home.broker.status("a")
    assert (view.input_head, view.client_pos, view.units, view.input_ended) == (7, 7, 9, True)


async def test_only_the_newest_attachment_may_write(home: Home) -> None:
    await home.worker("w1")
    await home.speech("a", "x", detach_s=1)
    old = await home.broker.attach("a", gateway="g1", write=True)
    new = await writer(home, "a")
    assert SupersededPush(job="a", number=old.number or 0) in home.pushes
    with pytest.raises(Fenced):
        await home.broker.append("a", [text("y", 1)], attachment=old.number or 0)
    await home.broker.append("a", [text("y", 1)], attachment=new)
    await home.broker.detach(old)  # late, and harmless: somebody else holds it
    await home.advance(2)
    assert (await home.broker.status("a")).state == "running"


async def test_a_client_that_comes_back_may_send_everything_again(home: Home) -> None:
    worker = await home.worker("w1")
    await home.speech("a")
    first = await writer(home, "a")
    for at in (1, 2, 3):
        await home.broker.append("a", [text("x", at - 1)], attachment=first, client_pos=at)
    second = await writer(home, "a")
    for at in (1, 2, 3):
        ack = await home.broker.append("a", [text("x")], attachment=second, client_pos=at)
        assert (ack.repeats, ack.offset, ack.client_pos) == (1, 3, 3)
    ack = await home.broker.append("a", [text("x", 3)], attachment=second, client_pos=4)
    assert (ack.repeats, ack.offset) == (0, 4)
    ack = await home.broker.append("a", [text("x", 4)], attachment=second, client_pos=4)
    assert ack.offset == 5  # within one attachment a repeated position is accepted
    await home.settle()
    assert [item.offset for item in worker.input["a"]] == [1, 2, 3, 4, 5]


async def test_nothing_can_be_fed_after_the_end_or_to_a_finished_job(home: Home) -> None:
    worker = await home.worker("w1")
    await home.speech("a", "x", end=True)
    number = await writer(home, "a")
    with pytest.raises(BadRequest):
        await home.broker.append("a", [text("y")], attachment=number)
    await home.settle()
    worker.end("a")
    await home.settle()
    with pytest.raises(BadRequest):
        await home.broker.append("a", [text("y")], attachment=number)
    with pytest.raises(NotFound):
        await home.broker.append("nope", [text("y")], attachment=number)


async def test_repeats_after_the_end_are_still_answered_as_repeats(home: Home) -> None:
    await home.worker("w1")
    await home.speech("a")
    first = await writer(home, "a")
    await home.broker.append("a", [text("x"), End()], attachment=first, client_pos=2)
    second = await writer(home, "a")
    ack = await home.broker.append("a", [text("x"), End()], attachment=second, client_pos=2)
    assert ack.repeats == 2


async def test_an_item_over_the_bound_is_refused_and_nothing_is_recorded(home: Home) -> None:
    await home.worker("w1")
    await home.speech("a")
    number = await writer(home, "a")
    with pytest.raises(TooLarge):
        await home.broker.append("a", [text("x" * 300_000)], attachment=number, client_pos=1)
    view = await home.broker.status("a")
    assert (view.input_head, view.client_pos) == (0, 0)
    with pytest.raises(TooLarge):
        await home.broker.submit(speech_spec("b"), [text("x" * 300_000)])
    assert await home.broker.find("local", "tts", "b") is None


async def test_a_prompt_may_be_much_larger_than_a_text_item(home: Home) -> None:
    worker = await home.worker("w1", pools=[TEXT])
    long = [Prompt(messages=[{"role": "user", "content": "x" * 300_000}])]
    await home.broker.submit(text_spec("t"), long, gateway="g1")
    await home.settle()
    assert worker.leases["t"].input[0].messages[0]["content"] == "x" * 300_000  # type: ignore[union-attr]


async def test_over_the_bound_the_writer_waits_for_room(home: Home) -> None:
    worker = await home.worker("w1")
    await home.speech("a")
    number = await writer(home, "a")
    ack = await home.broker.append("a", [text("x" * 60_000)], attachment=number)
    assert not ack.over
    await home.broker.input_room("a")
    ack = await home.broker.append("a", [text("x" * 60_000, 60_000)], attachment=number)
    assert ack.over
    room = asyncio.create_task(home.broker.input_room("a"))
    await asyncio.sleep(0)
    assert not room.done()
    await home.settle()
    worker.commit("a", consumed=Consumed(1, 60_000))
    await home.settle()
    await asyncio.wait_for(room, 60)


async def test_waiting_for_room_ends_with_the_job(home: Home) -> None:
    await home.worker("w1")
    await home.speech("a", "x" * 120_000)
    room = asyncio.create_task(home.broker.input_room("a"))
    await asyncio.sleep(0)
    await home.broker.cancel("a")
    await asyncio.wait_for(room, 60)


async def test_a_writer_that_ignores_the_bound_is_refused(home: Home) -> None:
    await home.worker("w1")
    await home.speech("a", "x" * 200_000)
    number = await writer(home, "a")
    await home.broker.append("a", [text("x" * 100_000)], attachment=number)
    with pytest.raises(TooLarge):
        await home.broker.append("a", [text("x" * 100_000)], attachment=number)


async def test_much_input_arrives_in_several_frames(home: Home) -> None:
    home_worker = await home.worker("w1", sessions=1)
    await home.speech("first", "x")
    await home.speech("a", "y" * 90_000)
    number = await writer(home, "a")
    for at in (1, 2):
        await home.broker.append("a", [text("y" * 90_000, at * 90_000)], attachment=number)
    await home.settle()
    home_worker.end("first")
    await home.settle()
    assert [item.offset for item in home_worker.input["a"]] == [1, 2, 3]


async def test_a_pipe_refuses_what_it_copied_already(home: Home) -> None:
    await home.worker("w1", pools=[TEXT, "speech/tone"], sessions=9)
    await home.broker.submit(text_spec("t"), [Prompt(messages=[])], gateway="g1")
    await home.speech("s")
    spec = PipeSpec(id="p", source="t", target="s", map="speak")
    assert await home.broker.pipe(spec) == spec
    await home.broker.append_from_pipe("p", [text("a")], source_offset=3)
    ack = await home.broker.append_from_pipe("p", [text("a")], source_offset=3)
    assert (ack.repeats, ack.offset) == (1, 1)
    await home.broker.append_from_pipe("p", [text("b", 1)], source_offset=7)
    assert (await home.broker.pipe(spec)).copied == 7
    await home.broker.append_from_pipe("p", [End()], source_offset=8, ended=True)
    assert (await home.broker.status("s")).input_ended
    assert await home.broker.pipes("g2") == []  # this gateway still carries it


async def test_the_end_of_a_pipes_target_cancels_its_source(home: Home) -> None:
    worker = await home.worker("w1", pools=[TEXT, "speech/tone"], sessions=9)
    await home.broker.submit(text_spec("t"), [Prompt(messages=[])], gateway="g1")
    await home.speech("s")
    await home.broker.pipe(PipeSpec(id="p", source="t", target="s", map="speak"))
    await home.broker.cancel("s")
    assert (await home.broker.status("t")).state == "cancelled"
    await home.settle()
    assert [c.job for c in worker.cancels] == ["t"]
    with pytest.raises(BadRequest):
        await home.broker.append_from_pipe("p", [text("a")], source_offset=1)


async def test_a_pipe_that_was_carried_to_its_end_cancels_nothing(home: Home) -> None:
    worker = await home.worker("w1", pools=[TEXT, "speech/tone"], sessions=9)
    await home.broker.submit(text_spec("t"), [Prompt(messages=[])], gateway="g1")
    await home.speech("s")
    await home.broker.pipe(PipeSpec(id="p", source="t", target="s", map="speak"))
    await home.broker.append_from_pipe("p", [text("a"), End()], source_offset=2, ended=True)
    await home.settle()
    worker.end("s")
    await home.settle()
    assert (await home.broker.status("t")).state == "running"


async def test_who_carries_a_pipe_hears_its_source_although_nobody_is_attached(
    home: Home,
) -> None:
    worker = await home.worker("w1", pools=[TEXT, "speech/tone"], sessions=9)
    heard = []
    home.broker.open("g9", heard.append)
    await home.broker.submit(text_spec("t", detach_s=60), [Prompt(messages=[])], gateway="g1")
    await home.speech("s")
    held = await home.broker.attach("t", gateway="g1", write=False)
    await home.broker.pipe(PipeSpec(id="p", source="t", target="s", map="speak"), gateway="g9")
    await home.broker.detach(held)
    await home.settle()
    assert [p.detached for p in home.broker.pools() if p.kind == "text"] == [1]
    worker.end("t")
    await home.settle()
    assert [push.events[-1].state for push in heard if push.job == "t"] == ["completed"]


async def test_a_target_that_fails_leaves_its_source_going_on(home: Home) -> None:
    worker = await home.worker("w1", pools=[TEXT, "speech/tone"], sessions=9)
    await home.broker.submit(text_spec("t"), [Prompt(messages=[])], gateway="g1")
    await home.speech("s", "x")
    await home.broker.pipe(PipeSpec(id="p", source="t", target="s", map="speak"))
    await home.settle()
    worker.end("s", state="failed")
    await home.settle()
    assert (await home.broker.status("t")).state == "running"
