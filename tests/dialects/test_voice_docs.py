"""The reference page's examples are what the dialects take, and its tables name what they say."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from forebay.dialects import chat, tts
from forebay.dialects.chat import TextChat, VoiceChat, choose
from forebay.dialects.tts import TtsDialect

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "voice-protocol.md"


def examples() -> list[tuple[bool, list[str]]]:
    """(is it `/chat`, what the client says) of each example."""
    text = PAGE.read_text(encoding="utf-8")
    cut = text.index("## `/chat`, voice")
    found = []
    for block in re.finditer(r"```json\n(.*?)```", text, re.DOTALL):
        said = [line[2:] for line in block[1].splitlines() if line.startswith("> ")]
        found.append((block.start() > cut, said))
    return found


def test_every_message_of_the_examples_is_taken() -> None:
    tts_dialect = TtsDialect()
    voice, text = VoiceChat(tts_dialect), TextChat()
    shown = examples()
    assert len(shown) == 3
    for is_chat, said in shown:
        state = None
        for frame in said:
            if is_chat:
                assert choose(frame, voice, text) is voice
                state, intents = voice.receive(state, frame)
            else:
                state, intents = tts_dialect.receive(state, frame)
            assert len(intents) == 1


def test_every_field_of_every_message_is_on_the_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    messages: list[type[msgspec.Struct]] = [
        *(tts.Start, tts.TextDelta, tts.TextEnd, tts.CancelMessage, tts.ResumeMessage),
        *(tts.StartAck, tts.AudioChunk, tts.TtsEnd, tts.Error, tts.QueueStatus, tts.GoingAway),
        *(chat.Prompt, chat.ResumeMessage, chat.Chat),
    ]
    for message in messages:
        for name in message.__struct_fields__:
            assert re.search(rf"\b{name}\b", text), (message.__name__, name)
