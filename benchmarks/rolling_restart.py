"""Claim: five rolling restarts of two gateways and their workers under 32 looping clients fail
none of 10,000 connects, and no speaking session loses anything.

Runs the scenario ``rolling-restart`` of `forebay chaos` and checks its figures.
"""

from __future__ import annotations

from benchmarks.scorecard import judged

if __name__ == "__main__":
    judged("rolling restarts", __doc__ or "", "rolling-restart")
