"""Engine directional: three ways to differentiate, the step on real policies, and a policy left as it was."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from gradalign.alignment.align import Scorer, score
from gradalign.alignment.direction import Direction, build_direction
from gradalign.alignment.directional import Directional, difference_for
from gradalign.alignment.exact import Exact, Recorded
from gradalign.alignment.moved import movable
from gradalign.alignment.record import from_contributions
from gradalign.alignment.reference import Reference
from gradalign.errors import GradAlignError
from gradalign.policy.group import Group, Rollout
from gradalign.policy.load import Policy, cover, load_policy
from gradalign.policy.objective import Objective
from tests.conftest import CONFIGS, make_groups, make_policy
from tests.engine_tools import OBJECTIVE, column, measured, random_direction

pytestmark = pytest.mark.filterwarnings("ignore::gradalign.errors.GradAlignWarning")
WAYS = ["central", "one-sided", "forward-mode"]


def truth_of(policy: Policy, groups: list[Group], direction: Direction) -> list[np.ndarray]:
    """(rollouts,) derivatives of each group, by the reference."""
    referee = Reference(policy, OBJECTIVE)
    return [referee._measure(group, direction)[1] for group in groups]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CONFIGS)
def test_derivatives_in_float64(name: str, way: str, packed: bool) -> None:
    policy = make_policy(name, torch.float64)
    groups, direction = make_groups(4, 1, masks=True), random_direction(policy)
    truth = np.concatenate(truth_of(policy, groups, direction))
    engine = Directional(policy, OBJECTIVE, 40, packed, way)
    length, tolerance = {"central": (1e-4, 1e-6), "one-sided": (1e-6, 1e-4), "forward-mode": (None, 1e-11)}[way]
    found = np.concatenate(engine.derivatives(groups, direction, length))
    assert np.abs(found - truth).max() < tolerance * np.abs(truth).max()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("chosen", ["q_proj", "k_proj", "v_proj", "o_proj", "embed", "norm", "lm_head"])
def test_derivatives_by_chosen_parameters(chosen: str, way: str) -> None:
    policy = cover(make_policy("qwen2", torch.float64).model, "qwen2", [f"*{chosen}*"])
    groups, direction = make_groups(3, 1), random_direction(policy)
    truth = np.concatenate(truth_of(policy, groups, direction))
    for packed in (True, False):
        engine = Directional(policy, OBJECTIVE, 4096, packed, way)
        found = np.concatenate(engine.derivatives(groups, direction, 1e-5))
        assert np.abs(found - truth).max() < 1e-3 * np.abs(truth).max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", CONFIGS)
def test_forward_mode_in_every_type(name: str, dtype: torch.dtype) -> None:
    """Against float64 at the same, rounded weights."""
    policy, double = make_policy(name, dtype), make_policy(name, dtype)
    double.model.double()
    groups, direction = make_groups(6, 1), random_direction(double)
    truth = np.concatenate(truth_of(double, groups, direction))
    engine = Directional(policy, OBJECTIVE, 4096, True, "forward-mode")
    found = np.concatenate(engine.derivatives(groups, direction))
    tolerance = {torch.float32: 1e-5, torch.float16: 0.02, torch.bfloat16: 0.1}[dtype]
    assert np.sqrt(((found - truth) ** 2).mean() / (truth**2).mean()) < tolerance


@pytest.mark.parametrize("options", [{"engine": "directional"}, {"engine": "exact", "contributions": True}])
def test_bfloat16_is_differentiated_forward_and_not_by_finite_differences(options: dict[str, Any]) -> None:
    policy, double = make_policy("llama", torch.bfloat16), make_policy("llama", torch.bfloat16)
    double.model.double()
    truth = measured(double, "reference", Objective())
    assert difference_for(policy, None) == "forward-mode"
    found = measured(policy, objective=Objective(), **options)
    scale = np.sqrt((column(truth, "dot") ** 2).mean())
    np.testing.assert_allclose(column(found, "dot"), column(truth, "dot"), atol=0.1 * scale)
    np.testing.assert_allclose(column(found, "corr"), column(truth, "corr"), atol=0.1)
    np.testing.assert_allclose(column(found, "t"), column(truth, "t"), rtol=0.1, atol=0.1)
    for way in ("central", "one-sided"):
        with pytest.raises(GradAlignError, match=f"{way} differences need float32 weights"):
            Scorer(policy, Objective(), **options, difference=way)


@pytest.mark.parametrize("name", CONFIGS)
def test_one_sided_differences_have_their_base_from_the_very_same_passes(name: str) -> None:
    policy = make_policy(name)
    groups, direction = make_groups(7, 1, masks=True), random_direction(policy)
    engine = Directional(policy, OBJECTIVE, 40, True, "one-sided")
    by_product: Recorded = []
    list(Exact(policy, OBJECTIVE, 40, True).measure(groups, direction, by_product))
    for recorded in (by_product, engine.record(groups)):
        for rows, values in recorded:
            assert np.array_equal(engine._logprobs(rows), values)
        found = engine.derivatives(groups, direction, 1e-30, recorded)  # a step that moves no weight
        assert all((values == 0).all() for values in found)
    with movable(policy, direction) as move:
        move(0.1)
        assert not np.array_equal(engine._logprobs(by_product[0][0]), by_product[0][1])


def test_contributions_by_one_sided_differences() -> None:
    truth = measured(make_policy("gpt2", torch.float64), "reference", Objective())
    for batch_tokens in (30, 4096):
        found = measured(
            make_policy("gpt2", torch.float64), "exact", Objective(), contributions=True, difference="one-sided",
            batch_tokens=batch_tokens,
        )  # fmt: skip
        np.testing.assert_allclose(column(found, "dot"), column(truth, "dot"), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(column(found, "t"), column(truth, "t"), rtol=0.01, atol=0.01)
        np.testing.assert_allclose(column(found, "corr"), column(truth, "corr"), atol=0.01)


@pytest.mark.parametrize("way", ["central", "one-sided"])
def test_no_scored_candidate_is_no_work(way: str) -> None:
    policy, groups = make_policy("llama"), make_groups(3, 1)
    for rollout in (rollout for group in groups for rollout in group.rollouts):
        rollout.reward = 1.0
    scorer = Scorer(policy, Objective(), contributions=True, difference=way)
    scored = scorer.measure(groups, random_direction(policy))
    assert [a.status for a in scored.alignments] == ["zero_variance"] * 3


def rounded(policy: Policy, double: Policy, engine: Directional) -> tuple[float, float]:
    """The chosen step's error, and the best over a grid, against float64's derivatives."""
    groups = make_groups(8, 1) if policy.path != "embedded" else embedded_groups(policy)
    validation = groups[:4]
    direction = build_direction(validation, Exact(policy, engine.objective, 4096, True).add_up)
    unit = Direction([t.double() for t in direction.unit], direction.norm, 4, 0, 0, None, None)
    truth = np.array([n.dot for n in Reference(double, engine.objective).measure(groups, unit)], np.float64)

    def error(length: float) -> float:
        derivatives = engine.derivatives(groups, direction, length)
        dots = [from_contributions(g, engine.objective, d).dot for g, d in zip(groups, derivatives, strict=True)]
        return float(np.sqrt(((np.array(dots, np.float64) - truth) ** 2).mean() / (truth**2).mean()))

    chosen = engine.calibrate(groups, direction)
    return error(chosen.length), min(error(length) for length in np.geomspace(1e-5, 1, 26))


def embedded_groups(policy: Policy) -> list[Group]:
    """Random tokens for the embedded policy."""
    rng = np.random.default_rng(0)
    vocabulary = policy.config.vocab_size
    return [
        Group(f"e{i}", rng.integers(0, vocabulary, 12),
              [Rollout(rng.integers(0, vocabulary, 10), float(k % 2)) for k in range(4)])
        for i in range(8)
    ]  # fmt: skip


@pytest.mark.parametrize("way", ["central", "one-sided"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "embedded"])
def test_the_chosen_step_is_about_the_best(name: str, way: str, embedded: Policy) -> None:
    """At most twice the best error of a grid, where that is not small enough to end the search."""
    policy = embedded if name == "embedded" else make_policy(name)
    double = load_policy("embedded", dtype="float64") if name == "embedded" else make_policy(name, torch.float64)
    own, best = rounded(policy, double, Directional(policy, OBJECTIVE, 4096, True, way))
    assert own <= max(2 * best, 0.0015)


@pytest.mark.parametrize("way", ["central", "one-sided"])
@pytest.mark.parametrize("scale", [20.0, 60.0, 100.0])
def test_strong_curvature_wants_shorter_steps(scale: float, way: str) -> None:
    """Steps of the usual length are outside of the linear range."""
    policy, double = make_policy("llama", scale=scale), make_policy("llama", torch.float64, scale)
    engine = Directional(policy, OBJECTIVE, 4096, True, way)
    own, best = rounded(policy, double, engine)
    assert engine.step is not None
    assert engine.step.length < 0.005
    assert own <= max(2 * best, 0.0015)


def test_a_policy_that_no_step_suits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding so coarse that it leaves no room beside truncation."""
    logprobs = Directional._logprobs
    monkeypatch.setattr(Directional, "_logprobs", lambda *args, **more: np.round(logprobs(*args, **more)))
    with pytest.raises(GradAlignError, match=r"scores \(central\) disagree with exact ones .*--engine exact without"):
        measured(make_policy("llama"), "directional", Objective())


def test_a_step_out_of_the_linear_range_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradalign.alignment.steps.START", 3.0)
    monkeypatch.setattr("gradalign.alignment.steps.SHORTEST", 1.0)
    with pytest.raises(GradAlignError, match=r"disagree with exact ones by \d+% on 6 problems at the best step"):
        measured(make_policy("llama"), "directional", Objective())


class Stopped(BaseException):
    """Not an error that anything would catch."""


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["gemma", "gpt2", "llama-tied"])
def test_a_policy_is_left_as_it_was_also_after_an_exception(name: str, way: str, packed: bool) -> None:
    policy = make_policy(name)
    kept = [p.detach().clone() for p in policy.parameters]
    own = [dict(module._parameters) for module in policy.model.modules()]
    implementation = policy.config._attn_implementation
    direction = random_direction(policy)
    engine = Directional(policy, Objective(), 64, packed, way)
    calls = itertools.count()

    def fail(*_: object, **__: object) -> None:
        if next(calls) == last:
            raise Stopped

    handle = policy.model.register_forward_pre_hook(fail)
    for last in (0, 3, 9999):
        calls = itertools.count()
        if last == 9999:
            engine.derivatives(make_groups(20, 1), direction, 0.1)
        else:
            with pytest.raises(Stopped):
                engine.derivatives(make_groups(20, 1), direction, 0.1)
        assert all(torch.equal(a, b) for a, b in zip(kept, policy.parameters, strict=True))
        assert all(p.grad is None for p in policy.parameters)
        for module, before in zip(policy.model.modules(), own, strict=True):
            assert before.keys() == module._parameters.keys()
            assert all(module._parameters[key] is before[key] for key in before)
            assert "forward" not in module.__dict__
            assert not module._forward_hooks
        assert policy.config._attn_implementation == implementation
        assert not torch.autograd.forward_ad._current_level >= 0
    handle.remove()


def test_directional_in_several_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = measured(make_policy("llama"), "directional", Objective(), batch_tokens=40)
    monkeypatch.setattr("gradalign.alignment.directional.SWEEP", 1)
    assert measured(make_policy("llama"), "directional", Objective(), batch_tokens=40) == whole


@pytest.mark.parametrize("engine", ["exact", "directional"])
@pytest.mark.parametrize("way", ["central", "forward-mode"])
def test_an_off_loaded_direction_gives_the_same_numbers(
    engine: str, way: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    policy, groups, validation = make_policy("llama-tied"), make_groups(6, 1), make_groups(8, 2, prefix="v")
    contributions = engine == "exact"
    options: dict[str, Any] = {"engine": engine, "contributions": contributions, "difference": way}
    plain = score(policy, groups, validation, OBJECTIVE, **options)
    found = score(policy, groups, validation, OBJECTIVE, **options, offload=True)
    assert [a.numbers for a in found.alignments] == [a.numbers for a in plain.alignments]
    assert all(torch.equal(a, b) for a, b in zip(plain.direction.unit, found.direction.unit, strict=True))
    assert not list(tmp_path.iterdir())
