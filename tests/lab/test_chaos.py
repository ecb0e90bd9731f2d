"""The scorecard of `forebay chaos`: what becomes of a scenario's checks, errors and time."""

from __future__ import annotations

import ast
import asyncio
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from forebay.errors import ConfigError
from forebay.lab import chaos
from forebay.lab.chaos import Check, NotRun, Options, Scenario, chosen, perform
from forebay.lab.chaos_network import through
from forebay.lab.chaos_people import delays, history, unharmed, within
from forebay.lab.tts_user import Outcome

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "topics" / "faults.md"
ROWS = {*range(1, 21), *range(26, 34)}


def scenario(run: Any, limit_s: float = 5.0) -> Scenario:
    return Scenario(name="x", rows=(1,), fault="f", expected="e", limit_s=limit_s, run=run)


async def verdict(run: Any, limit_s: float = 5.0) -> tuple[str, str]:
    score = await perform(scenario(run, limit_s), Options())
    return score.verdict, score.seen


async def test_one_check_that_does_not_hold_is_a_miss_and_is_named() -> None:
    async def run(options: Options) -> Sequence[Check]:
        return [Check("a", "1", "1", True), Check("b", "2", "0", False), Check("c", "3")]

    assert await verdict(run) == ("missed", "b: 2")


async def test_figures_that_nothing_is_asked_of_hold() -> None:
    async def run(options: Options) -> Sequence[Check]:
        return [Check("a", "1", "1", True), Check("c", "3")]

    assert (await verdict(run))[0] == "held"


async def test_what_this_machine_cannot_do_is_not_run_with_the_reason() -> None:
    async def run(options: Options) -> Sequence[Check]:
        raise NotRun("needs root")

    assert await verdict(run) == ("not run", "needs root")


async def test_a_scenario_that_hangs_is_a_miss_in_bounded_time() -> None:
    async def run(options: Options) -> Sequence[Check]:
        await asyncio.sleep(60)
        return []

    assert await verdict(run, limit_s=0.05) == ("missed", "not over after 0.05 s")


async def test_a_server_that_does_not_start_is_a_miss_and_no_traceback() -> None:
    async def run(options: Options) -> Sequence[Check]:
        raise RuntimeError("the server did not start")

    assert await verdict(run) == ("missed", "RuntimeError: the server did not start")


def test_rows_of_the_catalogue_are_covered_by_scenarios_or_tests() -> None:
    covered = {row for s in chosen(()) for row in s.rows} | {row for row, _, _ in chaos.TESTED}
    assert covered >= ROWS


def rows_of_the_page() -> dict[int, tuple[set[str], set[str]]]:
    """Of each row of the page: the scenarios and the tests it names."""
    found = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and cells[0].isdigit():
            scenarios = set(re.findall(r"`([^`]+)`", cells[2]))
            found[int(cells[0])] = (scenarios, set(re.findall(r"`([^`]+)`", cells[3])))
    return found


def test_every_fault_has_a_row_and_something_that_covers_it() -> None:
    page = rows_of_the_page()
    assert set(page) == ROWS
    assert [row for row, (scenarios, tests) in page.items() if not scenarios | tests] == []


def test_the_page_names_every_scenario_in_its_rows() -> None:
    page = rows_of_the_page()
    said = {(row, name) for row, (scenarios, _) in page.items() for name in scenarios}
    assert said == {(row, s.name) for s in chosen(()) for row in s.rows}


def test_every_test_that_the_page_names_is_there() -> None:
    missing = []
    for _, tests in rows_of_the_page().values():
        for name in tests:
            file, _, test = name.partition("::")
            tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
            made = {n.name for n in ast.walk(tree)
                    if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)}  # fmt: skip
            if not test.startswith("test_") or test not in made:
                missing.append(name)
    assert missing == []


def test_what_has_no_scenario_says_in_which_files_it_is_tested() -> None:
    page = rows_of_the_page()
    alone = {row: tests for row, (scenarios, tests) in page.items() if not scenarios}
    files = {row: {test.partition("::")[0].rpartition("/")[2] for test in tests}
             for row, tests in alone.items()}  # fmt: skip
    assert set(files) == {row for row, _, _ in chaos.TESTED}
    for row, _, where in chaos.TESTED:
        assert set(where.split(", ")) <= files[row], row


def test_a_scenario_of_another_name_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="worker-kill"):
        chosen(["explode"])


@pytest.mark.parametrize("scale", [0.0, 5.0])
def test_a_size_out_of_range_is_refused(scale: float) -> None:
    with pytest.raises(ConfigError, match="scale"):
        Options(scale=scale).check()


def test_the_history_check_sees_every_kind_of_damage() -> None:
    good = Outcome(ended="completed", terminals=1)
    assert all(check.held is not False for check in history([good, good]))
    for damage in (
        {"missing": 1},
        {"duplicates": 1},
        {"mismatched": 1},
        {"out_of_order": 1},
        {"terminals": 2},
        {"terminals": 0},
        {"ended": "hung"},
        {"restarted": 1},
    ):
        bad = Outcome(**{"ended": "completed", "terminals": 1, **damage})  # type: ignore[arg-type]
        assert any(check.held is False for check in history([good, bad])), damage


def test_a_percentile_is_held_against_its_limit() -> None:
    assert within("gap", [0.1, 0.2, 3.0], 1.0, 50).held
    assert not within("gap", [0.1, 0.2, 3.0], 1.0).held


def heard(slow: dict[int, float], every_s: float = 0.001, until_s: int = 6) -> Outcome:
    """A mark each ms for so many seconds; those of second ``n`` are heard ``slow[n]`` later."""
    at = [n * every_s for n in range(round(until_s / every_s))]
    return Outcome(cut_at_s=at, cut_s=[slow.get(int(s), 0.010) for s in at])


def test_a_delay_belongs_to_the_span_in_which_its_mark_was_sent() -> None:
    assert delays([heard({2: 0.5}, 0.5)], [(1.0, 3.0)]) == [0.010, 0.010, 0.5, 0.5]
    assert delays([heard({})], []) == []


def test_harm_is_a_fifth_more_than_the_slower_half_without() -> None:
    during, otherwise = [(1.0, 2.0), (3.0, 4.0)], [(0.0, 1.0), (2.0, 3.0), (4.0, 5.0)]

    def judged(slow: dict[int, float], every_s: float = 0.001) -> bool | None:
        return unharmed("x", [heard(slow, every_s)], during, otherwise)[1].held

    assert judged({}) is True
    assert judged({1: 0.0119, 3: 0.0119}) is True
    assert judged({3: 0.013}) is False
    assert judged({2: 0.020, 3: 0.013}) is True, "the machine is as slow by itself"
    assert judged({5: 9.0}) is True, "of neither"
    assert judged({3: 0.013}, 0.01) is None, "too few to tell"


def test_a_url_is_led_through_a_proxy_with_its_login() -> None:
    assert through("redis://:pw@127.0.0.1:1/0", "10.0.0.1", 2) == "redis://:pw@10.0.0.1:2/0"
    assert through("redis://127.0.0.1:1/0", "h", 2) == "redis://h:2/0"


def test_the_scorecard_is_written_for_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run(options: Options) -> Sequence[Check]:
        return [Check("seed", str(options.seed), "3", options.seed == 3)]

    monkeypatch.setattr(chaos, "chosen", lambda names: [scenario(run)])
    out = tmp_path / "card.json"
    console = Console(file=io.StringIO())
    assert chaos.main(["x"], Options(seed=3), output_json=out, console=console) == 0
    assert chaos.main(["x"], Options(seed=4), output_json=out, console=console) == 1
    card = json.loads(out.read_text())
    assert card["scores"][0]["verdict"] == "missed"
    assert card["scores"][0]["checks"][0]["what"] == "seed"
