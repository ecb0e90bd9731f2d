"""A local language model: any GGUF file, on llama.cpp through xllamacpp.

``model`` is a path, or the name of catalogued weights (``smollm2``). Calls block, so each of
the ``slots`` has a thread; llama.cpp batches what runs at once. A generation is stopped
between two tokens, or between two batches of its prompt.

*Continuing an answer* (capability ``prefix``): the conversation is rendered by the model's
own template with the answer left open, the committed text is appended as tokens, and the
model goes on from there. Nothing is echoed and nothing passes through the template, so the
seam is exact to the character. Answers with tools or a schema are not continued.

Thinking models: what llama.cpp recognises as reasoning is not part of the answer.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from forebay.core.events import (
    InputItem,
    OutputEvent,
    Prompt,
    TextDelta,
    ToolCalls,
    Usage,
)
from forebay.core.kinds import Kind
from forebay.engines import EngineInfo, Report, Resume, ThreadedEngine, context, weights
from forebay.engines.llama_server import LlamaServer
from forebay.engines.options import Option, parse
from forebay.engines.stages import Stages
from forebay.errors import BadRequest, EngineFailed, Unsupported, WorkerLost

__all__ = ["LlamaText"]

Emit = Callable[[OutputEvent], None]

_MAGIC = b"GGUF"
_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
# What the makers of a catalogued model advise, beneath every other setting.
_ADVISED: Mapping[str, Mapping[str, float]] = {"smollm2": {"temperature": 0.2, "top_p": 0.9}}
_SAMPLING = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "repetition_penalty": "repeat_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "seed": "seed",
    "response_format": "response_format",
}


@dataclass(frozen=True, slots=True)
class _Request:
    params: Mapping[str, Any]
    resume: Resume


class LlamaText(ThreadedEngine):
    name = "llama"
    kind = Kind.TEXT
    OPTIONS = (
        Option("model", str, "smollm2", "a GGUF file, or the name of catalogued weights"),
        Option("models_dir", str, None, "where catalogued weights lie"),
        Option("threads", int, None, "threads of the model; unset: all cores but one", 1, 512),
        Option("slots", int, 2, "generations at once", 1, 64),
        Option("context", int, 2048, "tokens of one generation, prompt included", 128, 1_000_000),
        Option("batch", int, 64, "prompt tokens between two looks at cancel", 8, 4096),
        Option("max_tokens", int, 512, "longest answer where the request gives none", 1, 1_000_000),
        Option("temperature", float, None, "where the request gives none", 0, 100),
        Option("top_p", float, None, "where the request gives none", 0, 1),
        Option("top_k", int, None, "where the request gives none", -1, 1_000_000),
        Option("repetition_penalty", float, None, "where the request gives none", 0, 10),
        Option("presence_penalty", float, None, "where the request gives none", -10, 10),
        Option("frequency_penalty", float, None, "where the request gives none", -10, 10),
        Option("max_total_tokens", int, None, "prompt and answer together", 16, 10_000_000),
        Option("allow_auto_truncate", bool, False, "cut the oldest turns of too long a prompt"),
        Option("gpu_layers", int, None, "layers on a GPU, where xllamacpp was built for one", 0),
    )

    def __init__(self, **options: Any) -> None:
        self._options = parse(self.name, self.OPTIONS, options)
        self._threads = self._options["threads"] or max(1, (os.cpu_count() or 2) - 1)
        self._tools = False
        self._limit = 0
        self._server: LlamaServer | None = None

    # ------------------------------------------------------------------ loading

    async def load(self, report: Report) -> EngineInfo:
        stages = Stages(report)
        stages.at("locate", self._options["model"])
        files = self._locate(stages)
        for index, path in enumerate(files):
            stages.at("weights", path.name, index, len(files))
            _check(path, stages)
        stages.at("weights", files[0].name, len(files), len(files))
        stages.at("allocate", f"{self._options['slots']} x {self._options['context']} tokens")
        server = self._server = await self._start(files, stages)
        stages.at("warm_up", "one token")
        first_s = await asyncio.to_thread(_warm, server, stages)
        props = await asyncio.to_thread(server.props)
        self._limit = min(
            int(props["default_generation_settings"]["n_ctx"]),
            self._options["max_total_tokens"] or self._options["context"],
        )
        self._tools = bool((props.get("chat_template_caps") or {}).get("supports_tools"))
        self.start_threads(self._options["slots"])
        info = self._describe(files, props["meta"], first_s)
        stages.at("ready", info.model)
        return info

    def _locate(self, stages: Stages) -> list[Path]:
        model: str = self._options["model"]
        if model in weights.CATALOGUE:
            entry = weights.get(model)
            if not entry.used_by.startswith("text/"):
                raise stages.failed(f"{model!r} is for {entry.used_by}, expected a text model")
            models = self._options["models_dir"]
            folder = weights.require(model, Path(models) if models else weights.default_dir({}))
            return [folder / file.name for file in entry.files]
        path = Path(model).expanduser()
        split = _SPLIT.search(path.name)
        if not split:
            return [path]
        stem, total = path.name[: split.start()], int(split[2])
        return [path.with_name(f"{stem}-{n:05d}-of-{total:05d}.gguf") for n in range(1, total + 1)]

    async def _start(self, files: Sequence[Path], stages: Stages) -> LlamaServer:
        options = self._options
        need_mb = sum(path.stat().st_size for path in files) / 1e6
        free_mb = psutil.virtual_memory().available / 1e6
        try:
            return await asyncio.to_thread(
                LlamaServer,
                files[0],
                threads=self._threads,
                slots=options["slots"],
                context=options["context"],
                batch=options["batch"],
                gpu_layers=options["gpu_layers"],
            )
        except RuntimeError as exc:
            raise stages.failed(
                f"llama.cpp cannot load {files[0].name} ({need_mb:.0f} MB of weights, "
                f"{free_mb:.0f} MB of memory free)",
                hint="out of memory: lower context or slots, or take a smaller model"
                if free_mb < 1.2 * need_mb
                else "the file is damaged or of a newer format; llama.cpp's own words are on stderr",
            ) from exc

    def _describe(
        self, files: Sequence[Path], meta: Mapping[str, Any], first_s: float
    ) -> EngineInfo:
        model: str = self._options["model"]
        entry = weights.CATALOGUE.get(model)
        tools = {"tools"} if self._tools else set()
        return EngineInfo(
            model=entry.name if entry else files[0].stem,
            version=version("xllamacpp"),
            slots=self._options["slots"],
            capabilities=frozenset({"abortable", "batch", "prefix"} | tools),
            facts={
                "context": self._limit,
                "context_trained": meta.get("n_ctx_train"),
                "parameters": meta.get("n_params"),
                "quantisation": meta.get("ftype"),
                "weights_mb": round(sum(path.stat().st_size for path in files) / 1e6, 1),
                "threads": self._threads,
                "device": "gpu" if self._options["gpu_layers"] else "cpu",
                "runtime": f"xllamacpp {version('xllamacpp')}",
                "languages": list(entry.languages) if entry else [],
                "licence": entry.licence if entry else "",
                "first_token_s": first_s,
            },
        )

    # ------------------------------------------------------------------ working

    async def open(self, params: Mapping[str, Any], resume: Resume) -> _Request:
        if params.get("tools") and params.get("tool_choice") != "none" and not self._tools:
            raise Unsupported("this model's chat template has no tools, send none")
        if resume.text and (params.get("tools") or params.get("response_format")):
            raise WorkerLost("an answer with tools or a schema cannot be continued")
        return _Request(params, resume)

    def produce(
        self,
        session: _Request,
        items: Sequence[InputItem],
        emit: Emit,
        stopped: Callable[[], bool],
    ) -> None:
        prompt = next((item for item in items if isinstance(item, Prompt)), None)
        if prompt is None or not prompt.messages:
            raise BadRequest("a text job needs a prompt with at least one message")
        server = self._server
        if server is None:
            raise EngineFailed("the model is not loaded")
        answer = _Answer(emit, stopped)
        messages, limit = self._fit(server, prompt.messages, session, emit)
        if session.resume.text:
            self._continue(server, messages, limit, session, answer)
        else:
            server.chat(self._body(session, limit, messages=messages), answer.chunk)
        answer.close()

    def _fit(
        self,
        server: LlamaServer,
        messages: list[dict[str, Any]],
        session: _Request,
        emit: Emit,
    ) -> tuple[list[dict[str, Any]], int]:
        """The messages to send, and the longest answer. Counts only where it must:
        without a limit of our own llama.cpp itself refuses what is too long."""
        asked = session.params.get("max_tokens")
        limit = self._options["max_tokens"] if asked is None else max(1, int(asked))
        if not (self._options["allow_auto_truncate"] or self._options["max_total_tokens"]):
            return messages, min(limit, self._limit)

        def count(candidate: Sequence[dict[str, Any]]) -> int:
            return len(server.prompt_tokens(candidate))

        if not self._options["allow_auto_truncate"]:
            room = self._limit - context.check(messages, count, self._limit)
            return messages, min(limit, room)
        reserve = context.answer_reserve(limit, self._limit)
        fitted = context.fit(messages, count, self._limit, reserve)
        if fitted.notice is not None and not session.resume.text:
            emit(fitted.notice)
        return fitted.messages, min(limit, fitted.room)

    def _continue(
        self,
        server: LlamaServer,
        messages: list[dict[str, Any]],
        limit: int,
        session: _Request,
        answer: _Answer,
    ) -> None:
        begin = server.prompt_tokens(messages)
        done = server.text_tokens(session.resume.text)
        answer.prompt_tokens = len(begin)
        answer.before = session.resume.tokens or len(done)
        if len(begin) + len(done) >= self._limit or answer.before >= limit:
            answer.finish = "length"
            return
        body = self._body(session, limit - answer.before, prompt=begin + done)
        server.complete(body, answer.chunk)

    def _body(self, session: _Request, limit: int, **what: Any) -> dict[str, Any]:
        own = {k: self._options[k] for k in _SAMPLING if self._options.get(k) is not None}
        asked = {k: v for k, v in session.params.items() if v is not None}
        params = {**_ADVISED.get(self._options["model"], {}), **own, **asked}
        body: dict[str, Any] = {
            **what,
            "max_tokens": limit,
            "n_predict": limit,
            "stream": True,
            "stream_options": {"include_usage": True},
            "timings_per_token": True,
            "return_progress": True,
        }
        for ours, theirs in _SAMPLING.items():
            if ours in params:
                body[theirs] = params[ours]
        if body.get("top_k") == -1:
            body["top_k"] = 0  # llama.cpp's word for "all"
        if params.get("stop"):
            body["stop"] = list(params["stop"])
        if params.get("tools"):
            body["tools"] = params["tools"]
            body["tool_choice"] = params.get("tool_choice") or "auto"
        return body

    async def close(self, session: _Request) -> None:
        return None

    async def unload(self) -> None:
        self.stop_threads()
        server, self._server = self._server, None
        if server is not None:
            await asyncio.to_thread(server.close)


@dataclass(slots=True)
class _Answer:
    """Turns llama.cpp's chunks into events; lives for one call, in one thread."""

    emit: Emit
    stopped: Callable[[], bool]
    prompt_tokens: int | None = None  # known beforehand when continuing
    before: int = 0  # tokens of the answer that earlier attempts made
    made: int = 0
    finish: str = ""
    usage: Mapping[str, Any] | None = None
    calls: dict[int, dict[str, Any]] = field(default_factory=dict)

    def chunk(self, chunk: Mapping[str, Any]) -> bool:
        self.usage = chunk.get("usage") or self.usage
        timings = chunk.get("timings") or {}
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            text = choice.get("text") or delta.get("content")
            if text:
                total = max(int(timings.get("predicted_n") or 0), self.made)
                self.emit(TextDelta(text=text, count=total - self.made))
                self.made = total
            if delta.get("tool_calls"):
                self._tool_calls(delta["tool_calls"])
            self.finish = choice.get("finish_reason") or self.finish
        return self.stopped()

    def close(self) -> None:
        """The last event, unless the caller stopped it."""
        if self.stopped():
            return
        if not self.finish:
            raise EngineFailed("llama.cpp ended an answer without saying why")
        usage = self.usage or {}
        self.emit(
            Usage(
                prompt_tokens=self.prompt_tokens or int(usage.get("prompt_tokens") or 0),
                completion_tokens=self.before + int(usage.get("completion_tokens") or self.made),
                finish=self.finish,
            )
        )

    def _tool_calls(self, deltas: Sequence[Mapping[str, Any]]) -> None:
        for delta in deltas:
            index = int(delta.get("index") or 0)
            call = self.calls.setdefault(
                index, {"index": index, "id": "", "function": {"name": "", "arguments": ""}}
            )
            call["id"] = delta.get("id") or call["id"]
            function = delta.get("function") or {}
            call["function"]["name"] += function.get("name") or ""
            call["function"]["arguments"] += function.get("arguments") or ""
        self.emit(
            ToolCalls(
                calls=[
                    {**call, "function": dict(call["function"])}
                    for _, call in sorted(self.calls.items())
                ],
                delta=[dict(delta) for delta in deltas],
            )
        )


def _check(path: Path, stages: Stages) -> None:
    try:
        with path.open("rb") as file:
            magic = file.read(len(_MAGIC))
    except OSError as exc:
        raise stages.failed(f"cannot read {path}: {exc.strerror}", path=str(path)) from exc
    if magic != _MAGIC:
        raise stages.failed(f"{path} begins with {magic!r}, expected a GGUF file", path=str(path))


def _warm(server: LlamaServer, stages: Stages) -> float:
    start = stages.elapsed_s
    server.chat(
        {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1, "stream": True},
        lambda chunk: False,
    )
    return round(stages.elapsed_s - start, 3)
