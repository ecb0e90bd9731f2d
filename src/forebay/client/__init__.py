"""The Python SDK: sessions that resume by themselves.

`SpeechSession` speaks the voice protocol (`/tts`): text in, numbered audio out. When the
connection drops it comes back with jittered back-off, asks for what it lacks, re-sends what
the server had not heard, and the caller sees one gapless sequence of chunks.
"""

from forebay.client.s1 import Chunk, SpeechState
from forebay.client.speech import SpeechSession

__all__ = ["Chunk", "SpeechSession", "SpeechState"]
