"""Signed tokens: what lets in, what does not, and when a socket's time is over."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from forebay.errors import ConfigError, Forbidden, Unauthorized
from forebay.gateway.auth import Auth, Principal, refuse_open_bind
from forebay.gateway.expiry import ends_with_key
from forebay.gateway.options import GatewayOptions
from forebay.gateway.personality import MAIN, Port
from forebay.gateway.tokens import TOKEN_BYTES, TokenKeys

ED = ed25519.Ed25519PrivateKey.generate()
P256 = ec.generate_private_key(ec.SECP256R1())
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
SECRET = b"0123456789abcdef0123456789abcdef"


def pem(key: Any) -> bytes:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, form)


def said(**other: Any) -> dict[str, Any]:
    return {
        "sub": "someone",
        "aud": "forebay",
        "exp": time.time() + 300,
        "scope": "submit read",
        **other,
    }


def key_file(folder: Path, content: bytes) -> Path:
    path = folder / "tokens"
    path.write_bytes(content)
    path.chmod(0o600)
    return path


def jwk_set(*keys: tuple[str, Any]) -> bytes:
    algorithm = {"ed": jwt.algorithms.OKPAlgorithm, "ec": jwt.algorithms.ECAlgorithm}
    entries = []
    for kid, key in keys:
        made = algorithm[kid[:2]].to_jwk(key.public_key(), as_dict=True)
        entries.append({**made, "kid": kid, "use": "sig"})
    return json.dumps({"keys": entries}).encode()


@pytest.mark.parametrize(
    ("key", "algorithm"), [(ED, "EdDSA"), (P256, "ES256"), (RSA, "RS256"), (SECRET, "HS256")]
)
def test_a_sound_token_of_each_kind_of_key_is_believed(tmp_path, key, algorithm):
    content = key if isinstance(key, bytes) else pem(key)
    keys = TokenKeys(key_file(tmp_path, content), "forebay")
    found = keys.check(jwt.encode(said(), key, algorithm=algorithm), clock=0)
    assert found.tenant == "someone"
    assert found.scopes == {"submit", "read"}
    assert found.until == pytest.approx(time.time() + 360, abs=5)


def test_a_public_key_is_never_taken_for_a_secret(tmp_path):
    public = pem(RSA)
    keys = TokenKeys(key_file(tmp_path, public), "forebay")
    forged = forge({"alg": "HS256"}, said(), public)
    with pytest.raises(Unauthorized, match="not known here"):
        keys.check(forged, clock=0)


def forge(head: dict[str, Any], claims: dict[str, Any], secret: bytes = b"") -> str:
    """A token as somebody writes it who follows no rules."""
    import hashlib
    import hmac

    def part(raw: bytes) -> str:
        return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()

    body = f"{part(json.dumps(head).encode())}.{part(json.dumps(claims).encode())}"
    sign = hmac.new(secret, body.encode(), hashlib.sha256).digest() if secret else b""
    return f"{body}.{part(sign)}"


def ours(claims: dict[str, Any], **more: Any) -> str:
    return jwt.encode(claims, ED, algorithm="EdDSA", **more)


def without(claim: str) -> dict[str, Any]:
    return {name: value for name, value in said().items() if name != claim}


def by_another() -> str:
    return jwt.encode(said(), ed25519.Ed25519PrivateKey.generate(), algorithm="EdDSA")


# Made when they are needed: they are about time, and a long run takes some.
HOSTILE: dict[str, tuple[Callable[[], str], str]] = {
    "no signature": (lambda: forge({"alg": "none"}, said()), "not known here"),
    "another's signature": (by_another, "signature"),
    "expired, skew and all": (lambda: ours(said(exp=time.time() - 90)), "expired"),
    "not yet": (lambda: ours(said(nbf=time.time() + 240)), "time"),
    "for another audience": (lambda: ours(said(aud="shop")), "audience"),
    "for nobody": (lambda: ours(without("aud")), "'aud'"),
    "without end": (lambda: ours(without("exp")), "'exp'"),
    "a key id nobody has": (lambda: ours(said(), headers={"kid": "x"}), "not known"),
    "no tenant": (lambda: ours(said(sub="../x")), "tenant"),
    "scopes that are none": (lambda: ours(said(scope=7)), "scope"),
    "rubbish": (lambda: "a.b.c", "malformed"),
    "too long": (lambda: "a" * TOKEN_BYTES + ".b.c", str(TOKEN_BYTES)),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_is_not_sound_is_refused_with_its_reason(tmp_path, what):
    made, why = HOSTILE[what]
    keys = TokenKeys(key_file(tmp_path, jwk_set(("ed1", ED))), "forebay")
    with pytest.raises(Unauthorized, match=why):
        keys.check(made(), clock=0)


def test_a_token_of_another_issuer_is_refused_where_one_is_named(tmp_path):
    keys = TokenKeys(key_file(tmp_path, pem(ED)), "forebay", "us")
    assert keys.check(ours(said(iss="us")), clock=0).tenant == "someone"
    with pytest.raises(Unauthorized, match="issuer"):
        keys.check(ours(said(iss="evil")), clock=0)


def test_keys_that_a_token_brings_are_not_looked_at(tmp_path):
    other = ed25519.Ed25519PrivateKey.generate()
    brought = jwt.algorithms.OKPAlgorithm.to_jwk(other.public_key(), as_dict=True)
    keys = TokenKeys(key_file(tmp_path, pem(ED)), "forebay")
    head = {"jwk": brought, "jku": "http://127.0.0.1:9/keys", "x5u": "http://127.0.0.1:9/x"}
    with pytest.raises(Unauthorized, match="signature"):
        keys.check(jwt.encode(said(), other, algorithm="EdDSA", headers=head), clock=0)


def test_keys_are_rotated_by_changing_the_file(tmp_path):
    path = key_file(tmp_path, jwk_set(("ed1", ED)))
    keys = TokenKeys(path, "forebay")
    new = jwt.encode(said(), P256, algorithm="ES256", headers={"kid": "ec2"})
    with pytest.raises(Unauthorized):
        keys.check(new, clock=0)
    path.write_bytes(jwk_set(("ed1", ED), ("ec2", P256)))
    assert keys.check(new, clock=2).tenant == "someone"
    path.write_bytes(b"{}")
    with pytest.raises(ConfigError):
        keys.reload()
    assert len(keys) == 2


def weak() -> list[tuple[str, bytes]]:
    small = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    p384 = ec.generate_private_key(ec.SECP384R1())
    return [
        ("a short secret", b"short"),
        ("a small RSA key", pem(small)),
        ("another curve", pem(p384)),
        ("an empty set", b'{"keys": []}'),
        ("no set", b'{"keys": 7}'),
        ("too much", b"x" * 70_000),
        ("broken PEM", b"-----BEGIN PUBLIC KEY-----\nxx"),
    ]


@pytest.mark.parametrize(("what", "content"), weak(), ids=[name for name, _ in weak()])
def test_weak_and_broken_key_files_stop_the_start(tmp_path, what, content):
    with pytest.raises(ConfigError, match="token key file"):
        TokenKeys(key_file(tmp_path, content), "forebay")


def test_the_start_says_what_else_is_missing(tmp_path):
    with pytest.raises(ConfigError, match="jwt_audience"):
        TokenKeys(key_file(tmp_path, pem(ED)), "")
    with pytest.raises(ConfigError, match="cannot be read"):
        TokenKeys(tmp_path / "absent", "forebay")
    path = key_file(tmp_path, SECRET)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        TokenKeys(path, "forebay")


# ---------------------------------------------------------------------------- a request


def request(token: str | None, loopback: bool = False) -> dict[str, Any]:
    shown = [] if token is None else [(b"authorization", b"Bearer " + token.encode())]
    return {
        "type": "http",
        "method": "GET",
        "path": "/",
        "headers": [(b"host", b"127.0.0.1"), *shown],
        "forebay.port": Port(MAIN, loopback),
        "client": ("127.0.0.1", 1),
    }


@pytest.fixture
def auth(tmp_path):
    path = key_file(tmp_path, pem(ED))
    return Auth(GatewayOptions(jwt_keys_file=str(path), jwt_audience="forebay"))


def test_a_token_opens_what_its_scopes_say(auth):
    token = jwt.encode(said(tenant="acme"), ED, algorithm="EdDSA")
    principal = auth.check(request(token), "submit")
    assert principal.tenant == "acme"
    with pytest.raises(Forbidden):
        auth.check(request(token), "admin")
    with pytest.raises(Unauthorized):
        auth.check(request(None), "submit")
    with pytest.raises(Unauthorized):
        auth.check(request("fb_1_2"), "submit")


def test_a_token_without_scopes_may_do_nothing(auth):
    with pytest.raises(Forbidden):
        auth.check(request(jwt.encode(said(scope=""), ED, algorithm="EdDSA")), "read")


def test_on_this_machine_a_token_that_is_shown_counts_and_another_secret_does_not(auth):
    token = jwt.encode(said(), ED, algorithm="EdDSA")
    assert auth.check(request(token, loopback=True), "read").tenant == "someone"
    assert auth.check(request("sk-anything", loopback=True), "read").tenant == "local"
    with pytest.raises(Unauthorized):
        auth.check(request("a.b.c", loopback=True), "read")


def test_tokens_are_enough_to_listen_to_others(tmp_path):
    path = key_file(tmp_path, pem(ED))
    refuse_open_bind(["0.0.0.0"], GatewayOptions(jwt_keys_file=str(path), jwt_audience="x"))


class _Wire:
    def __init__(self) -> None:
        self.closed: list[tuple[int, str]] = []

    def close(self, code: int, reason: str = "") -> None:
        self.closed.append((code, reason))


async def test_a_socket_is_closed_when_its_time_is_over():
    wire, now = _Wire(), 100.0
    principal = Principal(tenant="a", scopes=frozenset(), until=100.03)
    scope = {"forebay.principal": principal, "forebay.wire": wire}

    def wall() -> float:
        return now

    with ends_with_key(scope, wall):
        await asyncio.sleep(0.01)
        assert not wire.closed
        now = 101.0
        async with asyncio.timeout(5):
            while not wire.closed:  # noqa: ASYNC110 - the wire is watched from outside
                await asyncio.sleep(0.01)
    assert wire.closed == [(4401, "key or token has expired")]


async def test_a_socket_that_ends_before_its_time_is_left_alone():
    wire = _Wire()
    principal = Principal(tenant="a", scopes=frozenset(), until=100.01)
    with ends_with_key({"forebay.principal": principal, "forebay.wire": wire}, lambda: 100.0):
        await asyncio.sleep(0)
    await asyncio.sleep(0.05)
    assert not wire.closed
