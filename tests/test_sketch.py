"""Engine sketch: against engine exact where it keeps everything, in expectation where it does not."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from gradalign.alignment.direction import Direction
from gradalign.alignment.exact import Exact
from gradalign.alignment.record import Numbers
from gradalign.alignment.sketch import Sketch, Sketching
from gradalign.errors import GradAlignError, GradAlignWarning
from gradalign.policy.group import Group
from gradalign.policy.load import Policy, cover
from gradalign.policy.objective import Objective
from tests.conftest import CONFIGS, make_groups, make_policy
from tests.engine_tools import flat
from tests.test_engines import written_out

OBJECTIVE = Objective("std", "sequence_mean", 0.8)
GROUPS = make_groups(5, 1, masks=True)


def random_direction(policy: Policy, seed: int = 0) -> Direction:
    """A random unit direction."""
    draw = torch.Generator().manual_seed(seed)
    unit = [torch.randn(p.shape, generator=draw).to(policy.reduction_dtype) for p in policy.parameters]
    norm = sum(float((tensor**2).sum()) for tensor in unit) ** 0.5
    return Direction([tensor / norm for tensor in unit], 1.0, 1, 0, 0, None, None)


def sketch(policy: Policy, layers: str = "all", projection: str = "two-sided:64", **options: Any) -> Sketch:
    return Sketch(policy, OBJECTIVE, options.pop("batch_tokens", 100), True, Sketching(layers, projection), **options)


def by_features(engine: Sketch, groups: Sequence[Group] = GROUPS) -> np.ndarray:
    return np.stack(list(engine.features(groups)))


def assert_same(some: Sequence[Numbers], others: Sequence[Numbers], tolerance: float = 1e-5) -> None:
    assert len(some) == len(others) > 0
    for a, b in zip(some, others, strict=True):
        assert b.norm
        assert a.norm == pytest.approx(b.norm, rel=tolerance)
        assert a.dot == pytest.approx(b.dot, abs=tolerance * b.norm)
        assert a.cosine == pytest.approx(b.cosine, abs=tolerance)


@pytest.mark.parametrize("projection", ["two-sided:128", "coordinates:1000000", "none"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_projection_that_keeps_everything_is_exact(name: str, projection: str) -> None:
    policy = make_policy(name)
    direction = random_direction(policy)
    truth = list(Exact(policy, OBJECTIVE, 100, True).measure(GROUPS, direction))
    assert_same(list(sketch(policy, projection=projection).measure(GROUPS, direction)), truth)


@pytest.mark.parametrize("layers", ["all", "lm-head", "last:1", "lora:3"])
@pytest.mark.parametrize("projection", ["two-sided:5", "coordinates:700"])
@pytest.mark.parametrize("name", ["llama", "qwen2-tied", "gpt2", "gemma2"])
def test_features_are_the_projection_of_the_whole_gradient(name: str, projection: str, layers: str) -> None:
    """And the same for any batches, order, and laying out."""
    policy = make_policy(name, torch.float64)
    engine = sketch(policy, layers, projection, batch_tokens=10_000)
    found = by_features(engine)
    size = np.abs(found).max()
    if layers != "lm-head":
        for group, own in zip(GROUPS[:2], found, strict=False):
            gradient = engine.coverage.restricted(written_out(policy, group, OBJECTIVE))
            np.testing.assert_allclose(engine.project(gradient).numpy(), own, atol=1e-9 * size)
    small = by_features(sketch(policy, layers, projection, batch_tokens=17), GROUPS[::-1])[::-1]
    np.testing.assert_allclose(small, found, atol=1e-9 * size)
    padded = Sketch(policy, OBJECTIVE, 60, False, Sketching(layers, projection))
    np.testing.assert_allclose(by_features(padded), found, atol=1e-9 * size)


@pytest.mark.parametrize(
    ("layers", "projection"),
    [("all", "two-sided:4"), ("all", "coordinates:500"), ("lm-head", "two-sided:4"), ("lora:4", "none"),
     ("lora:12", "two-sided:6")],
)  # fmt: skip
def test_inner_products_are_kept_in_expectation(layers: str, projection: str) -> None:
    policy, groups = make_policy("qwen2-tied"), GROUPS[:3]
    exact = by_features(sketch(policy, "lm-head", "two-sided:128"), groups)
    if layers != "lm-head":
        gradients = [written_out(policy, group, OBJECTIVE) for group in groups]
        places = sketch(policy, layers, projection).coverage.places
        exact = np.stack([flat([gradient[place] for place in places]) for gradient in gradients])
    truth = exact @ exact.T
    engines = [sketch(policy, layers, projection, seed=seed) for seed in range(60)]
    made = np.stack([features @ features.T for features in (by_features(engine, groups) for engine in engines)])
    error = made.std(0, ddof=1) / len(made) ** 0.5
    assert (np.abs(made.mean(0) - truth) < 4 * error).all()
    assert (error < 0.5 * np.sqrt(np.outer(np.diag(truth), np.diag(truth)))).all()


@pytest.mark.parametrize("name", ["llama", "llama-tied", "gpt2", "gemma2"])
def test_lm_head_is_the_output_layers_use_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make_policy(name, torch.float64)
    direction = random_direction(policy)
    head = policy.model.get_output_embeddings()
    place = next(i for i, p in enumerate(policy.parameters) if p is head.weight)
    along = direction.unit[place] / direction.unit[place].norm()
    tied = head.weight
    head.weight = torch.nn.Parameter(tied.detach().clone())  # untied: autograd gives the output layer's use
    untied = cover(policy.model, name)
    truth = []
    for group in GROUPS:
        index = next(i for i, p in enumerate(untied.parameters) if p is head.weight)
        gradient = written_out(untied, group, OBJECTIVE)[index]
        dot, norm = float((gradient * along).sum()), float(gradient.norm())
        truth.append(Numbers(dot=dot, norm=norm, cosine=dot / norm))
    head.weight = tied
    engines = [sketch(policy, "lm-head", projection) for projection in ("none", "two-sided:128")]
    monkeypatch.setattr(torch.Tensor, "backward", None)  # nothing goes back through the trunk
    for engine in engines:
        assert_same(list(engine.measure(GROUPS, direction)), truth, 1e-9)
    assert all(p.requires_grad for p in policy.parameters)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_last_blocks_are_exact_over_the_same_parameters(name: str) -> None:
    whole = make_policy(name)
    direction = random_direction(whole)
    found = sketch(whole, "last:1", "none")
    made = (
        list(found.measure(GROUPS, direction)),
        list(sketch(whole, "last:1", "two-sided:128").measure(GROUPS, direction)),
    )
    part = cover(whole.model, name, ["*h.1.*", "*layers.1.*"])
    assert found.coverage.policy.names == part.names
    assert found.coverage.policy.covered == pytest.approx(part.covered)
    unit = [direction.unit[whole.names.index(n)] for n in part.names]
    norm = sum(float((tensor**2).sum()) for tensor in unit) ** 0.5
    along = dataclasses.replace(direction, unit=[tensor / norm for tensor in unit])
    truth = list(Exact(part, OBJECTIVE, 100, True).measure(GROUPS, along))
    for own in made:
        assert_same(own, truth)


@pytest.mark.parametrize("name", ["qwen2-tied", "gpt2"])
def test_lora_is_the_gradient_by_b_of_a_fresh_adapter(name: str) -> None:
    policy = make_policy(name, torch.float64)
    engine = sketch(policy, "lora:4", "none")
    found = by_features(engine)
    names = [n.removesuffix(".weight") for n in engine.coverage.policy.names]
    torch.manual_seed(0)
    settings = LoraConfig(r=4, lora_alpha=4, target_modules=names, fan_in_fan_out=name == "gpt2")
    adapted = get_peft_model(policy.model, settings)
    modules = dict(adapted.get_base_model().named_modules())
    for layer, adapter in zip(names, engine.coverage.adapters, strict=True):
        assert adapter is not None
        with torch.no_grad():
            modules[layer].lora_A["default"].weight.copy_(adapter.matrix.t())
    own = cover(adapted)
    by_b = {n: i for i, n in enumerate(own.names) if "lora_B" in n}
    assert len(by_b) == len(names)
    for group, features in zip(GROUPS, found, strict=True):
        gradient = written_out(own, group, OBJECTIVE)
        parts = [gradient[next(i for n, i in by_b.items() if f".{layer}.lora_B" in n)] for layer in names]
        flat_ = [
            (g.t() if a is not None and a.transposed else g)
            for g, a in zip(parts, engine.coverage.adapters, strict=True)
        ]
        np.testing.assert_allclose(features, flat([t.contiguous() for t in flat_]), atol=1e-9)


def test_an_adapter_of_its_own_is_sketched_and_takes_no_other() -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"]())
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    policy = cover(adapted.eval())
    direction = random_direction(policy)
    truth = list(Exact(policy, OBJECTIVE, 100, True).measure(GROUPS, direction))
    assert_same(list(sketch(policy, projection="two-sided:128").measure(GROUPS, direction)), truth)
    assert len(sketch(policy, "last:1").coverage.policy.names) == 4
    with pytest.raises(GradAlignError, match="the policy has an adapter of its own"):
        sketch(policy, "lora:2")
    with pytest.raises(GradAlignError, match="none of the parameters that this policy covers"):
        sketch(policy, "lm-head")


@pytest.mark.parametrize("layers", ["all", "lm-head", "lora:4"])
def test_bfloat16(layers: str) -> None:
    wide, short = make_policy("llama-tied"), make_policy("llama-tied", torch.bfloat16)
    found = by_features(sketch(short, layers, "two-sided:6"))
    truth = by_features(sketch(wide, layers, "two-sided:6"))
    assert found.dtype == np.float32
    assert np.linalg.norm(found - truth) < 0.1 * np.linalg.norm(truth)


def test_layers_of_unknown_kinds_come_one_group_at_a_time() -> None:
    class Odd(torch.nn.Module):
        def __init__(self, size: int) -> None:
            super().__init__()
            self.mix = torch.nn.Parameter(torch.eye(size) + 0.1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.einsum("...i,ij->...j", x, self.mix)

    model = make_policy("llama").model
    model.model.norm = torch.nn.Sequential(model.model.norm, Odd(32))
    policy = cover(model)
    direction = random_direction(policy)
    with pytest.warns(GradAlignWarning, match="one at a time"):
        engine, exact = sketch(policy, projection="two-sided:128"), Exact(policy, OBJECTIVE, 100, True)
    assert_same(list(engine.measure(GROUPS, direction)), list(exact.measure(GROUPS, direction)))


def test_the_seed_decides() -> None:
    policy = make_policy("llama")
    for layers, projection in (("all", "two-sided:4"), ("all", "coordinates:50"), ("lora:2", "none")):
        one, again, other = (by_features(sketch(policy, layers, projection, seed=seed)) for seed in (0, 0, 1))
        np.testing.assert_array_equal(one, again)
        assert np.abs(one - other).max() > 1e-3 * np.abs(one).max()


def test_a_group_whose_gradient_cancels() -> None:
    group = GROUPS[0]
    rollouts = [dataclasses.replace(group.rollouts[0], reward=float(reward)) for reward in (0, 1, 0, 1)]
    silent = Group("silent", group.prompt_ids, rollouts)
    policy = make_policy("llama")
    found = list(sketch(policy).measure([group, silent], random_direction(policy)))
    assert found[0].norm
    assert (found[1].dot, found[1].norm, found[1].cosine) == (0.0, 0.0, 0.0)


def test_it_says_how_it_agrees() -> None:
    policy, groups = make_policy("llama"), make_groups(20, 3, rollouts=8)
    direction = random_direction(policy)
    found = sketch(policy, projection="two-sided:128").check(groups, direction)
    assert (found.covered, found.checked) == (1.0, 16)
    assert found.exact == pytest.approx(1)
    assert found.itself == pytest.approx(1)
    head = sketch(policy, "lm-head", "none").check(groups, direction)
    assert head.exact is not None
    assert (head.dimension, head.itself) == (None, None)
    assert head.exact < 0.99
    with pytest.warns(GradAlignWarning, match="its rankings are mostly chance"):
        poor = sketch(policy, projection="coordinates:3").check(groups, direction)
    assert (poor.dimension, poor.checked) == (3, 16)
    assert sketch(policy).check(groups[:7], direction).exact is None


def test_the_backward_pass_ends_at_the_first_block_asked_for() -> None:
    policy, carried = make_policy("llama"), list[bool]()
    for block in policy.model.model.layers:
        block.register_forward_hook(lambda module, inputs, output: carried.append(output.requires_grad))
    engine = sketch(policy, "last:1")
    carried.clear()
    list(engine.features(GROUPS[:1]))
    assert carried == [False, True]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"layers": "lmhead"},
            r"layers 'lmhead' is unknown; did you mean 'lm-head'\? \(known: all, lm-head, last:K, lora:R\)",
        ),
        ({"layers": "last"}, "layers 'last': K must be a whole number of at least 1, as in last:8"),
        ({"layers": "lora:0"}, "layers 'lora:0': R must be"),
        ({"layers": "all:3"}, "layers 'all:3': all takes no number"),
        ({"projection": "twosided:8"}, r"did you mean 'two-sided'\?"),
        ({"projection": "two-sided:-1"}, "R must be a whole number of at least 1"),
        ({"projection": "coordinates:many"}, "N must be a whole number of at least 1"),
        ({"projection": "none", "store": "x"}, "cannot hold unprojected gradients"),
        ({"gram": True}, "name one by --store"),
    ],
)
def test_choices_that_cannot_be(options: dict[str, Any], said: str) -> None:
    with pytest.raises(GradAlignError, match=said):
        Sketching(**options)


def test_layers_that_a_model_has_not() -> None:
    with pytest.raises(GradAlignError, match="layers last:3: the model has 2 blocks; take at most so many"):
        sketch(make_policy("llama"), "last:3")
    policy = make_policy("llama")
    still = dataclasses.replace(random_direction(policy), unit=[torch.zeros_like(p) for p in policy.parameters])
    with pytest.raises(GradAlignError, match="layers lm-head: the direction does not move them"):
        list(sketch(policy, "lm-head").measure(GROUPS, still))
