"""A model server that is none: plays SGLang, well behaved or broken, on a real socket.

In tests::

    async with FakeSGLang() as fake:
        fake.mode = "stall_mid"

As a process, for benchmarks and drills::

    python -m tests.fakes.sglang --port 0 --tokens 20 --interval-ms 10

The first line it prints is its address. Its answer is ``t1 t2 t3 ...``, one word a chunk, so
that a loss or a doubling shows, and a continued answer goes on where the given text stops.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

__all__ = ["MODES", "FakeSGLang"]

Play = Callable[["FakeSGLang", web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]
MODES: dict[str, Play] = {}


def mode(name: str) -> Callable[[Play], Play]:
    def keep(play: Play) -> Play:
        MODES[name] = play
        return play

    return keep


class FakeSGLang:
    """``mode`` plays for every answer; ``plan`` lists modes for the next ones, before it.

    ``bodies``: requests as received. ``streams``: answers under way now; ``idle`` is set while
    there is none. ``closed_early``: answers whose client left before the end.
    """

    def __init__(
        self,
        *,
        key: str = "",
        model: str = "fake-model",
        tokens: int = 20,
        interval_s: float = 0.0,
        context: int = 4096,
        port: int = 0,
    ) -> None:
        self.key, self.model, self.context, self.port = key, model, context, port
        self.tokens, self.interval_s = tokens, interval_s
        self.mode = "normal"
        self.plan: list[str] = []
        self.too_long_style = "sglang"
        self.loading = False
        self.bodies: list[dict[str, Any]] = []
        self.calls = 0
        self.streams = 0
        self.closed_early = 0
        self.idle = asyncio.Event()
        self.idle.set()
        self._runner: web.AppRunner | None = None
        self._held = asyncio.Event()  # never set: a stall ends when its client leaves

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def words(self, count: int | None = None) -> list[str]:
        return [f"t{i} " for i in range(1, (count or self.tokens) + 1)]

    async def __aenter__(self) -> FakeSGLang:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        self._runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    # ------------------------------------------------------------------ handlers

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(status=503 if self.loading else 200)

    async def _models(self, request: web.Request) -> web.Response:
        if refused := self._unauthorized(request):
            return refused
        entry = {"id": self.model, "object": "model", "created": 1, "owned_by": "sglang",
                 "root": self.model, "max_model_len": self.context}  # fmt: skip
        return web.json_response({"object": "list", "data": [entry]})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        self.calls += 1
        if refused := self._unauthorized(request):
            return refused
        body = await request.json()
        self.bodies.append(body)
        if body.get("model") != self.model:
            text = f"The model `{body.get('model')}` does not exist."
            return _error(404, text, "NotFoundError")
        if (tokens := count(body)) + (body.get("max_tokens") or 0) >= self.context:
            return self._too_long(tokens, body.get("max_tokens") or 0)
        play = MODES[self.plan.pop(0) if self.plan else self.mode]
        self.streams += 1
        self.idle.clear()
        try:
            return await play(self, request, body)
        except (asyncio.CancelledError, ConnectionResetError):
            self.closed_early += 1
            raise
        finally:
            self.streams -= 1
            if not self.streams:
                self.idle.set()

    def _unauthorized(self, request: web.Request) -> web.Response | None:
        if not self.key or request.headers.get("Authorization") == f"Bearer {self.key}":
            return None
        return web.json_response({"error": "Unauthorized"}, status=401)

    def _too_long(self, tokens: int, answer: int) -> web.Response:
        n, all_tokens = self.context, tokens + answer
        if self.too_long_style == "llama":
            facts = {"n_prompt_tokens": tokens, "n_ctx": n}
            text = "the request exceeds the available context size, try increasing it"
            return _error(400, text, "exceed_context_size_error", **facts)
        sglang = (
            f"Requested token count exceeds the model's maximum context length of {n} tokens. "
            f"You requested a total of {all_tokens} tokens: {tokens} tokens from the input "
            f"messages and {answer} tokens for the completion."
            if answer and tokens < n
            else f"The input ({tokens} tokens) is longer than the model's context length "
            f"({n} tokens)."
        )
        texts = {
            "sglang": sglang,
            "vllm": f"This model's maximum context length is {n} tokens. However, you requested "
            f"{all_tokens} tokens ({tokens} in the messages, {answer} in the completion).",
            "openai": f"This model's maximum context length is {n} tokens. However, your "
            f"messages resulted in {tokens} tokens. Please reduce the length of the messages.",
        }
        return _error(400, texts[self.too_long_style], "BadRequestError")

    # -------------------------------------------------------------------- pieces

    async def begin(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        return response

    async def say(
        self, response: web.StreamResponse, body: dict[str, Any], words: list[str]
    ) -> None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        for number, word in enumerate(words):
            due = begun + number * self.interval_s
            if self.interval_s and due > loop.time():
                await asyncio.sleep(due - loop.time())
            delta = {"role": "assistant", "content": word} if not number else {"content": word}
            await response.write(chunk(body, delta))

    async def finish(
        self, response: web.StreamResponse, body: dict[str, Any], spoken: int, reason: str
    ) -> None:
        await response.write(chunk(body, {}, reason))
        if (body.get("stream_options") or {}).get("include_usage"):
            usage = {"prompt_tokens": count(body), "completion_tokens": spoken,
                     "total_tokens": count(body) + spoken}  # fmt: skip
            await response.write(data({**base(body), "choices": [], "usage": usage}))

    def rest(self, body: dict[str, Any]) -> tuple[list[str], str]:
        """Words still to say, and why the answer will end."""
        words = self.words()
        if body.get("continue_final_message"):
            given = body["messages"][-1]["content"]
            whole = "".join(words)
            left = whole[len(given) :] if whole.startswith(given) else whole
            words = [f"{w} " for w in left.split(" ") if w]
        most = body.get("max_tokens")
        for at, word in enumerate(words):
            if any(word.strip() == stop for stop in _stops(body)):
                return words[:at], "stop"
        return (words[:most], "length") if most and most < len(words) else (words, "stop")


def count(body: dict[str, Any]) -> int:
    """Its tokenizer: a word is a token."""
    return sum(len(str(m.get("content") or "").split()) + 1 for m in body["messages"])


def base(body: dict[str, Any]) -> dict[str, Any]:
    return {"id": "fake", "object": "chat.completion.chunk", "created": 1, "model": body["model"]}


def data(payload: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(payload).encode() + b"\n\n"


def chunk(body: dict[str, Any], delta: dict[str, Any], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return data({**base(body), "choices": [choice]})


def _stops(body: dict[str, Any]) -> list[str]:
    stop = body.get("stop") or []
    return [stop] if isinstance(stop, str) else list(stop)


def _error(status: int, message: str, kind: str, **more: Any) -> web.Response:
    error = {"object": "error", "message": message, "type": kind, "param": None, "code": status}
    return web.json_response({"error": {**error, **more}}, status=status)


# ------------------------------------------------------------------------ modes


@mode("normal")
async def normal(fake: FakeSGLang, request: web.Request, body: dict[str, Any]) -> Any:
    words, reason = fake.rest(body)
    response = await fake.begin(request)
    await fake.say(response, body, words)
    await fake.finish(response, body, len(words), reason)
    await response.write(b"data: [DONE]\n\n")
    return response


@mode("no_usage")
async def no_usage(fake: FakeSGLang, request: web.Request, body: dict[str, Any]) -> Any:
    return await normal(fake, request, {**body, "stream_options": None})


@mode("no_done")
async def no_done(fake: FakeSGLang, request: web.Request, body: dict[str, Any]) -> Any:
    words, reason = fake.rest(body)
    response = await fake.begin(request)
    await fake.say(response, body, words)
    await fake.finish(response, body, len(words), reason)
    return response


@mode("empty_reply")
async def empty_reply(fake: FakeSGLang, request: web.Request, body: dict[str, Any]) -> Any:
    return _drop(request)


@mode("rate_limited")
async def rate_limited(fake: FakeSGLang, request: web.Request, body: dict[str, Any]) -> Any:
    response = _error(429, "Rate limit reached", "RateLimitError")
    response.headers["Retry-After"] = "7"
    return response


@mode("unavailable")
async def unavailable(fake: FakeSGLang, request: web.Request, body: dict[str, Any]) -> Any:
    return web.Response(status=503, text="Service Unavailable")


@mode("out_of_memory")
async def out_of_memory(fake: FakeSGLang, request: web.Request, body: dict[str, Any]) -> Any:
    text = "CUDA out of memory. Tried to allocate 2.00 GiB. Try lowering --mem-fraction-static"
    return _error(500, text, "InternalServerError")


@mode("out_of_memory_mid")
async def out_of_memory_mid(fake: FakeSGLang, request: web.Request, body: dict[str, Any]) -> Any:
    response = await fake.begin(request)
    await fake.say(response, body, fake.words(3))
    await response.write(data({"error": {"message": "CUDA out of memory", "code": 500}}))
    return response


@mode("refused")
async def refused(fake: FakeSGLang, request: web.Request, body: dict[str, Any]) -> Any:
    return _error(400, "temperature must be non-negative, got -1.0.", "BadRequestError")


@mode("redirect")
async def redirect(fake: FakeSGLang, request: web.Request, body: dict[str, Any]) -> Any:
    return web.Response(status=307, headers={"Location": "http://127.0.0.1:1/"})


@mode("html")
async def html(fake: FakeSGLang, request: web.Request, body: dict[str, Any]) -> Any:
    return web.Response(text="<html>a proxy's page</html>", content_type="text/html")


@mode("stall_first")
async def stall_first(fake: FakeSGLang, request: web.Request, body: dict[str, Any]) -> Any:
    response = await fake.begin(request)
    await response.write(b": waiting\n\n")
    await fake._held.wait()


@mode("hang")
async def hang(fake: FakeSGLang, request: web.Request, body: dict[str, Any]) -> Any:
    await fake._held.wait()


@mode("stall_mid")
async def stall_mid(fake: FakeSGLang, request: web.Request, body: dict[str, Any]) -> Any:
    response = await fake.begin(request)
    await fake.say(response, body, fake.words(3))
    await fake._held.wait()


@mode("cut")
async def cut(fake: FakeSGLang, request: web.Request, body: dict[str, Any]) -> Any:
    """Ends the body properly, but without a finish reason and without [DONE]."""
    response = await fake.begin(request)
    await fake.say(response, body, fake.words(3))
    return response


@mode("reset")
async def reset(fake: FakeSGLang, request: web.Request, body: dict[str, Any]) -> Any:
    response = await fake.begin(request)
    await fake.say(response, body, fake.words(3))
    await asyncio.sleep(0.01)
    return _drop(request)


@mode("cut_first")
async def cut_first(fake: FakeSGLang, request: web.Request, body: dict[str, Any]) -> Any:
    return await fake.begin(request)


@mode("garbage")
async def garbage(fake: FakeSGLang, request: web.Request, body: dict[str, Any]) -> Any:
    response = await fake.begin(request)
    await fake.say(response, body, fake.words(3))
    await response.write(b'data: {"choices": [{"delta"\n\n')
    await fake._held.wait()


@mode("garbage_line")
async def garbage_line(fake: FakeSGLang, request: web.Request, body: dict[str, Any]) -> Any:
    response = await fake.begin(request)
    await response.write(b"Internal Server Error\n\n")
    await fake._held.wait()


@mode("abort")
async def abort(fake: FakeSGLang, request: web.Request, body: dict[str, Any]) -> Any:
    response = await fake.begin(request)
    await fake.say(response, body, fake.words(3))
    await response.write(chunk(body, {}, "abort") + b"data: [DONE]\n\n")
    return response


@mode("tools")
async def tools(fake: FakeSGLang, request: web.Request, body: dict[str, Any]) -> Any:
    response = await fake.begin(request)
    for index, (name, city) in enumerate([("weather", "Oslo"), ("time", "Bergen")]):
        head = {"name": name, "arguments": ""}
        await response.write(
            chunk(body, {"tool_calls": [{"index": index, "id": f"call_{index}", "type": "function",
                                         "function": head}]})
        )  # fmt: skip
        for piece in ['{"city"', ": ", f'"{city}"', "}"]:
            part = {"index": index, "function": {"arguments": piece}}
            await response.write(chunk(body, {"tool_calls": [part]}))
            await asyncio.sleep(0.002)
    await fake.finish(response, body, 12, "tool_calls")
    await response.write(b"data: [DONE]\n\n")
    return response


def _drop(request: web.Request) -> web.Response:
    """Close the socket without another byte."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


async def _serve(options: argparse.Namespace) -> None:
    fake = FakeSGLang(
        key=options.key,
        model=options.model,
        tokens=options.tokens,
        interval_s=options.interval_ms / 1000,
        context=options.context,
        port=options.port,
    )
    fake.mode = options.mode
    async with fake:
        print(fake.url, flush=True)  # noqa: T201 - the caller reads the address here
        await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description="a fake SGLang server")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--interval-ms", type=float, default=10)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--key", default="")
    parser.add_argument("--model", default="fake-model")
    parser.add_argument("--mode", default="normal", choices=sorted(MODES))
    try:
        import uvloop

        uvloop.run(_serve(parser.parse_args()))
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    main()
