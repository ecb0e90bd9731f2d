"""Photos to a Forebay server from Python: upload, follow, fetch. Reconnects by itself.

::

    async with aiohttp.ClientSession() as http:
        photos = Photos(http, "http://127.0.0.1:8600")
        task = await photos.upload("lake.jpg", data, quality_level="fast")
        async for event in photos.events(task):
            print(event["type"])
        result = await photos.download(task)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import aiohttp
import msgspec

from forebay.errors import ForebayError, NotFound, by_code

__all__ = ["LAST", "Photos"]

LAST = frozenset({"completed", "error"})
"""Types of events after which none follows."""

GIVE_UP_S = 60.0
MAX_WAIT_S = 8.0
BUSY = (429, 503)


class Photos:
    """One server's photo service. ``patience_s``: how long uploads go on being tried while
    the server is full, and a lost event stream is looked for."""

    def __init__(
        self,
        http: aiohttp.ClientSession,
        url: str,
        *,
        key: str | None = None,
        patience_s: float = GIVE_UP_S,
    ) -> None:
        self._http = http
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._patience_s = patience_s

    async def upload(self, name: str, data: bytes, **options: Any) -> str:
        """The task's id. Raises what the server refused it with, once patience is over."""
        answer = await self._post("/api/v1/enhance", "file", [(name, data)], options)
        return str(answer["task_id"])

    async def upload_batch(self, files: Sequence[tuple[str, bytes]], **options: Any) -> Any:
        """The server's answer: ``batch_task_id``, ``sub_tasks`` and more."""
        return await self._post("/api/v1/enhance/batch", "files", files, options)

    async def _post(
        self, path: str, field: str, files: Sequence[tuple[str, bytes]], options: dict[str, Any]
    ) -> Any:
        loop = asyncio.get_running_loop()
        until = loop.time() + self._patience_s
        while True:
            form = aiohttp.FormData()
            for key, value in options.items():
                form.add_field(key, str(value))
            for name, data in files:
                form.add_field(field, data, filename=name)
            async with self._http.post(
                self._url + path, data=form, headers=self._headers
            ) as response:
                body = await _json(response)
                wait_s = float(response.headers.get("Retry-After", "1"))
            if response.status == 200:
                return body
            if response.status not in BUSY or loop.time() + wait_s > until:
                raise _error(response.status, body)
            await asyncio.sleep(wait_s)

    async def events(self, task: str) -> AsyncIterator[dict[str, Any]]:
        """Every event of a task to its last, each once, across lost connections.

        Raises `NotFound` for no such task, and `ForebayError` when the server stays away."""
        last, waited_s, wait_s = "", 0.0, 0.25
        while True:
            try:
                async for identity, event in self._stream(task, last):
                    last, waited_s, wait_s = identity or last, 0.0, 0.25
                    yield event
                    if event["type"] in LAST:
                        return
            except (aiohttp.ClientError, TimeoutError, OSError):
                pass  # gone on with after the last event, below
            if waited_s >= self._patience_s:
                raise ForebayError(f"nothing came from the server for {waited_s:.0f} s")
            await asyncio.sleep(wait_s)
            waited_s, wait_s = waited_s + wait_s, min(wait_s * 2, MAX_WAIT_S)

    async def _stream(self, task: str, last: str) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        headers = {**self._headers, **({"Last-Event-ID": last} if last else {})}
        timeout = aiohttp.ClientTimeout(total=None, sock_read=40)
        url = f"{self._url}/api/v1/tasks/{task}/events"
        async with self._http.get(url, headers=headers, timeout=timeout) as response:
            if response.status in (404, 410):
                raise NotFound(f"the server knows no task {task}")
            if response.status != 200:
                raise aiohttp.ClientError(f"status {response.status}")
            identity = ""
            async for raw in response.content:
                if raw.startswith(b"id: "):
                    identity = raw[4:].decode().strip()
                elif raw.startswith(b"data: "):
                    yield identity, msgspec.json.decode(raw[6:])
                    identity = ""

    async def status(self, task: str, *, batch: bool = False) -> Any:
        return await self._get(f"/api/v1/{'batch/' if batch else ''}status/{task}")

    async def download(self, task: str, *, batch: bool = False) -> bytes:
        """The result; of a batch its zip."""
        path = f"/api/v1/{'batch/' if batch else ''}download/{task}"
        async with self._http.get(self._url + path, headers=self._headers) as response:
            if response.status != 200:
                raise _error(response.status, await _json(response))
            return await response.read()

    async def cancel(self, task: str) -> None:
        async with self._http.delete(
            f"{self._url}/api/v1/tasks/{task}", headers=self._headers
        ) as response:
            if response.status != 200:
                raise _error(response.status, await _json(response))

    async def _get(self, path: str) -> Any:
        async with self._http.get(self._url + path, headers=self._headers) as response:
            body = await _json(response)
        if response.status != 200:
            raise _error(response.status, body)
        return body


async def _json(response: aiohttp.ClientResponse) -> Any:
    try:
        return msgspec.json.decode(await response.read())
    except msgspec.DecodeError:
        return {}


def _error(status: int, body: Any) -> ForebayError:
    found = body if isinstance(body, dict) else {}
    said = str(found.get("detail") or f"the server answered {status}")
    return by_code(str(found.get("code", "")), said)
