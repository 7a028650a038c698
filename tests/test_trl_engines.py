"""The trainer's own generation engine, reward functions of every kind, and the recipes of the examples."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from gradalign.alignment.table import read_alignments
from gradalign.cli.train import TrainOptions, configured
from gradalign.config import parse_further
from gradalign.errors import GradAlignError
from gradalign.rewards.countdown import countdown
from gradalign.rollouts.sample import Sampling, sample_batch
from gradalign.rollouts.table import read_rollouts
from gradalign.trainers.trl.model import policy_of
from gradalign.trainers.trl.run import further_options
from tests.trl_run import trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*some repeat")  # a choice may come out small

EXAMPLES = Path(__file__).parents[1] / "examples"


class Engine:
    """Stands in for vLLM: the interface of TRL's `VLLMGeneration`, sampling with the trainer's model."""

    def __init__(self, made: Any) -> None:
        self.made = made
        self.synced: list[int] = []
        self.asked: list[tuple[int, int]] = []

    def sync_weights(self) -> None:
        self.synced.append(self.made.state.global_step)

    def generate(self, prompts: Any, images: Any, num_generations: int, profiler: Any) -> Any:
        self.asked.append((len(prompts), num_generations))
        groups = [np.array(prompt) for prompt in prompts[::num_generations]]
        assert [list(map(int, prompt)) for prompt in groups for _ in range(num_generations)] == prompts
        sampling = Sampling(num_generations, 8, seed=len(self.asked))
        training = self.made.model.training
        self.made.model.eval()
        sampled = sample_batch(policy_of(self.made), [str(i) for i in range(len(groups))], groups, sampling)
        self.made.model.train(training)
        flat = [response for own in sampled for response in own]
        return None, [r.ids for r in flat], [[[p] for p in r.logprobs or []] for r in flat], None


def test_vllm_samples_for_scoring_and_its_rollouts_are_trained_on(tmp_path: Path) -> None:
    made: Any = trainer(tmp_path, max_steps=4)
    engine = Engine(made)
    made.use_vllm, made.vllm_generation, made._last_loaded_step = True, engine, -1
    ratios: list[float] = []
    compute = made._compute_loss

    def watch(model: Any, inputs: Any) -> Any:
        ratios.append(float((inputs["importance_sampling_ratio"] - 1).abs().max()))
        return compute(model, inputs)

    made._compute_loss = watch
    made.train()
    # a round: validation problems and candidates at once each, then the second step's batch; the first is recycled
    assert engine.asked == [(32 * 8, 8), (16 * 8, 8), (16, 4)] * 2
    assert engine.synced == [0, 1, 2, 3]
    assert max(ratios) < 1e-3  # log-probabilities of the engine and of the trainer agree, also of recycled rollouts
    groups = read_rollouts(tmp_path / "round-0001" / "candidates.parquet")
    assert all(r.logprobs is not None and len(r.logprobs) == len(r.response_ids) for g in groups for r in g.rollouts)


def test_rewards_may_be_coroutines_and_give_none(tmp_path: Path) -> None:
    async def judge(completions: list[str], answer: list[str], **_: Any) -> list[float | None]:
        await asyncio.sleep(0)
        return [None if "9" in c else float(a in c) for c, a in zip(completions, answer, strict=True)]

    made: Any = trainer(tmp_path, [countdown, judge], max_steps=2)
    made.train()
    rollouts = [r for g in read_rollouts(tmp_path / "round-0000" / "candidates.parquet") for r in g.rollouts]
    assert any(np.isnan(r.rewards or (0.0, 0.0))[1] for r in rollouts)
    assert all(np.isfinite(r.reward) for r in rollouts)


def test_a_problem_that_no_reward_judges_is_marked_and_left_out(tmp_path: Path) -> None:
    def partial(completions: list[str], source: list[str], **columns: Any) -> list[float | None]:
        paid = countdown(completions, **columns)
        return [None if s == "sub2" else p for p, s in zip(paid, source, strict=True)]

    made: Any = trainer(tmp_path, partial, max_steps=2, chunk=48, batch_rollouts=8)  # a batch is one problem
    made.train()
    table = read_alignments(tmp_path / "round-0000" / "alignments.parquet")
    assert {a.status for a in table if a.source == "sub2"} == {"failed"}
    assert not any(a.selected for a in table if a.source == "sub2")


def test_a_reward_that_judges_nothing_is_told(tmp_path: Path) -> None:
    def nothing(completions: list[str], **_: Any) -> list[float | None]:
        return [None] * len(completions)

    with pytest.raises(GradAlignError, match=r"none of 16 problems could be chosen \(16 failed\)"):
        trainer(tmp_path, nothing, max_steps=2, strategy="accgreedy").train()


def test_a_problem_whose_responses_are_all_cut_short_carries_no_gradient(tmp_path: Path) -> None:
    trainer(tmp_path, max_steps=2, chunk=48, mask_truncated_completions=True, max_completion_length=2).train()
    groups = read_rollouts(tmp_path / "round-0000" / "candidates.parquet")
    varied = [g for g in groups if g.status == "scored"]
    cut = {g.key for g in varied if all(r.finish_reason == "length" for r in g.rollouts)}
    table = {a.key: a.status for a in read_alignments(tmp_path / "round-0000" / "alignments.parquet")}
    assert cut == {key for key, status in table.items() if status == "no_tokens"} != set()


def test_a_reward_of_the_wrong_length_is_told(tmp_path: Path) -> None:
    def short(completions: list[str], **_: Any) -> list[float]:
        return [1.0]

    made = trainer(tmp_path, short, max_steps=2)
    with pytest.raises(GradAlignError, match=r"reward 'short': returned 1 values for \d+ responses"):
        made.train()


@pytest.mark.parametrize("mode", ["round", "batch"])
def test_mixed_precision(tmp_path: Path, mode: str) -> None:
    """Training computes in bfloat16; forward-only scores do not, where their step would be lost."""
    made: Any = trainer(tmp_path, max_steps=2, mode=mode, bf16=True)
    made.train()
    assert made.accelerator.mixed_precision == "bf16"
    assert made.state.global_step == 2
    if mode == "batch":
        assert made.curriculum.state.step[1] < 0.01


TRAINING = [path for path in sorted(EXAMPLES.rglob("*.yaml")) if "max_steps" in yaml.safe_load(path.read_text())]


@pytest.mark.parametrize("path", TRAINING, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_the_examples_recipes_are_taken(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(EXAMPLES.parent)
    options, further = parse_further(TrainOptions, "train", ["--config", str(path)], further_options())
    further.pop("bf16", None)  # TRL asks the machine
    args = configured(further, tmp_path)
    assert args.strategy == "gradalign"
    assert options.pool
