"""What the settings say about recognition's limits and about the history."""

from __future__ import annotations

from forebay.config import Config, table_recognition
from forebay.core.audio_quota import AudioLimits
from forebay.gateway.context import RecognitionOptions
from forebay.history import HistoryOptions

__all__ = ["history_options", "recognition_options"]


def recognition_options(config: Config) -> RecognitionOptions:
    """Limits and manners of the recognition paths, as settled."""
    return RecognitionOptions(
        queue_notice_threshold=config[table_recognition.QUEUE_NOTICE_THRESHOLD],
        max_connections=config[table_recognition.MAX_CONNECTIONS],
        min_workers=config[table_recognition.MIN_WORKERS],
        audio=AudioLimits(
            session_s=config[table_recognition.SESSION_AUDIO_S],
            tenant_s=config[table_recognition.TENANT_AUDIO_S],
        ),
    )


def history_options(config: Config) -> HistoryOptions:
    """Where the history is kept, and how long. ``DB_HOST`` names a PostgreSQL server as the
    original's settings did."""
    url = config[table_recognition.HISTORY_URL]
    host = config[table_recognition.DB_HOST]
    if url is None and host is not None:
        from forebay.history import postgres_url  # loads all of the database's packages

        url = postgres_url(
            host=host,
            port=config[table_recognition.DB_PORT],
            user=config[table_recognition.DB_USER],
            password=config[table_recognition.DB_PASSWORD],
            name=config[table_recognition.DB_NAME],
            sslmode=config[table_recognition.DB_SSLMODE],
        )
    return HistoryOptions(
        url=url,
        create_database=config[table_recognition.CREATE_DATABASE],
        recordings=config[table_recognition.RECORDINGS],
        keep_days=config[table_recognition.KEEP_DAYS],
    )
