"""What is measured on: models of random weights with real shapes, and groups of random tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from gradalign.bench.counts import Lengths
from gradalign.errors import GradAlignError
from gradalign.policy.group import Group, Rollout
from gradalign.policy.load import DTYPES, Policy, cover, load_policy


@dataclass(frozen=True)
class Workload:
    """Some groups of equal lengths; half of a group's rollouts are paid 1, the others 0."""

    groups: int
    lengths: Lengths


WORKLOADS = {
    "short": Workload(16, Lengths(prompt=64, rollouts=8, response=32)),
    "few-shot": Workload(8, Lengths(prompt=512, rollouts=16, response=32)),
    "long": Workload(4, Lengths(prompt=128, rollouts=8, response=256)),
    "tiny": Workload(256, Lengths(prompt=12, rollouts=16, response=12)),
}
"""Name -> workload; ``tiny`` is for the embedded policy."""

_NO_SPECIAL: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
MODELS: dict[str, Callable[[], Any] | None] = {
    "smollm2": partial(
        LlamaConfig, vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=8192, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0}, **_NO_SPECIAL,
    ),
    "qwen2.5-1.5b": partial(
        Qwen2Config, vocab_size=151936, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28,
        num_attention_heads=12, num_key_value_heads=2, max_position_embeddings=32768, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}, **_NO_SPECIAL,
    ),
    "embedded": None,
}  # fmt: skip
"""Name -> the configuration of a model of random weights; None for the policy in this package."""


def build(model: str, dtype: str, device: str, seed: int) -> Policy:
    """The policy of a name in `MODELS`; random weights depend on the seed alone.

    Raises:
        GradAlignError: the device cannot be used here.
    """
    embedded = load_policy("embedded", dtype=dtype, device=device)
    config = MODELS[model]
    if config is None:
        return embedded
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = AutoModelForCausalLM.from_config(config(), dtype=torch.float32)
    return cover(made.to(embedded.device, DTYPES[dtype]).eval(), model)


def random_groups(workload: Workload, count: int, vocabulary: int, seed: int) -> list[Group]:
    """``count`` groups of a workload's lengths, of uniformly random tokens."""
    rng = np.random.default_rng(seed)
    lengths = workload.lengths
    groups = []
    for index in range(count):
        prompt = rng.integers(0, vocabulary, lengths.prompt)
        responses = rng.integers(0, vocabulary, (lengths.rollouts, lengths.response))
        rollouts = [Rollout(ids, float(k % 2)) for k, ids in enumerate(responses)]
        groups.append(Group(f"random-{index}", prompt, rollouts))
    return groups


def require_room(policy: Policy, model: str, name: str) -> None:
    """Refuse a workload that is longer than the model takes.

    Raises:
        GradAlignError: it is.
    """
    lengths = WORKLOADS[name].lengths
    longest = lengths.prompt + lengths.response
    if policy.max_length is not None and longest > policy.max_length:
        raise GradAlignError(
            f"workload {name!r}: its {longest} tokens are more than the {policy.max_length} that {model} takes; "
            "choose others with --workloads"
        )
