"""What `forebay doctor --url` says of the answers a server has given: do they repeat themselves,
are they text at all, did model servers fail over?"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncIterator

import aiohttp

from forebay.commands.checks import Finding

__all__ = ["counted", "judged", "quality"]

SHARE = 0.02
"""Of answers that repeat themselves or are garbled; above it something is wrong."""
MIN_ANSWERS = 20

_LINE = re.compile(r"forebay_worker_counts_total\{([^}]*)\} ([0-9.e+]+)")
_LABEL = re.compile(r'(\w+)="([^"]*)"')


async def quality(http: aiohttp.ClientSession, url: str) -> AsyncIterator[Finding]:
    """One finding for each model that has answered; none where metrics may not be read."""
    try:
        async with http.get(url + "/metrics") as answer:
            text = await answer.text() if answer.status == 200 else ""
    except (aiohttp.ClientError, TimeoutError):
        return
    for pool, counts in counted(text).items():
        if not counts["answers"]:
            continue
        yield judged(pool, counts)


def counted(metrics: str) -> dict[str, Counter[str]]:
    """Counts by pool and by what is counted, from the text of `/metrics`."""
    found: dict[str, Counter[str]] = {}
    for labels, value in _LINE.findall(metrics):
        named = dict(_LABEL.findall(labels))
        found.setdefault(named.get("pool", ""), Counter())[named.get("what", "")] += int(
            float(value)
        )
    return found


def judged(pool: str, counts: Counter[str]) -> Finding:
    """What the counts of one pool mean."""
    answers, bad = counts["answers"], counts["repeats"] + counts["garbled"]
    detail = (
        f"{answers} answers, {counts['repeats']} repeat themselves, {counts['garbled']} garbled"
    )
    if counts["failovers"]:
        detail += f", {counts['failovers']} went to another server"
    wrong = answers >= MIN_ANSWERS and bad / answers > SHARE
    return Finding(
        name=f"{pool} answers",
        state="warn" if wrong else "ok",
        detail=detail,
        next="try another quantisation or chat template: forebay models compare" if wrong else "",
    )
