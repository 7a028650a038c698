from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gradalign.errors import GradAlignError
from gradalign.policy.load import DTYPES, Policy, cover, load_policy
from gradalign.policy.where import EMBEDDED
from gradalign.problems.embedded import POOLS
from tests.conftest import make_policy


def test_the_embedded_policy_is_an_ordinary_folder_and_small() -> None:
    size = sum(path.stat().st_size for path in EMBEDDED.iterdir())
    assert size < 5_000_000
    by_name, by_folder = load_policy("embedded"), load_policy(str(EMBEDDED))
    assert by_name.fingerprint == by_folder.fingerprint
    assert 500_000 <= sum(p.numel() for p in by_name.parameters) <= 3_000_000
    assert by_name.config.model_type == "llama"


def test_its_tokenizer_spells_every_problem() -> None:
    tokenizer = load_policy("embedded").tokenizer
    from gradalign.problems.embedded import make_pool

    for name in POOLS:
        for problem in make_pool(name, 50, 5):
            assert isinstance(problem.prompt, str)
            ids = tokenizer.encode(problem.prompt)
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids) == problem.prompt


@pytest.mark.parametrize("name", DTYPES)
def test_types(name: str) -> None:
    assert load_policy("embedded", dtype=name).dtype == DTYPES[name]


def test_auto_is_float32_on_a_cpu_whatever_the_checkpoint(tmp_path: Path) -> None:
    load_policy("embedded", dtype="bfloat16").model.save_pretrained(tmp_path)
    assert load_policy(str(tmp_path), device="cpu").dtype == torch.float32


def test_the_fingerprint_depends_on_every_weight() -> None:
    policy = load_policy("embedded")
    before = policy.fingerprint
    with torch.no_grad():
        policy.parameters[-1].view(-1)[-1] += 1e-6
    other = Policy(policy.model, policy.path, policy.names, policy.covered)
    assert other.fingerprint != before


def test_a_model_without_a_tokenizer_says_so(llama_folder: Path) -> None:
    policy = load_policy(str(llama_folder))
    with pytest.raises(GradAlignError, match=r"no tokenizer can be loaded.*which needs none"):
        _ = policy.tokenizer


def test_soft_caps_are_not_left_to_attention_that_knows_none() -> None:
    model = make_policy("gemma2").model
    model.config._attn_implementation = "sdpa"
    assert cover(model).config._attn_implementation == "eager"
    plain = make_policy("llama").model
    before = plain.config._attn_implementation
    assert cover(plain).config._attn_implementation == before
