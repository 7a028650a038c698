"""GradAlignTrainer: going on, ending, and what is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from gradalign.errors import GradAlignError, GradAlignWarning
from gradalign.rewards.countdown import countdown
from gradalign.rollouts.table import read_rollouts
from gradalign.trainers.trl.checkpoints import last_complete
from gradalign.trainers.trl.model import policy_of
from gradalign.trainers.trl.run import export
from tests.trl_run import Watched, losses, trainer, weights

pytestmark = pytest.mark.filterwarnings("ignore:.*some repeat")  # a choice may come out small


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.trl_run.GradAlignTrainer", Watched)


def test_off_goes_on_in_a_later_epoch(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "a", strategy="off", num_train_epochs=3)
    whole.train()
    resumed = trainer(tmp_path / "a", strategy="off", num_train_epochs=3)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-12"))
    assert losses(resumed) == losses(whole)
    assert weights(resumed.model) == weights(whole.model)


def test_a_reward_that_dies_leaves_a_round_to_go_on_with(tmp_path: Path) -> None:
    calls: list[int] = []

    def mortal(completions: list[str], **columns: Any) -> list[float]:
        calls.append(1)
        if len(calls) == 5:
            raise RuntimeError("the judge is down")
        return countdown(completions, **columns)

    with pytest.raises(GradAlignError, match="reward 'mortal': raised RuntimeError: the judge is down"):
        trainer(tmp_path, mortal, max_steps=4, batch_rollouts=64).train()
    assert (tmp_path / "round-0000" / "candidates.parquet.part").exists()
    before = len(calls)
    made = trainer(tmp_path, mortal, max_steps=4, batch_rollouts=64)
    made.train()
    whole = trainer(tmp_path / "whole", max_steps=4, batch_rollouts=64)
    whole.train()
    assert weights(made.model) == weights(whole.model)
    assert len(calls) > before


@pytest.mark.filterwarnings("ignore:.*half-written or damaged")
def test_half_a_checkpoint_is_passed_over(tmp_path: Path) -> None:
    made = trainer(tmp_path, max_steps=4)
    made.train()
    (tmp_path / "checkpoint-4" / "trainer_state.json").write_text('{"epoch": 2.0, "glob')
    assert last_complete(tmp_path) == tmp_path / "checkpoint-2"
    resumed = trainer(tmp_path, max_steps=4)
    with pytest.raises(GradAlignError, match="checkpoint-4: is no complete checkpoint"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    resumed.train(resume_from_checkpoint=True)
    assert weights(resumed.model) == weights(made.model)


@pytest.mark.parametrize(
    ("changed", "differs"),
    [
        ({"strategy": "dot"}, "recipe, strategy"),
        ({"seed": 7}, "seed"),
        ({"chunk": 20}, "candidates"),
        ({"pool": 40}, "train_dat"),
        ({"rank": "negative"}, "recipe"),
        ({"top": 4}, "size"),
        ({"temperature": 0.5}, "objective"),
    ],
)
def test_another_runs_checkpoint_is_refused(tmp_path: Path, changed: dict[str, Any], differs: str) -> None:
    trainer(tmp_path, max_steps=2).train()
    with pytest.raises(GradAlignError, match=rf"checkpoint-2: is of another run \(differs in {differs}"):
        trainer(tmp_path, max_steps=4, **changed).train(resume_from_checkpoint=True)


@pytest.mark.usefixtures("watched")
def test_a_checkpoint_within_a_generation_batch_costs_that_batch_alone(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"per_device_train_batch_size": 8, "steps_per_generation": 4, "steps_per_round": 4}
    arguments |= {"max_steps": 8, "save_strategy": "steps", "save_steps": 2}
    with pytest.warns(GradAlignWarning, match="does not end with a generation batch"):
        trainer(tmp_path, **arguments).train()
    with pytest.warns(GradAlignWarning, match="does not end with a generation batch"):
        made: Any = trainer(tmp_path, **arguments)
    made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert [step for step, *_ in made.batches] == [2, 4]  # the torn one is sampled anew, the next comes in its place
    assert set(made.batches[1][1]) <= set(made.curriculum.state.history[1])


def test_a_finished_run_stays_as_it_is(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {
        "max_steps": 3,
        "steps_per_round": 2,
        "lr_scheduler_type": "constant",
        "evaluate": True,
    }
    made = trainer(tmp_path, **arguments)
    made.train()
    again = trainer(tmp_path, **arguments)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 3
    assert weights(again.model) == weights(made.model)
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]
    assert len(again.state.log_history) == len(made.state.log_history)


@pytest.mark.usefixtures("watched")
def test_training_twice_begins_anew(tmp_path: Path) -> None:
    made: Any = trainer(
        tmp_path, per_device_train_batch_size=8, steps_per_generation=2, max_steps=3, save_strategy="no"
    )
    made.train()
    first = [(step, keys) for step, keys, _, _ in made.batches]
    made.batches.clear()
    made.train()
    assert [step for step, *_ in made.batches] == [step for step, _ in first]


def test_another_reward_of_the_same_name_is_another_round(tmp_path: Path) -> None:
    def first() -> Any:
        def paid(completions: list[str], **_: Any) -> list[float]:
            return [float(len(c) % 2) for c in completions]

        return paid

    def second() -> Any:
        def paid(completions: list[str], **_: Any) -> list[float]:
            return [-float(len(c) % 2) for c in completions]

        return paid

    trainer(tmp_path, first(), max_steps=2).train()
    again = trainer(tmp_path, second(), max_steps=2)
    with pytest.raises(GradAlignError, match=r"of another run \(differs in rewards\)"):
        again.train(resume_from_checkpoint=True)
    with pytest.warns(GradAlignWarning, match="is of an earlier run; this one starts anew"):
        again.train()
    groups = read_rollouts(tmp_path / "round-0000" / "candidates.parquet")
    assert {r.reward for g in groups for r in g.rollouts} <= {0.0, -1.0}


@pytest.mark.filterwarnings("ignore:.*is of an earlier run")
@pytest.mark.parametrize("damaged", ["candidates.parquet", "alignments.parquet", "metrics.json"])
def test_a_damaged_round_is_done_again(tmp_path: Path, damaged: str) -> None:
    whole = trainer(tmp_path / "whole", max_steps=4)
    whole.train()
    trainer(tmp_path / "own", max_steps=2).train()
    (tmp_path / "own" / "round-0000" / damaged).write_bytes(b"{ not what it was")
    made = trainer(tmp_path / "own", max_steps=4)
    with pytest.warns(GradAlignWarning, match=f"{damaged}.*; the round is done again"):
        made.train()
    assert made.curriculum is not None
    assert whole.curriculum is not None
    assert made.curriculum.state.history[0] == whole.curriculum.state.history[0]


@pytest.mark.parametrize("damaged", ["model.safetensors", "optimizer.pt", "gradalign.json", "gradalign.history.jsonl"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, damaged: str) -> None:
    made = trainer(tmp_path, max_steps=4)
    made.train()
    path = tmp_path / "checkpoint-4" / damaged
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.warns(GradAlignWarning, match="checkpoint-4: is half-written or damaged, and passed over"):
        assert last_complete(tmp_path) == tmp_path / "checkpoint-2"


def test_training_stops_when_the_direction_is_noise(tmp_path: Path) -> None:
    def noise(completions: list[str], **_: Any) -> list[float]:
        generator = np.random.default_rng(len(str(completions)))
        return generator.integers(0, 2, len(completions)).astype(float).tolist()

    made = trainer(tmp_path, noise, max_steps=40, noise_patience=3)
    with pytest.warns(
        GradAlignWarning, match=r"training stops before round \d+: the validation direction could not be told"
    ):
        made.train()
    assert 4 <= made.state.global_step < 40
    assert last_complete(tmp_path) == tmp_path / f"checkpoint-{made.state.global_step}"


def test_training_stops_when_the_validation_set_is_solved(tmp_path: Path) -> None:
    def solved(completions: list[str], trainer_state: Any, **_: Any) -> list[float]:
        return [1.0 if trainer_state.global_step >= 4 else float(i % 2) for i in range(len(completions))]

    made = trainer(tmp_path, solved, max_steps=40)
    with pytest.warns(GradAlignWarning, match="training stops before round 2: validation: none of the 32 problems"):
        made.train()
    assert made.state.global_step == 4


def test_a_gradient_that_is_not_finite_stops_before_the_weights(tmp_path: Path) -> None:
    made: Any = trainer(tmp_path, max_steps=8)
    compute = made._compute_loss
    made._compute_loss = lambda model, inputs: compute(model, inputs) * (float("nan") if made._step == 5 else 1.0)
    with pytest.raises(GradAlignError, match=r"step 6: the loss or its gradient is not finite.*checkpoint-4"):
        made.train()
    assert all(torch.isfinite(p).all() for p in made.model.parameters())
    assert last_complete(tmp_path) == tmp_path / "checkpoint-4"


def test_the_best_checkpoint_is_exported_as_a_plain_folder(tmp_path: Path) -> None:
    made = trainer(
        tmp_path, max_steps=6, evaluate=True, load_best_model_at_end=True, metric_for_best_model="eval_reward",
        greater_is_better=True,
    )  # fmt: skip
    made.train()
    scores = {h["step"]: h["eval_reward"] for h in made.state.log_history if "eval_reward" in h}
    assert sorted(scores) == [2, 4, 6]
    assert made.state.best_metric == max(scores.values())
    export(made, tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    best = AutoModelForCausalLM.from_pretrained(str(made.state.best_model_checkpoint))
    assert weights(loaded) == weights(best)


def test_lora(tmp_path: Path) -> None:
    from peft import LoraConfig

    made: Any = None
    for _ in range(2):  # the second goes on in the middle of the first's run
        made = trainer(
            tmp_path / "lora", max_steps=4, learning_rate=1e-3, lora=LoraConfig(r=4, target_modules="all-linear")
        )
        found = last_complete(tmp_path / "lora")
        made.train(resume_from_checkpoint=None if found is None else str(tmp_path / "lora" / "checkpoint-2"))
    names = policy_of(made).names
    assert names
    assert all("lora" in name for name in names)
    ids = torch.arange(3, 11)[None]
    with torch.no_grad():
        adapted, base = made.model.eval()(ids).logits, trainer(tmp_path).model.eval()(ids).logits
    assert (adapted - base).abs().max() > 1e-3
    export(made, tmp_path / "model")
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, adapted, atol=1e-4, rtol=1e-4)
