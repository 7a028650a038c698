from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig

from gradalign.bench.counts import Lengths, Shape, repeated, shared
from gradalign.bench.speed_arms import ARMS
from gradalign.bench.workloads import MODELS, WORKLOADS
from gradalign.cli.bench.speed import SpeedOptions
from gradalign.policy.where import EMBEDDED
from tests.conftest import CONFIGS

LENGTHS = Lengths(prompt=7, rollouts=3, response=5)


def _performed(config: Any, ids: torch.Tensor, places: torch.Tensor, backward: bool) -> tuple[int, int]:
    """Operations with weights and between activations that torch performs in a pass."""
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config)
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=places).logits
        if backward:
            logits.sum().backward()
    found = {str(op): count for op, count in counter.get_flop_counts()["Global"].items()}
    return found["aten.mm"], found["aten.bmm"]


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("name", ["llama", "llama-tied"])
def test_repeated_prompts_cost_what_torch_performs(name: str, backward: bool) -> None:
    config, length = CONFIGS[name](), LENGTHS.prompt + LENGTHS.response
    ids = torch.randint(0, config.vocab_size, (LENGTHS.rollouts, length))
    weights, attention = _performed(config, ids, torch.arange(length), backward)
    counted = repeated(3 if backward else 1)(Shape.of(config), LENGTHS)
    assert counted.weights == weights
    assert counted.attention * 2 * length == attention * (length + 1)  # eager attention computes hidden pairs as well


@pytest.mark.parametrize("backward", [False, True])
def test_shared_prompts_cost_what_torch_performs(backward: bool) -> None:
    config = CONFIGS["llama"]()
    tokens = LENGTHS.prompt + LENGTHS.rollouts * (LENGTHS.response - 1)
    ids = torch.randint(0, config.vocab_size, (1, tokens))
    weights, _ = _performed(config, ids, torch.arange(LENGTHS.prompt - 1, tokens), backward)
    assert shared(3 if backward else 1)(Shape.of(config), LENGTHS).weights == weights


def test_visible_pairs_are_counted_one_by_one() -> None:
    shape = Shape(layers=2, layer_weights=0, head_weights=0, attention_width=8)
    responses = range(LENGTHS.response - 1)
    pairs = sum(place + 1 for place in range(LENGTHS.prompt))
    pairs += LENGTHS.rollouts * sum(LENGTHS.prompt + place + 1 for place in responses)
    assert shared(1)(shape, LENGTHS).attention == 2 * 2 * pairs * 2 * 8


@pytest.mark.parametrize(
    ("workload", "exact", "directional"), [("short", 2.57, 3.85), ("few-shot", 9.67, 14.50), ("long", 1.44, 2.15)]
)
def test_promises(workload: str, exact: float, directional: float) -> None:
    make = MODELS["smollm2"]
    assert make is not None
    shape, lengths = Shape.of(make()), WORKLOADS[workload].lengths
    assert (shape.layer_weights, shape.head_weights, shape.layers) == (3538944, 28311552, 30)
    plain = ARMS["plain"].count(shape, lengths).weights
    assert plain / ARMS["exact"].count(shape, lengths).weights == pytest.approx(exact, abs=0.01)
    assert plain / ARMS["directional"].count(shape, lengths).weights == pytest.approx(directional, abs=0.01)


def test_shapes_hold_the_weights_of_the_models() -> None:
    embedded = LlamaConfig.from_pretrained(EMBEDDED)
    with torch.device("meta"):
        for config in (embedded, *(make() for make in MODELS.values() if make is not None)):
            model, shape = AutoModelForCausalLM.from_config(config), Shape.of(config)
            assert model.model.layers[0].self_attn.q_proj.weight.shape[0] == shape.attention_width
            matrices = sum(p.numel() for p in model.parameters() if p.ndim == 2)  # the head is the embedding, tied
            assert shape.layers * shape.layer_weights + shape.head_weights == matrices


def test_help_names_what_there_is() -> None:
    for option, known in (("model", MODELS), ("workloads", WORKLOADS)):
        assert all(name in (SpeedOptions.model_fields[option].description or "") for name in known)
