"""Memory that runs out: smaller passes, said once, the same numbers; and an error where nothing smaller is left."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from gradalign.alignment.align import score
from gradalign.alignment.direction import build_direction
from gradalign.alignment.directional import Directional
from gradalign.alignment.exact import Exact
from gradalign.alignment.passes import Passes
from gradalign.errors import GradAlignError, GradAlignWarning
from gradalign.policy.logprobs import token_logprobs
from gradalign.policy.memory import out_of_memory
from gradalign.policy.packing import Batch
from tests.conftest import make_groups, make_policy
from tests.engine_tools import OBJECTIVE, column, flat, random_direction

ERRORS: dict[str, Callable[[], BaseException]] = {
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    "cpu": lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory"),
    "windows": lambda: RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"),
    "python": MemoryError,
}
Small = Callable[..., None]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Small:
    """Make a machine small: passes over more than so many tokens fail, half-way through their work."""
    backward, forward = Passes._head, token_logprobs

    def shrink(tokens: int, error: Callable[[], BaseException] = ERRORS["cuda"]) -> None:
        def head(self: Passes, batch: Batch, group: int, *rest: Any) -> Any:
            if batch.input_ids.numel() > tokens and group == len(batch.parts) - 1:
                raise error()
            return backward(self, batch, group, *rest)

        def logprobs(split: Any, batch: Batch, temperature: float) -> torch.Tensor:
            values = forward(split, batch, temperature)
            if batch.input_ids.numel() > tokens:
                raise error()
            return values

        monkeypatch.setattr(Passes, "_head", head)
        monkeypatch.setattr("gradalign.alignment.directional.token_logprobs", logprobs)

    return shrink


def quietly_once(work: Callable[[], Any]) -> Any:
    """The result of ``work``, which warns once that memory ran out."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = work()
    said = [str(w.message) for w in caught if issubclass(w.category, GradAlignWarning)]
    assert len(said) == 1, said
    assert said[0].startswith("out of memory with ")
    assert "--batch-tokens" in said[0]
    return result


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("tokens", [25, 60, 100])
@pytest.mark.parametrize("kind", ERRORS)
def test_exact_goes_on_with_smaller_passes(kind: str, tokens: int, packed: bool, small: Small) -> None:
    policy, groups = make_policy("llama-tied", torch.float64), make_groups(8, 1)
    direction = random_direction(policy)
    truth = list(Exact(policy, OBJECTIVE, 4096, packed).measure(groups, direction))
    small(tokens, ERRORS[kind])
    found = quietly_once(lambda: list(Exact(policy, OBJECTIVE, 4096, packed).measure(groups, direction)))
    for name in ("dot", "norm", "cosine"):
        np.testing.assert_allclose(column(found, name), column(truth, name), rtol=1e-9, atol=1e-12)
    assert all(p.grad is None for p in policy.parameters)


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("tokens", [25, 60, 100])
def test_a_direction_is_not_spoilt_half_way(tokens: int, unit: bool, small: Small) -> None:
    policy, groups = make_policy("llama-tied", torch.float64), make_groups(9, 2)
    truth = build_direction(groups, Exact(policy, OBJECTIVE, 4096, True).add_up, unit)
    small(tokens)
    found = quietly_once(lambda: build_direction(groups, Exact(policy, OBJECTIVE, 4096, True).add_up, unit))
    np.testing.assert_allclose(flat(found.unit), flat(truth.unit), atol=1e-12)
    assert found.norm == pytest.approx(truth.norm, rel=1e-12)
    assert found.reliability == pytest.approx(truth.reliability, abs=1e-12)
    assert found.reliability_se == pytest.approx(truth.reliability_se, rel=1e-9)


@pytest.mark.parametrize("way", ["central", "one-sided", "forward-mode"])
@pytest.mark.parametrize("tokens", [25, 60, 100])
def test_forward_only_passes_go_on_with_smaller_ones(tokens: int, way: str, small: Small) -> None:
    policy, groups = make_policy("gemma", torch.float64), make_groups(8, 1)
    kept = [p.detach().clone() for p in policy.parameters]
    direction = random_direction(policy)
    made = Directional(policy, OBJECTIVE, 4096, True, way)
    truth, recorded = made.derivatives(groups, direction, 1e-3), made.record(groups)
    small(tokens)
    engine = Directional(policy, OBJECTIVE, 4096, True, way)
    found = quietly_once(lambda: engine.derivatives(groups, direction, 1e-3))
    np.testing.assert_allclose(np.concatenate(found), np.concatenate(truth), atol=1e-9)
    assert all(torch.equal(a, b) for a, b in zip(kept, policy.parameters, strict=True))
    if way == "one-sided":  # the recorded passes are too large
        engine = Directional(policy, OBJECTIVE, 4096, True, way)
        found = quietly_once(lambda: engine.derivatives(groups, direction, 1e-3, recorded))
        np.testing.assert_allclose(np.concatenate(found), np.concatenate(truth), atol=1e-9)


@pytest.mark.filterwarnings("ignore:the validation direction is within noise", "ignore:out of memory")
@pytest.mark.parametrize("way", ["central", "one-sided", "forward-mode"])
def test_a_whole_scoring_gives_the_same_numbers(way: str, small: Small) -> None:
    policy, groups, validation = make_policy("llama", torch.float64), make_groups(8, 1), make_groups(8, 2, prefix="v")
    options: dict[str, Any] = {"contributions": True, "difference": way}
    truth = [a.numbers for a in score(policy, groups, validation, OBJECTIVE, **options).alignments]
    small(60)
    found = [a.numbers for a in score(policy, groups, validation, OBJECTIVE, **options).alignments]
    for name in ("dot", "norm", "cosine", "se", "t", "corr"):
        np.testing.assert_allclose(column(found, name), column(truth, name), rtol=1e-6, atol=1e-7)


@pytest.mark.filterwarnings("ignore:out of memory")
@pytest.mark.parametrize("engine", ["exact", "directional"])
def test_a_rollout_that_is_too_long_is_named(engine: str, small: Small) -> None:
    policy, groups = make_policy("llama"), make_groups(4, 1)
    groups[2].prompt_ids = np.resize(groups[2].prompt_ids, 60)
    direction = random_direction(policy)
    small(50)
    made = Exact(policy, OBJECTIVE, 4096, True), Directional(policy, OBJECTIVE, 4096, True)
    work: dict[str, Callable[[], object]] = {
        "exact": lambda: list(made[0].measure(groups, direction)),
        "directional": lambda: made[1].derivatives(groups, direction, 0.01),
    }
    with pytest.raises(GradAlignError, match=r"problem 'g2': out of memory over one rollout of 6\d tokens; take .*"):
        work[engine]()


def test_the_direction_names_a_rollout_that_is_too_long(small: Small) -> None:
    policy, groups = make_policy("llama"), make_groups(1, 1)
    small(1)
    with (
        pytest.warns(GradAlignWarning, match="out of memory"),
        pytest.raises(GradAlignError, match="problem 'g0': out of memory over one rollout"),
    ):
        build_direction(groups, Exact(policy, OBJECTIVE, 4096, True).add_up)


def test_other_errors_are_not_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, groups = make_policy("llama"), make_groups(2, 1)

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(Passes, "_head", fail)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        list(Exact(policy, OBJECTIVE, 4096, True).measure(groups, random_direction(policy)))
    assert not out_of_memory(ValueError("unknown"))
    assert all(out_of_memory(make()) for make in ERRORS.values())
