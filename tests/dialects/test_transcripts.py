"""Replays the conversations in ``transcripts/``; see the README there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import test_asr
import test_chat
import test_tts
from voice_world import Client, World, run, spoken, world

FOLDER = Path(__file__).parent / "transcripts"
FILES = sorted(FOLDER.glob("*.jsonl"))


class Replay:
    def __init__(self, w: World, path: str) -> None:
        self.w = w
        self.path = path
        self.back: list[dict[str, Any]] = []
        self.client = self._open()

    def _open(self) -> Client:
        if self.path == "ws/asr":
            return test_asr.connect(self.w)
        if self.path == "tts":
            return test_tts.connect(self.w)
        return test_chat.connect(self.w, greet="at_once" if self.path == "ws/chat" else "silent")

    async def _next(self, within_s: float = 20.0) -> dict[str, Any] | None:
        return self.back.pop() if self.back else await self.client.hear(within_s)

    async def say(self, message: Any, step: Any) -> None:
        self.client.say(message)

    async def chunk(self, facts: dict[str, Any], step: Any) -> None:
        audio = test_asr.words(*step["words"])
        self.client.say(test_asr.chunk(facts["chunk_index"], audio, facts["session_id"]))

    async def hear(self, wanted: dict[str, Any], step: Any) -> None:
        message = await self._next()
        assert message is not None, f"nothing came, expected {wanted}"
        got = {k: message.get(k) for k in wanted}
        assert got == wanted, message["type"]

    async def audio(self, text: str, step: Any) -> None:
        chunks: list[dict[str, Any]] = []
        while len(spoken(chunks, step["from"])) < len(text):
            message = await self._next()
            assert message is not None
            assert message["type"] == "audio_chunk", message
            chunks.append(message)
        assert spoken(chunks, step["from"]) == text

    async def written(self, text: str, step: Any) -> None:
        got = ""
        while (message := await self._next(1.0)) is not None and message["type"] == "llm_delta":
            got += message["delta"]
        if message is not None:
            self.back.append(message)
        assert got and text in ("*", got)

    async def skip(self, types: list[str], step: Any) -> None:
        while (message := await self._next()) is not None:
            if message["type"] not in types:
                self.back.append(message)
                return

    async def quiet(self, seconds: float, step: Any) -> None:
        assert await self._next(seconds) is None

    async def drop(self, yes: bool, step: Any) -> None:
        await self.client.leave()

    async def connect(self, yes: bool, step: Any) -> None:
        self.client = self._open()

    async def closed(self, code: int, step: Any) -> None:
        assert await self._next() is None
        assert self.client.code == code


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_transcript(file: Path) -> None:
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line]
    head, steps = lines[0], lines[1:]

    async def body() -> None:
        engines = {
            "speech": head.get("speech", {"rtf": 0.0, "unit_ms": 40}),
            "text": head.get("text", {"tokens": 5}),
            "recognition": head.get("recognition", {"rtf": 0.0, "words": 10}),
        }
        async with world(**engines) as w:
            replay = Replay(w, head["path"])
            for step in steps:
                verb, value = next(iter(step.items()))
                await getattr(replay, verb)(value, step)
            await replay.client.gone()

    run(body())
