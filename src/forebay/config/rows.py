"""The kind table with the operator's numbers in it."""

from __future__ import annotations

from dataclasses import replace

from forebay.config import table, table_kernel, table_photos
from forebay.config.load import Config
from forebay.core.kinds import KINDS, Kind, Row

__all__ = ["rows"]


def rows(config: Config) -> dict[Kind, Row]:
    """Every kind's row, altered where a setting says so.

    ``speech.ttl_s`` is what the original calls ttl: life without a connection, replay
    window and the time a finished session can still be read, all at once.
    """
    ttl_s = config[table.SPEECH_TTL_S]
    altered = dict(KINDS)
    altered[Kind.TEXT] = replace(KINDS[Kind.TEXT], slow_reader_s=config[table.TEXT_SLOW_READER_S])
    altered[Kind.SPEECH] = replace(
        KINDS[Kind.SPEECH],
        window_s=ttl_s,
        after_end_s=ttl_s,
        detach_s=ttl_s,
        slow_reader_s=config[table.SPEECH_SLOW_READER_S],
        pace_s=config[table.SPEECH_PACE_S],
        lead_s=config[table.SPEECH_LEAD_S],
        lead_detached_s=config[table.SPEECH_LEAD_DETACHED_S],
    )
    altered[Kind.IMAGE] = replace(
        KINDS[Kind.IMAGE], after_end_s=config[table_photos.CLEANUP_H] * 3600
    )
    altered[Kind.KERNEL] = replace(KINDS[Kind.KERNEL], run_s=config[table_kernel.CELL_S])
    return altered
