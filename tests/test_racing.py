"""Rounds that race: further rollouts of the same problems, their files, interruptions, TRL."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import gradalign.rollouts.sampler as sampler_module
from gradalign.alignment.align import Scorer
from gradalign.alignment.table import read_alignments
from gradalign.curriculum.state import State
from gradalign.policy.load import Policy
from gradalign.problems.embedded import make_pool
from gradalign.problems.schema import uniform_hash
from gradalign.rewards.base import Reward
from gradalign.rewards.coin import Coin
from gradalign.rewards.countdown import countdown
from gradalign.rollouts import sample
from gradalign.rollouts.sample import Sampling, sample_batch
from gradalign.rollouts.sampler import PolicySampler
from gradalign.rollouts.table import read_rollouts
from gradalign.trainers.trl import GradAlignConfig
from gradalign.trainers.trl.rewards import FIRST, RewardFunction
from tests.conftest import Ran
from tests.test_select_command import write_pool
from tests.trl_run import ARGUMENTS, Watched, trainer

Run = Callable[..., Ran]
pytestmark = pytest.mark.filterwarnings("ignore::gradalign.errors.GradAlignWarning", "ignore:.*some repeat")
RACING = "racing(screen=4, mean=6)"


@pytest.fixture
def select(tmp_path: Path) -> list[Any]:
    pool, validation = write_pool(tmp_path / "pool.jsonl", 40, 1), write_pool(tmp_path / "val.jsonl", 16, 2)
    return ["select", "--model", "embedded", "--reward", "countdown", "--max-new-tokens", "12", "-n", "16", "--pool",
            pool, "--validation", validation, "--out", tmp_path / "run", "--allow-overlap", "--top", "5",
            "--validation-rollouts", "8", "--budget", RACING]  # fmt: skip


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, int]]:
    """How often each rollout, by problem and number, was sampled."""
    counts: Counter[tuple[str, int]] = Counter()

    def counting(policy: Policy, keys: Sequence[str], prompts: Any, sampling: Sampling) -> Any:
        counts.update((key, sampling.first + k) for key in keys for k in range(sampling.rollouts))
        return sample_batch(policy, keys, prompts, sampling)

    monkeypatch.setattr(sampler_module, "sample_batch", counting)
    return counts


def test_further_rollouts_are_new_draws_and_the_first_ones_as_ever(embedded: Policy) -> None:
    plain = Sampling(rollouts=4, max_new_tokens=10, seed=3)
    generator = torch.Generator().manual_seed(int(uniform_hash("sample", 3, "k") * 2**53))
    assert torch.equal(sample._stream("k", plain), torch.rand(10, 4, generator=generator, dtype=torch.float64))
    problems = make_pool("mixed", 3, 0)
    sampler = PolicySampler(embedded, Reward("countdown", countdown, coin=Coin(1.0, 5)), plain)
    later, other = sampler.part(4, 12), sampler.part(8, 12)
    assert (later.rollouts, later.sampling.seed, sampler.part(0, 4)) == (12, 3, sampler)
    draws = [sample._stream("k", own.sampling) for own in (sampler, later, other)]
    assert len({own[0, 0].item() for own in draws}) == 3
    for group in later.sample(problems, later.prompts(problems)):
        assert group.rewards.tolist() == [Coin(1.0, 5).toss(group.key, k) for k in range(4, 16)]


def test_trl_rewards_toss_by_the_rollouts_own_number() -> None:
    paid = RewardFunction(Reward("countdown", countdown, coin=Coin(1.0, 3)))
    step = type("State", (), {"global_step": 2})()
    keys = ["a"] * 3 + ["b"] * 3
    columns: dict[str, Any] = {"key": keys, "coin": [True] * 6, "trainer_state": step, FIRST: [8] * 6}
    rewards = paid(["p"] * 6, ["c"] * 6, [[1]] * 6, **columns)
    assert rewards == [Coin(1.0, 3, 2).toss(key, k) for key in "ab" for k in (8, 9, 10)]


def test_select_races(gradalign: Run, select: list[Any], tmp_path: Path, drawn: Counter[tuple[str, int]]) -> None:
    ran = gradalign(*select, "--contributions", "--corrupt", "0.5")
    assert ran.status == 0, ran.err
    assert "budget racing(screen=4, mean=6): " in ran.out
    folder = tmp_path / "run" / "round-0000"
    groups = {g.key: g for g in read_rollouts(folder / "candidates.parquet")}
    size = len(groups)
    metrics = json.loads((folder / "metrics.json").read_text())
    counts = Counter(len(g.rollouts) for g in groups.values())
    assert metrics["candidates_by_rollouts"] == {str(n): counts[n] for n in sorted(counts)}
    assert set(counts) == {4, 8, 16}
    stages = metrics["rollouts_by_stage"]
    assert stages[0] == 4 * size
    assert 5 * size < sum(stages) == sum(len(g.rollouts) for g in groups.values()) <= 6 * size
    assert metrics["rollouts"] == sum(stages) + 8 * 16
    own = {(key, k): n for (key, k), n in drawn.items() if key in groups}
    assert own == {(g.key, k): 1 for g in groups.values() for k in range(len(g.rollouts))}
    for group in groups.values():
        if Coin(0.5).corrupts(group.key):
            assert group.rewards.tolist() == [Coin(0.5).toss(group.key, k) for k in range(len(group.rollouts))]
    # what was kept from earlier stages is what scoring all of it at once gives
    again = ["--candidates", folder / "candidates.parquet", "--validation", folder / "validation.parquet"]
    assert gradalign("score", "--model", "embedded", *again, "--out", tmp_path / "s.parquet", "--contributions",
                     "--top", "5").status == 0  # fmt: skip
    for mine, other in zip(read_alignments(folder / "alignments.parquet"), read_alignments(tmp_path / "s.parquet"),
                           strict=True):  # fmt: skip
        assert (mine.key, mine.status, mine.n_rollouts) == (other.key, other.status, other.n_rollouts)
        assert (mine.rank, mine.selected) == (other.rank, other.selected)
        for name in ("dot", "norm", "se"):
            number = getattr(other.numbers, name)
            assert getattr(mine.numbers, name) == (number and pytest.approx(number, rel=2e-2, abs=1e-6))
    drawn.clear()
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "metrics.json"}
    assert gradalign(*select, "--contributions", "--corrupt", "0.5").status == 0
    assert not drawn
    assert before == {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "metrics.json"}
    assert "(differs in budget)" in gradalign(*select, "--contributions", "--corrupt", "0.5", "--budget", "fixed").error


def test_an_interrupted_race_ends_as_an_undisturbed_one(
    gradalign: Run, select: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn: Counter[tuple[str, int]]
) -> None:
    whole = [*select, "--batch-rollouts", "32", "--strategy", "dot"]
    assert gradalign(*whole, "--out", tmp_path / "whole").status == 0
    names = [p.name for p in (tmp_path / "whole" / "round-0000").iterdir() if p.name != "metrics.json"]
    assert "stages.json" in names
    asked: Any = sampler_module.__dict__["sample_batch"]
    drawn_once = drawn.copy()
    calls = 0

    def dying(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls % 3 == 0:
            raise KeyboardInterrupt
        return asked(*arguments)

    monkeypatch.setattr(sampler_module, "sample_batch", dying)
    measure, scorings = Scorer.measure, 0

    def dying_too(self: Scorer, *arguments: Any) -> Any:
        nonlocal scorings
        scorings += 1
        if scorings == 2:
            raise KeyboardInterrupt
        return measure(self, *arguments)

    monkeypatch.setattr(Scorer, "measure", dying_too)
    drawn.clear()
    deaths = 0
    while gradalign(*whole).status != 0:
        deaths += 1
    assert deaths > 4
    assert drawn == drawn_once  # each rollout once, whatever died when
    for name in names:
        ends = [tmp_path / run / "round-0000" / name for run in ("run", "whole")]
        assert ends[0].read_bytes() == ends[1].read_bytes(), name


@pytest.mark.parametrize(
    "options",
    [
        ["--engine", "directional"],
        ["--engine", "sketch", "--strategy", "learnalign"],
        ["--engine", "sketch", "--pick", "diverse"],
        ["--strategy", "accgreedy"],
        ["--contributions", "--strategy", "guarded"],
    ],
    ids=["directional", "learnalign", "diverse", "accgreedy", "guarded"],
)
def test_engines_and_strategies_race(
    gradalign: Run, select: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    calibrated: list[int] = []
    calibrate = Scorer.calibrate

    def counting(self: Scorer, groups: Any, direction: Any) -> Any:
        calibrated.append(len(groups))
        return calibrate(self, groups, direction)

    monkeypatch.setattr(Scorer, "calibrate", counting)
    ran = gradalign(*select, *options)
    assert ran.status == 0, ran.err
    folder = tmp_path / "run" / "round-0000"
    assert len(json.loads((folder / "metrics.json").read_text())["rollouts_by_stage"]) > 1
    assert len(calibrated) == int("directional" in options or "sketch" in options or "--contributions" in options)
    table = read_alignments(folder / "alignments.parquet")
    assert sum(bool(a.selected) for a in table) == 5
    assert {a.n_rollouts for a in table} <= {4, 8, 16}
    if "learnalign" in options:  # of all as they are now, not as they were
        again = ["--candidates", folder / "candidates.parquet", "--validation", folder / "validation.parquet"]
        assert gradalign("score", "--model", "embedded", *again, "--out", tmp_path / "s.parquet", *options).status == 0
        for mine, other in zip(table, read_alignments(tmp_path / "s.parquet"), strict=True):
            number = other.numbers.learnalign
            assert mine.numbers.learnalign == (number and pytest.approx(number, rel=1e-3, abs=1e-6))


def test_bad_races(gradalign: Run, select: list[Any], tmp_path: Path) -> None:
    for options, message in (
        (["-n", "4"], "rollouts is 4, the most that any candidate gets, and screen is 4"),
        (["--budget", "racing(screen=8, mean=6)"], "mean is 6, less than the screen of 8"),
        (["--strategy", "random"], "strategy 'random' needs no rollouts; leave the budget out"),
        (["--budget", "raced"], "unknown budget 'raced'; did you mean 'racing'"),
    ):
        assert message in gradalign(*select, *options).error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "batch"}, "budget racing.* belongs to mode round"),
        ({"rollouts": 4}, "rollouts is 4, the most"),
        ({"rollouts": 16, "strategy": "random"}, "needs no rollouts"),
        ({"rollouts": 16, "budget": "racing(mean=nan)"}, "mean: should be a finite number"),
    ],
)
def test_trl_refuses_bad_races(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GradAlignConfig(str(tmp_path), **ARGUMENTS | {"budget": RACING} | options)


TRL: dict[str, Any] = {"max_steps": 4, "steps_per_round": 2, "rollouts": 16, "budget": RACING, "validation_rollouts": 8,
                       "lr_scheduler_type": "constant"}  # fmt: skip


def test_a_trl_run_races_every_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.trl_run.GradAlignTrainer", Watched)
    made: Any = trainer(tmp_path / "whole", **TRL)
    made.train()
    spent = 0
    for number in range(2):
        folder = tmp_path / "whole" / f"round-{number:04d}"
        metrics = json.loads((folder / "metrics.json").read_text())
        groups = {g.key: g for g in read_rollouts(folder / "candidates.parquet")}
        assert sum(metrics["rollouts_by_stage"]) == sum(len(g.rollouts) for g in groups.values()) <= 6 * 16
        assert len(metrics["rollouts_by_stage"]) > 1
        spent += metrics["rollouts"]
        assert metrics["rollouts"] == sum(metrics["rollouts_by_stage"]) + 8 * 32
        _, keys, ids, _ = made.batches[2 * number]  # the first rollouts of each are trained on while they are fresh
        for position, (key, own) in enumerate(zip(keys, ids, strict=True)):
            assert groups[key].rollouts[position % 4].response_ids.tolist() == own
    assert made.curriculum.state.sampled == spent
    assert made.curriculum.state.reused == 2 * 16
    rates = made.curriculum.state.rates
    assert [sum(sums[0] for sums in own.values()) for own in rates] == [16.0, 16.0]
    state = State(made.curriculum.state.identity).load(tmp_path / "whole" / "checkpoint-4")
    assert state.rates == rates
    asked = json.loads((tmp_path / "whole" / "round-0001" / "round.json").read_text())
    assert asked["plan"]["budget"] == "racing(screen=4, mean=6.0)"
    assert asked["rates"] == rates[0]
    resumed: Any = trainer(tmp_path / "resumed", **TRL | {"max_steps": 2})
    resumed.train()
    resumed = trainer(tmp_path / "resumed", **TRL)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.curriculum.state.history == made.curriculum.state.history
    assert resumed.curriculum.state.rates == rates
