"""What a person is told when a server cannot be spoken to."""

from __future__ import annotations

import aiohttp
import pytest

from forebay.client.reach import why
from forebay.commands.jobs import Server
from forebay.errors import NoWorkers


def test_nothing_at_an_address_is_said_in_words() -> None:
    with pytest.raises(NoWorkers) as found:
        Server("http://127.0.0.1:9", None).ask("GET", "/api/jobs")
    assert "(the server cannot be reached)" in str(found.value)
    assert "Error" not in str(found.value)


@pytest.mark.parametrize(
    ("exc", "said"),
    [
        (TimeoutError(), "no answer in time"),
        (aiohttp.ServerDisconnectedError(), "the server closed the connection"),
        (ConnectionRefusedError(), "the server cannot be reached"),
        (ConnectionResetError(), "the server closed the connection"),
        (aiohttp.ClientError("odd bytes"), "odd bytes"),
    ],
)
def test_each_kind_of_failure_has_its_words(exc: Exception, said: str) -> None:
    assert why(exc) == said
