"""The audit's statistics: against brute force, and against what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import optimize, stats

from gradalign.alignment.align import Scorer
from gradalign.alignment.crossfit import crossfit
from gradalign.alignment.record import Alignment, Evidence, Numbers
from gradalign.bench.audit_beds import BEDS, spoil
from gradalign.errors import GradAlignError
from gradalign.policy.group import Group, Rollout
from gradalign.policy.objective import Objective
from gradalign.selection.audit import Audit, audit, conformal
from gradalign.selection.soundness import RIDGE, Regression, contradictions, cut, dealt, signs, swapped
from tests.conftest import make_groups, make_policy

few = st.lists(st.integers(0, 5).map(float), min_size=1, max_size=12)


@given(few, few)
def test_conformal_p_values_by_counting(known: list[float], values: list[float]) -> None:
    expected = [(1 + sum(k >= value for k in known)) / (1 + len(known)) for value in values]
    assert conformal(np.array(known), np.array(values)).tolist() == pytest.approx(expected)


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0.0, 1.0])), min_size=1, max_size=12))
def test_contradictions_by_looking_at_every_pair(rollouts: list[tuple[int, float]]) -> None:
    which = {a for a, paid in rollouts for b, other in rollouts if a == b and paid != other}
    evidence = Evidence(np.array([r for _, r in rollouts]), np.array([k for k, _ in rollouts]))
    assert contradictions(evidence) == len(which)


def test_signs_of_a_problem_written_out() -> None:
    evidence = Evidence(
        rewards=np.array([1.0, 1.0, 0.0, 0.0, 0.0, 1.0]),
        responses=np.array([0, 0, 1, 2, 3, 3]),
        logprobs=np.array([-1.0, -1.0, -5.0, -4.0, -3.0, -3.0]),
        moves=np.array([2.0, 2.0, 9.0, -7.0, 1.0, 1.0]),
    )
    moved = stats.pearsonr(evidence.rewards, [4.5, 4.5, 6, 1, 2.5, 2.5])[0]
    likely = stats.pearsonr(evidence.rewards, [5.5, 5.5, 1, 2, 3.5, 3.5])[0]
    expected = [np.arctanh(moved), np.arctanh(likely), np.log(2 / 3), np.log(3 / 3), np.log(2)]
    found = signs(evidence)
    assert found == pytest.approx([*expected, 0, 0, *np.zeros(5)])
    # upside down, the correlations change sign and the two groups of responses change places
    turned = signs(evidence, swapped(evidence.rewards, np.random.default_rng(0))[0])
    assert turned[:5] == pytest.approx([-expected[0], -expected[1], expected[3], expected[2], expected[4]])
    rarer = signs(Evidence(np.array([1.0, 0, 0, 0]), np.arange(4), None, np.array([4.0, 3, 2, 1])))
    assert rarer[5:7] == pytest.approx([-0.25, 0.0625])
    assert rarer[7:] == pytest.approx(rarer[:5] * -0.25)


def test_spoilt_rewards() -> None:
    rewards, random = np.array([-1.0, 3.0, 3.0]), np.random.default_rng(0)
    assert swapped(rewards, random)[0].tolist() == [3, -1, -1]
    assert all(sorted(copy) == [-1, 3, 3] for copy in dealt(rewards, random))


def test_the_regression_is_the_minimum_of_its_loss() -> None:
    random = np.random.default_rng(0)
    sound, spoilt = random.normal(0, 1, (30, 2)), random.normal(1, 2, (60, 2))
    made = Regression(sound, spoilt)
    weights = np.r_[np.ones(30), np.full(60, 0.5)]
    labels = np.r_[np.zeros(30), np.ones(60)]
    rows = (np.concatenate([sound, spoilt]) - made.mean) / made.scale
    assert np.average(rows, 0, weights) == pytest.approx([0, 0])
    assert np.average(rows**2, 0, weights) == pytest.approx([1, 1])

    def loss(weighed: NDArray[np.float64]) -> float:
        chance = 1 / (1 + np.exp(-(weighed[0] + rows @ weighed[1:])))
        likelihood = np.log(np.where(labels == 1, chance, 1 - chance))
        return float(-(weights * likelihood).sum() + RIDGE / 2 * (weighed[1:] ** 2).sum())

    best = optimize.minimize(loss, np.zeros(3)).x
    assert made.weighed == pytest.approx(best, abs=1e-3)
    assert made.odds(sound[:3]) == pytest.approx(best[0] + rows[:3] @ best[1:], abs=1e-2)
    flat = Regression(np.c_[sound, np.zeros(30)], np.c_[spoilt, np.zeros(60)])
    assert flat.odds(np.array([[0.0, 0.0, 5.0]])) == pytest.approx(made.odds(np.array([[0.0, 0.0]])), abs=1e-3)


def problem(key: str, random: np.random.Generator, kind: str = "sound", rollouts: int = 24) -> Alignment:
    """A problem whose reward goes with the movements of its responses, no two of which are equal."""
    moves = random.normal(0, 1, rollouts)
    rewards = (1.5 * moves + random.normal(0, 1, rollouts) > random.normal(0, 0.7)).astype(float)
    rewards[:2] = (0.0, 1.0) if moves[0] < moves[1] else (1.0, 0.0)
    rewards = {"sound": rewards, "swapped": 1 - rewards, "dealt": random.permutation(rewards)}[kind]
    evidence = Evidence(rewards, np.arange(rollouts), None, moves)
    return Alignment(key, "", "scored", float(rewards.mean()), rollouts, 0, Numbers(moves=moves), evidence)


def _audited(seed: int, kind: str, count: int = 60, fdr: float = 0.2) -> tuple[Audit, list[bool]]:
    random = np.random.default_rng(seed)
    spoilt = [i % 4 == 0 and kind != "sound" for i in range(count)]
    candidates = [problem(f"c{i}", random, kind if bad else "sound") for i, bad in enumerate(spoilt)]
    folds = [[problem(f"v{k}-{i}", random) for i in range(20)] for k in range(4)]
    return audit(candidates, folds, fdr, seed), spoilt


@pytest.mark.parametrize(("kind", "of"), [("swapped", "reversed"), ("dealt", "uninformative")])
def test_lists_find_what_they_are_for_and_keep_their_promise(kind: str, of: str) -> None:
    shares, found, verdicts = [], [], []
    for seed in range(6):
        made, spoilt = _audited(seed, kind)
        listed = [f.q[of] is not None and f.q[of] <= 0.2 for f in made.findings]  # type: ignore[operator]
        shares.append(sum(a and not b for a, b in zip(listed, spoilt, strict=True)) / max(1, sum(listed)))
        found.append(sum(a and b for a, b in zip(listed, spoilt, strict=True)) / sum(spoilt))
        verdicts += [f.verdict for f, bad in zip(made.findings, spoilt, strict=True) if bad]
    assert np.mean(shares) <= 0.25  # 0.15 in theory (fdr times the share of sound ones), six seeds
    assert np.mean(found) > 0.6
    # of the suspects, by far most have the right name
    assert verdicts.count(of) > 0.8 * sum(verdict != "ok" for verdict in verdicts)  # type: ignore[arg-type]


def test_p_values_of_sound_problems_are_not_too_small() -> None:
    made = [_audited(seed, "sound", count=40)[0] for seed in range(6)]
    for of in ("reversed", "uninformative"):
        p = [value for a in made for f in a.findings if (value := f.p[of]) is not None]
        assert len(p) == 240
        assert min(p) >= 1 / 81 - 1e-9
        for level in (0.1, 0.25, 0.5):
            assert np.mean(np.array(p) <= level) < level + 0.08  # three standard errors


def test_what_cannot_be_tested_and_readings() -> None:
    random = np.random.default_rng(0)
    folds = [[problem(f"v{k}{i}", random) for i in range(5)] for k in range(4)]
    equal, failed = problem("equal", random), Alignment("bad", "", "failed", None, 3, 0, Numbers())
    assert equal.evidence is not None
    equal.evidence.rewards[:] = 1.0
    equal.status = "zero_variance"
    made = audit([problem("c", random), equal, failed], folds, 0.1)
    assert [f.verdict for f in made.findings] == ["ok", "untestable", "untestable"]
    assert made.findings[1].p == {"reversed": None, "uninformative": None}
    assert (made.tested, made.trusted, made.smallest_p) == (1, 20, 1 / 21)
    assert made.counts == {"reversed": 0, "uninformative": 0, "ok": 1, "untestable": 2}
    # 300 tested, smallest p 1/21: Benjamini and Hochberg need k 0.1 / 300 >= 1/21
    many = Audit(made.findings[:1] * 300, 0.1, 20, 24, False)
    assert many.fewest == 143
    assert many.needed(30) == 99
    assert 1 / 100 <= 30 * 0.1 / 300 < 1 / 99
    with pytest.raises(GradAlignError, match="none of the 2 problems can be tested: within each, every rollout"):
        audit([equal, failed], folds, 0.1)
    with pytest.raises(GradAlignError, match="rewards vary in too few problems to compare with"):
        audit([problem("c", random)], folds[:1], 0.1)


def test_unequal_numbers_of_rollouts_are_cut_to_the_same() -> None:
    random = np.random.default_rng(1)
    folds = [[problem(f"v{k}{i}", random, rollouts=16) for i in range(8)] for k in range(3)]
    candidates = [problem(f"c{i}", random, rollouts=n) for i, n in enumerate([16, 40, 9])]
    for index in (1, 2):
        alone = audit([candidates[index]], folds, 0.1).findings[0]
        assert audit(candidates, folds, 0.1).findings[index].p == alone.p
    longer = candidates[1].evidence
    assert longer is not None
    candidates[1].evidence = cut(longer, 16, False)
    short = audit(candidates, folds, 0.1)
    candidates[1].evidence = longer
    assert short.findings[1].p == audit(candidates, folds, 0.1).findings[1].p
    assert short.rollouts == 16


def test_a_paid_coin_is_told_by_equal_responses() -> None:
    """Of responses that repeat, coins contradict themselves; that alone finds them all."""
    random = np.random.default_rng(2)

    def repeating(key: str, coin: bool) -> Alignment:
        responses = random.integers(0, 6, 20)
        moves = random.normal(0, 1, 6)[responses]
        rewards = random.integers(0, 2, 20).astype(float) if coin else (responses < random.integers(1, 5)).astype(float)
        status = "scored" if np.ptp(rewards) else "zero_variance"
        evidence = Evidence(rewards, responses, None, moves)
        return Alignment(key, "", "scored" if status == "scored" else "failed", 0.5, 20, 0, Numbers(), evidence)

    folds = [[repeating(f"v{k}{i}", False) for i in range(20)] for k in range(4)]
    made = audit([repeating(f"c{i}", i < 12) for i in range(40)], folds, 0.1)
    assert [f.verdict for f in made.findings[:12]] == ["uninformative"] * 12
    assert all(f.contradictions > 0 for f in made.findings[:12])
    assert not any(f.contradictions for f in made.findings[12:])


def test_folds_are_aligned_with_directions_of_the_others() -> None:
    policy, validation = make_policy("llama"), make_groups(9, 2, prefix="v")
    for rollout in validation[4].rollouts:
        rollout.reward = 0.0
    folds = crossfit(Scorer(policy, Objective(), "reference"), validation, 3)
    assert sorted(a.key for fold in folds for a in fold) == sorted(f"v{i}" for i in range(9) if i != 4)
    assert [len(fold) for fold in folds] == [3, 3, 2]
    by_key = {group.key: group for group in validation}
    scorer = Scorer(policy, Objective(), "reference")
    for fold in folds:
        own = [a.key for a in fold]
        direction = scorer.direction([g for g in validation if g.key not in own])
        again = scorer.measure([by_key[key] for key in own], direction).alignments
        assert [a.numbers.dot for a in fold] == pytest.approx([a.numbers.dot for a in again], rel=1e-4)
        assert all(a.evidence is not None and a.evidence.moves is not None for a in fold)
    assert len(crossfit(scorer, validation[:2], 4)) == 2
    with pytest.raises(GradAlignError, match="1 of the 2 problems carry a gradient; at least two are needed"):
        crossfit(scorer, validation[3:5])


def test_beds() -> None:
    def group(key: str) -> Group:
        said = ["4", "5", "5", "6", "4", "7"]
        ids = np.array([1])
        return Group(key, ids, [Rollout(ids, float(text == "4"), response=text) for text in said])

    groups = [group(f"k{i}") for i in range(20)]
    rewards = {"swapped": [0, 1, 1, 1, 0, 1], "wrong-reached": [0, 1, 1, 0, 0, 0], "wrong-unreached": [0] * 6}
    for bed in BEDS:
        spoilt, which = spoil(groups, bed, 0.25, 0)
        assert sum(which) == (0 if bed == "clean" else 5)
        for old, new, bad in zip(groups, spoilt, which, strict=True):
            assert [r.response for r in new.rollouts] == [r.response for r in old.rollouts]
            if not bad:
                assert new.rewards.tolist() == old.rewards.tolist()
            elif bed in rewards:
                assert new.rewards.tolist() == rewards[bed]
        assert spoil(groups, bed, 0.25, 0)[1] == which
    assert spoil(groups, "coins", 0.25, 1)[1] != spoil(groups, "coins", 0.25, 0)[1]
    right = Group("k", np.array([1]), [Rollout(np.array([1]), 1.0, response="4")] * 3)
    assert spoil([right], "wrong-reached", 1, 0)[0][0].rewards.tolist() == [0, 0, 0]
