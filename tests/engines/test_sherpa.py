"""A user's streaming model: which files are taken, and what its results become."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from engine_helpers import load

from forebay.core.events import End, Final, Partial, Sound
from forebay.engines import Resume
from forebay.engines.sherpa import Sherpa
from forebay.errors import CannotBoot, ConfigError


class Recogniser:
    """A word each 0.1 s, an endpoint after ten; stands in for the user's model."""

    class Stream:
        samples = 0

        def accept_waveform(self, rate: int, samples: Any) -> None:
            assert rate == 16_000
            self.samples += len(samples)

    def create_stream(self) -> Stream:
        return self.Stream()

    def is_ready(self, stream: Stream) -> bool:
        return False

    def get_result(self, stream: Stream) -> str:
        return " ".join(f"w{n}" for n in range(stream.samples // 1600))

    def is_endpoint(self, stream: Stream) -> bool:
        return stream.samples >= 16_000


async def test_results_grow_until_the_endpoint_and_then_begin_anew() -> None:
    engine = Sherpa(path="/models/zip", language="zh")
    engine._recogniser = Recogniser()
    engine.start_threads(1)
    session = await engine.open({}, Resume())
    events: list[Any] = []
    for _ in range(12):
        events += [e async for e in engine.step(session, [Sound(data=bytes(3200))])]
    events += [e async for e in engine.step(session, [End()])]
    partials = [e for e in events if isinstance(e, Partial)]
    first, last = [e for e in events if isinstance(e, Final)]
    assert [p.text for p in partials[:2]] == ["w0", "w0 w1"]
    assert (first.text.split()[-1], first.start, first.end) == ("w9", 0, 16_000)
    assert (last.start, last.end, last.language) == (16_000, 19_200, "zh")
    await engine.unload()


async def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokens.txt").touch()
    with pytest.raises(CannotBoot, match=r"has no encoder, decoder"):
        await load(Sherpa(path=str(tmp_path)))
    with pytest.raises(ConfigError, match="needs option 'path'"):
        Sherpa()
