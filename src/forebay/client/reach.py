"""Why a server could not be spoken to, in words."""

from __future__ import annotations

import aiohttp

__all__ = ["why"]


def why(exc: BaseException) -> str:
    """What a person is told of an error of the connection; never a class's name alone where
    there is a word for it."""
    if isinstance(exc, TimeoutError):
        return "no answer in time"
    if isinstance(exc, aiohttp.ClientConnectorCertificateError):
        return "its certificate is not trusted"
    if isinstance(exc, aiohttp.ClientConnectorDNSError):
        return "its name is not known"
    if isinstance(exc, (aiohttp.ClientConnectorError, ConnectionRefusedError)):
        return "the server cannot be reached"
    if isinstance(exc, (aiohttp.ServerDisconnectedError, ConnectionError)):
        return "the server closed the connection"
    return str(exc) or type(exc).__name__
