"""Every setting of Forebay, declared once.

Order here is the order of the reference page and of the example file. Settings marked with
an original's environment name take effect under that name too; names of the originals that
mean nothing in this build are in `originals.NO_EFFECT`, with the reason.
"""

from __future__ import annotations

from typing import Any

from forebay.config import (
    declare,
    table_access,
    table_captions,
    table_cluster,
    table_images,
    table_kernel,
    table_log,
    table_photos,
    table_process,
    table_recognition,
    table_redis,
    table_text,
)
from forebay.config.declare import aliases
from forebay.config.setting import Alias, Setting
from forebay.core.admission import JobLimits
from forebay.core.kinds import KINDS, Kind
from forebay.gateway.options import MODEL_ALIASES, GatewayOptions

__all__ = ["BY_NAME", "LIMITS", "SECTIONS", "SETTINGS"]

_speech = KINDS[Kind.SPEECH]
_text = KINDS[Kind.TEXT]
_gateway = GatewayOptions()
_jobs = JobLimits()

SECTIONS = {
    "server": "The process: where it listens, where it keeps things, who may use it.",
    "access": "Signed tokens of another sign-in service, beside keys of our own.",
    "redis": "The store that several gateways share (`server.broker`), and what it must be.",
    "limits": "Bounds on what clients may send and hold. Each has a documented answer.",
    "log": "What is written to standard error.",
    "workers": "Worker processes.",
    "kernel": "Notebooks: who may run code here, and within which bounds.",
    "text": "Language models: which engine serves, and what a request gets by default.",
    "upstream": "The OpenAI-compatible server behind the engine `openai`.",
    "llama": "The local language model (engine `llama`).",
    "speech": "Voices: which engine serves, windows and pacing.",
    "recognition": "Speech to text: which engine serves, and the limits of its paths.",
    "image": "Pictures: which engine serves, and what its workers may use.",
    "photos": "Photo enhancement: what is taken, and how long it is kept.",
    "blobs": "Large files (photos, tiles, results, recordings): where they are and how many.",
    "operations": "`/send_operation`: language for notebook front ends.",
    "captions": "Rooms: captions that everybody sees at once.",
    "history": "Finished recognition sessions, tasks and recordings.",
    "chat": "`/chat`: a language model's answer, spoken while it is written.",
    "compat": "Ports that clients of the original systems hard-code.",
}


# ---------------------------------------------------------------------------- server

HOST = declare.text(
    "server.host",
    "127.0.0.1",
    "Address to listen on. Anything but loopback needs `server.keys_file`.",
    flag="--host",
)
PORT = declare.whole(
    "server.port",
    8600,
    "Port of everything: console, protocols, metrics. 0 takes a free one.",
    low=0,
    high=65535,
    flag="--port",
)
DATA_DIR = declare.maybe_path(
    "server.data_dir",
    "Where the journal and the key file live. Unset: `forebay` in the user's data folder.",
    flag="--data-dir",
)
MODELS_DIR = declare.maybe_path(
    "server.models_dir",
    "Where fetched weights lie. Unset: `~/.cache/forebay/models`.",
    aliases=aliases("FOREBAY_MODELS"),
)
BROKER = declare.text(
    "server.broker",
    "local",
    "Where jobs and streams are kept: `local`, in the gateway's process; `redis`, in a private "
    "Valkey beside it; or the URL of a Redis or Valkey that several machines share. A URL may "
    "hold a password: give it by the environment then.",
    flag="--broker",
)
GATEWAYS = declare.whole(
    "server.gateways",
    1,
    "Gateway processes of this machine, which share its ports. More than one needs a shared "
    "broker.",
    low=1,
    high=64,
    flag="--gateways",
)
KEYS_FILE = declare.maybe_path(
    "server.keys_file",
    "API keys, as `forebay keys create` writes them. Unset: `keys.json` in the data folder "
    "when that exists; without keys everyone who can connect may use everything.",
)
INSECURE_NO_AUTH = declare.yes_no(
    "server.insecure_no_auth",
    False,
    "Listen on other addresses than loopback without any key. Warns every minute.",
    flag="--insecure-no-auth",
)
ALLOWED_ORIGINS = declare.words(
    "server.allowed_origins", "Browser origins that may connect, beside the gateway's own."
)
ALLOWED_HOSTS = declare.words(
    "server.allowed_hosts", "Values of `Host` that are answered, beside loopback and `server.host`."
)
TRUSTED_PROXIES = declare.words(
    "server.trusted_proxies",
    "Addresses and networks (`10.0.0.0/8`) of proxies. Many clients come from them, so the "
    "limits of one address do not count there; let the proxy bound its clients.",
)
TRUST_CLIENT_TENANT = declare.yes_no(
    "server.trust_client_tenant",
    False,
    "Take the tenant from `X-Tenant` or `user_id`. For tests and load tools only.",
)
MODEL_ALIASES_SETTING = declare.words(
    "server.model_aliases",
    "Names in requests that mean a model here, as `NAME=KIND` (the kind's first) or "
    "`NAME=KIND/MODEL`. A model that is served under the name itself comes first.",
    default=[f"{name}={target}" for name, target in MODEL_ALIASES.items()],
)
DRAIN_S = declare.number(
    "server.drain_s",
    _gateway.drain_s,
    "How long open sessions may finish after SIGTERM.",
    unit="s",
    low=0,
    high=3600,
)

# ---------------------------------------------------------------------------- limits

# The key of each is the field of `GatewayOptions` it fills, where its default stands.
LIMITS: tuple[Setting[Any], ...] = (
    declare.whole(
        "limits.max_connections",
        _gateway.max_connections,
        "Connections of the process; lowered at start to what file descriptors allow.",
        low=1,
        high=1000000,
    ),
    declare.whole(
        "limits.max_per_address",
        _gateway.max_per_address,
        "Connections of one address. Not applied on loopback.",
        low=1,
        high=1000000,
    ),
    declare.number(
        "limits.handshakes_per_s",
        _gateway.handshakes_per_s,
        "New connections a second. Not applied on loopback.",
        unit="1/s",
        low=0.1,
        high=1000000,
    ),
    declare.number(
        "limits.handshakes_per_address_s",
        _gateway.handshakes_per_address_s,
        "New connections a second of one address. Not applied on loopback.",
        unit="1/s",
        low=0.1,
        high=1000000,
    ),
    declare.number(
        "limits.head_s",
        _gateway.head_s,
        "From connecting to the end of the request's headers.",
        unit="s",
        low=0.1,
        high=3600,
    ),
    declare.number(
        "limits.body_s",
        _gateway.body_s,
        "For a request body, prolonged while it keeps coming.",
        unit="s",
        low=0.1,
        high=3600,
    ),
    declare.number(
        "limits.first_message_s",
        _gateway.first_message_s or 0,
        "From a WebSocket's handshake to its first message, on the main port.",
        unit="s",
        low=0.1,
        high=3600,
    ),
    declare.number(
        "limits.keep_alive_s",
        _gateway.keep_alive_s,
        "Silence between two requests of one connection.",
        unit="s",
        low=0.1,
        high=3600,
    ),
    declare.number(
        "limits.ping_s",
        _gateway.ping_s,
        "Silence of a WebSocket peer after which it is pinged.",
        unit="s",
        low=0.1,
        high=3600,
    ),
    declare.number(
        "limits.pong_s",
        _gateway.pong_s,
        "Further silence after which it counts as dead.",
        unit="s",
        low=0.1,
        high=3600,
    ),
    declare.number(
        "limits.write_stall_s",
        _gateway.write_stall_s,
        "A connection that takes not one byte for so long is cut.",
        unit="s",
        low=0.1,
        high=3600,
    ),
    declare.whole(
        "limits.body_bytes",
        _gateway.body_bytes,
        "A request body.",
        unit="bytes",
        low=1024,
        high=1073741824,
    ),
    declare.whole(
        "limits.ws_message_bytes",
        _gateway.ws_message_bytes,
        "One WebSocket message.",
        unit="bytes",
        low=1024,
        high=1073741824,
    ),
    declare.whole(
        "limits.sndbuf_bytes",
        _gateway.sndbuf_bytes,
        "Kernel send buffer of a connection; 0 leaves the system's own.",
        unit="bytes",
        low=0,
        high=1073741824,
    ),
)

QUEUE_JOBS = declare.whole(
    "limits.queue_jobs",
    _jobs.queue,
    "Jobs that may wait for one model; past it new ones are refused.",
    low=1,
    high=1_000_000,
)
LIVE_JOBS = declare.whole(
    "limits.live_jobs",
    _jobs.jobs,
    "Jobs that may be live at once, open sessions included.",
    low=1,
    high=10_000_000,
)
TENANT_JOBS = declare.maybe_whole(
    "limits.tenant_jobs",
    "Live jobs one tenant may have. Unset: as many as anybody.",
    low=1,
    high=10_000_000,
)
STORE_MIB = declare.maybe_whole(
    "limits.store_mib",
    "Memory for the streams of all jobs; past it new jobs are refused. Unset: a quarter of "
    "the machine's, at least 256.",
    unit="MiB",
    low=16,
    high=1 << 24,
)

# ------------------------------------------------------------------------------- log

LOG_LEVEL, LOG_FORMAT = table_log.LOG_LEVEL, table_log.LOG_FORMAT

# --------------------------------------------------------------------------- workers

TEXT_WORKERS = declare.whole(
    "workers.text",
    1,
    "Worker processes for language models.",
    low=0,
    high=64,
    flag="--workers text=N",
)
SPEECH_WORKERS = declare.whole(
    "workers.speech", 1, "Worker processes for voices.", low=0, high=64, flag="--workers speech=N"
)
RECOGNITION_WORKERS = declare.whole(
    "workers.recognition",
    1,
    "Worker processes for speech recognition.",
    low=0,
    high=1000,
    flag="--workers recognition=N",
)
SPARES = declare.text(
    "workers.spares",
    "auto",
    "Warm spares: one loaded and waiting worker for each kind. `auto`: where memory allows.",
    choices=("auto", "never"),
)

# ------------------------------------------------------------------------------ text

TEXT_ENGINES = declare.words(
    "text.engines",
    "Engines as NAME[:key=value,...]. Unset: `openai` when `upstream.base_url` is set, "
    "otherwise `llama`.",
    flag="--engine text=...",
)
SYSTEM_PROMPT = declare.text(
    "text.system_prompt",
    "You are a helpful assistant. Your answers are spoken aloud: plain sentences, no lists, "
    "no markup.",
    "System message of `/chat`, in front of the person's words.",
    aliases=aliases("SGLANG_SYSTEM_PROMPT"),
)
MAX_TOKENS = declare.whole(
    "text.max_tokens",
    512,
    "Longest answer where the request names none.",
    unit="tokens",
    low=1,
    high=1_000_000,
    aliases=aliases("SGLANG_MAX_TOKENS"),
)
TEMPERATURE = declare.maybe_number(
    "text.temperature",
    "Sampling temperature. Unset: the model's own.",
    low=0,
    high=2,
    aliases=aliases("SGLANG_TEMPERATURE"),
)
TOP_P = declare.maybe_number(
    "text.top_p",
    "Nucleus sampling. Unset: the model's own.",
    low=0,
    high=1,
    aliases=aliases("SGLANG_TOP_P"),
)
TOP_K = declare.maybe_whole(
    "text.top_k",
    "Sample among the k likeliest tokens, -1 for all. Unset: the model's own.",
    low=-1,
    high=1_000_000,
    aliases=aliases("SGLANG_TOP_K"),
)
REPETITION_PENALTY = declare.maybe_number(
    "text.repetition_penalty",
    "Above 1 discourages repetition. Unset: the model's own.",
    low=0,
    high=2,
    aliases=aliases("SGLANG_REPETITION_PENALTY"),
)
PRESENCE_PENALTY = declare.maybe_number(
    "text.presence_penalty",
    "Unset: the model's own.",
    low=-2,
    high=2,
    aliases=aliases("SGLANG_PRESENCE_PENALTY"),
)
FREQUENCY_PENALTY = declare.maybe_number(
    "text.frequency_penalty",
    "Unset: the model's own.",
    low=-2,
    high=2,
    aliases=aliases("SGLANG_FREQUENCY_PENALTY"),
)
MAX_TOTAL_TOKENS = declare.maybe_whole(
    "text.max_total_tokens",
    "Prompt and answer together may not pass this. Unset: the model's context length.",
    unit="tokens",
    low=16,
    high=10_000_000,
    aliases=aliases("SGLANG_MAX_TOTAL_TOKENS"),
)
CONTEXT_TOKENS = declare.maybe_whole(
    "text.context_tokens",
    "Context length of one generation; a local model's memory grows with it. Unset: 2048 for "
    "the local model, what a model server says of itself.",
    unit="tokens",
    low=128,
    high=10_000_000,
    aliases=aliases("MAX_MODEL_LEN"),
)
ALLOW_AUTO_TRUNCATE = declare.yes_no(
    "text.allow_auto_truncate",
    False,
    "Cut the oldest turns of a prompt that is too long, and say so, instead of refusing it.",
    aliases=aliases("SGLANG_ALLOW_AUTO_TRUNCATE"),
)
TEXT_SLOW_READER_S = declare.number(
    "text.slow_reader_s",
    _text.slow_reader_s,
    "A reader whose oldest unsent event is older than this is closed; it may come back.",
    unit="s",
    low=1,
    high=3600,
)

# -------------------------------------------------------------------------- upstream

UPSTREAM_URL = declare.maybe_text(
    "upstream.base_url",
    "Address of the model server, with or without `/v1`. Several share the work, as "
    "`[MODEL@]URL[*WEIGHT]` divided by commas; one of weight 0 takes over only.",
    aliases=aliases("SGLANG_BASE_URL", "OPENAI_BASE_URL", "OPENAI_API_BASE", "BASE_URL"),
)
UPSTREAM_KEY = declare.maybe_text(
    "upstream.api_key",
    "Key sent to it as a Bearer token.",
    secret=True,
    aliases=aliases("SGLANG_API_KEY", "OPENAI_API_KEY"),
)
UPSTREAM_MODEL = declare.maybe_text(
    "upstream.model",
    "Model to ask for. Unset: the first one it lists.",
    aliases=aliases("SGLANG_MODEL"),
)
UPSTREAM_SLOTS = declare.whole(
    "upstream.slots", 32, "Generations that may run there at once.", low=1, high=4096
)
UPSTREAM_PREFIX = declare.yes_no(
    "upstream.prefix",
    False,
    "The server continues an unfinished last message (SGLang, vLLM: "
    "`continue_final_message`), so an answer survives the death of a worker.",
)
UPSTREAM_FIRST_TOKEN_S = declare.number(
    "upstream.first_token_s", 60, "Give up when no token has come.", unit="s", low=0.1, high=3600
)
UPSTREAM_STALL_S = declare.number(
    "upstream.stall_s",
    30,
    "Give up when nothing has come since the last token.",
    unit="s",
    low=0.1,
    high=3600,
)

# ---------------------------------------------------------------------------- speech

SPEECH_ENGINES = declare.words(
    "speech.engines",
    "Engines as NAME[:key=value,...]. Unset: `voices`.",
    flag="--engine speech=...",
    aliases=aliases(
        Alias("WS_TTS_ENGINE", {"dummy": "synthetic", "auto": "voices", "hibari": "voices"})
    ),
)
SPEECH_TTL_S = declare.number(
    "speech.ttl_s",
    _speech.detach_s,
    "How long a session outlives its connection, and the seconds of audio kept for a "
    "client that comes back.",
    unit="s",
    low=1,
    high=3600,
)
SPEECH_SLOW_READER_S = declare.number(
    "speech.slow_reader_s",
    _speech.slow_reader_s,
    "A reader whose oldest unsent audio is older than this gets `backpressure`.",
    unit="s",
    low=1,
    high=3600,
)
SPEECH_PACE_S = declare.number(
    "speech.pace_s",
    _speech.pace_s or 4,
    "Audio is sent at most this far ahead of playback on `/tts` and `/chat`.",
    unit="s",
    low=0.2,
    high=60,
)
SPEECH_LEAD_S = declare.number(
    "speech.lead_s",
    _speech.lead_s or 10,
    "A voice may be this far ahead of what an attached client has been sent.",
    unit="s",
    low=1,
    high=600,
)
SPEECH_LEAD_DETACHED_S = declare.number(
    "speech.lead_detached_s",
    _speech.lead_detached_s or 30,
    "The same while nobody is attached.",
    unit="s",
    low=1,
    high=600,
)

# ----------------------------------------------------------------------- recognition

RECOGNITION_ENGINES = declare.words(
    "recognition.engines",
    "Engines as NAME[:key=value,...]. Unset: `listener`, which streams English and hears "
    "other languages utterance by utterance.",
    flag="--engine recognition=...",
)

# ------------------------------------------------------------------------------ chat

FLUSH_MIN_CHARS = declare.whole(
    "chat.tts_flush_min_chars",
    12,
    "Announced to `/chat` clients as the original did. The voice itself cuts by clause, "
    "time and word, which is sooner.",
    unit="chars",
    low=1,
    high=10_000,
    aliases=aliases("TTS_FLUSH_MIN_CHARS"),
)
FLUSH_ON_PUNCT = declare.yes_no(
    "chat.tts_flush_on_punct",
    True,
    "Announced to `/chat` clients as the original did.",
    aliases=aliases("TTS_FLUSH_ON_PUNCT"),
)

# ---------------------------------------------------------------------------- compat

COMPAT = declare.words(
    "compat.ports", "Personalities to open beside the main port: names, or `all`.", flag="--compat"
)
TTS_HOST = declare.maybe_text(
    "compat.tts_host",
    "Address of the voice server's port. Unset: `server.host`.",
    aliases=aliases("WS_TTS_HOST"),
)
TTS_PORT = declare.whole(
    "compat.tts_port",
    9000,
    "Port of the voice server.",
    low=0,
    high=65535,
    aliases=aliases("WS_TTS_PORT"),
)
CHAT_HOST = declare.maybe_text(
    "compat.chat_host",
    "Address of the orchestrator's port. Unset: `server.host`.",
    aliases=aliases("ORCH_HOST"),
)
CHAT_PORT = declare.whole(
    "compat.chat_port",
    9100,
    "Port of the orchestrator (`/chat`).",
    low=0,
    high=65535,
    aliases=aliases("ORCH_PORT"),
)
CHAT_API_KEY = declare.maybe_text(
    "compat.chat_api_key",
    "Key that `/chat` on compat ports asks for, as `?api_key=` or Bearer.",
    secret=True,
    aliases=aliases("ORCH_API_KEY"),
)

PARTS = (
    table_cluster,
    table_process,
    table_redis,
    table_recognition,
    table_images,
    table_photos,
    table_text,
    table_access,
    table_captions,
    table_kernel,
    table_log,
)
"""Modules that declare a part of this table."""

SETTINGS: tuple[Setting[Any], ...] = tuple(declare.declared)
BY_NAME: dict[str, Setting[Any]] = {s.name: s for s in SETTINGS}
