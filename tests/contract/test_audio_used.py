"""Seconds of audio of a tenant, counted for all gateways of one broker."""

from __future__ import annotations

from homes import Home


async def used(home: Home, tenant: str = "t", **totals: float) -> float:
    slots = await home.broker.audio(tenant, totals)
    return round(sum(seconds for _, seconds in slots), 3)


async def test_what_a_job_has_brought_counts_once_whoever_says_it(home: Home) -> None:
    await home.worker("w1")
    for job in ("a", "b"):
        await home.speech(job)
    assert await used(home) == 0
    assert await used(home, a=2.5) == 2.5
    assert await used(home, a=2.5) == 2.5
    assert await used(home, a=1.0) == 2.5
    assert await used(home, a=4.0, b=1.25) == 5.25
    assert await used(home, "other") == 0


async def test_an_hour_slides_by_the_minute(home: Home) -> None:
    await home.worker("w1")
    await home.speech("a")
    await used(home, a=10.0)
    home.time.freeze(60)
    assert await used(home, a=15.0) == 15.0
    slots = await home.broker.audio("t", {})
    assert [seconds for _, seconds in sorted(slots, reverse=True)] == [10.0, 5.0]
    oldest, newest = sorted((age for age, _ in slots), reverse=True)
    assert 0 <= newest < 60 and oldest - newest == 60
    home.time.freeze(3600.1 - newest)
    assert await used(home) == 5.0
    home.time.freeze(61)
    assert await used(home) == 0
