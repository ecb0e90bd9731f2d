"""What `forebay serve` tells a gateway and its broker about rooms."""

from __future__ import annotations

from forebay.broker.rooms import RoomSettings
from forebay.config import Config, table_captions
from forebay.gateway.rooms import RoomOptions

__all__ = ["room_options", "room_settings"]


def room_options(config: Config) -> RoomOptions:
    """Limits and manners of rooms at the gateway."""
    ancestors: list[str] = config[table_captions.FRAME_ANCESTORS]
    return RoomOptions(
        per_s=config[table_captions.RATE_PER_S],
        burst=config[table_captions.BURST],
        previews_per_s=config[table_captions.PREVIEWS_PER_S],
        persist=config[table_captions.PERSIST],
        private=config[table_captions.PRIVATE],
        frame_ancestors=tuple(ancestors),
        google_fonts=config[table_captions.GOOGLE_FONTS],
        ticket_s=config[table_captions.TICKET_S],
    )


def room_settings(config: Config) -> RoomSettings:
    """Bounds of the broker's rooms."""
    return RoomSettings(
        rooms=config[table_captions.ROOMS], store_bytes=config[table_captions.STORE_MB] << 20
    )
