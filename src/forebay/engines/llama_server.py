"""xllamacpp's in-process llama.cpp server, with its surprises handled.

* Its calls block and return nothing; answers come as chunks to a callback. A callback that
  raises is *swallowed*, so `call` records what it raised and raises it afterwards.
* A callback that returns True stops the generation. Prompts are read in batches of
  ``batch`` tokens with a progress chunk after each, so a long prompt can be stopped too.
* It always opens an HTTP listener on 127.0.0.1 at a random port. We lock it with a random
  key that never leaves this process, and use it for what the in-process calls lack: the
  chat template and the tokenizer.
* Its prompt cache would grow to 8 GiB by default; here it is off.
"""

from __future__ import annotations

import http.client
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from forebay.errors import BadRequest, EngineFailed, ForebayError, PromptTooLong

__all__ = ["LlamaServer"]

Chunk = Mapping[str, Any]
OnChunk = Callable[[Chunk], bool]

_LOOPBACK_TIMEOUT_S = 30.0
_REASON_CHARS = 300


class LlamaServer:
    """One loaded model. Every method blocks; all are safe from several threads at once.

    ``context`` is per generation. Raises RuntimeError (the library's own, which names no
    cause) when the model cannot be loaded.
    """

    def __init__(
        self,
        path: Path,
        *,
        threads: int,
        slots: int,
        context: int,
        batch: int,
        gpu_layers: int | None,
    ) -> None:
        import xllamacpp

        self._key = secrets.token_hex(16)
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.model_alias = {path.stem}
        params.n_parallel = slots
        params.n_ctx = context * slots
        params.n_batch = params.n_ubatch = batch
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        if gpu_layers is not None:
            params.n_gpu_layers = gpu_layers
        params.cache_ram_mib = 0
        params.verbosity = 1  # errors only; prompts are never logged
        params.api_keys = [self._key]
        params.n_threads_http = 2
        params.ui = False
        params.endpoint_slots = False
        self._server: Any = xllamacpp.Server(params)
        address = urlsplit(self._server.listening_address)
        self._host, self._port = address.hostname or "127.0.0.1", address.port

    def chat(self, body: Mapping[str, Any], on_chunk: OnChunk) -> None:
        """A chat completion; ``on_chunk`` is called in this thread, True stops it."""
        _call(self._server.handle_chat_completions, body, on_chunk)

    def complete(self, body: Mapping[str, Any], on_chunk: OnChunk) -> None:
        """A raw completion of ``body["prompt"]`` (text or token ids)."""
        _call(self._server.handle_completions, body, on_chunk)

    def close(self) -> None:
        """Ends the library's threads. No call may be running or follow."""
        self._server = None

    def prompt_tokens(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """The tokens a chat completion of ``messages`` begins with, answer left open."""
        rendered = self._ask("/apply-template", {"messages": list(messages)})["prompt"]
        return self._tokens(rendered, add_special=True, parse_special=True)

    def text_tokens(self, text: str) -> list[int]:
        """The tokens of plain text: what looks like a control token in it stays text."""
        return self._tokens(text, add_special=False, parse_special=False)

    def props(self) -> dict[str, Any]:
        """llama.cpp's description of the model: context, template abilities, sizes."""
        found: dict[str, Any] = self._ask("/props", None)
        models: dict[str, Any] = self._ask("/v1/models", None)
        return {**found, "meta": (models.get("data") or [{}])[0].get("meta") or {}}

    def _tokens(self, text: str, **flags: bool) -> list[int]:
        found: list[int] = self._ask("/tokenize", {"content": text, **flags})["tokens"]
        return found

    def _ask(self, path: str, body: Mapping[str, Any] | None) -> Any:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=_LOOPBACK_TIMEOUT_S)
        try:
            connection.request(
                "GET" if body is None else "POST",
                path,
                body=None if body is None else json.dumps(body),
                headers={
                    "Authorization": f"Bearer {self._key}",
                    "Content-Type": "application/json",
                },
            )
            answer = json.loads(connection.getresponse().read())
        except (OSError, http.client.HTTPException, ValueError) as exc:
            raise EngineFailed(f"llama.cpp did not answer {path}: {type(exc).__name__}") from exc
        finally:
            connection.close()
        if "error" in answer:
            raise _refused(answer["error"])
        return answer


def _call(method: Callable[..., Any], body: Mapping[str, Any], on_chunk: OnChunk) -> None:
    raised: list[BaseException] = []

    def callback(chunk: Chunk) -> bool:
        try:
            if "error" in chunk:
                raise _refused(chunk["error"])
            return on_chunk(chunk)
        except BaseException as exc:  # noqa: BLE001 - the library would swallow it; raised below
            raised.append(exc)
            return True

    try:
        method(dict(body), callback)
    except RuntimeError as exc:
        raise EngineFailed(f"llama.cpp failed: {str(exc)[:_REASON_CHARS]}") from exc
    if raised:
        raise raised[0]


def _refused(error: Mapping[str, Any]) -> ForebayError:
    """llama.cpp's error chunk as one of ours."""
    if error.get("type") == "exceed_context_size_error":
        tokens, limit = int(error["n_prompt_tokens"]), int(error["n_ctx"])
        return PromptTooLong(
            f"prompt has {tokens} tokens, expected fewer than {limit}", tokens=tokens, limit=limit
        )
    reason = str(error.get("message", "no reason given"))[:_REASON_CHARS]
    if 400 <= int(error.get("code") or 500) < 500:
        return BadRequest(f"the model refused the request: {reason}")
    return EngineFailed(f"llama.cpp failed: {reason}")
