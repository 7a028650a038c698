"""LearnAlign's scores against its definition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gradalign.alignment.learnalign import learnalign
from gradalign.alignment.record import Alignment, Numbers
from gradalign.alignment.table import read_alignments, write_alignments
from gradalign.errors import GradAlignError
from gradalign.selection import STRATEGIES, Size, choose, find_strategy
from tests.conftest import make_groups


def written_out(features: NDArray[np.floating], rates: NDArray[np.float64]) -> NDArray[np.float64]:
    """The double loop."""
    scores = np.zeros(len(rates))
    for i, a in enumerate(features.astype(np.float64)):
        for j, b in enumerate(features.astype(np.float64)):
            size = np.sqrt((a**2).sum() * (b**2).sum())
            cosine = (a * b).sum() / size if size > 0 else 0.0
            scores[i] += rates[i] * (1 - rates[i]) * rates[j] * (1 - rates[j]) * cosine / len(rates)
    return scores


@given(st.integers(0, 12), st.integers(1, 9), st.sampled_from([1, 3, 1024]), st.integers(0, 99))
def test_it_is_the_double_loop(count: int, dimension: int, block: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((count, dimension)).astype(np.float32)
    features[rng.random(count) < 0.2] = 0
    rates = rng.integers(0, 9, count) / 8
    found = learnalign(features, rates, block)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, written_out(features, rates), atol=1e-15)


def test_no_length_of_a_gradient_matters() -> None:
    rng = np.random.default_rng(0)
    features, rates = rng.standard_normal((20, 7)), rng.random(20)
    scaled = features * 10 ** rng.uniform(-15, 15, (20, 1))
    np.testing.assert_allclose(learnalign(scaled, rates), learnalign(features, rates), atol=1e-15)


def test_what_it_is_worth() -> None:
    """Alone a problem scores V^2; nothing is learnt where all or no rollouts are right; opposite gradients cancel."""
    one = np.array([[3.0, 4.0]])
    assert learnalign(one, np.array([0.5])) == pytest.approx([1 / 16])
    assert list(learnalign(one, np.array([1.0]))) == [0.0]
    assert learnalign(np.array([[1.0], [-7.0]]), np.array([0.5, 0.5])) == pytest.approx([0.0, 0.0])


def test_features_in_a_file_are_read_in_blocks(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    features, rates = rng.standard_normal((30, 4)).astype(np.float32), rng.random(30)
    features.tofile(tmp_path / "f")
    mapped = np.memmap(tmp_path / "f", np.float32, "r", shape=(30, 4))
    np.testing.assert_array_equal(learnalign(mapped, rates, 7), learnalign(features, rates, 7))


@pytest.mark.parametrize("rate", [-0.1, 1.5, float("nan")])
def test_rewards_that_are_no_pass_rates(rate: float) -> None:
    with pytest.raises(GradAlignError, match=r"learnalign: the mean reward of problem 2 is .*, which is no pass rate"):
        learnalign(np.ones((3, 2)), np.array([0.5, rate, 2.0]))
    with pytest.raises(ValueError, match="pass rates for 3 rows"):
        learnalign(np.ones((3, 2)), np.ones(2))


def test_the_strategy_ranks_by_it_and_the_table_keeps_it(tmp_path: Path) -> None:
    groups = make_groups(5, 1)
    scores = learnalign(np.random.default_rng(0).standard_normal((5, 3)), np.array([g.rewards.mean() for g in groups]))
    rows = [Alignment.of(g, Numbers(dot=1.0, learnalign=float(s))) for g, s in zip(groups, scores, strict=True)]
    choose(rows, STRATEGIES["learnalign"], Size(top=2))
    write_alignments(tmp_path / "a.parquet", rows)
    found = read_alignments(tmp_path / "a.parquet")
    assert [row.numbers.learnalign for row in found] == list(scores)
    assert {row.key for row in found if row.selected} == {groups[i].key for i in np.argsort(-scores)[:2]}


def test_an_engine_that_looks_at_one_problem_at_a_time_cannot_serve_it() -> None:
    for engine in ("exact", "directional", "reference"):
        for contributions in (False, True):
            with pytest.raises(
                GradAlignError, match=f"'learnalign' needs learnalign, which engine '{engine}'"
            ) as caught:
                find_strategy("learnalign", engine, contributions)
            assert "--contributions" not in str(caught.value)


def test_a_score_that_is_not_finite_names_its_problem() -> None:
    group = make_groups(1, 1)[0]
    with pytest.raises(GradAlignError, match="problem 'g0': its alignment is not finite"):
        Numbers(dot=1.0, learnalign=float("inf")).require_finite(group)
