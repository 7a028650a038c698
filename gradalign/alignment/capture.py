"""Layer by layer: what a backward pass knows of each covered parameter's gradient, handed to a sink as it passes.

A parameter's gradient over some tokens is a product of what went into its layer and what comes back to it: a^T b for a
matrix, rows added up for an embedding, a sum over tokens for a norm's weight or a bias. Autograd adds such products up
over all tokens of a batch, hence over all groups in it; here the factors are taken instead, and a sink
(`gradalign.alignment.sinks`) makes of them what is wanted of every group. Autograd still carries gradients from layer
to layer, but forms none of a parameter that is captured.

Layers are recognised by what they do (`gradalign.alignment.layers`). Parameters of any other kind are left to autograd,
which can tell groups apart only if it is given one at a time; they are warned of once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch

from gradalign.alignment.layers import Forward, recognise
from gradalign.errors import GradAlignError, warn
from gradalign.policy.group import Group, Rollout
from gradalign.policy.load import Policy
from gradalign.policy.packing import Batch, lay_out, rows_of
from gradalign.policy.trunk import Split, replaced


class Sink(Protocol):
    """What is made of the factors of gradients; ``index`` counts the covered parameters."""

    def matrix(self, index: int, a: torch.Tensor, b: torch.Tensor) -> None:
        """The gradient over a group's slots s is a[s]^T b[s]; (slots, rows) and (slots, columns) of the matrix."""

    def rows(self, index: int, ids: torch.Tensor, d: torch.Tensor) -> None:
        """The gradient over a group's slots s is d[s] added up into rows ids[s]; (slots,), (slots, columns)."""

    def vector(self, index: int, d: torch.Tensor) -> None:
        """The gradient over a group's slots s is the sum of d[s]; (slots, size)."""

    def head(self, index: int, group: int, start: int, a: torch.Tensor, b: torch.Tensor, more: bool) -> None:
        """a^T b belongs to a group's gradient, rows ``start`` on; with ``more``, so do products of later calls."""

    def whole(self, index: int, gradient: torch.Tensor) -> None:
        """The gradient over all slots, which are one group's."""


class _Found:
    """A sink that remembers which parameters autograd differentiates."""

    def __init__(self) -> None:
        self.found: set[int] = set()

    def __getattr__(self, kind: str) -> Any:
        return lambda *_: None

    def whole(self, index: int, gradient: torch.Tensor) -> None:
        """See `Sink`."""
        self.found.add(index)


def _indices(module: torch.nn.Module, index: Mapping[int, int]) -> dict[str, int | None]:
    """A module's own parameters by name: each one's place among the covered ones; None where it is none of them."""
    return {name: index.get(id(p)) for name, p in module._parameters.items() if p is not None}


class Capture:
    """The captured layers of a policy.

    Args:
        policy: the policy.
        packed: how its batches will be laid out.

    Attributes:
        split: the policy's trunk and head.
        head, head_bias: index of the output layer's weight and bias among the covered parameters; None where not.
        tied: index of the matrix that is both input embedding and output layer, where there is one.
        unknown: indices of the parameters that are left to autograd.

    Raises:
        GradAlignError: there are such, and the policy is cut over processes.
    """

    def __init__(self, policy: Policy, packed: bool) -> None:
        self.policy = policy
        self.sink: Sink | None = None
        index = {id(parameter): i for i, parameter in enumerate(policy.parameters)}
        self.own = {module: _indices(module, index) for module in policy.model.modules()}
        self.split = Split(policy)
        if not self._take_in(packed):  # the head's weights are used where only autograd finds them
            self.split.join()
            self._take_in(packed)
        own = self.own[self.split.module] if self.split.module is not None else {}
        self.head, self.head_bias = own.get("weight"), own.get("bias")
        if self.unknown and policy.shards is not None:
            raise GradAlignError(
                f"shard: {len(self.unknown)} parameters (first: {policy.names[self.unknown[0]]}) are in layers of a "
                "kind that gradients are not taken from group by group; leave them out by --parameters, or --shard"
            )
        if self.unknown:
            names = [policy.names[i] for i in self.unknown]
            warn(
                f"{len(names)} parameters (first: {names[0]}) are in layers of a kind that gradients are not taken "
                "from group by group: all groups are computed one at a time"
            )

    def _take_in(self, packed: bool) -> bool:
        """Find the layers to capture; whether the head's gradient can be taken beside them."""
        head = self.split.module
        owners: dict[int, list[torch.nn.Module]] = {i: [] for i in range(len(self.policy.names))}
        layers: dict[torch.nn.Module, Forward] = {}
        with self.policy.opened():
            for module in self.policy.model.modules():
                own = self._own(module)
                for i in own:
                    owners[i].append(module)
                if own and module is not head:
                    forward = recognise(module, self._to_sink, self.own[module])
                    layers |= {} if forward is None else {module: forward}
            batch = self._trial(packed)
            for module in self._not_over_slots(layers, batch):
                del layers[module]
            self.tied: int | None = None
            unknown = self._used_elsewhere(layers, batch)
        for i, modules in owners.items():
            tied = len(modules) == 2 and head in modules and any(isinstance(m, torch.nn.Embedding) for m in modules)
            if tied:
                self.tied = i
            if not modules or not all(m in layers or m is head for m in modules) or (len(modules) > 1 and not tied):
                unknown.add(i)
        grown = -1
        while grown != len(unknown):  # a layer is captured with all of its parameters or not at all
            grown = len(unknown)
            for module in [m for m in layers if unknown & self._own(m)]:
                unknown |= self._own(module)
                del layers[module]
        self.layers, self.unknown = layers, sorted(unknown)
        return head is None or not unknown & self._own(head)

    def _own(self, module: torch.nn.Module) -> set[int]:
        return {index for index in self.own[module].values() if index is not None}

    def _to_sink(self, kind: str, *factors: object) -> None:
        getattr(self.sink, kind)(*factors)

    def _trial(self, packed: bool) -> Batch:
        """A batch of a telling size."""
        ids = np.arange(37) % self.split.vocabulary  # no other size of a model is 37
        group = Group("", ids[:7], [Rollout(ids[7:24], 0.0), Rollout(ids[:15], 1.0)])
        return lay_out(list(rows_of(group, 999, packed)), packed, self.policy.device)

    def _not_over_slots(self, layers: dict[torch.nn.Module, Forward], batch: Batch) -> list[torch.nn.Module]:
        """Layers that are not called exactly once, with every slot in order and nothing else."""
        shape = tuple(batch.input_ids.shape)
        seen: dict[torch.nn.Module, list[tuple[int, ...]]] = {module: [] for module in layers}

        def note(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], named: dict[str, object]) -> None:
            matrix = max(parameter.ndim for parameter in module._parameters.values() if parameter is not None) > 1
            flat = not matrix or (inputs and inputs[0].ndim) == (2 if isinstance(module, torch.nn.Embedding) else 3)
            seen[module].append(tuple(inputs[0].shape[:2]) if flat and len(inputs) == 1 and not named else ())

        hooks = [module.register_forward_pre_hook(note, with_kwargs=True) for module in layers]
        try:
            with torch.no_grad():
                self.split.hidden_states(batch)
        finally:
            for hook in hooks:
                hook.remove()
        return [module for module, shapes in seen.items() if shapes != [shape]]

    def _used_elsewhere(self, layers: dict[torch.nn.Module, Forward], batch: Batch) -> set[int]:
        """Parameters that autograd finds a gradient of although their layers are captured."""
        self.layers, self.unknown = layers, list(range(len(self.policy.names)))
        sink: Any = _Found()
        with self.into(sink):
            hidden = self.split.hidden_states(batch)
            if hidden.requires_grad:
                hidden.backward(torch.ones_like(hidden))
        return sink.found

    @contextlib.contextmanager
    def into(self, sink: Sink) -> Iterator[None]:
        """Inside, backward passes hand all covered parameters' gradients to ``sink``."""
        parameters = self.policy.parameters

        def complete(index: int, parameter: torch.Tensor) -> None:
            gradient, parameter.grad = parameter.grad, None
            if gradient is not None:
                sink.whole(index, gradient)

        self.sink = sink
        for i in self.unknown:
            parameters[i].grad = None
        hooks = [parameters[i].register_post_accumulate_grad_hook(partial(complete, i)) for i in self.unknown]
        try:
            with contextlib.ExitStack() as stack:
                for module, forward in self.layers.items():
                    stack.enter_context(replaced(module, forward))
                yield
        finally:
            self.sink = None
            for hook in hooks:
                hook.remove()
