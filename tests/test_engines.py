"""Every engine against the reference, and the reference against the formula written out once more."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from gradalign.alignment.align import score
from gradalign.alignment.direction import Direction
from gradalign.alignment.directional import Directional
from gradalign.alignment.exact import Exact
from gradalign.alignment.record import Numbers
from gradalign.errors import GradAlignError, GradAlignWarning
from gradalign.policy.group import Group, Rollout
from gradalign.policy.load import Policy, cover
from gradalign.policy.logprobs import packs
from gradalign.policy.objective import Objective
from tests.conftest import CONFIGS, VOCABULARY, make_groups, make_policy

pytestmark = pytest.mark.filterwarnings("ignore::gradalign.errors.GradAlignWarning")
OBJECTIVES = [
    Objective("mean", "token_mean", 1.0),
    Objective("std", "sequence_mean", 0.6),
    Objective("loo", "sum", 1.3),
    Objective("loo", "token_mean", 0.6),
    Objective("mean", "sequence_mean", 1.0),
    Objective("std", "sum", 1.0),
]


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


def flat(tensors: list[torch.Tensor]) -> np.ndarray:
    return torch.cat([t.reshape(-1) for t in tensors]).double().numpy()


def column(numbers: list[Numbers], name: str) -> np.ndarray:
    return np.array([getattr(n, name) for n in numbers], np.float64)


def measured(policy: Policy, engine: str, objective: Objective, **options: Any) -> list[Numbers]:
    candidates = make_groups(6, 1, masks=True)
    validation = make_groups(8, 2, masks=True, prefix="v")
    scored = score(policy, candidates, validation, objective, engine, **options)
    assert [a.key for a in scored.alignments] == [g.key for g in candidates]
    return [a.numbers for a in scored.alignments]


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


@given(lengths=st.lists(st.integers(1, 12), min_size=2, max_size=6), prompt=st.integers(1, 20))
def test_padding_and_packing_change_nothing(lengths: list[int], prompt: int) -> None:
    policy = POLICIES.setdefault("qwen2", make_policy("qwen2", torch.float64))
    rng = np.random.default_rng(prompt)
    rollouts = [Rollout(rng.integers(0, 61, n), float(k % 2)) for k, n in enumerate(lengths)]
    group = Group("g", rng.integers(0, 61, prompt), rollouts)
    packed, rows = (Exact(policy, Objective(), 4096, shared) for shared in (True, False))
    np.testing.assert_allclose(flat(packed.gradient(group)), flat(rows.gradient(group)), atol=1e-12)


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


def test_equal_responses_with_different_rewards_cancel_exactly() -> None:
    policy = make_policy("llama")
    ids = np.array([5, 6, 7])
    group = Group("same", np.array([4]), [Rollout(ids, float(k % 3 == 0)) for k in range(7)])
    scored = score(policy, [group], make_groups(8, 2), Objective(), "exact", contributions=True)
    numbers = scored.alignments[0].numbers
    assert (numbers.dot, numbers.norm, numbers.cosine, numbers.corr) == (0.0, 0.0, 0.0, None)


def test_weights_come_back_bit_for_bit_also_after_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make_policy("gemma")
    before = [p.detach().clone() for p in policy.parameters]
    measured(policy, "directional", Objective())
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters, strict=True))
    assert all(p.grad is None for p in policy.parameters)
    engine = Directional(policy, Objective(), 64, True)
    direction = Direction([torch.randn_like(p) for p in policy.parameters], 1.0, 1, 0, 0, None, None)
    calls = itertools.count()

    def fail(*_: object, **__: object) -> None:
        if next(calls) == 3:
            raise KeyboardInterrupt

    policy.model.register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        engine.derivatives(make_groups(20, 1), direction, 0.1)
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters, strict=True))


def test_bfloat16_scores_but_not_by_finite_differences() -> None:
    policy = make_policy("llama", torch.bfloat16)
    truth = column(measured(make_policy("llama", torch.float64), "reference", Objective()), "cosine")
    got = measured(policy, "exact", Objective())
    np.testing.assert_allclose(column(got, "cosine"), truth, atol=0.1)
    for options in ({"engine": "directional"}, {"engine": "exact", "contributions": True}):
        with pytest.raises(GradAlignError, match="float32 weights"):
            measured(policy, objective=Objective(), **options)


def test_an_architecture_that_cannot_share_prompts_is_found_out() -> None:
    """A model whose positions ignore position_ids gives other numbers when packed; it must fall back."""
    policy = make_policy("llama")
    forward = policy.model.model.forward

    def ignoring_positions(*args: object, position_ids: torch.Tensor | None = None, **options: object) -> object:
        return forward(*args, **options)

    policy.model.model.forward = ignoring_positions
    with pytest.warns(GradAlignWarning, match="cannot share a group's prompt"):
        got = measured(policy, "exact", Objective())
    truth = measured(make_policy("llama"), "reference", Objective())
    np.testing.assert_allclose(column(got, "cosine"), column(truth, "cosine"), atol=1e-4)


LOCAL = {
    "gemma2 beyond its window": lambda: make_policy("gemma2", torch.float64),
    "gpt-neo": lambda: _random(transformers.GPTNeoConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_layers=2, attention_types=[[["global", "local"], 1]], num_heads=4,
        window_size=16, max_position_embeddings=100)),
    "llama4": lambda: _random(transformers.Llama4TextConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, intermediate_size_mlp=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, attention_chunk_size=16, num_local_experts=2,
        max_position_embeddings=128)),
}  # fmt: skip


def _random(config: Any) -> Policy:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.3 if parameter.ndim > 1 else 0.1) + (parameter.ndim == 1))
    return cover(model, config.model_type)


@pytest.mark.parametrize("name", LOCAL)
def test_local_attention_that_the_sequences_outgrow_is_not_packed(name: str) -> None:
    policy = LOCAL[name]()
    rng = np.random.default_rng(0)
    long = Group("long", rng.integers(2, 61, 60), [Rollout(rng.integers(2, 61, 20), float(k % 2)) for k in range(4)])
    validation = make_groups(8, 2, prefix="v")
    with pytest.warns(GradAlignWarning, match="cannot share"):
        exact = score(policy, [long], validation, Objective(), "exact").alignments[0].numbers
    truth = score(policy, [long], validation, Objective(), "reference").alignments[0].numbers
    assert exact.cosine == pytest.approx(truth.cosine, abs=1e-9)


@pytest.mark.parametrize("boundary", ["SWEEP", "GROUPS"])
def test_directional_in_several_sweeps(boundary: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = measured(make_policy("llama"), "directional", Objective(), batch_tokens=40)
    monkeypatch.setattr(f"gradalign.alignment.directional.{boundary}", 1)
    assert measured(make_policy("llama"), "directional", Objective(), batch_tokens=40) == whole


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", CONFIGS)
def test_rounding_is_not_taken_for_an_architecture_that_cannot_share(name: str, dtype: torch.dtype) -> None:
    assert packs(make_policy(name, dtype), make_groups(6, 1), 4096)


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


def test_nan_while_scoring_names_the_problem() -> None:
    policy = make_policy("llama")
    candidates = make_groups(3, 1)
    for engine in ("exact", "directional", "reference"):
        clean = score(policy, candidates, make_groups(8, 2, prefix="v"), Objective(), engine)
        assert len(clean.alignments) == 3
        poison = int(candidates[1].rollouts[0].response_ids[0])
        row = policy.model.get_input_embeddings().weight.data[poison]
        kept = row.clone()
        validation = [g for g in make_groups(40, 2, prefix="v") if poison not in _tokens(g)]
        candidates[1].prompt_ids = np.append(candidates[1].prompt_ids, poison)
        for other in (candidates[0], candidates[2]):
            _remove(other, poison)
        row.fill_(float("nan"))
        with pytest.raises(GradAlignError, match=r"'g1'.*not finite"):
            score(policy, candidates, validation, Objective(), engine)
        row.copy_(kept)


def _tokens(group: Group) -> set[int]:
    return set(group.prompt_ids.tolist()).union(*(r.response_ids.tolist() for r in group.rollouts))


def _remove(group: Group, token: int) -> None:
    for ids in (group.prompt_ids, *(r.response_ids for r in group.rollouts)):
        ids[ids == token] = (token + 1) % 61
