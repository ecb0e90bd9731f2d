"""What the settings say about streamed text."""

from __future__ import annotations

from forebay.config import Config, table_text
from forebay.gateway.context import OperationOptions

__all__ = ["operation_options"]


def operation_options(config: Config) -> OperationOptions:
    """Manners of `/send_operation` and of streams, as settled."""
    return OperationOptions(
        flush_interval_ms=config[table_text.FLUSH_INTERVAL_MS],
        flush_items=config[table_text.FLUSH_ITEMS],
        flush_cap=config[table_text.FLUSH_CAP],
        heartbeat_s=config[table_text.HEARTBEAT_S],
        concurrency=config[table_text.CONCURRENCY],
        compress=config[table_text.COMPRESS],
    )
