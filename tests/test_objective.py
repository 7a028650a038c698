from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradalign.alignment.record import from_contributions
from gradalign.policy.group import Group, Rollout
from gradalign.policy.objective import Advantage, Aggregation, Objective, advantages

rewards_of = st.lists(st.floats(-5, 5, allow_nan=False), min_size=2, max_size=9).map(np.array)


def group_of(rewards: list[float], lengths: list[int]) -> Group:
    rollouts = [Rollout(np.arange(n), r) for r, n in zip(rewards, lengths, strict=True)]
    return Group("g", np.array([1]), rollouts)


def test_advantages_by_hand() -> None:
    rewards = np.array([1.0, 0.0, 0.0, 1.0])
    np.testing.assert_allclose(advantages(rewards, "mean"), [0.5, -0.5, -0.5, 0.5])
    np.testing.assert_allclose(advantages(rewards, "std"), np.array([0.5, -0.5, -0.5, 0.5]) / (0.57735027 + 1e-4))
    np.testing.assert_allclose(advantages(rewards, "loo"), [1 - 1 / 3, -2 / 3, -2 / 3, 1 - 1 / 3])


@given(rewards_of)
def test_loo_is_own_reward_minus_mean_of_the_others(rewards: np.ndarray) -> None:
    others = np.array([np.delete(rewards, k).mean() for k in range(len(rewards))])
    np.testing.assert_allclose(advantages(rewards, "loo"), rewards - others, atol=1e-9)


@pytest.mark.parametrize("kind", ["mean", "std", "loo"])
def test_equal_rewards_have_no_advantage_to_the_last_bit(kind: Advantage) -> None:
    assert (advantages(np.full(7, 0.1), kind) == 0).all()
    assert (advantages(np.array([3.0]), kind) == 0).all()


def test_aggregations_by_hand() -> None:
    group = group_of([1.0, 0.0], [3, 1])
    expected: dict[Aggregation, list[float]] = {
        "token_mean": [0.5 / 4, -0.5 / 4],
        "sequence_mean": [0.5 / 3 / 2, -0.5 / 1 / 2],
        "sum": [0.5 / 2, -0.5 / 2],
    }
    for aggregation, coefficients in expected.items():
        np.testing.assert_allclose(Objective("mean", aggregation).coefficients(group), coefficients)


def test_masked_tokens_count_nowhere() -> None:
    group = group_of([1.0, 0.0], [3, 2])
    group.rollouts[0].response_mask = np.array([True, False, False])
    assert group.n_tokens == 3
    np.testing.assert_allclose(Objective("mean", "token_mean").coefficients(group), [0.5 / 3, -0.5 / 3])
    np.testing.assert_allclose(Objective("mean", "sequence_mean").coefficients(group), [0.5 / 1 / 2, -0.5 / 2 / 2])


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.3, 1.0]), st.integers(1, 9), st.floats(-3, 3)), min_size=3, max_size=9)
)
def test_t_is_the_same_for_all_advantages_and_corr_ignores_shifts(rows: list[tuple[float, int, float]]) -> None:
    rewards, lengths, derivatives = (list(column) for column in zip(*rows, strict=True))
    group, derived = group_of(rewards, lengths), np.array(derivatives)
    kinds: list[Advantage] = ["mean", "std", "loo"]
    ts = [from_contributions(group, Objective(kind, "token_mean"), derived).t for kind in kinds]
    if ts[0] is None or max(rewards) == min(rewards):
        return
    assert ts == pytest.approx([ts[0]] * 3, rel=1e-6, abs=1e-9)
    plain = from_contributions(group, Objective(), derived).corr
    shifted = from_contributions(group, Objective(), derived + 7.5).corr
    if plain is not None and np.ptp(derived) > 1e-6:
        assert shifted == pytest.approx(plain, abs=1e-6)
        assert -1 - 1e-9 <= plain <= 1 + 1e-9


def test_statistics_by_hand() -> None:
    group = group_of([1.0, 0.0, 0.0], [2, 1, 1])
    derivatives = np.array([3.0, -1.0, 2.0])
    numbers = from_contributions(group, Objective("mean", "token_mean"), derivatives)
    x = 3 / 4 * np.array([2 / 3, -1 / 3, -1 / 3]) * derivatives
    assert numbers.dot == pytest.approx(x.mean())
    assert numbers.se == pytest.approx(x.std(ddof=1) / np.sqrt(3))
    assert numbers.t == pytest.approx(x.mean() / (x.std(ddof=1) / np.sqrt(3)))
    assert numbers.corr == pytest.approx(np.corrcoef([1, 0, 0], derivatives)[0, 1])


def test_corr_of_equal_moves_is_unknown_not_noise() -> None:
    numbers = from_contributions(group_of([1.0, 0.0, 1.0], [1, 1, 1]), Objective(), np.full(3, 0.1))
    assert numbers.corr is None
    assert numbers.dot == pytest.approx(0, abs=1e-15)
