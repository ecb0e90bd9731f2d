"""Settings of several gateways around one shared broker. Part of `config.table`."""

from __future__ import annotations

from forebay.config import declare

__all__ = ["SPARE_GATEWAY"]

SPARE_GATEWAY = declare.yes_no(
    "server.spare_gateway",
    True,
    "With a shared broker one more gateway stands by, loaded and connected; it accepts the "
    "moment another one dies. Takes about 100 MB.",
)
