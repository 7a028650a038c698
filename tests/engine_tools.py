"""What the tests of the engines share: policies of any configuration, directions, and how far engines lie apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers

from gradalign.alignment.align import score
from gradalign.alignment.direction import Direction
from gradalign.alignment.exact import Exact
from gradalign.alignment.record import Numbers
from gradalign.alignment.reference import Reference
from gradalign.policy.group import Group, Rollout
from gradalign.policy.load import Policy, cover
from gradalign.policy.logprobs import packs
from gradalign.policy.objective import Objective
from tests.conftest import VOCABULARY, make_groups

OBJECTIVES = [
    Objective("mean", "token_mean", 1.0),
    Objective("std", "sequence_mean", 0.6),
    Objective("loo", "sum", 1.3),
    Objective("loo", "token_mean", 0.6),
    Objective("mean", "sequence_mean", 1.0),
    Objective("std", "sum", 1.0),
]
OBJECTIVE = Objective("loo", "sequence_mean", 0.7)


def random_policy(config: Any, dtype: torch.dtype = torch.float64) -> Policy:
    """A small random policy of any configuration, every parameter away from its initial value."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return cover(model, config.model_type)


def random_direction(policy: Policy, seed: int = 1) -> Direction:
    """A direction with a part in every covered parameter."""
    torch.manual_seed(seed)
    tensors = [torch.randn_like(p, dtype=policy.reduction_dtype) for p in policy.parameters]
    norm = sum(float((t**2).sum()) for t in tensors) ** 0.5
    return Direction([t / norm for t in tensors], 1.0, 1, 0, 0, None, None)


def same_responses(key: str = "same") -> Group:
    """Equal responses with different rewards: its coefficients cancel."""
    ids = np.array([5, 6, 7])
    return Group(key, np.array([4]), [Rollout(ids, float(k % 3 == 0)) for k in range(7)])


def exact_against_reference(
    policy: Policy, groups: Sequence[Group], *batch_tokens: int, packed: bool | None = None
) -> float:
    """The largest distance of exact's norms (relative) and cosines from the reference's, over groups with a gradient.

    Of passes of each size in ``batch_tokens`` (4,096 without any); ``packed`` None leaves it to `packs`.
    """
    direction = random_direction(policy)
    truth = list(Reference(policy, OBJECTIVE).measure(groups, direction))
    packed = packs(policy, groups, 4096) if packed is None else packed
    largest = 0.0
    found: list[Numbers] = []
    for tokens in batch_tokens or (4096,):
        found += Exact(policy, OBJECTIVE, tokens, packed).measure(groups, direction)
    for own, other in zip(found, truth * max(1, len(batch_tokens)), strict=True):
        assert own.norm is not None
        assert own.cosine is not None
        assert other.norm is not None
        assert other.cosine is not None
        if other.norm < 1e-12:
            assert own.norm < 1e-12
            continue
        largest = max(largest, abs(own.norm / other.norm - 1), abs(own.cosine - other.cosine))
    return largest


def flat(tensors: Sequence[torch.Tensor]) -> np.ndarray:
    """All elements, in float64."""
    return torch.cat([t.reshape(-1) for t in tensors]).double().numpy()


def column(numbers: Sequence[Numbers], name: str) -> np.ndarray:
    """One number of each group."""
    return np.array([getattr(n, name) for n in numbers], np.float64)


def measured(policy: Policy, engine: str, objective: Objective, **options: Any) -> list[Numbers]:
    """Numbers of six groups, their direction from eight others."""
    candidates = make_groups(6, 1, masks=True)
    validation = make_groups(8, 2, masks=True, prefix="v")
    scored = score(policy, candidates, validation, objective, engine, **options)
    assert [a.key for a in scored.alignments] == [g.key for g in candidates]
    return [a.numbers for a in scored.alignments]


def tokens_of(group: Group) -> set[int]:
    """Every token of a group."""
    return set(group.prompt_ids.tolist()).union(*(r.response_ids.tolist() for r in group.rollouts))


def without_token(group: Group, token: int) -> None:
    """Replace a token wherever the group has it."""
    for ids in (group.prompt_ids, *(r.response_ids for r in group.rollouts)):
        ids[ids == token] = (token + 1) % VOCABULARY
