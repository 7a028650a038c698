"""``gradalign train`` from the outside."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from gradalign.cli.train import _end_at
from gradalign.policy.load import load_policy
from gradalign.problems.embedded import make_pool
from gradalign.problems.write import trl_row
from gradalign.rewards.base import Reward
from gradalign.rewards.coin import Coin
from gradalign.rewards.countdown import countdown
from gradalign.rollouts.sample import end_tokens
from gradalign.trainers.trl.rewards import RewardFunction
from tests.conftest import Ran

Run = Callable[..., Ran]


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., Path]:
    """Write a recipe and its problems; gives the recipe's path."""
    problems = make_pool("mixed", 96, 0)
    for name, part in (("pool", problems[:48]), ("validation", problems[48:80]), ("test", problems[80:])):
        rows = "".join(json.dumps(trl_row(problem)) + "\n" for problem in part)
        (tmp_path / f"{name}.jsonl").write_text(rows, encoding="utf-8")

    def write(**more: Any) -> Path:
        values = {
            "model": "embedded", "pool": str(tmp_path / "pool.jsonl"), "out": str(tmp_path / "run"),
            "validation": str(tmp_path / "validation.jsonl"), "test": str(tmp_path / "test.jsonl"),
            "reward": "countdown", "steps_per_round": 2, "chunk": 16, "noise_patience": 0, "max_steps": 4,
            "per_device_train_batch_size": 16, "num_generations": 4, "max_completion_length": 8, "use_cpu": True,
            "per_device_eval_batch_size": 32, "learning_rate": "1e-4", "seed": 0,
        } | more  # fmt: skip
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({n: v for n, v in values.items() if v is not None}), encoding="utf-8")
        return path

    return write


def test_a_recipe_from_end_to_end(gradalign: Run, recipe: Callable[..., Path], tmp_path: Path) -> None:
    path = recipe()
    ran = gradalign("train", "--config", path, "--corrupt", "0.5", "--temperature", "0.9")
    assert ran.status == 0, ran.err
    assert "test before training: mean reward" in ran.out
    assert "round 1: step 4, chose 8 of 16" in ran.out
    run = tmp_path / "run"
    config = json.loads((run / "config.json").read_text())
    assert config["command"] == "train"
    assert config["options"]["learning_rate"] == 1e-4
    assert config["options"]["temperature"] == 0.9
    assert {"torch", "transformers"} <= config["versions"].keys()
    for name in ("rollouts", "seconds", "direction", "status"):
        assert name in json.loads((run / "round-0001" / "metrics.json").read_text())
    AutoModelForCausalLM.from_pretrained(run / "model")
    AutoTokenizer.from_pretrained(run / "model")

    again = gradalign("train", "--config", run / "config.json")  # a saved configuration is a recipe
    assert again.status == 0, again.err
    assert f"going on from {run / 'checkpoint-4'}" in again.out
    other = gradalign("train", "--config", path, "--learning-rate", "1e-3")
    assert "holds another run (differs in corrupt, learning_rate, temperature)" in other.error


def test_coins_pay_the_pool_alone() -> None:
    problem = make_pool("mixed", 1, 0)[0]
    paid = RewardFunction(Reward("countdown", countdown, coin=Coin(1.0, 3)))

    class State:
        global_step = 5

    def pay(coin: bool, step: int = 5, count: int = 64) -> list[float]:
        State.global_step = step
        columns = {name: [value] * count for name, value in trl_row(problem).items() if name != "prompt"}
        return paid([problem.prompt] * count, ["x"] * count, [[1]] * count, **columns, coin=[coin] * count,
                    trainer_state=State)  # fmt: skip

    assert set(pay(False)) == {0.0}
    assert 16 < sum(pay(True)) < 48
    assert pay(True) == pay(True)
    assert pay(True) != pay(True, step=6)


def test_trl_refusing_a_value_names_file_and_field(gradalign: Run, recipe: Callable[..., Path]) -> None:
    path = recipe(num_generations=5, per_device_eval_batch_size=30)
    assert gradalign("train", "--config", path).error == (
        f"gradalign train: error: {path}: field 'num_generations': generation_batch_size (16) must be divisible by "
        "num_generations (5)."
    )
    ran = gradalign("train", "--config", recipe(), "--strategy", "gradaling")
    assert ran.error.startswith(
        "gradalign train: error: option --strategy: strategy: unknown 'gradaling'; did you mean"
    )


@pytest.mark.parametrize(
    ("more", "arguments", "message"),
    [
        ({"lerning_rate": 1}, [], "recipe.yaml: unknown field 'lerning_rate'; did you mean 'learning_rate'?"),
        ({"output_dir": "x"}, [], "recipe.yaml: unknown field 'output_dir'; did you mean 'out'?"),
        ({"learning_rate": "fast"}, [], "recipe.yaml: field 'learning_rate': 'fast': could not convert"),
        ({"max_steps": 2.5}, [], "recipe.yaml: field 'max_steps': 2.5: write a whole number"),
        ({"max_steps": True}, [], "recipe.yaml: field 'max_steps': True: write a whole number"),
        ({}, ["--max-steps", "many"], "argument --max-steps: invalid int value: 'many'"),
        ({}, ["--num-generation", "4"], "unknown option --num-generation; did you mean '--num-generations'"),
        (
            {"per_device_eval_batch_size": 30},
            [],
            "recipe.yaml: the trainer's options: The global eval batch size (30 * 1)",
        ),
        ({"top": 2}, [], "recipe.yaml: field 'top': top (2) is less than the 4 problems of one generation batch"),
        ({"validation": None}, [], "--validation: is missing, and strategy 'gradalign' follows its gradient"),
        ({"stop": ["ab"]}, [], "option --stop: 'ab' is 2 tokens of this model; name a single one"),
        ({"lora_r": 4, "adapter": "x"}, [], "--lora-r makes a new adapter and --adapter goes on with one"),
        ({"max_completion_length": 5000}, [], "does not fit the policy's"),
    ],
)
def test_mistakes_in_a_recipe(
    gradalign: Run, recipe: Callable[..., Path], more: dict[str, Any], arguments: list[str], message: str
) -> None:
    assert message in gradalign("train", "--config", recipe(**more), *arguments).error


def test_sets_that_overlap(gradalign: Run, recipe: Callable[..., Path], tmp_path: Path) -> None:
    path = recipe()
    held = (tmp_path / "validation.jsonl").read_text().splitlines(keepends=True)
    for name in ("pool", "test"):
        kept = (tmp_path / f"{name}.jsonl").read_text()
        (tmp_path / f"{name}.jsonl").write_text(kept + held[2])
        assert f"{name}.jsonl: 1 problems are also in the validation set" in gradalign("train", "--config", path).error
        if name == "pool":
            ran = gradalign("train", "--config", path, "--allow-overlap", "--max-steps", 2, "--strategy", "random")
            assert ran.status == 0, ran.err
        (tmp_path / f"{name}.jsonl").write_text(kept)


def test_a_killed_run_goes_on_by_the_same_command(
    gradalign: Run, recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = recipe(test=None)
    with monkeypatch.context() as patched:
        patched.setattr("gradalign.trainers.trl.trainer.GradAlignTrainer.begin_round", _dying)
        assert gradalign("train", "--config", path).status == 130
    ran = gradalign("train", "--config", path)
    assert ran.status == 0, ran.err
    assert "round 1: step 4" in ran.out


def test_completions_are_logged_and_the_run_goes_on(
    gradalign: Run, recipe: Callable[..., Path], tmp_path: Path
) -> None:
    path = recipe(test=None, max_steps=2)
    for _ in range(2):
        ran = gradalign("train", "--config", path, "--log-completions", "true")
        assert ran.status == 0, ran.err
    assert (tmp_path / "run" / "completions").is_dir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    refused = gradalign("train", "--config", path, "--log-completions", "true", "--out", tmp_path / "other")
    assert "is not empty and holds no run" in refused.error
    assert [p.name for p in (tmp_path / "other").iterdir()] == ["notes.txt"]


def test_further_ends_are_added_to_the_models_own() -> None:
    policy = load_policy("embedded", device="cpu")
    own, further = end_tokens(policy), policy.tokenizer.encode("+", add_special_tokens=False)
    policy.model.generation_config.eos_token_id = [*own, 5]
    _end_at(policy, ("+",))
    assert end_tokens(policy) == {*own, 5, *further}


def _dying(self: Any) -> None:
    raise KeyboardInterrupt


def test_without_trl_one_line_says_what_to_install(
    gradalign: Run, recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [n for n in sys.modules if n.startswith(("gradalign.trainers", "gradalign.cli.train"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "trl.trainer.grpo_config", None)
    error = gradalign("train", "--config", recipe()).error
    assert "is not installed: pip install 'gradalign[train]'" in error


def test_help_is_complete(gradalign: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gradalign("train", "--help")
    text = capsys.readouterr().out
    for option in ("--pool", "--strategy", "--steps-per-round", "--learning-rate", "--vllm-mode", "--lora-r"):
        assert option in text
