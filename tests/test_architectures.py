"""Engine exact against the reference over architectures, layer kinds and choices of parameters, in float64."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers

from gradalign.alignment.exact import Exact
from gradalign.errors import GradAlignWarning
from gradalign.policy.load import cover
from tests.conftest import VOCABULARY, _common, make_groups, make_policy
from tests.engine_tools import OBJECTIVE, exact_against_reference, random_direction, random_policy

ONE_AT_A_TIME = "all groups are computed one at a time"
NOT_PACKED = "cannot share a group's prompt"


def _of(name: str, **more: Any) -> Callable[[], Any]:
    def made() -> Any:
        return getattr(transformers, name)(**_common(**more))

    return made


def _plain(name: str, **options: Any) -> Callable[[], Any]:
    return lambda: getattr(transformers, name)(vocab_size=VOCABULARY, **options)


GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "bos_token_id": None, "eos_token_id": 1}
LOCAL = ["sliding_attention", "full_attention"]
EXPERTS = {"num_experts": 4, "moe_intermediate_size": 16, "num_experts_per_tok": 2}
CAPTURED: dict[str, Callable[[], Any]] = {
    "qwen3": _of("Qwen3Config", head_dim=8),  # norms over heads
    "cohere": _of("CohereConfig"),  # scaled logits, parallel blocks
    "cohere2": _of("Cohere2Config", sliding_window=8),
    "granite": _of("GraniteConfig", embedding_multiplier=3.0, residual_multiplier=0.5, logits_scaling=2.0),
    "phi": _of("PhiConfig"),  # rotates a part of the head, the output layer has a bias
    "phi3": _of("Phi3Config", pad_token_id=0),
    "olmo2": _of("Olmo2Config"),
    "stablelm": _of("StableLmConfig", use_qkv_bias=True),
    "gpt-neox": _of("GPTNeoXConfig"),
    "starcoder2": _of("Starcoder2Config"),
    "gpt-bigcode": _plain("GPTBigCodeConfig", **GPT),
    "mistral beyond its window": _of("MistralConfig", sliding_window=8),
    "glm4": _of("Glm4Config", head_dim=8, pad_token_id=0),
    "persimmon": _of("PersimmonConfig"),
    "smollm3": _of("SmolLM3Config", pad_token_id=0),
    "lfm2 with attention alone": _of("Lfm2Config"),
}
"""Every parameter is captured, prompts are shared."""
PARTLY: dict[str, Callable[[], Any]] = {
    "gemma3": _of("Gemma3TextConfig", head_dim=8, pad_token_id=0, sliding_window=8, layer_types=LOCAL),
    "mixtral": _of("MixtralConfig", num_local_experts=4),
    "qwen2-moe": _of("Qwen2MoeConfig", shared_expert_intermediate_size=32, **EXPERTS),
    "qwen3-moe": _of("Qwen3MoeConfig", head_dim=8, **EXPERTS),
    "cohere with norms over heads": _of("CohereConfig", use_qk_norm=True),
    "stablelm with norms over heads": _of("StableLmConfig", qk_layernorm=True),
    "apertus": _of("ApertusConfig"),  # an activation with two parameters of size one
    "opt": _plain(  # its logits are not made apart
        "OPTConfig", hidden_size=32, word_embed_proj_dim=16, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128, do_layer_norm_before=False,
    ),
    "biogpt": _of("BioGptConfig"),
}  # fmt: skip
"""Prompts are shared, some parameters are left to autograd."""
ALONE: dict[str, Callable[[], Any]] = {
    "bloom": _plain("BloomConfig", hidden_size=32, n_layer=2, n_head=4),
    "mpt": _plain("MptConfig", d_model=32, n_layers=2, n_heads=4),
    "gpt-j": _plain("GPTJConfig", rotary_dim=4, **GPT),
    "gpt-neo beyond its window": _plain(
        "GPTNeoConfig", hidden_size=32, num_layers=2, attention_types=[[["global", "local"], 1]], num_heads=4,
        window_size=8, max_position_embeddings=128, bos_token_id=None, eos_token_id=1,
    ),
    "openai-gpt": _plain("OpenAIGPTConfig", n_embd=32, n_layer=2, n_head=4, n_positions=128),
}  # fmt: skip
"""Every parameter is captured, prompts are not shared."""
RECURRENT: dict[str, Callable[[], Any]] = {
    "mamba": _plain("MambaConfig", hidden_size=32, state_size=4, num_hidden_layers=2, eos_token_id=1, pad_token_id=0),
    "mamba2": _plain(
        "Mamba2Config", hidden_size=32, state_size=4, num_hidden_layers=1, num_heads=8, head_dim=8, n_groups=2,
        eos_token_id=1, pad_token_id=0, chunk_size=8,
    ),
    "rwkv": _plain(
        "RwkvConfig", hidden_size=32, num_hidden_layers=2, attention_hidden_size=32, intermediate_size=64
    ),
    "recurrent-gemma": _plain(
        "RecurrentGemmaConfig", hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        lru_width=32, attention_window_size=64,
    ),
    "lfm2": _of("Lfm2Config", layer_types=["conv", "full_attention"]),
    "gpt-oss": _of("GptOssConfig", head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=8),
    "falcon": _plain("FalconConfig", hidden_size=32, num_hidden_layers=2, num_attention_heads=4),
}  # fmt: skip
"""Some parameters are left to autograd, prompts are not shared."""
VARYING: dict[str, Callable[[], Any]] = {
    "ctrl": _plain("CTRLConfig", n_embd=32, dff=64, n_layer=2, n_head=4, n_positions=128),
    "nemotron": _of("NemotronConfig"),
}
"""Their prompts are shared by later versions of transformers alone."""


def check(make: Callable[[], Any], *expected: str) -> None:
    """Exact is the reference, and says exactly what is ``expected``, each of it once."""
    policy = random_policy(make())
    assert policy.covered == 1.0
    groups = make_groups(4, 1, rollouts=4, masks=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert exact_against_reference(policy, groups, 4096, 15) < 1e-8  # all in one pass; a group over several
    said = {str(w.message) for w in caught if issubclass(w.category, GradAlignWarning)}
    assert len(said) == len(expected), said
    assert all(any(part in message for message in said) for part in expected), said


@pytest.mark.parametrize("name", CAPTURED)
def test_all_layers_are_captured_and_prompts_shared(name: str) -> None:
    check(CAPTURED[name])


@pytest.mark.parametrize("name", PARTLY)
def test_unknown_layers_are_left_to_autograd(name: str) -> None:
    check(PARTLY[name], ONE_AT_A_TIME)


@pytest.mark.parametrize("name", ALONE)
def test_attention_that_is_not_led_is_not_packed(name: str) -> None:
    check(ALONE[name], NOT_PACKED)


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_states_are_not_packed(name: str) -> None:
    check(RECURRENT[name], ONE_AT_A_TIME, NOT_PACKED)


@pytest.mark.filterwarnings("ignore::gradalign.errors.GradAlignWarning")
@pytest.mark.parametrize("name", VARYING)
def test_attention_that_may_be_led(name: str) -> None:
    assert exact_against_reference(random_policy(VARYING[name]()), make_groups(4, 1, rollouts=4), 4096, 15) < 1e-8


def test_unknown_layers_are_warned_of_once_an_engine() -> None:
    policy = random_policy(PARTLY["mixtral"]())
    with pytest.warns(GradAlignWarning, match=ONE_AT_A_TIME) as caught:
        list(Exact(policy, OBJECTIVE, 64, True).measure(make_groups(5, 1), random_direction(policy)))
    assert len(caught) == 1


PATTERNS = {
    "the output layer": ["*lm_head*"],
    "embeddings": ["*embed_tokens*"],
    "the first block": ["*layers.0.*"],
    "the last block": ["*layers.1.*"],
    "norms": ["*norm*"],
    "biases": ["*bias"],
    "queries and the output layer": ["*q_proj*", "*lm_head*"],
}


@pytest.mark.parametrize("name", ["qwen2", "qwen2-tied", "phi", "gemma"])
@pytest.mark.parametrize("chosen", PATTERNS)
def test_chosen_parameters(name: str, chosen: str) -> None:
    policy = random_policy(CAPTURED[name]()) if name in CAPTURED else make_policy(name, torch.float64)
    present = [n for n in policy.names if any(pattern.strip("*") in n for pattern in PATTERNS[chosen])]
    if not present:  # a tied output layer goes by its embedding's name; no biases
        assert name in ("qwen2-tied", "gemma")
        return
    part = cover(policy.model, name, PATTERNS[chosen])
    assert 0 < part.covered < 1
    assert exact_against_reference(part, make_groups(3, 1, masks=True), 4096, 15) < 1e-8
