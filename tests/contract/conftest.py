"""Every contract test runs on every home of the broker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from homes import Home, LinkHome, MakeHome
from redis_homes import RedisHome, ValkeyHome

HOMES = {"local": Home, "link": LinkHome, "redis": RedisHome, "valkey": ValkeyHome}


@pytest.fixture(params=list(HOMES))
async def make_home(request: pytest.FixtureRequest) -> AsyncIterator[MakeHome]:
    """Make a home with settings of its own."""
    made: list[Home] = []

    async def make(*args: Any, **kwargs: Any) -> Home:
        home = HOMES[request.param](*args, **kwargs)
        await home.start()
        made.append(home)
        return home

    yield make
    for home in made:
        await home.close()


@pytest.fixture
async def home(make_home: MakeHome) -> Home:
    return await make_home()
