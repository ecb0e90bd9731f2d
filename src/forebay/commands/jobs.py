"""`forebay jobs`: a running server's jobs, through its HTTP interface."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from rich.table import Table

from forebay.client.reach import why
from forebay.commands.common import base_url, console, dump, settled
from forebay.errors import BadRequest, ForebayError, NoWorkers, by_code

__all__ = ["Server", "act", "retry", "server", "show_list", "show_one"]

TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Server:
    """Where to ask, and as whom."""

    url: str
    key: str | None

    def ask(self, method: str, path: str, **query: str) -> Any:
        """The JSON answer. Raises what the server said, as the error it is."""
        return asyncio.run(self._ask(method, path, query))

    async def _ask(self, method: str, path: str, query: dict[str, str]) -> Any:
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        try:
            async with (
                aiohttp.ClientSession(headers=headers, timeout=timeout) as http,
                http.request(method, self.url + path, params=query) as response,
            ):
                body = await response.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ValueError) as exc:
            raise NoWorkers(
                f"nothing answers at {self.url} ({why(exc)}), is forebay serve running?"
            ) from exc
        if response.status >= 400:
            raise _error(response.status, body)
        return body


def _error(status: int, body: Any) -> ForebayError:
    found = body.get("error") if isinstance(body, dict) else None
    if not isinstance(found, dict):
        return ForebayError(f"the server answered {status}")
    return by_code(str(found.get("code")), str(found.get("message", f"status {status}")))


def server(url: str | None, key: str | None, config: Path | None) -> Server:
    """``url`` may also be a WebSocket address or carry a path, as other commands take it."""
    found = url or base_url(settled(config))
    scheme, _, rest = found.rpartition("://")
    web = {"ws": "http", "wss": "https", "": "http"}.get(scheme, scheme)
    return Server(f"{web}://{rest.partition('/')[0]}", key)


def show_list(where: Server, dead: bool, limit: int, as_json: bool) -> int:
    query = {"limit": str(limit)} | ({"dead": "1"} if dead else {})
    jobs = where.ask("GET", "/api/jobs", **query)["jobs"]
    if as_json:
        dump(jobs)
        return 0
    if not jobs:
        console.print("no jobs" if not dead else "no dead-letter jobs")
        return 0
    rows = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("job", "state", "pool", "tenant", "attempts", "model s", "why"):
        rows.add_column(title, overflow="fold")
    for job in jobs:
        place = f" #{job['position']}" if job["position"] else ""
        rows.add_row(
            job["id"][:12],
            job["state"] + place,
            job["pool"],
            job["tenant"],
            str(job["attempts"]),
            f"{job['model_s']:.2f}",
            job["message"] or job["code"],
        )
    console.print(rows)
    return 0


def show_one(where: Server, job: str, as_json: bool) -> int:
    found = where.ask("GET", f"/api/jobs/{job}")
    if as_json:
        dump(found)
        return 0
    for name, value in found.items():
        if value not in (None, "", {}):
            console.print(f"{name:12} {value}", markup=False)
    return 0


def act(where: Server, job: str, verb: str) -> int:
    found = where.ask("POST", f"/api/jobs/{job}/{verb}")
    console.print(f"{found['id'][:12]} {found['state']}")
    return 0


def retry(where: Server, job: str | None, dead: bool) -> int:
    """One job, or with ``dead`` every dead-letter job that can be: 1 when any was refused."""
    if (job is None) is not dead:
        raise ForebayError("name one job, or say --dead for all dead-letter jobs")
    if job is not None:
        return act(where, job, "retry")
    found = where.ask("GET", "/api/jobs", dead="1", limit="1000")["jobs"]
    refused = 0
    for item in found:
        try:
            act(where, item["id"], "retry")
        except BadRequest as error:  # one of a live session, say: it keeps no other from its turn
            refused = 1
            console.print(error.message, markup=False)
    if not found:
        console.print("no dead-letter jobs")
    return refused
