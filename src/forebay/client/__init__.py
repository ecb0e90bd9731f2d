"""The Python SDK: sessions that resume by themselves.

`SpeechSession` speaks the voice protocol (`/tts`): text in, numbered audio out. When the
connection drops it comes back with jittered back-off, asks for what it lacks, re-sends what
the server had not heard, and the caller sees one gapless sequence of chunks.

`ListenSession` speaks `/v1/listen` the same way: sound in, numbered transcripts out; what the
server has not acknowledged is sent again after a drop.

`CaptionPublisher` sends captions into a room from any thread: at once, in order, each once,
with an outbox that survives restarts.
"""

from forebay.client.listen import ListenSession
from forebay.client.listen_state import ListenState, Queued, Transcript
from forebay.client.publish_state import Counters
from forebay.client.publisher import CaptionPublisher, PublisherStatus
from forebay.client.s1 import Chunk, SpeechState
from forebay.client.speech import SpeechSession

__all__ = [
    "CaptionPublisher",
    "Chunk",
    "Counters",
    "ListenSession",
    "ListenState",
    "PublisherStatus",
    "Queued",
    "SpeechSession",
    "SpeechState",
    "Transcript",
]
