"""Claim: what the real recognisers cost and how well they hear, on this machine.

Sentences are spoken by the real voices and heard by the real recognisers: word error rate
for English, character error rate for Chinese (numbers and marks as the model writes them,
which counts against it). Then as many sessions as that speed promises (``--streams``: so many)
speak ``--live`` seconds in real time to one slot; held are they where the lag from the end of
a sentence's sound to its final, p95, is at most ``--lag`` s; if not, half as many try.
Everything ends within four minutes. Run it on an idle machine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import soxr

from benchmarks.harness import options, report, run
from forebay.core.events import End, Final, Sound, Text
from forebay.engines import Engine, Resume, create

Row = tuple[str, str, str, bool | None]

LIMIT_S = 215.0
SHARE = 0.9
"""Of a slot that live streams may fill, as everywhere."""

RATE = 16_000
STEP = RATE // 10
PAUSE = np.zeros(RATE, np.int16)
SAID = {
    "en": (
        "The quick brown fox jumps over the lazy dog.",
        "Please send the report to Maria before tomorrow morning.",
        "We are going to test speech recognition with several people talking at once.",
        "The library opens in the afternoon and closes late in the evening.",
        "My brother bought a new bicycle and rode it along the river.",
        "If the weather is good we will have lunch outside.",
        "The doctor asked him to drink more water and sleep well.",
        "She wrote a long letter to her friend who lives in another country.",
    ),
    "zh": (
        "今天天气很好，我们去公园散步。",
        "语音识别系统需要处理很多人的声音。",
        "请在明天上午之前完成这个任务。",
        "我的朋友住在北京，他喜欢学习历史。",
        "这家饭店的菜很好吃，价格也不贵。",
        "会议结束以后，大家一起去喝咖啡。",
    ),
}


async def speak(text: str, voice: Engine) -> Any:
    session = await voice.open({}, Resume())
    pieces = [e.data async for e in voice.step(session, [Text(text=text, unit=0)])]  # type: ignore[union-attr]
    frames = np.frombuffer(b"".join(pieces), "<i2")
    return soxr.resample(frames, 24_000, RATE)


async def hear(
    engine: Engine, sound: Any, language: str, slot: asyncio.Semaphore, *, paced: bool = False
) -> tuple[list[Final], list[tuple[int, float]]]:
    """The finals, and for each the sample it ends at with its lag in seconds."""
    session = await engine.open({"language": language}, Resume())
    finals: list[Final] = []
    lags: list[tuple[int, float]] = []
    began = time.monotonic()
    at = 0
    while at < len(sound):
        ready = at + STEP
        if paced:
            await asyncio.sleep(max(0.0, began + ready / RATE - time.monotonic()))
        async with slot:
            if paced:  # what has come meanwhile, at most a second
                arrived = int((time.monotonic() - began) * RATE)
                ready = min(max(ready, arrived), at + RATE)
            items: list[Any] = [Sound(data=sound[at:ready].tobytes())]
            at = ready
            if at >= len(sound):
                items.append(End())
            async for event in engine.step(session, items):
                if isinstance(event, Final) and event.text:
                    finals.append(event)
                    lags.append((event.end, time.monotonic() - began - event.end / RATE))
    await engine.close(session)
    return finals, lags


def units(text: str, language: str) -> list[str]:
    plain = "".join(c.lower() if c.isalnum() or c.isspace() else "" for c in text)
    return plain.split() if language == "en" else list(plain.replace(" ", ""))


def distance(said: Sequence[str], heard: Sequence[str]) -> int:
    row = list(range(len(heard) + 1))
    for i, a in enumerate(said, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(heard, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


async def main() -> int:
    wanted = options(
        __doc__ or "", engine="listener", languages="en,zh", streams=0, live=15.0, lag=5.0
    )
    rows: list[Row] = []
    try:
        async with asyncio.timeout(LIMIT_S):
            await measured(wanted, rows)
    except TimeoutError:
        rows.append(("the rest", f"not done within {LIMIT_S:g} s", "all of it", False))
    title = f"recognition={wanted.engine}, heard from synthesised speech"
    return report(title, rows, wanted.output_json)


async def measured(wanted: Any, rows: list[Row]) -> None:
    """Add to ``rows`` what is known, as soon as it is."""
    voice = create("speech", "voices", {})
    await voice.load(lambda stage: None)
    sounds = {
        word: np.concatenate([part for s in SAID[word] for part in (await speak(s, voice), PAUSE)])
        for word in wanted.languages.split(",")
    }
    await voice.unload()
    engine = create("recognition", wanted.engine, {})
    began = time.monotonic()
    info = await engine.load(lambda stage: None)
    rows.append(("load", f"{time.monotonic() - began:.1f} s", "", None))
    rows.append(("RTF it promises", f"{info.facts['rtf']:.3f}", "", None))
    for word, sound in sounds.items():
        found, rtf = await quality(engine, sound, word)
        rows += found
        part = sound[: int(wanted.live * RATE)]
        streams = wanted.streams or max(1, int(SHARE * info.slots / rtf))
        await held(engine, part, word, streams, info.slots, wanted.lag, rows)
    await engine.unload()


async def quality(engine: Engine, sound: Any, language: str) -> tuple[list[Row], float]:
    """What was heard wrong, and the RTF of one stream that nothing holds up."""
    began = time.monotonic()
    finals, _ = await hear(engine, sound, language, asyncio.Semaphore(1))
    rtf = (time.monotonic() - began) * RATE / len(sound)
    said = units(" ".join(SAID[language]), language)
    wrong = distance(said, units(" ".join(f.text for f in finals), language))
    rate = wrong / len(said)
    return [
        (f"{language}: wrong", f"{wrong} of {len(said)} ({rate:.1%})", "<= 15 %", rate <= 0.15),
        (f"{language}: RTF", f"{rtf:.3f} over {len(sound) / RATE:.0f} s", "< 1", rtf < 1),
    ], rtf


async def held(
    engine: Engine,
    sound: Any,
    language: str,
    streams: int,
    slots: int,
    lag_s: float,
    rows: list[Row],
) -> None:
    """A row for ``streams``, then for half as many, until they are held."""
    while True:
        p50, p95 = await live(engine, sound, language, streams, slots)
        last = p95 <= lag_s or streams == 1
        what = f"{language}: {streams} live streams, end of sentence to final"
        seen, wanted = f"p50 {p50:.2f} s, p95 {p95:.2f} s", f"p95 <= {lag_s:g} s"
        rows.append((what, seen, wanted, p95 <= lag_s if last else None))
        if last:
            return
        streams //= 2


async def live(
    engine: Engine, sound: Any, language: str, streams: int, slots: int
) -> tuple[float, float]:
    slot = asyncio.Semaphore(slots)
    told = await asyncio.gather(
        *(hear(engine, sound, language, slot, paced=True) for _ in range(streams))
    )
    lags = sorted(lag for _, found in told for _, lag in found)
    return lags[len(lags) // 2], lags[int(len(lags) * 0.95)]


if __name__ == "__main__":
    run(main)
