"""Every engine against the reference, and the reference against the formula written out once more."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradalign.alignment.align import score
from gradalign.alignment.exact import Exact
from gradalign.errors import GradAlignError
from gradalign.policy.group import Group
from gradalign.policy.load import Policy, cover
from gradalign.policy.objective import Objective
from tests.conftest import CONFIGS, make_groups, make_policy
from tests.engine_tools import OBJECTIVES, column, flat, measured, tokens_of, without_token

pytestmark = pytest.mark.filterwarnings("ignore::gradalign.errors.GradAlignWarning")


def written_out(policy: Policy, group: Group, objective: Objective) -> list[torch.Tensor]:
    """The gradient of J by one padded batch, from the definition: independent of every engine."""
    rewards = torch.tensor([r.reward for r in group.rollouts], dtype=policy.dtype)
    centred = rewards - rewards.mean()
    count = len(rewards)
    advantage = {
        "mean": centred, "std": centred / (rewards.std() + 1e-4), "loo": centred * count / (count - 1)
    }[objective.advantage]  # fmt: skip
    prompt = len(group.prompt_ids)
    longest = prompt + max(len(r.response_ids) for r in group.rollouts)
    ids = torch.full((count, longest), 3)
    counted = torch.zeros(count, longest)
    attention = torch.zeros(count, longest, dtype=torch.long)
    for k, rollout in enumerate(group.rollouts):
        end = prompt + len(rollout.response_ids)
        ids[k, :end] = torch.from_numpy(np.concatenate([group.prompt_ids, rollout.response_ids]))
        counted[k, prompt:end] = torch.from_numpy(rollout.mask).float()
        attention[k, :end] = 1
    with policy.arithmetic():
        logits = policy.model(input_ids=ids, attention_mask=attention).logits
    logprobs = torch.log_softmax(logits[:, :-1] / objective.temperature, -1).gather(-1, ids[:, 1:, None])[..., 0]
    sums = (logprobs * counted[:, 1:]).sum(1)
    lengths = counted.sum(1)
    value = {
        "token_mean": (advantage * sums).sum() / lengths.sum(),
        "sequence_mean": (advantage * sums / lengths).sum() / count,
        "sum": (advantage * sums).sum() / count,
    }[objective.aggregation]
    return list(torch.autograd.grad(value, policy.parameters, materialize_grads=True, allow_unused=True))


@pytest.mark.parametrize("name", CONFIGS)
def test_exact_equals_reference_equals_the_formula_in_float64(name: str) -> None:
    policy = make_policy(name, torch.float64)
    candidates, validation = make_groups(6, 1, masks=True), make_groups(8, 2, masks=True, prefix="v")
    for objective in OBJECTIVES:
        by_hand = [flat(written_out(policy, g, objective)) for g in candidates]
        direction = np.mean([flat(written_out(policy, g, objective)) for g in validation], axis=0)
        direction /= np.linalg.norm(direction)
        reference = measured(policy, "reference", objective)
        exact = measured(policy, "exact", objective, batch_tokens=30)
        for i, gradient in enumerate(by_hand):
            norm = float(np.linalg.norm(gradient))
            assert reference[i].norm == pytest.approx(norm, rel=1e-9)
            for engine in (reference, exact):
                assert engine[i].dot == pytest.approx(gradient @ direction, abs=1e-9 * norm)
                assert engine[i].norm == pytest.approx(norm, rel=1e-9)
                assert engine[i].cosine == pytest.approx(gradient @ direction / norm, abs=1e-9)


@pytest.mark.parametrize("name", CONFIGS)
def test_exact_in_float32(name: str) -> None:
    policy = make_policy(name)
    for objective in OBJECTIVES[:3]:
        truth = measured(make_policy(name, torch.float64), "reference", objective)
        for engine in ("exact", "reference"):
            got = measured(policy, engine, objective)
            np.testing.assert_allclose(column(got, "cosine"), column(truth, "cosine"), atol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_directional_in_float32(name: str) -> None:
    for objective in OBJECTIVES[:3]:
        truth = measured(make_policy(name, torch.float64), "reference", objective)
        got = measured(make_policy(name), "directional", objective)
        dots = column(truth, "dot")
        assert np.abs(column(got, "dot") - dots).max() <= 0.02 * np.sqrt((dots**2).mean())
        np.testing.assert_allclose(column(got, "corr"), column(truth, "corr"), atol=0.02)
        np.testing.assert_allclose(column(got, "t"), column(truth, "t"), rtol=0.02, atol=0.02)
        assert all(n.norm is None and n.cosine is None for n in got)


def test_contributions_add_the_statistics_and_leave_exact_numbers_alone() -> None:
    policy = make_policy("llama")
    truth = measured(policy, "reference", Objective())
    plain = measured(policy, "exact", Objective())
    more = measured(policy, "exact", Objective(), contributions=True)
    assert [(n.dot, n.norm, n.cosine) for n in plain] == [(n.dot, n.norm, n.cosine) for n in more]
    assert all(n.se is None and n.t is None and n.corr is None for n in plain)
    np.testing.assert_allclose(column(more, "se"), column(truth, "se"), rtol=0.02)
    np.testing.assert_allclose(column(more, "t"), column(truth, "t"), rtol=0.02, atol=0.02)


@given(
    batch_tokens=st.integers(1, 200), order=st.permutations(range(6)), engine=st.sampled_from(["exact", "directional"])
)
def test_scores_do_not_depend_on_batching_or_order(batch_tokens: int, order: list[int], engine: str) -> None:
    policy = POLICIES.setdefault("llama", make_policy("llama"))
    candidates, validation = make_groups(6, 1), make_groups(8, 2, prefix="v")
    base = score(policy, candidates, validation, Objective(), engine, 4096)
    other = score(policy, [candidates[i] for i in order], validation[::-1], Objective(), engine, batch_tokens)
    tolerance = 1e-6 if engine == "exact" else 0.02
    scale = max(abs(a.numbers.dot or 0) for a in base.alignments)
    for place, index in enumerate(order):
        before, after = base.alignments[index], other.alignments[place]
        assert before.key == after.key
        assert after.numbers.dot == pytest.approx(before.numbers.dot, abs=tolerance * scale)
        if engine == "exact":
            assert after.numbers.cosine == pytest.approx(before.numbers.cosine, abs=1e-5)


POLICIES: dict[str, Policy] = {}


def test_tied_parameters_count_once_with_both_uses() -> None:
    policy = make_policy("llama-tied")
    assert len(policy.names) == len(set(map(id, policy.parameters)))
    assert not any("lm_head" in name for name in policy.names)
    assert policy.covered == 1.0


def test_chosen_parameters_are_covered_and_the_share_reported() -> None:
    model = make_policy("llama", torch.float64).model
    full = cover(model, "m")
    group = make_groups(1, 3)[0]
    whole = dict(zip(full.names, Exact(full, Objective(), 999, True).gradient(group), strict=True))
    part = cover(model, "m", ["*mlp*"])
    assert 0 < part.covered < 1
    assert part.covered == pytest.approx(
        sum(p.numel() for n, p in model.named_parameters() if "mlp" in n) / sum(p.numel() for p in model.parameters())
    )
    for name, gradient in zip(part.names, Exact(part, Objective(), 999, True).gradient(group), strict=True):
        np.testing.assert_allclose(gradient.numpy(), whole[name].numpy(), atol=1e-14)


def test_a_parameter_the_forward_pass_does_not_touch_has_gradient_zero() -> None:
    model = make_policy("llama").model
    model.register_parameter("spare", torch.nn.Parameter(torch.ones(3)))
    policy = cover(model, "m")
    assert "spare" in policy.names
    for engine in ("exact", "reference", "directional"):
        assert all(n.dot is not None for n in measured(policy, engine, Objective()))
    gradient = Exact(policy, Objective(), 4096, True).gradient(make_groups(1, 1)[0])
    assert (gradient[policy.names.index("spare")] == 0).all()


def test_nan_while_scoring_names_the_problem() -> None:
    policy = make_policy("llama")
    candidates = make_groups(3, 1)
    for engine in ("exact", "directional", "reference"):
        clean = score(policy, candidates, make_groups(8, 2, prefix="v"), Objective(), engine)
        assert len(clean.alignments) == 3
        poison = int(candidates[1].rollouts[0].response_ids[0])
        row = policy.model.get_input_embeddings().weight.data[poison]
        kept = row.clone()
        validation = [g for g in make_groups(40, 2, prefix="v") if poison not in tokens_of(g)]
        candidates[1].prompt_ids = np.append(candidates[1].prompt_ids, poison)
        for other in (candidates[0], candidates[2]):
            without_token(other, poison)
        row.fill_(float("nan"))
        with pytest.raises(GradAlignError, match=r"'g1'.*not finite"):
            score(policy, candidates, validation, Objective(), engine)
        row.copy_(kept)
