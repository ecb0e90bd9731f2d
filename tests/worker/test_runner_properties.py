"""Whatever happens in whatever order, no lease is left hanging and no slot is lost."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from worker_bench import MemoryBroker, ScriptEngine, passes, running, speech, text

from forebay.broker import Delivered, LeaseLost
from forebay.core.events import Audio, End, Ended
from virtual import virtual

SENTENCE = "One two three, four five six. "


class Story:
    """One job over several leases: what was fed, and how each attempt must be answered."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.attempt = 1
        self.offset = 0
        self.unit = 0
        self.ended = False
        self.fenced: set[int] = set()

    def next_items(self, chance: random.Random) -> list[Any]:
        if self.ended:
            return []
        self.offset += 1
        if chance.random() < 0.2:
            self.ended = True
            return [End(offset=self.offset)]
        words = SENTENCE[: chance.randrange(1, len(SENTENCE))]
        item = text(words, offset=self.offset, unit=self.unit)
        self.unit += len(words)
        return [item]


def moody(chance: random.Random) -> Any:
    async def script(session: Any, items: Sequence[Any]) -> AsyncIterator[Any]:
        for start in range(0, len(items[0].text), 7):
            await asyncio.sleep(chance.random())
            mood = chance.random()
            if mood < 0.01:
                raise RuntimeError("bad day")
            if mood < 0.02:
                return
            yield speech(items[0], start, 7)

    return script


def act(chance: random.Random, broker: MemoryBroker, story: Story) -> None:
    what = chance.choice(["feed", "feed", "feed", "cancel", "lost", "delivered", "detached"])
    if what == "feed":
        broker.feed(story.name, *story.next_items(chance), attempt=story.attempt)
    elif what == "cancel" and chance.random() < 0.3:
        story.fenced.add(story.attempt)
        broker.cancel(story.name, story.attempt)
    elif what == "lost" and chance.random() < 0.3:
        story.fenced.add(story.attempt)
        broker.push(LeaseLost(job=story.name, attempt=story.attempt))
    elif what in ("delivered", "detached"):
        done = max(
            (e.samples for e in broker.events(story.name) if isinstance(e, Audio)), default=0
        )
        broker.push(
            Delivered(
                job=story.name,
                attempt=story.attempt,
                delivered=done,
                attached=what == "delivered",
            )
        )


@pytest.mark.parametrize("seed", range(25))
@virtual
async def test_every_lease_is_answered_exactly_once(seed: int) -> None:
    chance = random.Random(seed)
    engine = ScriptEngine(script=moody(chance))
    stories = [Story(f"j{i}") for i in range(8)]
    async with running(engine, slots=2) as (broker, runner):
        for story in stories:
            broker.assign(
                story.name,
                tenant=chance.choice("ab"),
                exclusive=chance.random() < 0.2,
                run_left_s=chance.choice([None, 3.0]),
                credit_bytes=chance.choice([262_144, 70_000]),
            )
        for _ in range(150):
            act(chance, broker, chance.choice(stories))
            await passes(chance.random() * 0.4)
        runner.drain(chance.choice([0.5, 30.0]))
        await passes(60)
        assert runner.load() | {"busy_s": 0.0} == {"busy": 0, "busy_s": 0.0, "sessions": 0}
        assert engine.inside == 0
        assert engine.closed == len(engine.opened)
        assert engine.most_inside <= 2
    for story in stories:
        ends = [e for e in broker.events(story.name) if isinstance(e, Ended)]
        parks = broker.parked.count((story.name, 1))
        assert len(ends) + parks == 1, (len(ends), parks)
        pieces = [e for e in broker.events(story.name) if isinstance(e, Audio)]
        assert [p.unit for p in pieces] == [0, *(p.units for p in pieces[:-1])][: len(pieces)]
