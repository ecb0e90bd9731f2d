"""Claim: Redis killed and started again with its append-only file costs a pause of at most 2 s
and nothing else; started again empty, every client is told within 3 s; frozen for 10 s, no call
takes over a second and all goes on within 2 s of its waking.

Runs the scenarios ``redis-restart``, ``redis-loss`` and ``redis-freeze`` of `forebay chaos`.
"""

from __future__ import annotations

from benchmarks.scorecard import judged

if __name__ == "__main__":
    judged("Redis faults", __doc__ or "", "redis-restart", "redis-loss", "redis-freeze")
