"""The kernel for cards, run by Triton's interpreter (which knows float16, not bfloat16), and engine exact on it."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from gradalign.alignment import fused
from gradalign.alignment.direction import Direction
from gradalign.alignment.exact import Exact
from gradalign.policy.objective import Objective
from tests.conftest import make_groups, make_policy
from tests.engine_tools import random_direction


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fused.available() or sys.platform != "linux"
    monkeypatch.setattr(fused, "takes", lambda a, dtype: a.dtype == torch.float16 and dtype == torch.float32)


@pytest.mark.parametrize(
    ("rows", "columns", "slots"), [(128, 128, [64]), (130, 77, [5, 300, 1]), (1, 20, [9] * 40), (300, 1, [70])]
)
@pytest.mark.parametrize("aligned", [True, False])
def test_sums_of_ragged_groups(rows: int, columns: int, slots: list[int], aligned: bool) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(sum(slots), rows).half(), torch.randn(sum(slots), columns).half()
    along = torch.randn(rows, columns)
    ends = torch.tensor(slots).cumsum(0)
    found = fused.reduce(a, b, along if aligned else None, ends - torch.tensor(slots), ends)
    assert found.dtype == torch.float64
    for own, end, length in zip(found.tolist(), ends.tolist(), slots, strict=True):
        gradient = a[end - length : end].double().T @ b[end - length : end].double()
        scale = float(gradient.norm() * along.double().norm())
        assert own[0] == pytest.approx(float((gradient * along).sum()) if aligned else 0.0, abs=1e-6 * scale)
        assert own[1] == pytest.approx(float(gradient.square().sum()), rel=1e-5)


def test_a_group_has_the_same_sums_beside_others() -> None:
    torch.manual_seed(0)
    a, b, along = torch.randn(90, 140).half(), torch.randn(90, 150).half(), torch.randn(140, 150)
    starts, ends = torch.tensor([0, 30, 77]), torch.tensor([30, 77, 90])
    together = fused.reduce(a, b, along, starts, ends)
    alone = fused.reduce(a[30:77], b[30:77], along, torch.tensor([0]), torch.tensor([47]))
    assert torch.equal(together[1:2], alone)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_engine_exact_gives_what_it_gives_without(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, objective = make_policy(name, torch.float16, scale=2.0), Objective()
    groups = make_groups(6, seed=3)
    direction: Direction = random_direction(policy, seed=1)
    calls: list[int] = []
    reduce = fused.reduce

    def counted(a: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        calls.append(len(a))
        return reduce(a, *others)

    monkeypatch.setattr(fused, "reduce", counted)
    with_it = list(Exact(policy, objective, 200, True).measure(groups, direction))
    assert calls
    monkeypatch.setattr(fused, "takes", lambda a, dtype: False)
    without = list(Exact(policy, objective, 200, True).measure(groups, direction))
    norms, others = (np.array([n.norm for n in some], dtype=float) for some in (with_it, without))
    dots, expected = (np.array([n.dot for n in some], dtype=float) for some in (with_it, without))
    np.testing.assert_allclose(norms, others, rtol=2e-3)
    np.testing.assert_allclose(dots, expected, atol=2e-3 * others.max())
