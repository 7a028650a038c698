"""GradAlignTrainer: what it refuses, and how it says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from gradalign.errors import GradAlignError, GradAlignWarning
from gradalign.rewards.countdown import countdown
from gradalign.trainers.trl import GradAlignConfig, GradAlignTrainer
from tests.trl_run import datasets, trainer


def test_bad_data_sets_are_told_in_one_line(tmp_path: Path) -> None:
    policy = trainer(tmp_path, strategy="off")
    chosen, validation, test = datasets()

    def make(pool: Any = chosen, trusted: Any = validation, held_out: Any = None, **arguments: Any) -> None:
        config: dict[str, Any] = {
            "per_device_train_batch_size": 16,
            "num_generations": 4,
            "report_to": [],
            "use_cpu": True,
        }
        GradAlignTrainer(policy.model, countdown, GradAlignConfig(str(tmp_path), **config | arguments), pool, held_out,
                         validation_dataset=trusted, processing_class=policy.processing_class)  # fmt: skip

    both = Dataset.from_list([*chosen, validation[3]])
    with pytest.raises(GradAlignError, match="train_dataset: row 48 is also in validation_dataset"):
        make(both)
    with pytest.raises(GradAlignError, match="eval_dataset: row 16 is also in validation_dataset"):
        make(held_out=Dataset.from_list([*test, validation[3]]))
    with pytest.raises(GradAlignError, match="validation_dataset: is missing, and strategy 'gradalign' follows"):
        make(trusted=None)
    with pytest.raises(GradAlignError, match="rows 0 and 48 are the same problem"):
        make(Dataset.from_list([*chosen, chosen[0]]))
    with pytest.raises(GradAlignError, match="has no column 'prompt'"):
        make(chosen.rename_column("prompt", "question"))
    with pytest.raises(GradAlignError, match="train_dataset: is IterableDataset"):
        make(chosen.to_iterable_dataset())
    with pytest.raises(GradAlignError, match="has 3 problems, and one generation batch needs 4"):
        make(chosen.select(range(3)))
    with pytest.raises(GradAlignError, match="strategy 'tscore' needs t"):
        make(strategy="tscore")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strategy": "gradalgn"}, "strategy: unknown 'gradalgn'; did you mean 'gradalign'"),
        ({"top": 2}, "top .2. is less than the 4 problems of one generation batch"),
        ({"top": 4, "fraction": 0.5}, "top and fraction exclude each other"),
        ({"rollouts": 1}, "rollouts is 1"),
        ({"mode": "batch", "chunk": 9}, "chunk belongs to mode round"),
        ({"loss_type": "vespo"}, "loss_type 'vespo' weighs rollouts"),
        ({"steps_per_round": 1, "steps_per_generation": 2}, "must be a multiple of the 2 passes"),
        ({"direction_average": 1.0}, "direction_average is 1.0"),
        ({"engine": "exakt"}, "engine: unknown 'exakt'"),
        ({"num_generations": 3}, "generation_batch_size .16. must be divisible by num_generations"),
    ],
)
def test_bad_configurations_are_refused(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    known: dict[str, Any] = {"per_device_train_batch_size": 16, "num_generations": 4, "use_cpu": True}
    with pytest.raises(ValueError, match=message):
        GradAlignConfig(str(tmp_path), **known | arguments)


def test_checkpoints_within_a_generation_batch_are_warned_of(tmp_path: Path) -> None:
    with pytest.warns(GradAlignWarning, match="save_steps .3. does not end with a generation batch"):
        GradAlignConfig(str(tmp_path), use_cpu=True, steps_per_round=4, steps_per_generation=2, save_steps=3,
                        save_strategy="steps", per_device_train_batch_size=16, num_generations=4)  # fmt: skip


def test_keys_may_be_numbers_and_columns_dropped(tmp_path: Path) -> None:
    policy = trainer(tmp_path / "off", strategy="off")
    chosen, validation, _ = datasets()
    numbered = chosen.remove_columns("key").add_column("key", list(range(48)))

    def pay(completions: list[str], **_: Any) -> list[float]:
        return [float(sum(map(ord, c)) % 2) for c in completions]

    args = GradAlignConfig(
        str(tmp_path / "run"), max_steps=2, steps_per_round=2, chunk=16, per_device_train_batch_size=16,
        num_generations=4, max_completion_length=8, use_cpu=True, report_to=[], remove_unused_columns=True,
    )  # fmt: skip
    made = GradAlignTrainer(policy.model, pay, args, numbered, validation_dataset=validation,
                            processing_class=policy.processing_class)  # fmt: skip
    made.train()
    assert made.curriculum is not None
    assert all(int(key) < 48 for key in made.curriculum.chosen)
