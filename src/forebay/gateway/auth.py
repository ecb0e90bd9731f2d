"""Who may do what: keys, tickets, and the one tenant of a machine without keys.

On loopback whoever connects is ``local`` and may do everything, unless they show a key of
ours or a token we can check (`tokens`), which then counts. Elsewhere one of them is demanded:
``Authorization: Bearer fb_...``, a one-time ticket in the query of a WebSocket (browsers cannot
set headers there), the cookie of somebody who signed in to the console, or, on compat ports
only, ``?api_key=`` as the originals took it.

The cookie is the key itself: every gateway knows it, and revoking the key ends it. No script
can read it (HttpOnly), no other site can send it (SameSite=Strict), and it counts only where
no page but our own can have asked: see `_cookie`.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from urllib.parse import parse_qs

from forebay.errors import CannotBoot, Forbidden, Unauthorized
from forebay.gateway.access import check_host, check_origin, header
from forebay.gateway.keys import PREFIX, SCOPES, KeyStore, valid_tenant
from forebay.gateway.options import GatewayOptions
from forebay.gateway.personality import MAIN, Port, is_loopback
from forebay.gateway.responses import Scope
from forebay.gateway.tokens import TokenKeys, is_token

__all__ = [
    "COOKIE",
    "LOCAL",
    "PUBLIC",
    "TICKET",
    "Auth",
    "Principal",
    "bearer",
    "port_of",
    "refuse_open_bind",
    "token_keys",
]

COOKIE = "forebay_key"
"""What signing in to the console leaves in the browser."""

PUBLIC = ""
"""The scope of routes that anyone may call: health, and the console's own files."""


TICKET = "forebay.ticket"
"""In the scope of a WebSocket that showed a ticket: its holder, where it was good (`tickets`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """On whose behalf a request is made. ``admin`` among the scopes implies all others.
    ``until``: seconds since 1970 when the key or token ends; None: it does not."""

    tenant: str
    scopes: frozenset[str]
    key_id: str = ""
    until: float | None = None

    def may(self, scope: str) -> bool:
        return scope == PUBLIC or scope in self.scopes or "admin" in self.scopes


LOCAL = Principal(tenant="local", scopes=frozenset(SCOPES))


def port_of(scope: Scope) -> Port:
    """Where the connection came in. Without our server in front (a test client) it is the
    main port, and loopback if the address says so."""
    port = scope.get("forebay.port")
    if isinstance(port, Port):
        return port
    server = scope.get("server") or ("127.0.0.1", 0)
    return Port(MAIN, is_loopback(str(server[0])))


class Auth:
    """Decides for each request who makes it and whether they may.

    ``clock``: monotonic seconds; ``wall``: seconds since 1970, for the expiry of keys.
    Raises `ConfigError` when the key file is unusable."""

    def __init__(
        self,
        options: GatewayOptions,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.options = options
        self._clock, self._wall = clock, wall
        self.keys = KeyStore(Path(options.keys_file)) if options.keys_file else None
        self.tokens = token_keys(options)

    def demands_key(self, port: Port) -> bool:
        """Whether requests on this port must show a key."""
        if self.options.require_key is not None:
            return self.options.require_key
        if self.options.insecure_no_auth:
            return False
        return not port.loopback or bool(self.options.allowed_hosts)

    def limits(self, port: Port) -> bool:
        """Whether the limits of one key, address or sender apply on this port. On loopback
        they do not: whoever is there has an account on this machine."""
        return not port.loopback or self.demands_key(port)

    def signed_in(self, scope: Scope) -> bool:
        """Whether this request was let in by the cookie of somebody who signed in."""
        port = port_of(scope)
        return bearer(scope) is None and self.demands_key(port) and _cookie(scope, port) is not None

    def check(self, scope: Scope, needs: str, *, orchestrator: bool = False) -> Principal:
        """Who makes this request, if they may do ``needs`` (one of `keys.SCOPES` or
        `PUBLIC`). Raises `Forbidden` or `Unauthorized`.

        ``orchestrator``: the route is the original orchestrator's, which knew one key of
        its own (`GatewayOptions.orch_api_key`) on compat ports."""
        port = port_of(scope)
        check_host(scope, port, self.options, keyed=self.demands_key(port) or needs == PUBLIC)
        check_origin(scope, port, self.options)
        if needs == PUBLIC:
            return LOCAL
        principal = self._identify(scope, port, orchestrator)
        if not principal.may(needs):
            raise Forbidden(f"this key lacks the scope {needs!r}")
        return principal

    def _identify(self, scope: Scope, port: Port, orchestrator: bool) -> Principal:
        query = parse_qs(scope.get("query_string", b"").decode("latin-1"), max_num_fields=100)
        if "ticket" in query and scope["type"] == "websocket":
            holder: Principal | None = scope.get(TICKET)
            if holder is None:
                raise Unauthorized("ticket is unknown, used or expired")
            return holder
        shown = bearer(scope)
        demanded = self.demands_key(port)
        if shown is None and demanded:
            shown = _cookie(scope, port)
        if shown is None and port.personality.compat and "api_key" in query:
            shown = query["api_key"][0]
        if orchestrator and port.personality.compat and self.options.orch_api_key is not None:
            if shown is not None and _same(shown, self.options.orch_api_key):
                return LOCAL
            if shown is None or not self._known(shown):
                raise Unauthorized("this port asks for the orchestrator's api key")
            return self._by_key(shown)
        if shown is not None and (demanded or self._known(shown)):
            return self._by_key(shown)
        if demanded:
            raise Unauthorized("expected an api key: Authorization: Bearer fb_...")
        return self._keyless(scope)

    def _known(self, shown: str) -> bool:
        """Whether ``shown`` has the form of something we check, and not of another's secret
        that a client sends everywhere."""
        return shown.startswith(PREFIX) or (self.tokens is not None and is_token(shown))

    def _by_key(self, shown: str) -> Principal:
        if self.tokens is not None and is_token(shown):
            said = self.tokens.check(shown, clock=self._clock())
            return Principal(tenant=said.tenant, scopes=said.scopes, until=said.until)
        record = None
        if self.keys is not None:
            record = self.keys.find(shown, now=self._wall(), clock=self._clock())
        if record is None:
            raise Unauthorized("api key is unknown, revoked or expired")
        return Principal(
            tenant=record.tenant,
            scopes=frozenset(record.scopes),
            key_id=record.id,
            until=record.expires,
        )

    def _keyless(self, scope: Scope) -> Principal:
        if self.options.trust_client_tenant:
            tenant = header(scope, b"x-tenant")
            if tenant is not None and valid_tenant(tenant):
                return Principal(tenant=tenant, scopes=LOCAL.scopes)
        return LOCAL


def token_keys(options: GatewayOptions) -> TokenKeys | None:
    """What checks tokens of another service, where the operator trusts one. Raises
    `ConfigError`."""
    if options.jwt_keys_file is None:
        return None
    path = Path(options.jwt_keys_file)
    return TokenKeys(path, options.jwt_audience or "", options.jwt_issuer)


def refuse_open_bind(addresses: Sequence[str], options: GatewayOptions) -> None:
    """Raise `CannotBoot` when others could reach this gateway without any key."""
    others = [address for address in addresses if not is_loopback(address)]
    if not others or options.insecure_no_auth:
        return
    keys = KeyStore(Path(options.keys_file)) if options.keys_file else ()
    if len(keys) == 0 and options.jwt_keys_file is None:
        raise CannotBoot(
            f"listening on {others[0]} would let others in without a key: "
            "make one with 'forebay keys create', or pass --insecure-no-auth",
            stage="bind",
        )


def bearer(scope: Scope) -> str | None:
    """The key in the Authorization header."""
    value = header(scope, b"authorization")
    if value is None:
        return None
    scheme, _, rest = value.partition(" ")
    return rest.strip() if scheme.lower() == "bearer" and rest.strip() else None


def _cookie(scope: Scope, port: Port) -> str | None:
    """The key of somebody who signed in here with a browser.

    Only on ports without the originals' loose rules; only with an Origin, which `check_origin`
    has found to be ours, or, as browsers send none with what merely reads, for a GET that no
    other site made."""
    cookies = header(scope, b"cookie")
    if cookies is None or COOKIE not in cookies or port.personality.compat:
        return None
    if header(scope, b"origin") is None:
        site = header(scope, b"sec-fetch-site") or "same-origin"
        if scope.get("method") not in ("GET", "HEAD") or site not in ("same-origin", "none"):
            return None
    found = SimpleCookie()
    try:
        found.load(cookies)
    except CookieError:
        return None
    return found[COOKIE].value if COOKIE in found else None


def _same(a: str, b: str) -> bool:
    return hmac.compare_digest(a.encode("utf-8", "replace"), b.encode("utf-8", "replace"))
