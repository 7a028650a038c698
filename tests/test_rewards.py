from __future__ import annotations

import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradalign.errors import GradAlignError
from gradalign.problems.schema import Problem
from gradalign.rewards.base import Reward
from gradalign.rewards.coin import Coin
from gradalign.rewards.countdown import countdown
from gradalign.rewards.find import find_reward
from gradalign.rewards.limit import OutOfTimeError, within
from gradalign.rewards.text import exact, last_number, number

PROBLEM = Problem("k", "q", "18", "s", {"level": 2})


def pay(function: Callable[..., Any], problem: Problem = PROBLEM, timeout: float = 5.0) -> list[float]:
    return Reward("f", function, timeout)(problem, ["a", "b"], [[1], [2]])


def test_exact_strips_the_ends_only() -> None:
    assert exact([" 18\n", "18.", "1 8"], ["18"] * 3) == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("The answer is 1,234.", "1234"), ("= -5", "-5"), ("5-3", "3"), ("x = 3 - 12", "12"), ("(2)-7", "7"),
        ("$18.00", "18"), ("0.5", "0.5"), (".5", "0.5"), ("\u22127", "-7"), ("12, 13", "13"), ("none", None),
        ("#### 42", "42"), ("1,23", "23"), ("18.", "18"),
    ],
)  # fmt: skip
def test_last_number(text: str, value: str | None) -> None:
    found = last_number(text)
    assert (None if found is None else float(found)) == (None if value is None else float(value))


def test_number_compares_values() -> None:
    assert number(["it is 18.0", "it is 18", "81", ""], ["18"] * 4) == [1.0, 1.0, 0.0, 0.0]
    assert number(["1234"], ["$1,234"]) == [1.0]
    with pytest.raises(GradAlignError, match="answer 'many' is not a number"):
        number(["1"], ["many"])


@given(st.text())
def test_no_text_crashes_a_reward_and_junk_is_not_paid(text: str) -> None:
    assert number([text], ["918273645"])[0] in (0.0, 1.0)
    assert countdown([text], ["918273645"], [[3, 5, 7]]) == [0.0]
    assert countdown([text + "x"], ["22"], [[3, 5, 7]]) == [0.0]


def test_countdown() -> None:
    cases = {
        "3*5+7": 1, "7+3*5": 1, "(3*5)+7": 1, "15+7": 0, "3*5+7+0": 0, "22": 0, "3*5": 0, "3**5": 0, "7+5*3\n": 0,
        "3*5+7;": 0, "+7+3*5": 0, "": 0, "(" * 60: 0, "3*05+7": 0,
    }  # fmt: skip
    for text, paid in cases.items():
        assert countdown([text], ["22"], [[3, 5, 7]]) == [float(paid)], text
    assert countdown(["19", "12+7"], ["19", "19"]) == [1.0, 0.0]


def test_a_reward_sees_trl_columns() -> None:
    def function(prompts: Any, completions: Any, completion_ids: Any, answer: Any, level: Any, **rest: Any) -> Any:
        assert (prompts, completions, completion_ids) == (["q"] * 2, ["a", "b"], [[1], [2]])
        assert (answer, level, rest) == (["18"] * 2, [2, 2], {"source": ["s"] * 2, "key": ["k"] * 2})
        return np.array([0.25, 1])

    assert pay(function) == [0.25, 1.0]


def test_chat_problems_give_messages_to_python_rewards_and_text_to_ours() -> None:
    chat = Problem("k", [{"role": "user", "content": "q"}], "a")
    assert pay(lambda completions, **_: [float(c[0]["content"] == "a") for c in completions], chat) == [1.0, 0.0]
    assert pay(exact, chat) == [1.0, 0.0]


def test_coroutines_are_awaited() -> None:
    async def function(completions: Any, **_: Any) -> list[float]:
        return [1.0] * len(completions)

    assert pay(function) == [1.0, 1.0]


def _raises(**_: Any) -> list[float]:
    raise KeyError("gold")


def _hangs(**_: Any) -> list[float]:
    time.sleep(30)
    return []


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (_raises, r"reward 'f' on problem 'k': raised KeyError: 'gold'"),
        (_hangs, r"no answer within 0.2 s; mend it, or raise --reward-timeout"),
        (lambda **_: [1.0], r"returned 1 values for 2 responses"),
        (lambda **_: [1.0, None], r"returned None; return finite numbers"),
        (lambda **_: [1.0, float("nan")], r"returned nan"),
        (lambda **_: 1.0, r"returned float; return a list"),
        (lambda **_: ["1", "0"], r"returned '1'"),
        (lambda **_: [np.array([1, 2]), 0], r"returned array\(\[1, 2\]\); return finite numbers"),
        (lambda **_: [torch.ones(2), 0], r"returned tensor\(\[1., 1.\]\); return finite numbers"),
        (lambda **_: np.float64(1), r"returned float64; return a list"),
        (lambda **_: [10**400, 1], r"return finite numbers"),
        (lambda completions: [1.0, 0.0], r"unexpected keyword argument.*; take \*\*columns"),
        (lambda **_: re.match(r"(a+)+$", "a" * 60 + "b"), r"no answer within 0.2 s"),
    ],
)
def test_rewards_that_break_their_contract(function: Any, message: str) -> None:
    with pytest.raises(GradAlignError, match=message):
        pay(function, timeout=0.2)


@pytest.mark.parametrize(
    "values", [[np.float32(0.5), np.int64(1)], (0.5, 1), torch.tensor([0.5, 1.0]), [torch.tensor(0.5), True]]
)
def test_numbers_of_any_library_are_taken(values: Any) -> None:
    assert pay(lambda **_: values) == [0.5, 1.0]


def test_the_time_limit_also_holds_outside_the_main_thread() -> None:
    def spins(**_: Any) -> list[float]:
        until = time.monotonic() + 20
        while time.monotonic() < until:
            pass
        return [1.0, 1.0]

    with ThreadPoolExecutor() as pool, pytest.raises(GradAlignError, match="no answer within"):
        pool.submit(pay, spins, timeout=0.2).result(60)
    with ThreadPoolExecutor() as pool:
        assert pool.submit(pay, exact).result() == [0.0, 0.0]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # struck before it began
def test_a_time_limit_outside_the_main_thread_leaves_no_mark_on_the_thread_nor_on_others() -> None:
    """Again and again at the very edge: the caller's thread is never struck, answers and errors come through."""

    def edge() -> int:
        time.sleep(0.002)
        return 1

    def fails() -> int:
        raise ValueError("no")

    def work() -> list[int]:
        found = []
        for _ in range(60):
            try:
                found.append(within(0.002, edge))
            except OutOfTimeError:
                found.append(0)
            found.append(sum(range(1000)))
        with pytest.raises(ValueError, match="no"):
            within(5, fails)
        return found

    with ThreadPoolExecutor(2) as pool:
        for found in [future.result(60) for future in [pool.submit(work) for _ in range(4)]]:
            assert set(found[::2]) <= {0, 1}
            assert found[1::2] == [499_500] * 60


def test_finding_rewards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_rewards.py").write_text("def good(completions, **_): return [0.5] * len(completions)\n")
    (tmp_path / "my_broken.py").write_text("import nothing_like_it\n")
    assert pay(find_reward("python:my_rewards:good")) == [0.5, 0.5]
    for spec, message in {
        "nmber": "unknown reward 'nmber'; did you mean 'number'",
        "python:my_rewards": "write python:pkg.module:function",
        "python:my_rewards:god": "has no function 'god'; did you mean 'good'",
        "python:my_reward:good": "my_reward cannot be imported",
        "python:my_broken:good": "cannot be imported .No module named 'nothing_like_it'",
    }.items():
        with pytest.raises(GradAlignError, match=message):
            find_reward(spec)


def test_coins_are_fair_seeded_and_ignore_the_response() -> None:
    coin = Coin(0.5, seed=1)
    keys = [f"p{i}" for i in range(2000)]
    assert [coin.corrupts(k) for k in keys] == [Coin(0.5, 1).corrupts(k) for k in keys]
    assert 0.45 < np.mean([coin.corrupts(k) for k in keys]) < 0.55
    tosses = np.array([[coin.toss(k, i) for i in range(8)] for k in keys])
    assert 0.48 < tosses.mean() < 0.52
    assert abs(np.corrcoef(tosses[:, 0], tosses[:, 1])[0, 1]) < 0.08
    assert [Coin(0.5, 1, salt=1).toss("p1", i) for i in range(20)] != [coin.toss("p1", i) for i in range(20)]
    assert not any(Coin(0.0).corrupts(k) for k in keys)
    assert all(Coin(1.0).corrupts(k) for k in keys)
    reward = Reward("exact", exact, coin=Coin(1.0, 3))
    assert reward(PROBLEM, ["18", "x"], [[1], [2]]) == reward(PROBLEM, ["y", "18"], [[1], [2]])
