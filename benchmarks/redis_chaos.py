"""Claim: with a SIGKILL every 1.5 s, drawn evenly from two gateways and three workers around one
Redis, 300 sessions lose, double and reorder nothing, and hear their next chunk within a second.

Runs the scenario ``kills`` of `forebay chaos` and checks its figures; prints kills per role,
each role's time from kill to ready, and the sessions' worst gaps.
"""

from __future__ import annotations

from benchmarks.scorecard import judged

if __name__ == "__main__":
    judged("kills under load", __doc__ or "", "kills")
