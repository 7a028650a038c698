"""Which layers' gradients a sketch is made of.

- ``all``: every covered parameter.
- ``lm-head``: the output layer's use alone, also where its matrix is the input embedding too. Nothing is carried back
  through the trunk: a pass costs a forward pass and the output layer's gradient.
- ``last:K``: the parameters of the last K transformer blocks (not the norm and the output layer behind them); the
  backward pass ends at the first of these.
- ``lora:R``: what LoRA adapters of rank R on all linear layers of the trunk would get in their first step, A random and
  B zero. With h = W x + B A x the gradient by B is G A^T; of G = a^T b it is a^T (b A^T): no adapter is needed. A is
  drawn with variance 1 / R, hence <G A^T, H A^T> is <G, H> in expectation.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from gradalign.alignment.capture import Sink
from gradalign.alignment.passes import Floats, Passes
from gradalign.alignment.projection import gaussian, parsed
from gradalign.errors import GradAlignError
from gradalign.policy.load import Policy
from gradalign.policy.packing import Batch
from gradalign.policy.shards import blocks


@dataclass(frozen=True, slots=True)
class Layers:
    """A choice of layers.

    Attributes:
        kind: ``all``, ``lm-head``, ``last`` or ``lora``.
        number: K or R; 0 for the others.
    """

    kind: str
    number: int

    @classmethod
    def of(cls, text: str) -> Layers:
        """From ``all``, ``lm-head``, ``last:K`` or ``lora:R``.

        Raises:
            GradAlignError: it is none of them.
        """
        return cls(*parsed("layers", text, {"all": "", "lm-head": "", "last": "K", "lora": "R"}))


class Adapter:
    """The side of a linear layer's gradient that a LoRA adapter sees through its A.

    Args:
        matrix: (inputs, R), A transposed.
        transposed: whether the layer's matrix is (inputs, outputs), as GPT-2's are.
    """

    def __init__(self, matrix: torch.Tensor, transposed: bool) -> None:
        self.matrix, self.transposed = matrix, transposed

    def factors(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Those of the gradient by B from those of the layer's own."""
        return (a @ self.matrix, b) if self.transposed else (a, b @ self.matrix)

    def whole(self, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient by B from the layer's own."""
        return self.matrix.t() @ gradient if self.transposed else gradient @ self.matrix

    def shape(self, rows: int, columns: int) -> tuple[int, int]:
        """Of the gradient by B, laid out as the layer's own."""
        rank = self.matrix.shape[1]
        return (rank, columns) if self.transposed else (rows, rank)


class Coverage:
    """The part of a policy that gradients are taken of.

    Args:
        policy: the whole policy.
        layers: which of it.
        seed: of ``lora``.

    Attributes:
        policy: covers these parameters alone.
        places: of these parameters among the whole policy's.
        adapters: of each of these parameters; None where its own gradient is taken.

    Raises:
        GradAlignError: the policy has no such layers.
    """

    def __init__(self, policy: Policy, layers: Layers, seed: int) -> None:
        self.layers = layers
        linear: dict[str, bool] = {}
        if layers.kind == "lora":
            linear = _linear(policy)
            names = list(linear)
        elif layers.kind == "lm-head":
            names = _named(policy, policy.model.get_output_embeddings())
        elif layers.kind == "last":
            names = _named(policy, *_blocks(policy.model, layers.number))
        else:
            names = policy.names
        if not names:
            raise GradAlignError(
                f"layers {layers.kind}: none of the parameters that this policy covers (first: {policy.names[0]}) "
                "belongs to them; take --layers all"
            )
        index = {name: place for place, name in enumerate(policy.names)}
        self.places = [index[name] for name in names]
        size = sum(policy.parameters[place].numel() for place in self.places)
        covered = policy.covered * size / sum(parameter.numel() for parameter in policy.parameters)
        self.policy = dataclasses.replace(policy, names=names, covered=covered)
        self._others = [policy.parameters[place] for name, place in index.items() if name not in set(names)]
        like = torch.empty(0, dtype=policy.reduction_dtype, device=policy.device)
        self.adapters: list[Adapter | None] = [None] * len(names)
        for place, (name, transposed) in enumerate(linear.items()):
            inputs = self.policy.parameters[place].shape[0 if transposed else 1]
            self.adapters[place] = Adapter(gaussian((inputs, layers.number), like, "lora", seed, name), transposed)

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(rows, columns) of the gradients, through adapters where there are some; a vector has one column."""
        made = []
        for parameter, adapter in zip(self.policy.parameters, self.adapters, strict=True):
            rows = parameter.shape[0] if parameter.ndim else 1
            shape = rows, parameter.numel() // rows
            made.append(shape if adapter is None else adapter.shape(*shape))
        return made

    def restricted(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Of one tensor a parameter of the whole policy, those of these."""
        return [tensors[place] for place in self.places]

    def passes(self, temperature: float, packed: bool) -> Passes:
        """Passes over the part alone."""
        return _Passes(self, temperature, packed)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Inside, autograd carries gradients no further than these layers need."""
        for parameter in self._others:
            parameter.requires_grad_(False)
        try:
            with torch.no_grad() if self.layers.kind == "lm-head" else contextlib.nullcontext():
                yield
        finally:
            for parameter in self._others:
                parameter.requires_grad_(True)


class _Passes(Passes):
    """`Passes` over a part of a policy."""

    def __init__(self, coverage: Coverage, temperature: float, packed: bool) -> None:
        with coverage.alone():  # layers are tried out, backward too
            super().__init__(coverage.policy, temperature, packed)
        self.coverage = coverage
        if coverage.layers.kind == "lm-head" and self.capture.head is None:
            raise GradAlignError(
                "layers lm-head: this model's output layer cannot be taken apart from its trunk; take --layers all"
            )

    def run(self, batch: Batch, coefficients: Floats, sink: Sink) -> Floats:
        """See `Passes`."""
        with self.coverage.alone():
            return super().run(batch, coefficients, sink)


def _named(policy: Policy, *modules: torch.nn.Module | None) -> list[str]:
    """Names of the policy's covered parameters that are in one of ``modules``."""
    held = {id(p) for module in modules if module is not None for p in module.parameters()}
    return [name for name, p in zip(policy.names, policy.parameters, strict=True) if id(p) in held]


def _blocks(model: torch.nn.Module, count: int) -> list[torch.nn.Module]:
    """The last ``count`` of the model's blocks.

    Raises:
        GradAlignError: it has fewer.
    """
    found = blocks(model)
    if count > len(found):
        raise GradAlignError(f"layers last:{count}: the model has {len(found)} blocks; take at most so many")
    return found[-count:]


def _linear(policy: Policy) -> dict[str, bool]:
    """Name of each covered matrix of the trunk's linear layers, and whether it is transposed.

    Raises:
        GradAlignError: the policy has an adapter already.
    """
    if hasattr(policy.model, "get_base_model"):
        raise GradAlignError(
            "layers lora: the policy has an adapter of its own, whose parameters --layers all is over; take that"
        )
    names = {id(p): name for name, p in zip(policy.names, policy.parameters, strict=True)}
    head = policy.model.get_output_embeddings()
    found: dict[str, bool] = {}
    for module in policy.model.modules():
        kind: Any = type(module)
        own = names.get(id(module._parameters.get("weight")))
        if module is head or own is None or kind.forward not in (torch.nn.Linear.forward, Conv1D.forward):
            continue
        found[own] = kind.forward is Conv1D.forward
    return {name: found[name] for name in policy.names if name in found}
