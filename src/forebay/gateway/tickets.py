"""One-time tickets: what a browser shows for a key on a WebSocket, where it can set no header.

They are kept by the broker, so that a ticket made at one gateway opens a socket at any; the
broker knows only their digests.
"""

from __future__ import annotations

import hashlib
import secrets
from urllib.parse import parse_qs

import msgspec

from forebay.broker import GatewayBroker
from forebay.gateway.auth import PUBLIC, TICKET, Auth, Principal
from forebay.gateway.responses import Scope

__all__ = ["Tickets"]

_principal = msgspec.json.Decoder(Principal)


class Tickets:
    """Good for ``life_s`` and once. Of more than ``limit`` the oldest go."""

    def __init__(self, broker: GatewayBroker, life_s: float, limit: int) -> None:
        self._broker = broker
        self._life_s = life_s
        self._limit = limit

    async def issue(self, principal: Principal) -> str:
        """A ticket for whoever acts on ``principal``'s behalf. Raises `StoreDown`."""
        ticket = "fbt_" + secrets.token_hex(24)
        holder = msgspec.json.encode(principal).decode()
        await self._broker.keep_ticket(
            _digest(ticket), holder, life_s=self._life_s, limit=self._limit
        )
        return ticket

    async def redeem(self, scope: Scope, auth: Auth) -> None:
        """Use up the ticket in the query of a WebSocket, if there is one: `Auth.check` then
        knows its holder, however often it is asked about this connection. Raises `Forbidden`
        for who may not come here at all, and `StoreDown`; a ticket that is no good is
        `Auth.check`'s to refuse."""
        if b"ticket=" not in scope.get("query_string", b""):
            return
        auth.check(scope, PUBLIC)
        query = parse_qs(scope["query_string"].decode("latin-1"), max_num_fields=100)
        if "ticket" in query:
            holder = await self._broker.take_ticket(_digest(query["ticket"][0]))
            scope[TICKET] = None if holder is None else _principal.decode(holder)


def _digest(ticket: str) -> str:
    return hashlib.sha256(ticket.encode()).hexdigest()
