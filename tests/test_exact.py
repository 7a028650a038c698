"""Engine exact: groups of any size beside one another, cancelling, not finite, in half precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradalign.alignment import passes
from gradalign.alignment.align import score
from gradalign.alignment.exact import Exact, Recorded
from gradalign.alignment.record import Numbers
from gradalign.alignment.reference import Reference
from gradalign.errors import GradAlignError
from gradalign.policy import trunk
from gradalign.policy.group import Group, Rollout
from gradalign.policy.load import Policy
from gradalign.policy.objective import Objective
from tests.conftest import CONFIGS, _common, make_groups, make_policy
from tests.engine_tools import (
    OBJECTIVE,
    column,
    exact_against_reference,
    flat,
    measured,
    random_direction,
    random_policy,
    same_responses,
    tokens_of,
    without_token,
)  # fmt: skip

POLICIES: dict[str, Policy] = {}


def policy_named(name: str) -> Policy:
    """A float64 policy; ``phi`` has a bias at the output layer, ``opt`` makes its logits in the trunk."""
    if name not in POLICIES:
        phi = transformers.PhiConfig(**_common())
        POLICIES[name] = random_policy(phi) if name == "phi" else make_policy(name, torch.float64)
    return POLICIES[name]


def uneven_groups() -> list[Group]:
    """Tiny and large groups side by side, one with a long prompt, one whose gradient cancels."""
    rng = np.random.default_rng(5)
    long = [Rollout(rng.integers(2, 61, 3), float(k % 2)) for k in range(3)]
    one = [Rollout(np.array([7]), 0.0), Rollout(np.array([9]), 1.0)]
    return [
        same_responses(), *make_groups(1, 1, rollouts=14), *make_groups(2, 2, rollouts=2), same_responses("again"),
        Group("long", rng.integers(2, 61, 70), long), Group("one", np.array([3]), one), *make_groups(1, 3, rollouts=9),
    ]  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch_tokens=st.integers(1, 300), logits=st.sampled_from([1, 200, 2**25]), block=st.sampled_from([7, 4096]),
    packed=st.booleans(), name=st.sampled_from(["llama", "llama-tied", "gemma2", "phi", "gpt2"]),
)  # fmt: skip
def test_scores_do_not_depend_on_how_the_work_is_cut(
    monkeypatch: pytest.MonkeyPatch, batch_tokens: int, logits: int, block: int, packed: bool, name: str
) -> None:
    """Several groups in a pass, a group over several passes, the places and the vocabulary of a group in chunks."""
    with monkeypatch.context() as patch:
        patch.setitem(passes.LOGITS, "cpu", logits)
        patch.setattr(trunk, "BLOCK", {"cpu": block})
        assert exact_against_reference(policy_named(name), uneven_groups(), batch_tokens, packed=packed) < 1e-9


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("name", ["llama-tied", "gpt2"])
def test_matrices_formed_for_one_group_or_for_several(name: str, small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from gradalign.alignment import sinks

    monkeypatch.setattr(sinks, "CACHED", 100)
    monkeypatch.setattr(sinks, "SMALL", {"cpu": 2**16 if small else 0})
    monkeypatch.setattr(sinks, "TOGETHER", {"cpu": 5000})
    assert exact_against_reference(policy_named(name), uneven_groups(), 400) < 1e-9


@pytest.mark.parametrize("batch_tokens", [10, 60, 4096])
@pytest.mark.parametrize("name", ["llama", "llama-tied", "gemma2"])
def test_sums_of_gradients(name: str, batch_tokens: int) -> None:
    policy, groups = policy_named(name), make_groups(5, 4)
    referee, engine = Reference(policy, OBJECTIVE), Exact(policy, OBJECTIVE, batch_tokens, True)
    along = random_direction(policy).unit
    single = np.stack([flat(referee.gradient(group)) for group in groups])
    for unit in (False, True):
        own = single / np.linalg.norm(single, axis=1, keepdims=True) if unit else single
        for given_along in (None, along):
            total, products = engine.add_up(groups, given_along, unit)
            np.testing.assert_allclose(flat(total), own.sum(0), atol=1e-11)
            if given_along is not None:
                np.testing.assert_allclose(products, own @ flat(given_along), atol=1e-11)


def test_log_probabilities_are_a_by_product() -> None:
    policy, groups = policy_named("llama-tied"), uneven_groups()
    recorded: Recorded = []
    engine = Exact(policy, OBJECTIVE, 60, True)
    direction = random_direction(policy)
    found = list(engine.measure(groups, direction, recorded))
    plain = list(engine.measure(groups, direction))
    np.testing.assert_allclose(column(found, "dot"), column(plain, "dot"), atol=1e-12)
    assert [n.norm for g, n in zip(groups, found, strict=True) if g.key in ("same", "again")] == [0.0, 0.0]
    referee = Reference(policy, OBJECTIVE)
    got = iter(value for _, values in recorded for value in values)
    for group in groups:
        for rollout in group.distinct()[0].rollouts:
            assert next(got) == pytest.approx(referee._log_probability(group, rollout).item(), abs=1e-10)
    assert next(got, None) is None


@pytest.mark.filterwarnings("ignore:the validation direction is within noise")
def test_equal_responses_with_different_rewards_cancel_exactly() -> None:
    policy = make_policy("llama")
    ids = np.array([5, 6, 7])
    group = Group("same", np.array([4]), [Rollout(ids, float(k % 3 == 0)) for k in range(7)])
    scored = score(policy, [group], make_groups(8, 2), Objective(), "exact", contributions=True)
    numbers = scored.alignments[0].numbers
    assert (numbers.dot, numbers.norm, numbers.cosine, numbers.corr) == (0.0, 0.0, 0.0, None)


def test_groups_that_cancel_are_exactly_zero_beside_others() -> None:
    policy = policy_named("llama-tied")
    groups, direction = uneven_groups(), random_direction(policy)
    for batch_tokens in (20, 4096):
        found = list(Exact(policy, OBJECTIVE, batch_tokens, True).measure(groups, direction))
        zero = [group.key for group, n in zip(groups, found, strict=True) if (n.dot, n.norm, n.cosine) == (0, 0, 0)]
        assert zero == ["same", "again"]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", ["llama", "llama-tied", "gemma2", "gpt2"])
def test_what_is_not_finite_stays_in_its_group(name: str, packed: bool) -> None:
    policy = make_policy(name, torch.float64)
    groups, direction = make_groups(5, 1), random_direction(policy)
    poison = int(groups[2].prompt_ids[0])
    others = [g for g in groups if g is not groups[2]]
    for group in others:
        without_token(group, poison)
    assert poison in tokens_of(groups[2])
    embedding = policy.model.get_input_embeddings()
    weight = embedding.weight.detach().clone()

    def poisoned(module: torch.nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        return torch.where((inputs[0] == poison)[..., None], torch.nan, output)

    truth = {g.key: n for g, n in zip(others, Reference(policy, OBJECTIVE).measure(others, direction), strict=True)}
    engine = Exact(policy, OBJECTIVE, 4096, packed)
    embedding.register_forward_hook(poisoned)
    found = dict(zip([g.key for g in groups], engine.measure(groups, direction), strict=True))
    with pytest.raises(GradAlignError, match=r"'g2'.*not finite"):
        found["g2"].require_finite(groups[2])
    for key, numbers in truth.items():
        assert found[key].norm == pytest.approx(numbers.norm, rel=1e-9)
        assert found[key].cosine == pytest.approx(numbers.cosine, abs=1e-9)
    assert torch.equal(weight, embedding.weight)


def test_half_precision_does_not_lose_small_coefficients() -> None:
    rng = np.random.default_rng(0)
    groups = [Group(f"g{i}", rng.integers(2, 61, 8), [Rollout(rng.integers(2, 61, 60), float(k % 2)) for k in range(8)])
              for i in range(4)]  # fmt: skip
    for coefficient in (1.0, 1e-6):  # rewards in tiny units
        for group in groups:
            for k, rollout in enumerate(group.rollouts):
                rollout.reward = coefficient * (k % 2)
        half = Exact(make_policy("llama", torch.float16), Objective(), 4096, True).gradient(groups[0])
        full = Exact(make_policy("llama"), Objective(), 4096, True).gradient(groups[0])
        a, b = flat(half), flat(full)
        assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.999
        assert np.linalg.norm(a) == pytest.approx(np.linalg.norm(b), rel=0.02)


@pytest.mark.filterwarnings("ignore:the validation direction is within noise")
@pytest.mark.parametrize("name", CONFIGS)
def test_rounding_in_bfloat16_is_bounded(name: str) -> None:
    """Root mean square distance of the cosines from float64's at the same, rounded weights."""
    half = make_policy(name, torch.bfloat16)
    double = make_policy(name, torch.bfloat16)
    double.model.double()
    own: list[Numbers] = measured(half, "exact", Objective())
    truth = measured(double, "reference", Objective())
    errors = column(own, "cosine") - column(truth, "cosine")
    assert np.sqrt((errors**2).mean()) < 0.02
    np.testing.assert_allclose(column(own, "norm"), column(truth, "norm"), rtol=0.05)
