"""Files that a job's input and output name: they are needed as long as it is remembered."""

from __future__ import annotations

from typing import Any

import pytest
from homes import Hand, Home, MakeHome
from redis_homes import RedisHome

from forebay.core.events import Consumed, End, Ended, InputItem, Picture, Result, Tile
from forebay.core.kinds import Kind
from forebay.core.spec import JobSpec

PHOTO = "image/sharp"
WINDOW_S = 24 * 3600.0


def picture_spec(ident: str, **more: Any) -> JobSpec:
    return JobSpec(
        id=ident, kind=Kind.IMAGE, pool=PHOTO, dialect="photos", name=ident, params={}, **more
    )


async def begin(home: Home, job: str) -> Hand:
    """A picture of two tiles, of which one is made."""
    hand = await home.worker("w1", pools=[PHOTO])
    items: list[InputItem] = [Picture(blob=f"{job}-in", width=4, height=2), End()]
    await home.broker.submit(picture_spec(job), items, gateway="g1")
    await home.settle()
    hand.commit(job, tile(job, 0))
    await home.settle()
    return hand


def tile(job: str, index: int) -> Tile:
    return Tile(index=index, total=2, x=2 * index, y=0, width=2, height=2, blob=f"{job}-t{index}")


def finish(hand: Hand, job: str) -> None:
    hand.commit(job, tile(job, 1), Result(blob=f"{job}-out"))
    hand.commit(job, Ended(state="completed"), consumed=Consumed(2))


async def test_a_cancelled_jobs_files_go_at_once(home: Home) -> None:
    await begin(home, "a")
    assert home.dropped == []
    await home.broker.cancel("a")
    await home.settle()
    assert sorted(home.dropped) == ["a-in", "a-t0"]


async def test_a_finished_jobs_files_stay_until_it_is_deleted_and_go_once(home: Home) -> None:
    hand = await begin(home, "a")
    finish(hand, "a")
    await home.settle()
    assert home.dropped == []
    await home.broker.forget("a")
    await home.settle()
    assert sorted(home.dropped) == ["a-in", "a-out", "a-t0", "a-t1"]


async def test_a_job_whose_window_has_passed_takes_its_files_along(home: Home) -> None:
    hand = await begin(home, "a")
    finish(hand, "a")
    await home.settle()
    hand.beating = False
    home.time.freeze(WINDOW_S + 1)
    await home.advance(1)
    assert sorted(home.dropped) == ["a-in", "a-out", "a-t0", "a-t1"]


async def test_a_retried_jobs_input_is_the_new_jobs(home: Home) -> None:
    hand = await begin(home, "a")
    hand.commit("a", Ended(state="failed", code="engine_failed"))
    await home.settle()
    again = await home.broker.retry("a")
    await home.broker.forget("a")
    await home.settle()
    assert home.dropped == ["a-t0"]
    await home.broker.cancel(again.spec.id)
    await home.settle()
    assert sorted(home.dropped) == ["a-in", "a-t0"]


async def buried(home: Home) -> None:
    """A photo that crashed every worker."""
    for turn in range(3):
        hand = await home.worker(f"w{turn}", pools=[PHOTO])
        if turn == 0:
            items: list[InputItem] = [Picture(blob="a-in", width=4, height=2), End()]
            await home.broker.submit(picture_spec("a"), items, gateway="g1")
            await home.settle()
        await hand.die(stepping=["a"])
    assert (await home.broker.status("a")).code == "poison"


async def test_files_of_a_dead_letter_stay_for_its_retry(make_home: MakeHome) -> None:
    home = await make_home()
    await buried(home)
    home.time.freeze(WINDOW_S + 1)
    await home.advance(1)
    assert home.dropped == []
    letters = await home.broker.jobs(dead=True)
    assert [letter.spec.id for letter in letters] == ["a"]


@pytest.mark.parametrize("late", [False, True], ids=["inside its window", "after it"])
async def test_a_dead_letter_that_is_forgotten_takes_its_files_along(
    make_home: MakeHome, late: bool
) -> None:
    home = await make_home()
    await buried(home)
    if late:
        home.time.freeze(WINDOW_S + 1)
        await home.advance(1)
    await home.broker.forget("a")
    await home.settle()
    assert await home.broker.jobs(dead=True) == []
    assert home.dropped == ["a-in"]


@pytest.mark.parametrize("home_of", [RedisHome])
async def test_files_that_could_not_be_removed_are_given_out_again(home_of: Any) -> None:
    home = home_of()
    await home.start()
    try:
        broken = True
        gone: list[str] = []

        async def drop(names: Any) -> None:
            if broken:
                raise OSError("the file store is away")
            gone.extend(names)

        home.real.trash._drop = drop
        await begin(home, "a")
        await home.broker.cancel("a")
        await home.settle()
        broken = False
        await home.settle()
        assert gone == []  # somebody may be about to say that they are gone
        await home.advance(61)
        assert sorted(gone) == ["a-in", "a-t0"]
    finally:
        await home.close()
