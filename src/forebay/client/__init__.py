"""The Python SDK: sessions that resume by themselves.

`SpeechSession` speaks the voice protocol (`/tts`): text in, numbered audio out. When the
connection drops it comes back with jittered back-off, asks for what it lacks, re-sends what
the server had not heard, and the caller sees one gapless sequence of chunks.

`ListenSession` speaks `/v1/listen` the same way: sound in, numbered transcripts out; what the
server has not acknowledged is sent again after a drop.
"""

from forebay.client.listen import ListenSession
from forebay.client.listen_state import ListenState, Queued, Transcript
from forebay.client.s1 import Chunk, SpeechState
from forebay.client.speech import SpeechSession

__all__ = [
    "Chunk",
    "ListenSession",
    "ListenState",
    "Queued",
    "SpeechSession",
    "SpeechState",
    "Transcript",
]
