"""Problems as TRL's data set: every field of every problem reaches the reward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gradalign.errors import GradAlignError
from gradalign.policy.load import load_policy
from gradalign.problems.schema import Problem
from gradalign.rewards.base import Reward
from gradalign.trainers.trl.config import GradAlignConfig
from gradalign.trainers.trl.run import TrainJob, data_set


def test_fields_that_the_first_problem_lacks_reach_the_reward(tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def pay(completions: list[str], key: list[str], numbers: list[Any], **_: Any) -> list[float]:
        seen.update(zip(key, numbers, strict=True))
        return [float(len(text) % 2) for text in completions]

    pool = [Problem("a", "1+1=", "2"), Problem("b", "1,2>3=", "3", "s", {"numbers": [1, 2]})]
    args = GradAlignConfig(
        str(tmp_path), strategy="random", max_steps=1, steps_per_round=1, per_device_train_batch_size=8,
        num_generations=4, max_completion_length=4, save_strategy="no", report_to="none", use_cpu=True,
        gradient_checkpointing=False, disable_tqdm=True,
    )  # fmt: skip
    TrainJob(load_policy("embedded", device="cpu"), Reward("pay", pay), args, pool, [], []).run()
    assert seen == {"a": None, "b": [1, 2]}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "a"}, {"prompt": [{"role": "user", "content": "a"}]}], "'prompt'.*ask all as messages .--chat."),
        ([{"prompt": "a", "x": 1}, {"prompt": "b", "x": "1"}], "'x' has values of several kinds; give it one kind"),
        ([{"prompt": "a", "x": {"y": 1}}, {"prompt": "b", "x": {"z": 1}}], "'x' has values of several kinds"),
        ([{"prompt": "a", "x": {}}], "'x' has values of several kinds"),
    ],
)
def test_fields_that_one_column_cannot_hold_are_refused(rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(GradAlignError, match=message):
        data_set(lambda: rows)


def test_whole_numbers_among_decimals() -> None:
    assert data_set(lambda: [{"x": 1}, {"x": 1.5}, {}])["x"] == [1.0, 1.5, None]
