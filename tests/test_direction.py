from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from gradalign.alignment.align import score
from gradalign.alignment.direction import Direction, build_direction
from gradalign.alignment.sums import dot, one_by_one
from gradalign.errors import GradAlignError, GradAlignWarning
from gradalign.policy.group import Group, Rollout
from gradalign.policy.load import Policy
from gradalign.policy.objective import Objective
from tests.conftest import make_groups, make_policy


def build(gradients: list[np.ndarray], **options: Any) -> Direction:
    """The direction of groups whose gradients are what the test says."""
    groups = [Group(f"v{i}", np.array([1]), [Rollout(np.array([1]), r) for r in (0.0, 1.0)])
              for i in range(len(gradients))]  # fmt: skip
    table = {
        g.key: [torch.from_numpy(v[:-10].copy()), torch.from_numpy(v[-10:].copy())]
        for g, v in zip(groups, gradients, strict=True)
    }

    def zeros() -> list[torch.Tensor]:
        return [torch.zeros(len(gradients[0]) - 10).double(), torch.zeros(10).double()]

    return build_direction(groups, one_by_one(lambda group: table[group.key], zeros), **options)


def flat(direction: Direction) -> np.ndarray:
    return torch.cat(direction.unit).numpy()


def test_the_direction_is_the_normalised_mean() -> None:
    gradients = list(np.random.default_rng(0).normal(size=(7, 50)))
    direction = build(gradients)
    mean = np.mean(gradients, axis=0)
    np.testing.assert_allclose(flat(direction), mean / np.linalg.norm(mean))
    assert direction.norm == pytest.approx(np.linalg.norm(mean))
    assert direction.n_problems == 7


def test_the_halves_depend_on_the_seed_and_the_direction_does_not() -> None:
    gradients = list(np.random.default_rng(0).normal(size=(12, 50)))
    one, other = build(gradients, seed=1), build(gradients, seed=2)
    assert one.reliability != pytest.approx(other.reliability, abs=1e-6)
    np.testing.assert_allclose(flat(one), flat(other), atol=1e-12)


def test_unit_weighs_problems_alike() -> None:
    gradients = list(np.random.default_rng(0).normal(size=(6, 50)) * np.array([1, 100, 1, 1, 1, 1])[:, None])
    mean = np.mean([g / np.linalg.norm(g) for g in gradients], axis=0)
    np.testing.assert_allclose(flat(build(gradients, unit=True)), mean / np.linalg.norm(mean))


def test_reliability_tells_signal_from_noise() -> None:
    rng = np.random.default_rng(1)
    signal = rng.normal(size=50)
    clear = build(list(signal + 0.5 * rng.normal(size=(20, 50))))
    assert clear.reliability is not None
    assert clear.reliability > 0.9
    assert not clear.within_noise
    noise = [build(list(rng.normal(size=(20, 50))), seed=s).within_noise for s in range(40)]
    assert np.mean(noise) > 0.85


def test_reliability_is_the_cosine_of_the_halves_and_its_error_is_about_right() -> None:
    rng = np.random.default_rng(2)
    signal = 0.3 * rng.normal(size=50)
    built = [build(list(signal + rng.normal(size=(40, 50)))) for _ in range(60)]
    cosines = np.array([d.reliability for d in built], np.float64)
    errors = np.array([d.reliability_se for d in built], np.float64)
    assert 0.4 < errors.mean() / cosines.std() < 1.6


@pytest.mark.parametrize("count", [4, 6, 8, 12, 20])
def test_noise_is_seldom_taken_for_a_signal(count: int) -> None:
    """At most 5 % of pure-noise validation sets (nominally 2.5 %), at any size; 400 draws, three errors."""
    rng = np.random.default_rng(count)
    wrong = [not build(list(rng.normal(size=(count, 50)))).within_noise for _ in range(400)]
    assert np.mean(wrong) <= 0.05 + 3 * (0.05 * 0.95 / 400) ** 0.5


def test_few_validation_problems_cannot_be_told() -> None:
    rng = np.random.default_rng(3)
    assert build([rng.normal(size=50)]).reliability is None
    three = build(list(rng.normal(size=(3, 50))))
    assert three.reliability is not None
    assert three.reliability_se is None
    assert three.within_noise


def test_gradients_that_cancel_or_explode() -> None:
    g = np.ones(50)
    with pytest.raises(GradAlignError, match="cancel to zero"):
        build([g, -g])
    with pytest.raises(GradAlignError, match=r"problem 'v\d': gradient not finite"):
        build([g, g * np.nan])


def test_a_one_sided_validation_set_says_what_to_do() -> None:
    groups = make_groups(3, 0)
    for group in groups:
        for rollout in group.rollouts:
            rollout.reward = 1.0
    with pytest.raises(
        GradAlignError, match=r"none of the 3 problems carries a gradient.*solves sometimes, or more rollouts"
    ):
        score(make_policy("llama"), make_groups(2, 1), groups, Objective())


def test_silent_problems_are_counted_and_noise_is_warned_of() -> None:
    policy: Policy = make_policy("llama")
    validation = make_groups(9, 2, prefix="v")
    for rollout in validation[4].rollouts:
        rollout.reward = 0.0
    with pytest.warns(GradAlignWarning, match="within noise"):
        scored = score(policy, make_groups(2, 1), validation, Objective())
    validation[5].invalid = "failed"
    with pytest.warns(GradAlignWarning, match="within noise"):
        scored = score(policy, make_groups(2, 1), validation, Objective())
    assert (scored.direction.n_problems, scored.direction.n_zero_variance, scored.direction.n_invalid) == (7, 1, 1)


def test_dot_adds_up_in_float64() -> None:
    a = torch.full((3_000_001,), 0.1)
    assert dot(a, a).item() == pytest.approx(3_000_001 * float(np.float32(0.1)) ** 2, rel=1e-6)
