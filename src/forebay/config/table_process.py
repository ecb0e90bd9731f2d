"""Settings of how processes are started. Part of `config.table`."""

from __future__ import annotations

from forebay.config import declare

__all__ = ["FORK_SERVER"]

FORK_SERVER = declare.yes_no(
    "server.fork_server",
    True,
    "Gateways and workers are copies of one process that has loaded what they need: they start "
    "in a tenth of a second and share its memory. Off: each loads everything itself, as it "
    "does on systems other than Linux.",
)
