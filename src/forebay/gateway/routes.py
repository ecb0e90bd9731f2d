"""The table of what this gateway answers, and how a path finds its row.

A row says who may call it and how large a body it takes, so that both are decided before a
handler runs, and so that tests can walk the table.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from forebay.core.kinds import Kind
from forebay.errors import BadRequest, NotFound
from forebay.gateway.context import GatewayContext
from forebay.gateway.responses import ErrorFace, Receive, Scope, Send

__all__ = ["Handler", "MethodNotAllowed", "Route", "Router", "UpgradeRequired", "rows"]

Handler = Callable[[Scope, Receive, Send, GatewayContext], Awaitable[None]]


class MethodNotAllowed(BadRequest):
    """``details["allow"]``: the methods this path knows."""

    code = "method_not_allowed"
    http_status = 405


class UpgradeRequired(BadRequest):
    """The path is a WebSocket's."""

    code = "upgrade_required"
    http_status = 426


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One row. ``path`` may hold one-segment variables, as in ``/api/jobs/{id}``, and end in
    one that takes the rest, as in ``/v1/models/{model:path}``.

    ``method``: an HTTP method, or WEBSOCKET. ``needs``: a scope of `keys.SCOPES`, or
    `auth.PUBLIC`. ``compat_needs``: the same on compat ports, where it differs. ``on``:
    names of the personalities that have it; None: all. ``body_bytes``: None for the
    gateway's default. ``works``: it makes work, so it is refused while draining.
    ``orchestrator``: ``ORCH_API_KEY`` applies on compat ports. ``serves``: the kind of job a
    WebSocket leads to and the dialect it speaks; its handshakes then pass the connection gate.
    ``errors``: the shape of error bodies that its clients read.
    """

    method: str
    path: str
    handler: Handler
    needs: str
    compat_needs: str | None = None
    on: frozenset[str] | None = None
    body_bytes: int | None = None
    works: bool = False
    orchestrator: bool = False
    serves: tuple[Kind, str] | None = None
    errors: ErrorFace = "openai"


def rows(**shared: Any) -> Callable[..., Route]:
    """A maker of rows that have ``shared`` in common: of (method, path, handler, needs), and
    what a row has of its own."""

    def row(method: str, path: str, handler: Handler, needs: str, **own: Any) -> Route:
        facts = {**shared, **own}
        return Route(method=method, path=path, handler=handler, needs=needs, **facts)

    return row


class Router:
    """Finds the row for (method, path, personality). Exact paths win over variables."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._exact: dict[str, list[Route]] = {}
        self._patterns: list[_Pattern] = []
        for route in routes:
            if "{" in route.path:
                self._patterns.append((route.path.split("/"), route))
            else:
                self._exact.setdefault(route.path, []).append(route)
        # By what they begin with; "": what may follow any beginning.
        self._beginning = {
            head: [row for row in self._patterns if row[0][:2] == ["", head] or _is_open(row[0])]
            for head in {"", *(parts[1] for parts, _ in self._patterns)}
        }

    def __iter__(self) -> Iterator[Route]:
        for routes in self._exact.values():
            yield from routes
        yield from (route for _, route in self._patterns)

    def find(self, method: str, path: str, personality: str) -> tuple[Route, dict[str, str]]:
        """The row and the values of its variables. HEAD finds GET.

        Raises `NotFound`, or `MethodNotAllowed` where the path exists for other methods."""
        wanted = "GET" if method == "HEAD" else method
        for route in self._exact.get(path, ()):
            if route.method == wanted and (route.on is None or personality in route.on):
                return route, _NO_VARIABLES
        rows = [(route, _NO_VARIABLES) for route in self._exact.get(path, ())]
        rows += self._matching(path)
        here = [row for row in rows if row[0].on is None or personality in row[0].on]
        for row in here:
            if row[0].method == wanted:
                return row
        methods = sorted({route.method for route, _ in here if route.method != "WEBSOCKET"})
        if methods and method != "WEBSOCKET":
            allow = ", ".join(methods)
            raise MethodNotAllowed(f"method {method} is not one of {allow}", allow=allow)
        if here and method != "WEBSOCKET":
            raise UpgradeRequired("expected a websocket request at this path")
        raise NotFound("nothing is served at this path")

    def _matching(self, path: str) -> list[tuple[Route, dict[str, str]]]:
        parts = path.split("/")
        head = parts[1] if len(parts) > 1 else ""
        found = []
        for pattern, route in self._beginning.get(head) or self._beginning[""]:
            variables = _variables(pattern, parts)
            if variables is not None:
                found.append((route, variables))
        return found


_NO_VARIABLES: dict[str, str] = {}
_Pattern = tuple[list[str], Route]


def _is_open(parts: list[str]) -> bool:
    return parts[1].startswith("{")


def _variables(pattern: list[str], parts: list[str]) -> dict[str, str] | None:
    last = pattern[-1]
    if last.endswith(":path}") and len(parts) >= len(pattern):
        cut = len(pattern) - 1
        parts = [*parts[:cut], "/".join(parts[cut:])]
        pattern = [*pattern[:cut], last.replace(":path}", "}")]
    if len(pattern) != len(parts):
        return None
    values = {}
    for expected, actual in zip(pattern, parts, strict=True):
        if expected.startswith("{"):
            if not actual:
                return None
            values[expected[1:-1]] = actual
        elif expected != actual:
            return None
    return values
