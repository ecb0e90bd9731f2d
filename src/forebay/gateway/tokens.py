"""Signed tokens (JWT) of somebody else's sign-in service, beside keys of our own.

The operator names a file of public keys and the audience; nothing else of a token decides
how it is checked. Which algorithm counts follows from the kind of key, so a token cannot
choose one (RFC 8725, 3.1): Ed25519 means EdDSA, P-256 means ES256, RSA means RS256, a shared
secret means HS256. Keys that a token brings or points to (``jwk``, ``jku``, ``x5u``) are
never looked at. ``exp`` and ``aud`` must be there.

The file is a JWK set, one PEM key, or a secret of 32 bytes or more, and is read again when it
changes (looked at once a second).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forebay.errors import ConfigError, Unauthorized
from forebay.gateway.keys import SCOPES, KeyFile, valid_tenant

__all__ = ["Claims", "TokenKeys", "is_token"]

SKEW_S = 60.0
"""By how much the clocks of who signs and who checks may differ."""
TOKEN_BYTES = 4096
FILE_BYTES = 64 * 1024
MAX_KEYS = 16
SECRET_BYTES = 32
RSA_BITS = 2048


@dataclass(frozen=True, slots=True)
class Claims:
    """What a valid token says. ``until``: seconds since 1970, the skew included."""

    tenant: str
    scopes: frozenset[str]
    until: float


@dataclass(frozen=True, slots=True)
class _Key:
    algorithm: str
    key: Any
    kid: str | None = None


def is_token(shown: str) -> bool:
    """Whether ``shown`` has the form of a signed token. Says nothing about its worth."""
    return shown.count(".") == 2


class TokenKeys(KeyFile):
    """The keys of one file, and what they say of a token.

    ``audience``: what ``aud`` must contain; ``issuer``: what ``iss`` must be, None: anything.
    Raises `ConfigError` when PyJWT is missing or the file is unusable."""

    def __init__(self, path: Path, audience: str, issuer: str | None = None) -> None:
        try:
            import jwt
        except ImportError as error:
            raise ConfigError(
                "access.jwt_keys_file needs a package that is missing: pip install 'forebay[jwt]'"
            ) from error
        if not audience:
            raise ConfigError(
                "access.jwt_keys_file is set and access.jwt_audience is not: without it a token "
                "made for any other service would be let in here"
            )
        self._jwt = jwt
        self._audience, self._issuer = audience, issuer
        self._keys: list[_Key] = []
        super().__init__(path)

    def __len__(self) -> int:
        return len(self._keys)

    def _read(self) -> None:
        self._keys = _read(self.path, self._jwt)

    def check(self, token: str, *, clock: float) -> Claims:
        """What ``token`` says, if it is sound. Raises `Unauthorized`. ``clock``: monotonic
        seconds."""
        self._look(clock)
        if len(token) > TOKEN_BYTES:
            raise Unauthorized(f"token is {len(token)} bytes long, expected {TOKEN_BYTES} at most")
        return _claims(self._verified(token))

    def _verified(self, token: str) -> Mapping[str, Any]:
        jwt = self._jwt
        try:
            head = jwt.get_unverified_header(token)
        except jwt.PyJWTError as error:
            raise Unauthorized("token is malformed") from error
        fitting = self._fitting(head)
        if not fitting:
            raise Unauthorized("token is signed with a key or an algorithm that is not known here")
        why: Exception | None = None
        for one in fitting:
            try:
                found: Mapping[str, Any] = jwt.decode(
                    token,
                    one.key,
                    algorithms=[one.algorithm],
                    audience=self._audience,
                    issuer=self._issuer,
                    leeway=SKEW_S,
                    options={"require": ["exp", "aud"]},
                )
                return found
            except jwt.InvalidSignatureError as error:
                why = why or error
            except jwt.PyJWTError as error:
                raise Unauthorized(f"token is not valid: {_reason(jwt, error)}") from error
        raise Unauthorized("token is not valid: its signature is wrong") from why

    def _fitting(self, head: Mapping[str, Any]) -> list[_Key]:
        """The keys that may have signed it. A key id narrows the choice and never widens it."""
        kid = head.get("kid")
        return [
            one
            for one in self._keys
            if one.algorithm == head.get("alg") and (None in (kid, one.kid) or kid == one.kid)
        ]


def _claims(found: Mapping[str, Any]) -> Claims:
    """Raises `Unauthorized` where a claim cannot be meant."""
    tenant = found.get("tenant", found.get("sub"))
    if not isinstance(tenant, str) or not valid_tenant(tenant):
        raise Unauthorized(
            "token names no tenant: expected [A-Za-z0-9._-]{1,64} as 'tenant' or 'sub'"
        )
    said = found.get("scope", "")
    words = said.split() if isinstance(said, str) else said
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise Unauthorized("token's 'scope' is malformed, expected words with blanks between")
    # Words of other services are nothing to us; what is left may be nothing at all.
    return Claims(tenant, frozenset(SCOPES).intersection(words), float(found["exp"]) + SKEW_S)


def _reason(jwt: Any, error: Exception) -> str:
    """In our words: the library's may repeat what the token said."""
    if isinstance(error, jwt.ExpiredSignatureError):
        return "it has expired"
    if isinstance(error, jwt.ImmatureSignatureError):
        return "its time has not come"
    if isinstance(error, jwt.InvalidAudienceError):
        return "it was made for another audience"
    if isinstance(error, jwt.InvalidIssuerError):
        return "it is from another issuer"
    if isinstance(error, jwt.MissingRequiredClaimError):
        return f"it lacks {error.claim!r}"
    return "it is malformed"


def _read(path: Path, jwt: Any) -> list[_Key]:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"token key file {path} cannot be read: {error.strerror}") from error
    if len(raw) > FILE_BYTES:
        raise ConfigError(f"token key file {path} has {len(raw)} bytes, expected {FILE_BYTES}")
    try:
        keys = _parsed(raw.strip(), jwt)
    except (ValueError, TypeError, KeyError, jwt.PyJWTError) as error:
        raise ConfigError(
            f"token key file {path} is no JWK set, no public key in PEM and no secret of "
            f"{SECRET_BYTES} bytes: {error}"
        ) from error
    if not 1 <= len(keys) <= MAX_KEYS:
        raise ConfigError(f"token key file {path} has {len(keys)} keys, expected 1 to {MAX_KEYS}")
    if any(one.algorithm == "HS256" for one in keys) and path.stat().st_mode & 0o077:
        raise ConfigError(f"token key file {path} holds a secret that others may read: chmod 600")
    return keys


def _parsed(raw: bytes, jwt: Any) -> list[_Key]:
    from cryptography.hazmat.primitives import serialization

    if raw.startswith(b"{"):
        listed = json.loads(raw)["keys"]
        return [_of_jwk(entry, jwt) for entry in listed if entry.get("use", "sig") == "sig"]
    if raw.startswith(b"-----BEGIN"):
        return [_Key(*_public(serialization.load_pem_public_key(raw)))]
    return [_Key("HS256", _secret(raw))]


def _of_jwk(entry: Mapping[str, Any], jwt: Any) -> _Key:
    made = jwt.PyJWK(dict(entry))
    if made.key_type == "oct":
        return _Key("HS256", _secret(made.key), made.key_id)
    key = made.key
    # A set may hold the private half by mistake; only the public one is kept.
    public = key.public_key() if hasattr(key, "public_key") else key
    return _Key(*_public(public), made.key_id)


def _public(key: Any) -> tuple[str, Any]:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, ed25519.Ed25519PublicKey):
        return "EdDSA", key
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return "ES256", key
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size < RSA_BITS:
            raise ValueError(f"the RSA key has {key.key_size} bits, expected {RSA_BITS} or more")
        return "RS256", key
    raise ValueError("expected a key for EdDSA, ES256 (P-256) or RS256")


def _secret(raw: bytes) -> bytes:
    if len(raw) < SECRET_BYTES:
        raise ValueError(f"the secret has {len(raw)} bytes, expected {SECRET_BYTES} or more")
    return raw
