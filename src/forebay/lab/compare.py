"""`forebay models compare A B`: the same questions to two models, side by side.

Before a smaller or quantised model gets a share of the traffic, its answers, how much it
repeats itself and how fast it is should be seen beside those of the one it would replace.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp
from rich.console import Console
from rich.table import Table

from forebay.client.reach import why
from forebay.core.garble import measure
from forebay.core.upstreams import Upstream, parse_upstreams
from forebay.errors import ConfigError
from forebay.lab.command import bearer
from forebay.lab.stats import percentile
from forebay.lab.text_user import Answer, ask_chat

__all__ = ["PROMPTS", "Options", "Side", "compare", "main"]

PROMPTS = (
    "Explain in three sentences how a water mill works.",
    "Write a Python function that reverses the words of a sentence.",
    "List five vegetables and the season of each.",
    "用三句话介绍一下长江。",
)
TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """``one``, ``two``: a model's name on the server ``url``, an address, or MODEL@URL."""

    one: str
    two: str
    url: str = "http://127.0.0.1:8600"
    prompts: Sequence[str] = PROMPTS
    max_tokens: int = 200
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Side:
    """One model's answers, in the order of the prompts, or why it has none."""

    name: str
    answers: list[Answer]
    error: str = ""

    def figures(self) -> dict[str, float | int]:
        """What is compared beside the answers themselves."""
        found = [measure(answer.text) for answer in self.answers]
        tokens = sum(answer.tokens for answer in self.answers)
        taken_s = sum(answer.took_s - answer.first_s for answer in self.answers)
        rates = [one.repeat_rate for one in found]
        return {
            "first_text_p50_ms": round(percentile([a.first_s for a in self.answers], 50) * 1000, 1),
            "tokens": tokens,
            "tokens_per_s": round(tokens / taken_s, 1) if taken_s > 0 else 0.0,
            "repeat_rate": round(sum(rates) / max(1, len(rates)), 4),
            "repeating": sum(one.verdict == "repeats" for one in found),
            "garbled": sum(one.verdict == "garbled" for one in found),
        }


async def compare(options: Options) -> tuple[Side, Side]:
    """Ask both, one prompt after another and never both at once: they may share a machine."""
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout) as http:
        one = await _ask(http, options.one, options)
        two = await _ask(http, options.two, options)
    return one, two


async def _ask(http: aiohttp.ClientSession, name: str, options: Options) -> Side:
    where = _where(name, options.url)
    base = where.url.rstrip("/").removesuffix("/v1")
    answers: list[Answer] = []
    try:
        for prompt in options.prompts:
            answers.append(
                await ask_chat(
                    http,
                    base,
                    where.model or "default",
                    prompt,
                    max_tokens=options.max_tokens,
                    headers=bearer(options.key),
                )
            )
    except ValueError as exc:
        return Side(name, answers, str(exc))
    except (aiohttp.ClientError, TimeoutError) as exc:
        return Side(name, answers, why(exc))
    return Side(name, answers)


def _where(name: str, url: str) -> Upstream:
    if "://" not in name:
        return Upstream(url, 1.0, name)
    try:
        (found,) = parse_upstreams(name)
    except ValueError as exc:
        raise ConfigError(f"{name!r} is not one model: {exc}") from exc
    return found


def main(options: Options, *, as_json: bool = False) -> int:
    """Ask, show, and say what stands out. 1 where a model did not answer."""
    sides = asyncio.run(compare(options))
    console = Console()
    if as_json:
        console.print_json(data=[_plain(side) for side in sides])
        return _status(sides)
    one, two = sides
    for number, prompt in enumerate(options.prompts):
        shown = Table(title=prompt, title_justify="left", show_lines=False, expand=True)
        cells = []
        for side in sides:
            shown.add_column(side.name, ratio=1, overflow="fold")
            cells.append(side.answers[number].text if number < len(side.answers) else side.error)
        shown.add_row(*(cell.replace("[", "\\[") for cell in cells))
        console.print(shown)
    figures = Table("", one.name, two.name)
    ours, theirs = one.figures(), two.figures()
    for name in ours:
        figures.add_row(name.replace("_", " "), str(ours[name]), str(theirs[name]))
    console.print(figures)
    for side in sides:
        if side.error:
            console.print(f"{side.name}: {side.error}", style="red", markup=False)
    return _status(sides)


def _plain(side: Side) -> dict[str, object]:
    answers = [
        {"text": a.text, "first_s": round(a.first_s, 4), "took_s": round(a.took_s, 4),
         "tokens": a.tokens}
        for a in side.answers
    ]  # fmt: skip
    return {"name": side.name, "error": side.error, **side.figures(), "answers": answers}


def _status(sides: tuple[Side, Side]) -> int:
    return 1 if any(side.error for side in sides) else 0
