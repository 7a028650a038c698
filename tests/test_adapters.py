"""Adapters made by peft: engine exact against the reference, and every trainable parameter covered."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from gradalign.alignment.directional import Directional
from gradalign.alignment.reference import Reference
from gradalign.errors import GradAlignError
from gradalign.policy.load import Policy, cover
from tests.conftest import make_groups, make_policy
from tests.engine_tools import OBJECTIVE, exact_against_reference, random_direction

CAPTURED: dict[str, tuple[str, dict[str, Any]]] = {
    "all linear layers": ("llama", {"target_modules": "all-linear"}),
    "all linear layers, tied": ("qwen2-tied", {"target_modules": "all-linear"}),
    "transposed layers": ("gpt2", {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
    "one layer": ("llama", {"target_modules": ["q_proj"], "layers_to_transform": [1]}),
    "its biases too": ("qwen2", {"target_modules": "all-linear", "bias": "all"}),
    "scaled by the root of the rank": ("llama", {"target_modules": "all-linear", "use_rslora": True}),
    "norms saved too": ("llama", {"target_modules": ["v_proj"], "modules_to_save": ["norm", "input_layernorm"]}),
    "the output layer saved too": ("llama", {"target_modules": ["v_proj"], "modules_to_save": ["lm_head"]}),
}
PARTLY: dict[str, tuple[str, dict[str, Any]]] = {
    "directions and magnitudes": ("llama", {"target_modules": "all-linear", "use_dora": True}),
    "embeddings": ("llama", {"target_modules": ["embed_tokens", "q_proj"]}),
    "embeddings with a padding row": ("gemma", {"target_modules": ["embed_tokens", "q_proj"]}),
}


def adapted(name: str, options: dict[str, Any], dtype: torch.dtype = torch.float64) -> Policy:
    """A policy with an adapter whose parameters are away from their initial values."""
    torch.manual_seed(0)
    model = get_peft_model(make_policy(name).model, LoraConfig(r=4, lora_alpha=8, **options)).to(dtype).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return cover(model, name)


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@pytest.mark.parametrize("kind", CAPTURED)
def test_adapters_are_captured(kind: str) -> None:
    policy = adapted(*CAPTURED[kind])
    assert policy.covered == 1.0
    assert len(policy.names) == sum(p.requires_grad for p in policy.model.parameters())
    assert exact_against_reference(policy, make_groups(4, 1, masks=True), 4096, 15) < 1e-8


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", PARTLY)
def test_adapters_that_are_left_to_autograd(kind: str) -> None:
    policy = adapted(*PARTLY[kind])
    assert policy.covered == 1.0
    with pytest.warns(match="all groups are computed one at a time"):
        assert exact_against_reference(policy, make_groups(4, 1, masks=True), 4096, 15) < 1e-8


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("way", ["central", "one-sided", "forward-mode"])
@pytest.mark.parametrize("kind", [*CAPTURED, "embeddings"])
def test_adapters_forward_only(kind: str, way: str) -> None:
    policy = adapted(*(CAPTURED | PARTLY)[kind])
    groups, direction = make_groups(3, 1), random_direction(policy)
    truth = np.concatenate([Reference(policy, OBJECTIVE)._measure(group, direction)[1] for group in groups])
    length = {"central": 1e-4, "one-sided": 1e-6, "forward-mode": None}[way]
    found = np.concatenate(Directional(policy, OBJECTIVE, 64, True, way).derivatives(groups, direction, length))
    assert np.abs(found - truth).max() < 1e-4 * np.abs(truth).max()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_magnitudes_forward_only() -> None:
    """peft holds the norms of DoRA's directions fixed in gradients; differences of forward passes move them."""
    policy = adapted(*PARTLY["directions and magnitudes"])
    groups, direction = make_groups(4, 1), random_direction(policy)
    truth = np.concatenate([Reference(policy, OBJECTIVE)._measure(group, direction)[1] for group in groups])
    engine = Directional(policy, OBJECTIVE, 64, True, "forward-mode")
    np.testing.assert_allclose(np.concatenate(engine.derivatives(groups, direction)), truth, atol=1e-10)
    for way in ("central", "one-sided"):
        with pytest.raises(GradAlignError, match=r"disagree with exact ones .*; take --difference forward-mode, or"):
            Directional(policy, OBJECTIVE, 64, True, way).calibrate(groups, direction)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_chosen_parameters_of_an_adapter() -> None:
    whole = adapted(*CAPTURED["all linear layers"])
    part = cover(whole.model, "llama", ["*layers.1.*lora_B*"])
    assert 0 < part.covered < 1
    assert exact_against_reference(part, make_groups(4, 1), 4096, 15) < 1e-8
