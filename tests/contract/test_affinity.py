"""What belongs to one notebook goes to one owner, in order, on the credit its kernel holds."""

from __future__ import annotations

from typing import Any

import pytest
from homes import Hand, Home

from forebay.broker import Control
from forebay.core.events import Cell, Ended, FileOp
from forebay.core.kinds import Kind
from forebay.core.spec import JobSpec
from forebay.errors import ModelNotFound, WaitTooLong

POOL = "kernel/python"
BOOK = "local/book"


async def cell(home: Home, name: str, affinity: str = BOOK, **more: Any) -> None:
    await _submit(home, name, affinity, [Cell(code="1")], **more)


async def op(home: Home, name: str, affinity: str = BOOK) -> None:
    await _submit(home, name, affinity, [FileOp(op="list")], beside=True)


async def _submit(home: Home, name: str, affinity: str, items: list[Any], **more: Any) -> None:
    spec = JobSpec(
        id=name, kind=Kind.KERNEL, pool=POOL, params={}, detach_s=600, affinity=affinity, **more
    )
    await home.broker.submit(spec, items, gateway="g1")
    await home.settle()


async def kernels(home: Home, name: str, sessions: int = 2) -> Hand:
    return await home.worker(name, pools=[POOL], sessions=sessions, slots=sessions)


def running(hand: Hand) -> list[str]:
    return list(hand.leases)


def controls(hand: Hand) -> list[Control]:
    return [push for push in hand.pushes if isinstance(push, Control)]


async def free(home: Home) -> int:
    await home.settle()
    return next(view.free_credits for view in home.broker.pools() if view.name == POOL)


async def test_cells_of_a_notebook_run_one_at_a_time_and_in_order(home: Home) -> None:
    one = await kernels(home, "w1")
    two = await kernels(home, "w2")
    for name in ("a", "b", "c"):
        await cell(home, name)
    owner, other = (one, two) if one.leases else (two, one)
    assert running(owner) == ["a"]
    owner.end("a")
    await home.settle()
    assert running(owner) == ["a", "b"]
    owner.end("b")
    await home.settle()
    assert running(owner) == ["a", "b", "c"]
    assert running(other) == []


async def test_four_file_operations_run_beside_a_cell_and_take_no_credit(home: Home) -> None:
    hand = await kernels(home, "w1", sessions=1)
    await cell(home, "a")
    for index in range(6):
        await op(home, f"o{index}")
    assert running(hand) == ["a", "o0", "o1", "o2", "o3"]
    hand.end("o1")
    await home.settle()
    assert running(hand)[-1] == "o4"
    await op(home, "elsewhere", "local/other")  # all credits are held, and it needs none
    assert running(hand)[-1] == "elsewhere"


async def test_a_notebook_holds_its_credit_until_its_kernel_is_gone(home: Home) -> None:
    hand = await kernels(home, "w1", sessions=1)
    await cell(home, "a")
    hand.end("a")
    assert await free(home) == 0
    await cell(home, "other", "local/other")
    await cell(home, "b")  # its own kernel is there: it needs no other credit
    assert running(hand) == ["a", "b"]
    hand.end("b")
    await home.settle()
    hand.port.keeps(BOOK, held=False)
    await home.settle()
    assert running(hand) == ["a", "b", "other"]


async def test_giving_a_kernel_up_while_its_next_cell_is_on_the_way_keeps_the_credit(
    home: Home,
) -> None:
    hand = await kernels(home, "w1", sessions=1)
    await cell(home, "a")
    hand.port.keeps(BOOK, held=False)  # reaped, says the worker, which has not seen the cell
    assert await free(home) == 0
    hand.end("a")
    await cell(home, "other", "local/other")
    assert running(hand) == ["a"]
    hand.port.keeps(BOOK, held=False)
    await home.settle()
    assert running(hand) == ["a", "other"]


async def test_a_cancelled_cell_blocks_the_next_until_its_worker_has_left_it(home: Home) -> None:
    hand = await kernels(home, "w1")
    await cell(home, "a")
    await cell(home, "b")
    await home.broker.cancel("a")
    await home.settle()
    assert running(hand) == ["a"]
    hand.port.park("a", 1)
    await home.settle()
    assert running(hand) == ["a", "b"]


async def test_the_owners_death_loses_the_cell_by_name_and_frees_the_notebook(home: Home) -> None:
    one = await kernels(home, "w1")
    await cell(home, "a")
    await cell(home, "b")
    two = await kernels(home, "w2")
    await one.die(stepping=["a"])
    ended = (await home.stored("a"))[-1]
    assert isinstance(ended, Ended)
    assert (ended.state, ended.code, ended.retryable) == ("failed", "kernel_lost", False)
    assert running(two) == ["b"]


async def test_control_reaches_the_owner_only_and_before_later_cells(home: Home) -> None:
    one = await kernels(home, "w1")
    two = await kernels(home, "w2")
    assert await home.broker.control(POOL, BOOK, "restart") is False
    await cell(home, "a")
    owner, other = (one, two) if one.leases else (two, one)
    assert await home.broker.control(POOL, BOOK, "interrupt", {"why": "client"}) is True
    await home.settle()
    assert controls(owner) == [
        Control(pool=POOL, affinity=BOOK, what="interrupt", args={"why": "client"})
    ]
    assert controls(other) == []
    owner.end("a")
    await home.settle()
    await home.broker.control(POOL, BOOK, "restart")
    await cell(home, "b")
    await home.settle()
    kinds = [type(push).__name__ for push in owner.pushes]
    assert kinds.index("Control", kinds.index("Control") + 1) < len(kinds) - 1 - kinds[::-1].index(
        "Assign"
    )
    with pytest.raises(ModelNotFound):
        await home.broker.control("kernel/none", BOOK, "shutdown")


async def test_a_worker_that_keeps_what_another_owns_is_told_to_end_it(home: Home) -> None:
    one = await kernels(home, "w1")
    two = await kernels(home, "w2")
    await cell(home, "a")
    owner, other = (one, two) if one.leases else (two, one)
    other.port.keeps(BOOK, held=True)
    await home.settle()
    assert controls(other) == [Control(pool=POOL, affinity=BOOK, what="shutdown")]
    owner.end("a")
    await cell(home, "b")
    assert running(owner) == ["a", "b"]


async def test_a_kernel_told_of_again_is_where_its_cells_go(home: Home) -> None:
    hand = await kernels(home, "w1", sessions=3)
    await kernels(home, "w2", sessions=9)
    hand.port.keeps(BOOK, held=True)
    await home.settle()
    await cell(home, "a")
    assert running(hand) == ["a"]
    hand.end("a")
    hand.port.keeps(BOOK, held=False)
    assert await free(home) == 12


async def test_a_long_wait_for_credits_does_not_refuse_who_needs_none(home: Home) -> None:
    hand = await kernels(home, "w1", sessions=1)
    await cell(home, "a")
    await home.advance(1000)
    hand.end("a")
    hand.port.keeps(BOOK, held=False)
    await home.settle()
    await cell(home, "b")
    with pytest.raises(WaitTooLong):
        await cell(home, "c", "local/other")
    await op(home, "o")
    assert running(hand)[-1] == "o"
