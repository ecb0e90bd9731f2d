"""Settings of recognition's paths and of the history. Part of `config.table`."""

from __future__ import annotations

from forebay.config import declare
from forebay.config.declare import aliases

__all__ = [
    "API_PORT",
    "CREATE_DATABASE",
    "DB_HOST",
    "DB_NAME",
    "DB_PASSWORD",
    "DB_PORT",
    "DB_SSLMODE",
    "DB_USER",
    "HISTORY_URL",
    "KEEP_DAYS",
    "MAX_CONNECTIONS",
    "MIN_WORKERS",
    "QUEUE_NOTICE_THRESHOLD",
    "RECORDINGS",
    "SESSION_AUDIO_S",
    "TENANT_AUDIO_S",
    "VOICE_PORT",
]

QUEUE_NOTICE_THRESHOLD = declare.whole(
    "recognition.queue_notice_threshold",
    0,
    "Waiting clients of `/ws/asr` are told of the queue while more than this many wait.",
    low=0,
    high=1_000_000,
)
MAX_CONNECTIONS = declare.whole(
    "recognition.max_connections",
    2000,
    "Connections to `/ws/asr` and `/v1/listen`; past it a handshake is answered with 503.",
    low=1,
    high=1_000_000,
    aliases=aliases("MAX_CONNECTIONS"),
)
MIN_WORKERS = declare.whole(
    "recognition.min_workers",
    1,
    "Handshakes are answered with 503 while fewer recognition workers are ready.",
    low=0,
    high=10_000,
    aliases=aliases("MIN_WORKERS"),
)

SESSION_AUDIO_S = declare.number(
    "recognition.session_audio_s",
    7200.0,
    "Audio in one session or file; past it that ends with `quota_exceeded`. Counted by what "
    "was there, not by what headers say. Not on loopback.",
    unit="s",
    low=1,
    high=10_000_000,
)
TENANT_AUDIO_S = declare.maybe_number(
    "recognition.tenant_audio_s_per_hour",
    "Audio of one tenant within any hour, through all gateways of one broker; past it 429 with "
    "the time to wait. Not on loopback. Unset: no such quota.",
    unit="s",
    low=1,
    high=1_000_000_000,
)

HISTORY_URL = declare.maybe_text(
    "history.url",
    "Database of finished sessions and tasks: `postgresql://USER:PASSWORD@HOST/NAME` or "
    "`sqlite:///PATH`. Unset: `history.db` in the data folder.",
    secret=True,
)
CREATE_DATABASE = declare.yes_no(
    "history.create_database",
    False,
    "Make the PostgreSQL database at the start if it is not there.",
    aliases=aliases("AUTO_CREATE_DB"),
)
RECORDINGS = declare.whole(
    "history.recordings",
    10,
    "Newest recordings kept per user; 0 records nothing.",
    low=0,
    high=1_000_000,
    aliases=aliases("MAX_AUDIO_FILES_PER_USER"),
)
KEEP_DAYS = declare.maybe_number(
    "history.keep_days",
    "Sessions, tasks and their audio are removed after so long. Unset: never.",
    unit="days",
    low=0.01,
    high=100_000,
)
DB_HOST = declare.maybe_text(
    "history.db_host",
    "Host of a PostgreSQL history, where no `history.url` is given.",
    aliases=aliases("DB_HOST"),
)
DB_PORT = declare.whole(
    "history.db_port", 5432, "Its port.", low=1, high=65535, aliases=aliases("DB_PORT")
)
DB_USER = declare.text("history.db_user", "postgres", "Its user.", aliases=aliases("DB_USER"))
DB_PASSWORD = declare.maybe_text(
    "history.db_password", "Its password.", secret=True, aliases=aliases("DB_PASSWORD")
)
DB_NAME = declare.text("history.db_name", "forebay", "Its database.", aliases=aliases("DB_NAME"))
DB_SSLMODE = declare.text(
    "history.db_sslmode",
    "prefer",
    "Whether the connection is encrypted.",
    choices=("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    aliases=aliases("DB_SSLMODE"),
)

VOICE_PORT = declare.whole(
    "compat.voice_port",
    8080,
    "Port of the recognition backend and the voice console.",
    low=0,
    high=65535,
    aliases=aliases("ASR_BACKEND_PORT"),
)
API_PORT = declare.whole(
    "compat.api_port",
    8000,
    "Port of photo enhancement and of the recognition service's REST.",
    low=0,
    high=65535,
    aliases=aliases("ASR_API_PORT", "API_PORT"),
)
