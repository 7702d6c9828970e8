"""What benchmarks report: percentiles, goals that hold or do not, and the two options."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report import Answer, arguments, finish, percentile

SAMPLES = st.lists(st.floats(min_value=0, max_value=1e9), min_size=1, max_size=200)
KEYS = {"question", "value", "unit", "goal", "holds", "p50", "p99", "note"}


@given(SAMPLES, st.floats(min_value=0, max_value=1))
def test_a_percentile_is_a_sample_that_so_many_do_not_exceed(samples: list[float], share: float) -> None:
    value = percentile(samples, share)
    assert value in samples
    rank = max(1, math.ceil(share * len(samples)))
    assert sum(each <= value for each in samples) >= rank
    assert sum(each < value for each in samples) < rank


@pytest.mark.parametrize(
    ("share", "value"), [(0, 1), (0.01, 1), (0.011, 2), (0.5, 50), (0.505, 51), (0.99, 99), (0.991, 100), (1, 100)]
)
def test_percentiles_are_nearest_rank_whatever_the_order(share: float, value: float) -> None:
    assert percentile([float(each) for each in range(100, 0, -1)], share) == value


def test_one_sample_is_every_percentile_and_none_is_an_error() -> None:
    assert percentile([7.0], 0.5) == percentile([7.0], 0.99) == 7
    with pytest.raises(ValueError, match="no samples"):
        percentile([], 0.5)


@pytest.mark.parametrize("share", [-0.01, 1.01, 50, math.nan])
def test_a_share_is_from_0_to_1(share: float) -> None:
    with pytest.raises(ValueError, match="0 to 1"):
        percentile([1.0], share)


@pytest.mark.parametrize(
    ("value", "goal", "holds"),
    [
        (50, "<= 50", True), (50.1, "<= 50", False), (10, "< 10", False), (9.99, "< 10", True), (4, ">= 4", True),
        (3.9, ">= 4", False), (0, "= 0", True), (1, "= 0", False), (1, "", None), (math.nan, "<= 50", False),
    ],
)  # fmt: skip
def test_a_goal_holds_or_does_not_or_is_none(value: float, goal: str, holds: bool | None) -> None:
    answer = Answer("q", value, "s", goal)
    assert answer.holds is holds
    assert answer.line().startswith({True: "ok  ", False: "MISS", None: "    "}[holds])


@pytest.mark.parametrize("goal", ["about 50", "<=50", "<= fast", "50", "<= nan"])
def test_a_goal_that_says_nothing_is_an_error_when_it_is_written(goal: str) -> None:
    with pytest.raises(ValueError, match="goal"):
        Answer("q", 1, "s", goal)


def test_a_line_says_all_there_is_to_say() -> None:
    answer = Answer("list", 1234.5678, "ms", "<= 4000", 1.5, 2.5, "of many")
    assert answer.line() == "ok   list: 1,235 ms (goal <= 4000) · p50 1.5 · p99 2.5 · of many"
    assert Answer("list", 3, "s").line() == "     list: 3 s"


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> Any:
    def parse(*words: str) -> Any:
        monkeypatch.setattr(sys, "argv", ["bench", *words])
        return arguments("a question?")

    return parse


def test_a_benchmark_takes_two_options_and_no_others(options: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert (options().json, options().quick) == (None, False)
    both = options("--quick", "--json", "somewhere/it.json")
    assert (both.json, both.quick) == (Path("somewhere/it.json"), True)
    for wrong in ("--fast", "surplus"):
        with pytest.raises(SystemExit) as caught:
            options(wrong)
        assert caught.value.code == 2
    with pytest.raises(SystemExit) as helped:
        options("--help")
    assert helped.value.code == 0
    assert "a question?" in capsys.readouterr().out


def test_the_file_holds_every_answer_with_every_key(
    options: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results" / "it.json"
    answers = [Answer("a", 1, "s", "<= 2", 0.5, 1.5, "n"), Answer("b", 3, "s")]
    assert finish(answers, options("--json", str(path))) == 0
    rows = json.loads(path.read_text())
    assert [set(row) for row in rows] == [KEYS, KEYS]
    assert rows[0] == {
        "question": "a", "value": 1, "unit": "s", "goal": "<= 2", "holds": True, "p50": 0.5, "p99": 1.5, "note": "n",
    }  # fmt: skip
    assert (rows[1]["holds"], rows[1]["goal"], rows[1]["p50"]) == (None, "", None)
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_a_missed_goal_is_told_and_fails_a_full_run_but_not_a_quick_one(
    options: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "it.json"
    answers = [Answer("a", 1, "s", "<= 2"), Answer("b", 9, "s", "<= 2")]
    assert finish(answers, options("--json", str(path))) == 1
    told = capsys.readouterr()
    assert "MISS b: 9 s (goal <= 2)" in told.out
    assert "a goal was missed" in told.err
    assert [row["holds"] for row in json.loads(path.read_text())] == [True, False]
    assert finish(answers, options("--quick")) == 0
    told = capsys.readouterr()
    assert "MISS b" in told.out
    assert "a goal was missed" in told.err


def test_a_figure_that_is_no_number_is_null_in_the_file_and_misses_its_goal(options: Any, tmp_path: Path) -> None:
    path = tmp_path / "it.json"
    assert finish([Answer("a", math.nan, "s", "<= 2")], options("--json", str(path))) == 1
    assert json.loads(path.read_text(), parse_constant=pytest.fail)[0]["value"] is None
