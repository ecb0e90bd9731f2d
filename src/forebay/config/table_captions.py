"""Settings of rooms and captions. Part of `config.table`."""

from __future__ import annotations

from forebay.config import declare
from forebay.config.declare import aliases

__all__ = [
    "BURST",
    "CAPTIONS_PORT",
    "FRAME_ANCESTORS",
    "GOOGLE_FONTS",
    "PERSIST",
    "PREVIEWS_PER_S",
    "PRIVATE",
    "RATE_PER_S",
    "ROOMS",
    "STORE_MB",
    "TICKET_S",
]

ROOMS = declare.whole(
    "captions.rooms",
    1000,
    "Rooms there may be at once; a new one past that is refused with 503.",
    low=1,
    high=1_000_000,
)
STORE_MB = declare.whole(
    "captions.store_mb",
    128,
    "What all rooms may hold together; past it no room is made, past twice that none is "
    "written to.",
    unit="MiB",
    low=1,
    high=1_000_000,
)
PERSIST = declare.yes_no(
    "captions.persist",
    True,
    "Rooms and their senders' places outlive the process, unless a room's first message says "
    "`persist: false`.",
)
PRIVATE = declare.yes_no(
    "captions.private",
    False,
    "Reading a room needs its passphrase too, or a link for viewing.",
)
RATE_PER_S = declare.number(
    "captions.rate_per_s",
    10.0,
    "Finals one sender may send to a room; past it 429. Not on loopback.",
    unit="1/s",
    low=0.1,
    high=10_000,
)
BURST = declare.whole(
    "captions.burst",
    128,
    "Finals a sender may send at once, as after an outage. Not on loopback.",
    low=1,
    high=100_000,
)
PREVIEWS_PER_S = declare.number(
    "captions.previews_per_s",
    20.0,
    "Previews one sender may send to a room; past it they are dropped.",
    unit="1/s",
    low=0.1,
    high=10_000,
)
TICKET_S = declare.number(
    "captions.ticket_s",
    24 * 3600.0,
    "Life of a link for viewing.",
    unit="s",
    low=1,
    high=366 * 24 * 3600.0,
)
FRAME_ANCESTORS = declare.words(
    "captions.frame_ancestors",
    "Origins whose pages may show a display in a frame. OBS needs none.",
)
GOOGLE_FONTS = declare.yes_no(
    "captions.google_fonts",
    False,
    "Displays may load fonts from Google's servers, which then see who watches. Without it "
    "such a font shows where the viewer has it installed.",
)
CAPTIONS_PORT = declare.whole(
    "compat.captions_port",
    3000,
    "Port of the caption server.",
    low=0,
    high=65535,
    aliases=aliases("CAPTIONS_PORT"),
)
