"""Environment names of the original systems that are recognised and do nothing here.

A deployment may keep them; `forebay config show` says which are set and why they are idle.
"""

from __future__ import annotations

__all__ = ["NO_EFFECT"]

_NO_KIND = "belongs to {}, which this build does not serve"
_image, _notebook = (_NO_KIND.format(word) for word in ("photo enhancement", "notebooks"))

NO_EFFECT: dict[str, str] = {
    "WS_TTS_VERSION": "the version reported is Forebay's own",
    "WS_TTS_URL": "`/chat` speaks with this gateway's own voices",
    "WS_TTS_API_KEY": "`/chat` reaches its voices inside the gateway, without a key",
    "ALLOW_CLIENT_TTS_URL": "a client's own voice server is never called",
    "RIVA_SERVER": "there is no Riva engine",
    "PIPER_BIN": "the engine `piper` is a Python package, not a program",
    "PIPER_ROOT": "the engine `piper` is a Python package, not a program",
    "PIPER_MODEL": "name the voice with --engine speech=piper:model=FILE",
    "HF_TOKEN": "weights come from packages or local files; nothing is fetched from a hub",
    "API_HOST": "all ports listen on server.host",
    "API_WORKERS": "one gateway serves all; models are counted by --workers image=N",
    "CORS_ORIGINS": "compat ports answer any origin; server.allowed_origins is the main port's",
    "REDIS_ADDR": "a store is named by one URL: `server.broker`, as redis://:PASSWORD@HOST:PORT/DB",
    "REDIS_HOST": "a store is named by one URL: `server.broker`, as redis://:PASSWORD@HOST:PORT/DB",
    "REDIS_PORT": "a store is named by one URL: `server.broker`, as redis://:PASSWORD@HOST:PORT/DB",
    "REDIS_DB": "a store is named by one URL: `server.broker`, as redis://:PASSWORD@HOST:PORT/DB",
    "FUNASR_ADDR": "a remote recogniser is an engine: --engine recognition=NAME:key=value",
}
