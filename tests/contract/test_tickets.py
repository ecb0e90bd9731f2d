"""One-time tickets, shown at whatever gateway of one broker."""

from __future__ import annotations

from homes import Home


async def keep(home: Home, ticket: str, life_s: float = 30.0, limit: int = 100) -> None:
    await home.broker.keep_ticket(ticket, f"holder of {ticket}", life_s=life_s, limit=limit)


async def test_a_ticket_is_good_once(home: Home) -> None:
    await keep(home, "a")
    await keep(home, "b")
    assert await home.broker.take_ticket("a") == "holder of a"
    assert await home.broker.take_ticket("a") is None
    assert await home.broker.take_ticket("b") == "holder of b"
    assert await home.broker.take_ticket("never made") is None


async def test_a_ticket_has_its_time(home: Home) -> None:
    await keep(home, "short", life_s=5.0)
    await keep(home, "long", life_s=60.0)
    home.time.freeze(5.0)
    assert await home.broker.take_ticket("short") is None
    assert await home.broker.take_ticket("long") == "holder of long"


async def test_of_too_many_tickets_the_oldest_go(home: Home) -> None:
    for name in "abcd":
        await keep(home, name, limit=3)
        home.time.freeze(0.01)
    assert await home.broker.take_ticket("a") is None
    assert [await home.broker.take_ticket(name) for name in "bcd"] == [
        "holder of b",
        "holder of c",
        "holder of d",
    ]


async def test_a_ticket_made_at_one_gateway_opens_another(home: Home) -> None:
    elsewhere = getattr(home, "elsewhere", None)  # a home in one process has one gateway only
    other = home.broker if elsewhere is None else await elsewhere()
    await keep(home, "a")
    assert await other.take_ticket("a") == "holder of a"
    assert await home.broker.take_ticket("a") is None
