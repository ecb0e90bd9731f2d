"""Settings of who may connect by a token of another service. Part of `config.table`."""

from __future__ import annotations

from forebay.config import declare

__all__ = ["JWT_AUDIENCE", "JWT_ISSUER", "JWT_KEYS_FILE"]

JWT_KEYS_FILE = declare.maybe_path(
    "access.jwt_keys_file",
    "Keys that signed tokens (JWT) are checked with: a JWK set, a public key in PEM, or a secret "
    "of 32 bytes or more. Read again when it changes. Unset: tokens are not taken.",
)
JWT_AUDIENCE = declare.maybe_text(
    "access.jwt_audience",
    "What a token's `aud` must contain. Demanded with `access.jwt_keys_file`.",
)
JWT_ISSUER = declare.maybe_text(
    "access.jwt_issuer", "What a token's `iss` must be. Unset: it is not looked at."
)
