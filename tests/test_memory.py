"""What the engines keep: nothing of the groups that have passed, and no gradient of a group as large as the model."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gradalign.alignment import sinks
from gradalign.alignment.directional import Directional
from gradalign.alignment.exact import Exact
from gradalign.alignment.record import Numbers
from gradalign.alignment.steps import Step
from gradalign.policy.group import Group, Rollout
from gradalign.policy.load import Policy
from gradalign.policy.objective import Objective
from gradalign.policy.packing import rows_of
from tests.conftest import make_groups, make_policy
from tests.engine_tools import random_direction, random_policy, same_responses

COUNT, WARM = 10_000, 1_000
GROWTH = 30e6
"""Bytes of resident memory by which the last 9,000 of 10,000 groups may add to the first 1,000."""


def tiny(count: int) -> Iterator[Group]:
    """Tiny groups, each with 64 kilobytes that go when it goes: more than half a gigabyte if they were kept."""
    rng = np.random.default_rng(0)
    for index in range(count):
        ids = rng.integers(2, 61, (3, 2))
        heavy = np.ones(2**14, np.float32)
        rollouts = [Rollout(own, float(k % 2), logprobs=heavy) for k, own in enumerate(ids)]
        yield Group(f"g{index}", rng.integers(2, 61, 3), rollouts)


def live_groups() -> int:
    """Groups that have not been freed."""
    return sum(type(thing) is Group for thing in gc.get_objects())


@pytest.mark.parametrize("engine", ["exact", "directional"])
def test_memory_does_not_grow_with_the_number_of_groups(engine: str) -> None:
    policy = make_policy("llama-tied")
    direction = random_direction(policy)
    measure: dict[str, Callable[[Iterator[Group]], Iterator[Numbers]]] = {
        "exact": lambda groups: Exact(policy, Objective(), 512, True).measure(groups, direction),
        "directional": lambda groups: forward_only(policy).measure(groups, direction),
    }
    process, before = psutil.Process(), live_groups()
    base = most = 0
    for index, numbers in enumerate(measure[engine](tiny(COUNT))):
        assert numbers.dot is not None
        if index % 100 == 0:
            most = max(most, process.memory_info().rss)
            base = most if index <= WARM else base
        if index > WARM and index % 1000 == 0:
            assert live_groups() - before < 2 * WARM  # a group, and its distinct responses, of what is under way
    assert index == COUNT - 1
    assert most - base < GROWTH
    gc.collect()
    assert live_groups() - before < 10


def forward_only(policy: Policy) -> Directional:
    engine = Directional(policy, Objective(), 128, True)
    engine.step = Step(0.01, 0.0)
    return engine


def test_groups_that_cancel_do_not_pile_up() -> None:
    policy = make_policy("llama-tied")
    taken = 0

    def groups() -> Iterator[Group]:
        nonlocal taken
        for index in range(5000):
            taken += 1
            yield same_responses(f"g{index}")

    found = Exact(policy, Objective(), 256, True).measure(groups(), random_direction(policy))
    assert next(found).norm == 0
    assert taken <= 257
    assert sum(1 for _ in found) == 4999


class Watch(TorchDispatchMode):
    """Counts the bytes of tensors that were made inside and still live, and the largest of them."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.peak = self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            pointer, size = storage.data_ptr(), storage.nbytes()
            if pointer in self.inputs or pointer in self.live:
                continue
            self.live[pointer] = size
            self.largest = max(self.largest, size)
            weakref.finalize(storage, self.live.pop, pointer, None)
            self.peak = max(self.peak, sum(self.live.values()))
        return result

    inputs: frozenset[int] = frozenset()


class Nothing:
    """A sink that makes nothing of gradients: what is left are activations."""

    def __getattr__(self, kind: str) -> Callable[..., None]:
        return lambda *_: None


def watched(policy: Policy, groups: list[Group], how: str) -> Watch:
    """Memory while groups go through one pass: ``measure``d, their ``gradient`` added up, or with ``nothing`` made."""
    engine, direction = Exact(policy, Objective(), 10**6, True), random_direction(policy)
    batch = engine.passes.lay_out([row for group in groups for row in rows_of(group, 10**6, True)])
    coefficients = np.concatenate([Objective().coefficients(group) for group in groups])
    sink: Any = Nothing()
    work: dict[str, Callable[[], object]] = {
        "measure": lambda: list(engine.measure(groups, direction)),
        "gradient": lambda: engine.add_up(groups),
        "nothing": lambda: engine.passes.run(batch, coefficients, sink),
    }
    watch = Watch()
    owned = [*policy.model.parameters(), *policy.model.buffers(), *direction.unit]
    watch.inputs = frozenset(tensor.untyped_storage().data_ptr() for tensor in owned)
    with watch:
        work[how]()
    return watch


def wide(vocabulary: int, layers: int) -> Policy:
    """Many parameters beside few activations."""
    return random_policy(
        transformers.LlamaConfig(
            vocab_size=vocabulary, hidden_size=128, intermediate_size=512, num_hidden_layers=layers,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=False,
        ),
        torch.float32,
    )  # fmt: skip


@pytest.mark.parametrize("small", [True, False])
def test_no_gradient_as_large_as_the_model_is_formed(small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a pass needs beside activations is about a layer's matrix, whatever the number of layers and groups; of
    matrices that count as small, what some groups' take together."""
    monkeypatch.setitem(sinks.SMALL, "cpu", 2**16 if small else 0)
    monkeypatch.setitem(sinks.TOGETHER, "cpu", 2**17)
    together = 2**17 * 4 if small else 0
    policy = wide(61, 8)
    sizes = [p.numel() * 4 for p in policy.parameters]
    for count in (2, 8):
        groups = make_groups(count, 1, rollouts=2)
        found, activations = watched(policy, groups, "measure"), watched(policy, groups, "nothing")
        assert found.largest <= max(max(sizes), together)
        assert found.peak - activations.peak <= 3 * max(sizes) + together
        added = watched(policy, groups, "gradient")  # what it would be
        assert added.peak - activations.peak >= 0.9 * sum(sizes) > 6 * max(sizes)


def test_an_output_layer_larger_than_the_rest_is_formed_once() -> None:
    """Of several groups one after the other; in blocks of the vocabulary where that is larger than one."""
    policy = wide(9000, 1)
    head = 9000 * 128 * 4
    groups = make_groups(6, 1, rollouts=2)
    found, activations = watched(policy, groups, "measure"), watched(policy, groups, "nothing")
    assert found.largest < head / 2  # blocks
    assert found.peak - activations.peak < head
