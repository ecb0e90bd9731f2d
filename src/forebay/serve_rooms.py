"""What `forebay serve` tells a gateway and its broker about rooms."""

from __future__ import annotations

from forebay.broker.rooms import RoomSettings
from forebay.config import Config
from forebay.config import table_captions as captions
from forebay.gateway.rooms import RoomOptions

__all__ = ["room_options", "room_settings"]


def room_options(config: Config) -> RoomOptions:
    """Limits and manners of rooms at the gateway."""
    ancestors: list[str] = config[captions.FRAME_ANCESTORS]
    return RoomOptions(
        per_s=config[captions.RATE_PER_S],
        burst=config[captions.BURST],
        previews_per_s=config[captions.PREVIEWS_PER_S],
        persist=config[captions.PERSIST],
        private=config[captions.PRIVATE],
        frame_ancestors=tuple(ancestors),
        google_fonts=config[captions.GOOGLE_FONTS],
        ticket_s=config[captions.TICKET_S],
    )


def room_settings(config: Config) -> RoomSettings:
    """Bounds of the broker's rooms."""
    return RoomSettings(rooms=config[captions.ROOMS], store_bytes=config[captions.STORE_MB] << 20)
