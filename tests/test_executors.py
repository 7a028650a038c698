"""Work by workers: the same numbers whatever the batches' order, what is tried again, what is given up."""

from __future__ import annotations

import dataclasses
import json
import pickle
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gradalign.alignment.align import Scorer, score
from gradalign.alignment.record import Numbers
from gradalign.alignment.sketch import Sketching
from gradalign.alignment.spread import SpreadScorer
from gradalign.errors import GradAlignError, GradAlignWarning
from gradalign.executors.base import Job, R, T
from gradalign.executors.pieces import TRIES, Pieces
from gradalign.policy.load import Policy
from gradalign.policy.objective import Objective
from gradalign.problems.embedded import make_pool
from gradalign.rewards.base import Reward
from gradalign.rewards.coin import Coin
from gradalign.rewards.countdown import countdown
from gradalign.rewards.find import find_reward
from gradalign.rewards.several import together
from gradalign.rollouts.collect import collect
from gradalign.rollouts.sample import Sampling
from gradalign.rollouts.sampler import PolicySampler
from gradalign.rollouts.spread import SpreadSampler
from tests.conftest import make_groups, make_policy

SAMPLING = Sampling(rollouts=4, max_new_tokens=8, seed=3, batch_rollouts=16)
REWARD = Reward("countdown", countdown)


@dataclasses.dataclass
class Shuffled:
    """Does batches in this process, in a random order, with a pickled copy of the job; some items are given up."""

    policy: Policy
    workers: int = 3
    seed: int = 0
    given_up: tuple[str, ...] = ()

    def each(self, job: Job[T, R], batches: Sequence[Sequence[T]]) -> Iterator[tuple[int, list[R | None]]]:
        run = pickle.loads(pickle.dumps(job)).begin(self.policy, 0)
        order = list(range(len(batches)))
        random.Random(self.seed).shuffle(order)
        for number in order:
            kept = [item for item in batches[number] if job.name(item) not in self.given_up]
            results = iter(run(pickle.loads(pickle.dumps(kept))) if kept else [])
            yield number, [None if job.name(item) in self.given_up else next(results) for item in batches[number]]


ENGINES: dict[str, dict[str, Any]] = {
    "exact": {"engine": "exact"},
    "exact, contributions": {"engine": "exact", "contributions": True},
    "exact, one-sided": {"engine": "exact", "contributions": True, "difference": "one-sided"},
    "directional": {"engine": "directional"},
    "forward-mode": {"engine": "directional", "difference": "forward-mode"},
    "sketch": {"engine": "sketch"},
    "sketch, contributions": {"engine": "sketch", "contributions": True, "sketching": Sketching("last:1")},
    "sketch, one-sided": {"engine": "sketch", "contributions": True, "difference": "one-sided"},
    "sketch, unprojected": {"engine": "sketch", "sketching": Sketching("all", "none")},
    "learnalign": {"engine": "sketch", "wanted": frozenset({"learnalign", "near", "sources"})},
    "reference": {"engine": "reference"},
}


def everything(numbers: Numbers) -> list[Any]:
    values = [getattr(numbers, f.name) for f in dataclasses.fields(Numbers)]
    return [value.tolist() if isinstance(value, np.ndarray) else value for value in values]


@pytest.mark.filterwarnings("ignore:the validation direction is within noise", "ignore:this sketch ranks")
@pytest.mark.parametrize("name", ENGINES)
def test_workers_give_the_same_numbers_bit_for_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradalign.alignment.directional.SWEEP", 2)
    policy, idle = make_policy("llama"), make_policy("llama")
    groups, validation = make_groups(24, 1, masks=True), make_groups(8, 2, prefix="v")
    groups[5].rollouts = [dataclasses.replace(rollout, reward=1.0) for rollout in groups[5].rollouts]
    options: dict[str, Any] = {"batch_tokens": 90, **ENGINES[name]}
    objective = Objective()
    whole = score(policy, groups, validation, objective, **options)
    for workers, seed in ((1, 0), (3, 1)):
        executor = Shuffled(policy, workers, seed)

        def make(*arguments: Any, **named: Any) -> Scorer:
            return SpreadScorer(*arguments, **named, executor=executor)  # noqa: B023

        spread = score(idle, groups, validation, objective, **options, make=make)
        assert [(a.key, a.status) for a in spread.alignments] == [(a.key, a.status) for a in whole.alignments]
        found, known = ([everything(a.numbers) for a in scored.alignments] for scored in (spread, whole))
        assert found == known
        assert spread.direction.facts() == whole.direction.facts()
        assert (spread.step, spread.sketched) == (whole.step, whole.sketched)
        assert all(torch.equal(a, b) for a, b in zip(spread.direction.unit, whole.direction.unit, strict=True))


def test_many_small_batches_keep_passes_whole() -> None:
    policy, groups = make_policy("llama"), make_groups(60, 1)
    scorer = SpreadScorer(policy, Objective(), batch_tokens=90, executor=Shuffled(policy, 2))
    batches = scorer._batches("candidates", groups, True, False)
    assert [group.key for batch in batches for group in batch] == [group.key for group in groups]
    assert len(batches) >= 16


def test_a_group_that_is_given_up_has_failed_and_the_others_are_scored() -> None:
    policy, groups = make_policy("llama"), make_groups(12, 1)
    direction = Scorer(policy, Objective()).direction(make_groups(8, 2, prefix="v"))
    known = Scorer(policy, Objective()).measure(groups, direction).alignments
    for options in ({"contributions": True}, {"contributions": True, "difference": "one-sided"}):
        executor = Shuffled(policy, given_up=("candidates: problem 'g3'", "candidates: problem 'g7'"))
        scorer = SpreadScorer(policy, Objective(), **options, executor=executor)
        made = scorer.measure(groups, direction).alignments
        assert [a.key for a in made if a.status == "failed"] == ["g3", "g7"]
        assert all(value is None for a in made if a.status == "failed" for value in everything(a.numbers))
        assert [a.numbers.dot for a in made if a.status == "scored"] == pytest.approx(
            [a.numbers.dot for a in known if a.key not in ("g3", "g7")], rel=1e-4
        )


def test_a_direction_that_cannot_be_had_is_one_line() -> None:
    policy = make_policy("llama")
    scorer = SpreadScorer(policy, Objective(), executor=Shuffled(policy, given_up=("the validation direction",)))
    with pytest.raises(GradAlignError, match="the validation direction: cost its worker again and again"):
        scorer.direction(make_groups(4, 2))


def test_a_feature_store_is_refused(tmp_path: Path) -> None:
    policy = make_policy("llama")
    with pytest.raises(GradAlignError, match="leave --store out"):
        SpreadScorer(policy, Objective(), "sketch", sketching=Sketching(store=tmp_path), executor=Shuffled(policy))


def test_rollouts_by_workers_are_the_same_bytes(embedded: Policy, tmp_path: Path) -> None:
    problems = make_pool("mixed", 24, 0)
    collect(PolicySampler(embedded, REWARD, SAMPLING), problems, tmp_path / "local.parquet")
    for seed in range(3):
        out = tmp_path / f"{seed}.parquet"
        collect(SpreadSampler(embedded, REWARD, SAMPLING, executor=Shuffled(embedded, seed=seed)), problems, out)
        assert out.read_bytes() == (tmp_path / "local.parquet").read_bytes()


@dataclasses.dataclass
class Stopping(Shuffled):
    """Is killed after some batches."""

    after: int = 2

    def each(self, job: Job[T, R], batches: Sequence[Sequence[T]]) -> Iterator[tuple[int, list[R | None]]]:
        for count, (number, results) in enumerate(super().each(job, batches)):
            if count == self.after:
                raise KeyboardInterrupt
            yield number, results


def test_batches_that_came_out_of_order_are_kept_and_not_sampled_again(embedded: Policy, tmp_path: Path) -> None:
    problems, out = make_pool("mixed", 24, 0), tmp_path / "r.parquet"
    collect(PolicySampler(embedded, REWARD, SAMPLING), problems, tmp_path / "whole.parquet")
    sampler = SpreadSampler(embedded, REWARD, SAMPLING, executor=Stopping(embedded, seed=1))
    with pytest.raises(KeyboardInterrupt):
        collect(sampler, problems, out)
    part = out.with_name("r.parquet.part")
    numbers = [json.loads(line)["batch"] for line in part.read_text().splitlines()[1:]]
    assert len(numbers) == 2
    assert numbers != [0, 1]
    ticks: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        collect(SpreadSampler(embedded, REWARD, SAMPLING, executor=Stopping(embedded, after=3)), problems, out)
    done = [json.loads(line)["batch"] for line in part.read_text().splitlines()[1:]]
    assert done[:2] == numbers
    assert len(set(done)) == len(done) == 5
    collect(PolicySampler(embedded, REWARD, SAMPLING), problems, out, ticks.append)  # either one goes on
    assert ticks == [16] * 6
    assert out.read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_a_problem_that_is_given_up_has_failed_in_the_table(embedded: Policy, tmp_path: Path) -> None:
    problems, out = make_pool("mixed", 8, 0), tmp_path / "r.parquet"
    executor = Shuffled(embedded, given_up=(f"problem {problems[2].key!r}",))
    for _ in range(2):  # sampled, then read
        groups = collect(SpreadSampler(embedded, REWARD, SAMPLING, executor=executor), problems, out)
        assert [group.status == "failed" for group in groups] == [index == 2 for index in range(8)]
        assert len(groups[2].rollouts) == SAMPLING.rollouts


def test_rewards_go_to_workers_by_name(embedded: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "def compute_score(solution_str, **rest):\n    return float(len(solution_str) % 3)\n"
    (tmp_path / "mine.py").write_text(code)  # a module that pickle does not find
    monkeypatch.chdir(tmp_path)
    name = "verl:mine.py:compute_score"
    terms = [
        Reward(name, find_reward(name), 5.0, Coin(0.3, 3)),
        Reward("exact", find_reward("exact"), 7.0, Coin(0.3, 3)),
    ]
    reward = together(terms, [1.0, 0.5])
    problems = make_pool("mixed", 8, 0)
    collect(PolicySampler(embedded, reward, SAMPLING), problems, tmp_path / "local.parquet")
    sampler = SpreadSampler(embedded, reward, SAMPLING, executor=Shuffled(embedded))
    collect(sampler, problems, tmp_path / "spread.parquet")
    assert (tmp_path / "spread.parquet").read_bytes() == (tmp_path / "local.parquet").read_bytes()
    (tmp_path / "mine.py").unlink()
    asked = list(zip(problems, sampler.prompts(problems), strict=True))
    with pytest.raises(GradAlignError, match=r"mine\.py"):
        list(sampler.each([asked]))


def test_a_batch_that_costs_workers_is_taken_apart_and_what_costs_more_is_given_up() -> None:
    pieces = Pieces(["abc", "d"], lambda item: f"item {item}")
    tried: list[tuple[str, int]] = []
    finished: dict[int, list[Any]] = {}

    def work() -> None:
        while pieces.unfinished:
            piece = pieces.waiting.popleft()
            tried.append(("".join(piece.items), piece.cut))
            bad = "b" in piece.items
            done = pieces.failed(piece, "gone") if bad else pieces.finished(piece, [i.upper() for i in piece.items])
            if done is not None:
                finished[piece.batch] = done

    with pytest.warns(GradAlignWarning, match=f"item b: cost its worker {TRIES} times .gone.; it is left out"):
        work()
    assert tried == [*[("abc", 0)] * TRIES, ("a", 0), *[("b", cut) for cut in range(TRIES)], ("c", 0), ("d", 0)]
    assert finished == {0: ["A", None, "C"], 1: ["D"]}


def test_a_batch_that_runs_out_of_memory_is_taken_apart_at_once() -> None:
    pieces = Pieces(["ab"], str)
    assert pieces.failed(pieces.waiting.popleft(), "memory", memory=True) is None
    assert [(piece.items, piece.alone) for piece in pieces.waiting] == [(["a"], True), (["b"], True)]
    assert pieces.failed(pieces.waiting.popleft(), "memory", memory=True) is None
    assert (pieces.waiting[0].items, pieces.waiting[0].cut) == (["a"], 1)
