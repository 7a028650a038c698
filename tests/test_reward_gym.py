"""Rewards ``reasoning-gym`` and ``countdown``: the library's own verdicts, its junk scores worth nothing."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import pytest
import reasoning_gym
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reasoning_gym.factory import DATASETS

from gradalign.errors import GradAlignError, GradAlignWarning
from gradalign.rewards.countdown import countdown
from gradalign.rewards.find import find_reward
from gradalign.rewards.gym import ReasoningGym

SOME = ["countdown", "chain_sum", "prime_factorization", "word_ladder", "propositional_logic", "basic_arithmetic",
        "spell_backward", "leg_counting", "syllogism", "mini_sudoku", "rearc", "knights_knaves"]  # fmt: skip


def pay(responses: list[str], data_set: str, entry: dict[str, Any], reward: ReasoningGym | None = None) -> list[float]:
    count = len(responses)
    text = json.dumps(entry, default=str)
    return (reward or ReasoningGym())(responses, ["k"] * count, [data_set] * count, [text] * count)


def library(made: Any, answer: str, entry: dict[str, Any]) -> float:
    try:
        return float(made.score_answer(answer, entry) >= 1 - 1e-9)
    except Exception:
        return 0.0


def test_verdicts_are_the_librarys() -> None:
    rng, paid, tried = random.Random(0), 0.0, 0
    for name in SOME:
        made = reasoning_gym.create_dataset(name, size=17, seed=3)
        entries = [made[i] for i in range(len(made))]
        for entry in entries:
            gold = str(entry["answer"])
            answers = [gold, str(rng.choice(entries)["answer"]), gold + "1", f" {gold}\n", "", "I do not know"]
            expected = [library(made, answer.strip(), entry) for answer in answers]
            assert pay(answers, name, entry) == expected, (name, entry)
            paid, tried = paid + sum(expected), tried + len(answers)
    assert tried > 1000
    assert 300 < paid < 700


def test_gold_answers_survive_json_in_every_data_set_and_junk_is_not_paid() -> None:
    seen = 0
    for name in sorted(DATASETS.keys() - {"composite"}):
        made = reasoning_gym.create_dataset(name, size=1, seed=1)
        entry = made[0]
        if isinstance(entry["answer"], str) and library(made, entry["answer"], entry):
            seen += 1
            assert pay([entry["answer"], "", "?", "The answer is 4,"], name, entry) == [1.0, 0.0, 0.0, 0.0], name
    assert seen > 90


def test_answers_are_taken_out_of_responses() -> None:
    entry = {"answer": "12", "metadata": {}}
    responses = ["12", " 12\n", "so <answer> 12 </answer>.", "so \\boxed{12}", "it is 12",
                 "<answer>13</answer> \\boxed{12}", "<answer>13</answer><answer>12</answer>"]  # fmt: skip
    assert pay(responses, "chain_sum", entry) == [1, 1, 1, 1, 0, 0, 1]
    assert pay(responses, "chain_sum", entry, ReasoningGym(extract="tags")) == [0, 0, 1, 0, 0, 0, 1]
    assert pay(responses, "chain_sum", entry, ReasoningGym(extract="boxed")) == [0, 0, 0, 1, 0, 1, 0]
    assert pay(responses, "chain_sum", entry, ReasoningGym(extract="whole")) == [1, 1, 0, 0, 0, 0, 0]
    assert pay(["120"], "chain_sum", entry, ReasoningGym(threshold=0.5)) == [1.0]  # the library's 2/3 for a longer text


def test_what_hangs_or_bursts_is_paid_nothing() -> None:
    entry = reasoning_gym.create_dataset("countdown", size=1, seed=1)[0]
    bombs = ["__import__('time').sleep(60)", "[0]*10**12", "__import__('os')._exit(0)"]
    reward = ReasoningGym(timeout=1.0)
    pay(["1"], "countdown", entry, reward)
    start = time.monotonic()
    with pytest.warns(GradAlignWarning, match="problem 'k': 2 of 4 responses could not be scored within 1 s"):
        assert pay([*bombs, entry["answer"]], "countdown", entry, reward) == [0.0, 0.0, 0.0, 1.0]
    assert time.monotonic() - start < 20


def test_problems_of_other_pools_are_refused() -> None:
    reward = ReasoningGym()
    for columns, message in (
        ({}, "has no text 'reasoning_gym'; read the pool as reasoning-gym:NAME"),
        ({"reasoning_gym": ["chain_sum"]}, "has no text 'entry'"),
        ({"reasoning_gym": ["chain_sum"], "entry": ["{"]}, "field 'entry' is not JSON"),
        ({"reasoning_gym": ["chain_sum"], "entry": ["[]"]}, "field 'entry' lacks answer and metadata"),
        ({"reasoning_gym": ["chian"], "entry": ['{"answer": "1", "metadata": {}}']}, "has no data set 'chian'"),
    ):
        with pytest.raises(GradAlignError, match=f"reward 'reasoning-gym' on problem 'k': .*{message}"):
            reward(["x"], ["k"], **columns)
    assert find_reward("reasoning-gym(threshold=0.5, extract=tags)") == ReasoningGym(0.5, "tags")
    with pytest.raises(GradAlignError, match="reward 'reasoning-gym': threshold: should be greater than 0"):
        find_reward("reasoning-gym(threshold=0)")


@given(st.one_of(st.text(), st.text(alphabet="0123456789+-*/() ", max_size=60)))
@example("<answer>" * 5000)
@example("\\boxed{" * 5000)
@settings(max_examples=60)
def test_no_text_crashes_it(text: str) -> None:
    entry = {"answer": "1-2-3", "metadata": {"numbers": [97, 89, 83], "target": 918273}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gradalign.rewards.gym.warn", lambda message: None)
        assert pay([text], "countdown", entry, ReasoningGym(timeout=2.0)) == [0.0]


def test_countdown_has_the_librarys_verdicts() -> None:
    made = reasoning_gym.create_dataset("countdown", size=1, seed=0)
    rng, paid = random.Random(1), 0.0
    for index in range(200):
        made = reasoning_gym.create_dataset("countdown", size=1, seed=index, min_numbers=3, max_numbers=5)
        entry = made[0]
        numbers, target, gold = entry["metadata"]["numbers"], entry["metadata"]["target"], entry["answer"]
        other = [str(number) for number in rng.sample(numbers, len(numbers))]
        answers = [
            gold, f"({gold})".replace(" ", ""), "".join(n + rng.choice("+-*/") for n in other)[:-1],
            rng.choice([f"{gold} + 0", str(target), gold.replace(other[0], str(int(other[0]) + 1))]),
            rng.choice(["", "I do not know", gold + " =", gold + ")", "(" * 40, f"{gold} = {target}"]),
        ]  # fmt: skip
        expected = [library(made, answer, entry) for answer in answers]
        assert countdown(answers, [str(target)] * 5, [numbers] * 5) == expected, (entry, answers)
        paid += sum(expected)
    assert 390 < paid < 500
