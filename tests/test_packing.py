"""Prompts computed once: packed rows give what padded ones give, or are not taken."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from gradalign.alignment.exact import Exact
from gradalign.errors import GradAlignWarning
from gradalign.policy.attention import attend, led
from gradalign.policy.group import Group, Rollout
from gradalign.policy.logprobs import packs
from gradalign.policy.objective import Objective
from gradalign.policy.packing import batches_of, lay_out, rows_of, size
from tests.conftest import CONFIGS, VOCABULARY, _common, make_groups, make_policy
from tests.engine_tools import column, exact_against_reference, flat, measured, random_policy


@given(lengths=st.lists(st.integers(1, 12), min_size=2, max_size=6), prompt=st.integers(1, 20))
def test_padding_and_packing_change_nothing(lengths: list[int], prompt: int) -> None:
    policy = make_policy("qwen2", torch.float64)
    rng = np.random.default_rng(prompt)
    rollouts = [Rollout(rng.integers(0, 61, n), float(k % 2)) for k, n in enumerate(lengths)]
    group = Group("g", rng.integers(0, 61, prompt), rollouts)
    packed, rows = (Exact(policy, Objective(), 4096, shared) for shared in (True, False))
    np.testing.assert_allclose(flat(packed.gradient(group)), flat(rows.gradient(group)), atol=1e-12)


@pytest.mark.filterwarnings("ignore:the validation direction is within noise")
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
    "llama4": lambda: random_policy(transformers.Llama4TextConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, intermediate_size_mlp=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, attention_chunk_size=16, num_local_experts=2,
        max_position_embeddings=128)),
}  # fmt: skip


def long_group() -> Group:
    """Longer than the windows here, prompt and responses."""
    rng = np.random.default_rng(0)
    rollouts = [Rollout(rng.integers(2, 61, int(rng.integers(1, 21))), float(k % 2)) for k in range(4)]
    return Group("long", rng.integers(2, 61, 60), [*rollouts, Rollout(rng.integers(2, 61, 20), 0.5)])


@pytest.mark.filterwarnings("ignore:.*one at a time")
@pytest.mark.parametrize("name", LOCAL)
def test_local_attention_that_the_sequences_outgrow_is_not_packed(name: str) -> None:
    policy = LOCAL[name]()
    short = make_groups(3, 1)
    for group in short:
        group.prompt_ids = group.prompt_ids[:5]
    assert exact_against_reference(policy, short) < 1e-8  # packed: a warning would be an error
    with pytest.warns(GradAlignWarning, match="cannot share"):
        assert exact_against_reference(policy, [long_group()]) < 1e-8


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", CONFIGS)
def test_rounding_is_not_taken_for_an_architecture_that_cannot_share(name: str, dtype: torch.dtype) -> None:
    assert packs(make_policy(name, dtype), make_groups(6, 1), 4096)


WINDOWED = {
    "gemma2": lambda: make_policy("gemma2", torch.float64),
    "gemma3": lambda: random_policy(transformers.Gemma3TextConfig(**_common(
        head_dim=8, pad_token_id=0, sliding_window=16, layer_types=["sliding_attention", "full_attention"]))),
    "mistral": lambda: random_policy(transformers.MistralConfig(**_common(sliding_window=16))),
    "cohere2": lambda: random_policy(transformers.Cohere2Config(**_common(
        sliding_window=16, layer_types=["sliding_attention", "full_attention"]))),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*one at a time")
@pytest.mark.parametrize("name", WINDOWED)
def test_sliding_windows_that_the_sequences_outgrow_are_packed(name: str) -> None:
    policy, groups = WINDOWED[name](), [long_group(), *make_groups(2, 1)]
    assert packs(policy, groups, 4096)  # any warning of that is an error here
    assert exact_against_reference(policy, groups) < 1e-8
    assert exact_against_reference(policy, groups, packed=False) < 1e-8


@given(
    window=st.one_of(st.none(), st.integers(1, 30)),
    cap=st.sampled_from([None, 2.0]),
    heads=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 99),
)
def test_attention_over_a_packed_batch_is_that_of_each_sequence(
    window: int | None, cap: float | None, heads: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    groups = make_groups(int(rng.integers(1, 5)), seed, rollouts=int(rng.integers(2, 6)))
    groups.append(long_group())
    batch = lay_out([row for g in groups for row in rows_of(g, 9999, True)], True, torch.device("cpu"))
    total = batch.input_ids.numel()
    q, k, v = (torch.from_numpy(rng.normal(size=(1, n, total, 8))) for n in (4, heads, heads))
    config = transformers.LlamaConfig(**_common())
    before = config._attn_implementation
    with led(_Model(config), batch):
        found, _ = attend(torch.nn.Module(), q, k, v, None, scaling=0.5, sliding_window=window, softcap=cap)
    assert config._attn_implementation == before
    k, v = (t.repeat_interleave(4 // heads, 1) for t in (k, v))
    seen = torch.zeros(total, dtype=torch.bool)
    for start, end, row in batch.responses:
        first, last = batch.prompts[row]
        slots = torch.cat([torch.arange(first, last), torch.arange(start, end)])
        seen[slots] = True
        scores = q[0][:, slots] @ k[0][:, slots].transpose(1, 2) * 0.5
        scores = scores if cap is None else torch.tanh(scores / cap) * cap
        distance = torch.arange(len(slots))[:, None] - torch.arange(len(slots))
        hidden = (distance < 0) | (distance >= (window or 9999))
        own = torch.softmax(scores.masked_fill(hidden, -torch.inf), -1) @ v[0][:, slots]
        torch.testing.assert_close(found[0, slots], own.transpose(0, 1), rtol=1e-9, atol=1e-11)
    assert seen.all()


class _Model:
    def __init__(self, config: transformers.PretrainedConfig) -> None:
        self.config = config


def test_attention_that_asks_for_more_is_refused() -> None:
    policy = make_policy("llama")
    batch = lay_out(list(rows_of(make_groups(1, 1)[0], 99, True)), True, policy.device)
    q = torch.zeros(1, 1, batch.input_ids.numel(), 8)
    with led(policy.model, batch):
        for more in ({"dropout": 0.1}, {"s_aux": q}, {"position_bias": q}):
            with pytest.raises(NotImplementedError, match="packed attention with"):
                attend(torch.nn.Module(), q, q, q, None, **more)
    with pytest.raises(NotImplementedError, match="packed attention with"):  # outside of a pass
        attend(torch.nn.Module(), q, q, q, None)


@given(batch_tokens=st.integers(1, 120), packed=st.booleans(), seed=st.integers(0, 99))
def test_batches_keep_every_rollout_in_order_and_within_the_budget(batch_tokens: int, packed: bool, seed: int) -> None:
    groups = make_groups(5, seed)
    rows = [row for g in groups for row in rows_of(g, batch_tokens, packed)]
    batches = list(batches_of(rows, batch_tokens, packed))
    found = [(row.group.key, index) for batch in batches for row in batch for index in row.rollouts]
    assert found == [(g.key, k) for g in groups for k in range(5)]
    for rows in batches:
        laid = lay_out(rows, packed, torch.device("cpu"))
        assert laid.input_ids.numel() == size(rows, packed)
        assert size(rows, packed) <= batch_tokens or sum(len(row.rollouts) for row in rows) == 1
