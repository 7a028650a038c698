from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from gradalign.alignment.ranks import ranks, spearman
from gradalign.alignment.record import Numbers
from gradalign.bench.agreement import agreement
from gradalign.bench.draws import Part, Store, cut
from gradalign.bench.fidelity_table import mean
from gradalign.bench.measures import (
    largest_error,
    overlap,
    relative_rms_error,
    sign_agreement,
)
from gradalign.errors import GradAlignError
from tests.conftest import make_groups


def test_ranks_share_ties() -> None:
    assert ranks([3.0, 1.0, 3.0, 2.0, 3.0]).tolist() == [4.0, 1.0, 4.0, 2.0, 4.0]


def test_spearman_by_hand() -> None:
    assert spearman([1, 2, 3, 4], [10, 20, 30, 99]) == pytest.approx(1.0)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1.0)
    # without ties: 1 - 6 sum d^2 / (n (n^2 - 1)), here with d = (1, -1, 0, 1, -1)
    assert spearman([1, 2, 3, 4, 5], [2, 1, 3, 5, 4]) == pytest.approx(1 - 6 * 4 / (5 * 24))
    # with ties: Pearson's correlation of the ranks (1.5, 1.5, 3) and (1, 2, 3)
    assert spearman([0, 0, 7], [1, 2, 3]) == pytest.approx(np.corrcoef([1.5, 1.5, 3], [1, 2, 3])[0, 1])
    assert spearman([1, 1, 1], [1, 2, 3]) is None


def test_overlap_of_the_top() -> None:
    some, others = [9, 8, 7, 6, 5, 4, 3, 2], [9, 1, 8, 2, 7, 3, 6, 4]
    assert overlap(some, others, 0.25) == 0.5  # {0, 1} and {0, 2}
    assert overlap(some, others, 0.125) == 1.0
    assert overlap(some, others, 0.01) == 1.0  # at least one
    assert overlap(some, others, 1.0) == 1.0


def test_errors_and_signs() -> None:
    assert relative_rms_error([3, 5], [3, 4]) == pytest.approx(1 / 5)
    assert relative_rms_error([1, 2], [0, 0]) is None
    assert largest_error([1, 2, 3], [1, 4, 2]) == 2
    assert sign_agreement([1, -2, 3, -4], [2, -1, -3, 4]) == 0.5


def test_mean_of_what_is_there() -> None:
    assert mean([1.0, None, 3.0]) == 2.0
    assert mean([None]) is None


def _dots(*values: float | None) -> list[Numbers | None]:
    return [None if value is None else Numbers(dot=value, corr=value / 10) for value in values]


def test_agreement_by_hand() -> None:
    own = [_dots(1, 2, 3, None), _dots(3, 2, 1, 4), _dots(1, 2, None, None)]
    truth: list[Numbers | None] = [Numbers(dot=d, cosine=-d) for d in (1.0, 2.0, 3.0, 4.0)]
    exact = [_dots(1, 2, 4, None), _dots(3, 2, 1, 4), _dots(1, 2, None, None)]
    found = agreement(own, truth, exact, None, 0.5)
    assert (found["draws"], found["problems"], found["zero_variance"]) == (3, 4, 3)
    assert found["truth"].keys() == found["floor"].keys() == {"dot", "corr"}
    assert found["truth"]["dot"]["dot"]["spearman"] == pytest.approx([1.0, 0.2, 1.0])
    assert found["truth"]["dot"]["cosine"]["spearman"] == pytest.approx([-1.0, -0.2, -1.0])
    assert found["truth"]["corr"]["dot"]["overlap"] == [1.0, 0.5, 1.0]
    assert found["truth"]["dot"]["cosine"]["sign"] == [0.0, 0.0, 0.0]
    assert found["floor"]["dot"]["spearman"] == pytest.approx([-1.0])  # the first two draws; the third has no partner
    assert found["same_rollouts"]["error"] == pytest.approx([1 / 21**0.5, 0, 0])
    assert "cosine_error" not in found["same_rollouts"]
    assert found["other_seed"] is None


def test_agreement_needs_two_problems() -> None:
    found = agreement([_dots(1, None)], [Numbers(dot=1.0), Numbers(dot=2.0)], None, [_dots(1, None)], 0.5)
    assert found["truth"]["dot"]["dot"]["spearman"] == [None]
    assert found["other_seed"]["error"] == [None]
    assert found["floor"]["dot"]["spearman"] == []


def test_no_rollout_is_in_two_places() -> None:
    groups = make_groups(3, seed=0, rollouts=13)
    groups[1] = dataclasses.replace(groups[1], rollouts=groups[1].rollouts[:12])
    truth, draws = cut(groups, [2, 4])
    assert {n: len(some) for n, some in draws.items()} == {2: 3, 4: 1}
    for index, group in enumerate(groups):
        for some in draws.values():
            parts = [truth[index], *(draw[index] for draw in some)]
            used = [id(rollout) for part in parts for rollout in part.rollouts]
            assert len(used) == len(set(used))
            assert set(used) <= {id(rollout) for rollout in group.rollouts}
            assert {part.key for part in parts} == {group.key}
    assert [len(group.rollouts) for group in truth] == [7, 6, 7]
    with pytest.raises(GradAlignError, match=r"problem 'g1' has 12 rollouts.*give at most 6"):
        cut(groups, [7])


def test_numbers_are_kept(tmp_path: Path) -> None:
    path, keys = tmp_path / "n.parquet", ["a", "b", "c"]
    store = Store(path, keys, "this")
    store.add(Part("exact", 0, 4), [[Numbers(dot=1.5, cosine=0.5), None, Numbers(dot=-1.0)], [None, None, None]])
    store.add(Part("exact", 0, 8), [[Numbers(dot=2.0, t=3.0), None, None]])
    assert Store(path, keys, "this").parts == store.parts
    with pytest.raises(GradAlignError, match="holds numbers of another run"):
        Store(path, keys, "that")
    path.write_text("no table")
    with pytest.raises(GradAlignError, match="cannot be read as Parquet"):
        Store(path, keys, "this")
