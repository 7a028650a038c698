"""What scores must not depend on: a pass's longest sequence, how experts are computed, how many copies a prompt has."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers

from gradalign.alignment.align import Scorer
from gradalign.alignment.reference import Reference
from gradalign.errors import GradAlignError
from gradalign.policy.group import Group, Rollout
from gradalign.policy.load import cover
from gradalign.policy.logprobs import telling
from gradalign.policy.packing import COPIES, batches_of, rows_of
from gradalign.policy.rope import steady_length
from tests.conftest import VOCABULARY, _common, make_groups
from tests.engine_tools import OBJECTIVE, random_direction, random_policy

LONG = {
    "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
ROPE: dict[str, Any] = {
    "longrope": lambda: transformers.Phi3Config(
        **_common(pad_token_id=0, original_max_position_embeddings=32, rope_parameters=LONG)
    ),
    "dynamic": lambda: transformers.LlamaConfig(
        **_common() | {"max_position_embeddings": 32, "rope_parameters": DYNAMIC}
    ),
}


def group(key: str, prompt: int, lengths: list[int], seed: int = 0) -> Group:
    random = np.random.default_rng(seed)
    rollouts = [Rollout(random.integers(2, VOCABULARY, n), float(k % 2)) for k, n in enumerate(lengths)]
    return Group(key, random.integers(2, VOCABULARY, prompt), rollouts)


@pytest.mark.parametrize("kind", ROPE)
def test_a_long_sequence_moves_no_other_ones_positions(kind: str) -> None:
    policy = random_policy(ROPE[kind]())
    groups = [group("a", 10, [5, 7, 3, 6], 0), group("b", 8, [4, 9, 3, 2], 1), group("long", 20, [30, 5, 6, 40], 2)]
    direction = random_direction(policy)
    scorer = Scorer(policy, OBJECTIVE)
    assert scorer.batch_tokens == steady_length(policy.config) == 32
    truth = list(Reference(policy, OBJECTIVE).measure(groups, direction))
    made = scorer.measure(groups, direction).alignments
    # Of sequences that are longer, transformers takes the frequencies of ``dynamic`` by what it has seen before.
    for own, true in [*zip(made, truth, strict=True)][: 2 if kind == "dynamic" else 3]:
        assert own.numbers.cosine == pytest.approx(true.cosine, abs=1e-9)
        assert own.numbers.norm == pytest.approx(true.norm, rel=1e-9)


def test_usual_positions_mean_the_same_in_any_pass() -> None:
    assert steady_length(transformers.LlamaConfig(**_common())) is None
    assert steady_length(transformers.Gemma3TextConfig(**_common(pad_token_id=0))) is None


@pytest.mark.filterwarnings("ignore:.*all groups are computed one at a time")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_experts_have_tangents(dtype: torch.dtype) -> None:
    config = transformers.Qwen3MoeConfig(
        **_common(head_dim=8, num_experts=4, moe_intermediate_size=16, num_experts_per_tok=2)
    )
    policy = random_policy(config, dtype)
    before = policy.config._experts_implementation
    direction = random_direction(policy)
    found = [
        [
            a.numbers.dot
            for a in Scorer(policy, OBJECTIVE, name, difference=how).measure(make_groups(4, 1), direction).alignments
        ]
        for name, how in (("exact", None), ("directional", "forward-mode"))
    ]
    assert found[0] == pytest.approx(found[1], rel=0.2 if dtype == torch.bfloat16 else 1e-3, abs=1e-4)
    assert policy.config._experts_implementation == before


def test_the_longest_sequence_is_tried_in_whichever_row_it_is() -> None:
    own = group("a", 5, [6, 6, 6, 6, 6, 6, 22])
    longest, largest = telling([own], 35)
    assert (longest.longest, longest.rollouts) == (27, [6])
    assert largest.rollouts == [0, 1, 2, 3, 4, 5]


def test_copies_of_prompts_are_bounded() -> None:
    few_shot = [group(f"g{i}", 200, [3] * 64, i) for i in range(3)]
    passes = list(batches_of([row for g in few_shot for row in rows_of(g, 512, packed=True)], 512, packed=True))
    copied = [sum(len(row.rollouts) * 200 for row in rows) for rows in passes]
    assert max(copied) <= COPIES * 512
    assert [i for rows in passes for row in rows if row.group is few_shot[0] for i in row.rollouts] == list(range(64))
    assert len(list(rows_of(few_shot[0], 4096, packed=True))) == 1


def test_prompts_that_are_tuned_are_refused() -> None:
    import peft

    model = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**_common()))
    tuned = peft.get_peft_model(model, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(GradAlignError, match="adapter of type PROMPT_TUNING: it puts tokens in front of every prompt"):
        cover(tuned)
