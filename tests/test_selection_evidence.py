"""What rollouts say of a reward: statistics against theory, enumeration and simulation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from gradalign.alignment.record import Alignment, Evidence, Floats, Numbers
from gradalign.selection import STRATEGIES, Size, choose
from gradalign.selection.evidence import correlations, deviate, p_values, predictor, probability_sound, shrunk
from gradalign.selection.gates.consistent import Consistent, spread_of_equals
from gradalign.selection.gates.sound import Sound
from gradalign.selection.ranks.shrunk import Shrunk


def row(
    key: str, rewards: Sequence[float] | Floats, moves: Sequence[float] | Floats | None, logprobs: Floats | None = None,
    responses: Sequence[int] | None = None,
) -> Alignment:  # fmt: skip
    paid = np.asarray(rewards, np.float64)
    moved = None if moves is None else np.asarray(moves, np.float64)
    which = np.arange(len(paid)) if responses is None else np.array(responses)
    evidence = Evidence(paid, which, logprobs, moved)
    return Alignment(key, "", "scored", float(paid.mean()), len(paid), 80, Numbers(moves=moved), evidence)


def test_deviates_against_scipy() -> None:
    rng = np.random.default_rng(0)
    for count in (3, 4, 8, 30):
        for _ in range(5):
            x, y = rng.normal(size=(2, count))
            corr, p = stats.pearsonr(x, y, alternative="greater")
            assert deviate(np.array([corr]), np.array([count]))[0] == pytest.approx(stats.norm.isf(p), abs=1e-6)
    many = deviate(np.linspace(-1, 1, 41), np.full(41, 9.0))
    assert np.isfinite(many).all()
    assert (np.diff(many) > 0).all()
    np.testing.assert_allclose(many, -many[::-1], atol=1e-9)
    assert deviate(np.array([1.0, -1.0]), np.array([2.0, 1.0])).tolist() == [0.0, 0.0]
    assert deviate(np.array([1.0, -1.0]), np.array([1024.0, 1024.0])).tolist() == [38.0, -38.0]


def enumerated(rewards: Floats, moves: Floats, upper: bool = True) -> tuple[float, float]:
    """Share of all dealings at least as extreme, and share of equal ones."""
    sign = 1.0 if upper else -1.0
    dealt = np.array([sign * rewards[list(order)] @ (moves - moves.mean())
                      for order in itertools.permutations(range(len(rewards)))])  # fmt: skip
    own = sign * rewards @ (moves - moves.mean())
    return float((dealt >= own - 1e-9).mean()), float((np.abs(dealt - own) <= 1e-9).mean())


@pytest.mark.parametrize("upper", [True, False])
def test_permutation_p_values_against_every_dealing(upper: bool) -> None:
    rng = np.random.default_rng(1)
    draws = 4000
    for count in (4, 5, 6):
        table = [row(f"k{i}", rng.integers(0, 2, count).astype(float), rng.normal(size=count)) for i in range(6)]
        table.append(row("graded", rng.normal(size=count), rng.normal(size=count)))
        table = [a for a in table if a.evidence is not None and np.ptp(a.evidence.rewards) > 0]
        plain = p_values(table, 3, draws, upper)
        middle = p_values(table, 3, draws, upper, middle=True)
        for alignment, p, mid in zip(table, plain, middle, strict=True):
            assert alignment.evidence is not None
            assert alignment.evidence.moves is not None
            exact, equal = enumerated(alignment.evidence.rewards, alignment.evidence.moves, upper)
            assert p == pytest.approx(exact, abs=4 * (exact * (1 - exact) / draws) ** 0.5 + 2 / draws)
            assert mid == pytest.approx(exact - equal / 2, abs=4 * 0.5 / draws**0.5 + 2 / draws)


def test_p_values_of_noise_are_uniform_and_with_ties_valid() -> None:
    rng = np.random.default_rng(2)
    count = 3000
    graded = [row(f"k{i}", rng.normal(size=8), rng.normal(size=8)) for i in range(count)]
    found = np.array(p_values(graded, 0, 499), np.float64)
    assert stats.kstest(found, "uniform").pvalue > 1e-3
    coins = [row(f"c{i}", rng.permutation([1.0, 1, 0, 0, 0, 0]), rng.normal(size=6).round(1)) for i in range(count)]
    for upper in (True, False):
        tied = np.array(p_values(coins, 0, 499, upper), np.float64)
        for level in (0.01, 0.05, 1 / 15, 0.1, 0.2, 0.5):  # P(p <= a) <= a
            assert (tied <= level).mean() <= level + 3.5 * (level * (1 - level) / count) ** 0.5, level


def test_p_values_do_not_depend_on_which_problems_stand_beside() -> None:
    rng = np.random.default_rng(3)
    table = [row(f"k{i}", rng.permutation([1.0, 1, 0, 0, 0]), rng.normal(size=5)) for i in range(9)]
    table += [row("flat", [1.0] * 5, rng.normal(size=5)), row("still", [1.0, 0, 0, 0, 1], [2.0] * 5)]
    table += [row("unseen", [1.0, 0.0], None)]
    found = p_values(table, 5, 199)
    assert found[-3:] == [None, None, None]
    assert p_values(table[3:4], 5, 199) == found[3:4]
    assert p_values(table, 6, 199)[:9] != found[:9]


def test_correlations_by_hand() -> None:
    rewards, moves = np.array([1.0, 0, 0, 1, 0]), np.array([3.0, -1, 0, 100, 1])
    logprobs = np.array([-5.0, -1, -2, -3, -9])
    plain = row("a", rewards, moves, logprobs)
    assert correlations([plain])[0] == pytest.approx(stats.pearsonr(rewards, stats.rankdata(moves))[0])
    ranks = [stats.zscore(stats.rankdata(values)) for values in (moves, logprobs)]
    mixed = stats.pearsonr(rewards, ranks[0] + 0.5 * ranks[1])[0]
    assert correlations([plain], 0.5)[0] == pytest.approx(mixed)
    assert correlations([row("b", rewards, moves)], 0.5) == correlations([plain])
    assert (
        correlations([row("c", [1.0] * 5, moves), row("d", rewards, [2.0] * 5), row("e", rewards, None)]) == [None] * 3
    )
    assert predictor(row("f", rewards, [2.0] * 5)) is None


@pytest.mark.parametrize(("share", "mean", "spread"), [(0.5, 2.5, 1.0), (0.2, 3.0, 1.5), (0.8, 2.0, 1.0)])
def test_a_mixture_that_is_known_is_recovered(share: float, mean: float, spread: float) -> None:
    rng = np.random.default_rng(4)
    sound = rng.random(3000) < share
    deviates = np.where(sound, rng.normal(mean, spread, 3000), rng.normal(size=3000))
    found = probability_sound(deviates)
    assert found.mean() == pytest.approx(share, abs=0.06)
    own, null = share * stats.norm.pdf(deviates, mean, spread), (1 - share) * stats.norm.pdf(deviates)
    assert np.abs(found - own / (own + null)).mean() < 0.05
    for low in np.arange(0, 1, 0.2):  # calibrated: of those at 70 %, about 70 % are sound
        some = (found >= low) & (found < low + 0.2)
        if some.sum() > 100:
            assert sound[some].mean() == pytest.approx(found[some].mean(), abs=0.1)


def test_probabilities_at_the_ends() -> None:
    assert probability_sound(np.array([])).tolist() == []
    noise = probability_sound(np.random.default_rng(5).normal(size=500))
    assert noise.mean() < 0.6
    far = probability_sound(np.array([0.0, 0.1, 38.0, -38.0]))
    assert np.isfinite(far).all()
    assert far[2] > 0.99
    assert far[3] == far.min()


def test_more_evidence_is_never_less_sound() -> None:
    """Also where sound deviates are widely spread: what goes against the movements is not taken for sound."""
    rng = np.random.default_rng(11)
    deviates = np.sort(np.r_[rng.normal(size=300), rng.normal(2.5, 2.0, 200), -5.0, -8.0])
    found = probability_sound(deviates)
    assert (np.diff(found) >= -1e-12).all()
    assert found[0] < 0.2
    assert found[-1] > 0.99


@pytest.mark.parametrize("seed", range(5))
def test_shrunk_values_are_nearer_the_truth(seed: int) -> None:
    rng = np.random.default_rng(seed)
    true = rng.normal(0.3, 0.5, 300)
    errors = rng.uniform(0.2, 2.0, 300)
    values = true + errors * rng.normal(size=300)
    found = shrunk(values, errors)
    raw, best = np.mean((values - true) ** 2), np.mean((0.3 + 0.25 / (0.25 + errors**2) * (values - 0.3) - true) ** 2)
    assert np.mean((found - true) ** 2) < 0.4 * raw
    assert np.mean((found - true) ** 2) < 1.1 * best  # nearly that of one who knows m and tau
    pulled = np.abs(found - found.mean()) / np.abs(values - values.mean())
    assert np.median(pulled[errors > 1.5]) < np.median(pulled[errors < 0.5])
    np.testing.assert_allclose(shrunk(1e-6 * values, 1e-6 * errors), 1e-6 * found, rtol=1e-6)  # in any units


def test_equal_errors_keep_the_order() -> None:
    rng = np.random.default_rng(6)
    values = rng.normal(size=50)
    found = shrunk(values, np.full(50, 0.7))
    assert (np.argsort(found) == np.argsort(values)).all()
    np.testing.assert_allclose(shrunk(values, np.zeros(50)), values, atol=1e-6)
    assert np.isfinite(shrunk(np.zeros(5), np.ones(5))).all()
    assert np.isfinite(shrunk(np.array([2.0]), np.array([0.5]))).all()
    np.testing.assert_array_equal(shrunk(values, np.ones(50), np.zeros(50)), values)
    unknown = Alignment("x", "", "scored", 0.5, 8, 80, Numbers(dot=1.0))
    assert Shrunk().scores([unknown], 0) == [None]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7])
def test_gate_sound_keeps_its_false_discovery_rate(share: float) -> None:
    rng = np.random.default_rng(7)
    rates, power = [], []
    for trial in range(25):
        table, sound = [], rng.random(150) < share
        for i, real in enumerate(sound):
            moves = rng.normal(size=16)
            chance = 1 / (1 + np.exp(-4 * moves)) if real else np.full(16, 0.4)
            rewards = (rng.random(16) < chance).astype(float)
            if np.ptp(rewards) == 0:
                rewards[0] = 1 - rewards[0]
            table.append(row(f"k{trial}-{i}", rewards, moves))
        passed = np.array(Sound(fdr=0.2, draws=999).passes(table, trial))
        rates.append((passed & ~sound).sum() / max(1, passed.sum()))
        power.append((passed & sound).sum() / max(1, sound.sum()))
    assert np.mean(rates) <= 0.2 + 3 * np.std(rates) / len(rates) ** 0.5
    if share:
        assert np.mean(power) > 0.5
    assert Sound().passes([], 0) == []
    assert not any(Sound().passes([row("a", [1.0, 1.0], [1.0, 2.0])], 0))


def test_gate_consistent_looks_at_equal_responses() -> None:
    cases = [
        (row("same pay", [1, 1, 0, 0], None, responses=[0, 0, 1, 1]), True),
        (row("tossed", [1, 0, 0, 0], None, responses=[0, 0, 1, 1]), False),
        (row("apart", [1, 0, 0, 0.0], None, responses=[0, 1, 2, 0]), False),
        (row("no two", [1, 0, 0, 0], None), True),
        (row("nearly", [1, 0.95, 0, 0], None, responses=[0, 0, 1, 2]), False),
        (Alignment("no evidence", "", "scored", 0.5, 8, 80, Numbers()), True),
    ]
    assert Consistent().passes([a for a, _ in cases], 0) == [passes for _, passes in cases]
    assert Consistent(tolerance=0.1).passes([cases[4][0], cases[1][0]], 0) == [True, False]
    assert spread_of_equals(cases[4][0]) == pytest.approx(0.05)


def test_the_chance_that_a_coin_is_caught() -> None:
    """Of k equal responses under a fair coin all are paid alike with probability 2 ** (1 - k)."""
    rng = np.random.default_rng(8)
    table = [row(f"k{i}", rng.integers(0, 2, 4).astype(float), None, responses=[0, 0, 0, 1]) for i in range(2000)]
    assert np.mean(Consistent().passes(table, 0)) == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 2000) ** 0.5)


def test_guarded_and_permutation_prefer_what_is_sound() -> None:
    rng = np.random.default_rng(9)
    table, sound = [], np.arange(80) < 40
    for i, real in enumerate(sound):
        moves = rng.normal(size=16)
        chance = 1 / (1 + np.exp(-3 * moves)) if real else np.full(16, 0.5)
        made = row(f"k{i}", (rng.random(16) < chance).astype(float), moves, responses=[k // 2 for k in range(16)])
        made.numbers.dot, made.numbers.se = float(rng.normal(1.0, 0.3)), 0.3
        table.append(made)
    for name in ("permutation", "guarded"):
        choose(table, STRATEGIES[name], Size(top=12))
        chosen = [real for a, real in zip(table, sound, strict=True) if a.selected]
        assert sum(chosen) >= 0.8 * len(chosen), name
        assert all(a.gate is None or not a.selected for a in table)
    assert any(a.gate == "consistent" for a in table)
    assert all(math.isfinite(a.score) for a in table if a.score is not None)
