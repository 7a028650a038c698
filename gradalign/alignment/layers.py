"""Layers whose parameters' gradients are products of few factors, and forwards that hand these factors on.

Recognised by what they do, not by name: linear layers, GPT-2's transposed ones, embeddings (scaled ones too), and
modules that scale or shift elementwise (norms of any kind).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from gradalign.policy.shards import whole

Forward = Callable[..., torch.Tensor]
Hand = Callable[..., None]
"""Called with a kind of `gradalign.alignment.capture.Sink` and its arguments."""


def recognise(module: torch.nn.Module, hand: Hand, own: Mapping[str, int | None]) -> Forward | None:
    """A forward for ``module`` that does the same and hands its factors on in the backward pass; None if not known.

    Args:
        module: the layer.
        hand: takes the factors.
        own: the module's parameters by name: the place of each among the covered ones, None where it is none of them.
    """
    kind: Any = type(module)
    if "forward" in module.__dict__:  # somebody else's
        return None
    if kind.forward is torch.nn.Linear.forward:
        return partial(_linear, module, hand, own["weight"], own.get("bias"), False)
    if kind.forward is Conv1D.forward:
        return partial(_linear, module, hand, own["weight"], own.get("bias"), True)
    if isinstance(module, torch.nn.Embedding):
        factor = _factor(module)
        weight = own["weight"]
        return None if factor is None or weight is None else partial(_embedding, module, hand, weight, factor)
    if kind.forward is torch.nn.LayerNorm.forward:
        return partial(_normalised, module, hand, own, F.layer_norm)
    if kind.forward is torch.nn.RMSNorm.forward:
        return partial(_normalised, module, hand, own, F.rms_norm)
    return partial(_elementwise, module, hand, own) if _is_elementwise(module) else None


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, transposed: bool, hand: Hand,
        indices: tuple[int | None, int | None],
    ) -> torch.Tensor:  # fmt: skip
        ctx.save_for_backward(x, weight)
        ctx.transposed, ctx.hand, ctx.indices = transposed, hand, indices
        if transposed and bias is not None:  # as Conv1D has it, to the last bit
            return torch.addmm(bias, x.flatten(0, -2), weight).unflatten(0, x.shape[:-1])
        return F.linear(x, weight.t() if transposed else weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        d = gradients[0]
        weight, inputs = weight.to(d.dtype), x.to(d.dtype).flatten(0, 1)  # mixed precision: as autocast has it
        back = None
        if ctx.needs_input_grad[0]:
            back = (d @ (weight.t() if ctx.transposed else weight)).to(x.dtype)
        d = d.flatten(0, 1)
        matrix, vector = ctx.indices
        if matrix is not None:
            ctx.hand("matrix", matrix, *((inputs, d) if ctx.transposed else (d, inputs)))
        if vector is not None:
            ctx.hand("vector", vector, d)
        return back, None, None, None, None, None


def _linear(
    module: Any, hand: Hand, weight: int | None, bias: int | None, transposed: bool, x: torch.Tensor
) -> torch.Tensor:
    return _Linear.apply(x, module.weight, module.bias, transposed, hand, (weight, bias))


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: torch.Tensor, ids: torch.Tensor, looked_up: torch.Tensor, padding: int | None, hand: Hand,
        index: int, factor: float,
    ) -> torch.Tensor:  # fmt: skip
        ctx.save_for_backward(ids)
        ctx.padding, ctx.hand, ctx.index, ctx.factor = padding, hand, index, factor
        return looked_up.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[None, ...]:
        (ids,) = ctx.saved_tensors
        d, ids = gradients[0].flatten(0, 1), ids.flatten()
        if ctx.factor != 1:
            d = d * ctx.factor
        if ctx.padding is not None:
            d = torch.where((ids == ctx.padding)[:, None], 0, d)
        ctx.hand("rows", ctx.index, ids, d)
        return None, None, None, None, None, None, None


def _embedding(module: Any, hand: Hand, index: int, factor: float, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        looked_up = type(module).forward(module, ids)
    return _Embedding.apply(module.weight, ids, looked_up, module.padding_idx, hand, index, factor)


def _factor(module: torch.nn.Embedding) -> float | None:
    """What an embedding multiplies its rows by; None where it does anything else."""
    if module.max_norm is not None or module.scale_grad_by_freq or module.sparse:
        return None
    if type(module).forward is torch.nn.Embedding.forward:
        return 1.0
    with torch.no_grad():
        ids = torch.arange(min(8, module.num_embeddings), device=module.weight.device)[None]
        try:
            rows, given = whole(module.weight)[ids].double(), module(ids).double()
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
            return None
        if given.shape != rows.shape or not (rows != 0).any():
            return None
        factor = float((given * rows).sum() / (rows * rows).sum())
        tolerance = 4 * torch.finfo(module.weight.dtype).eps
        return factor if torch.allclose(given, factor * rows, rtol=tolerance, atol=tolerance) else None


class _Spread(torch.autograd.Function):
    """A vector as if every slot had one of its own."""

    @staticmethod
    def forward(ctx: Any, vector: torch.Tensor, lead: torch.Size, hand: Hand, index: int) -> torch.Tensor:
        ctx.hand, ctx.index = hand, index
        return vector.expand(*lead, *vector.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[None, ...]:
        ctx.hand("vector", ctx.index, _of_slots(gradients[0]))
        return None, None, None, None


def _of_slots(d: torch.Tensor) -> torch.Tensor:
    """(slots, size) from (.., .., size) or, added up over heads, (.., .., heads, size)."""
    d = d.flatten(0, 1)
    return d.flatten(1, -2).sum(1) if d.ndim > 2 else d


def _spread(
    module: torch.nn.Module, hand: Hand, own: Mapping[str, int | None], lead: torch.Size
) -> dict[str, torch.Tensor]:
    """A module's parameters, the covered ones spread over the slots."""
    spread = {}
    for name, index in own.items():
        parameter = module._parameters[name]
        assert parameter is not None
        spread[name] = parameter if index is None else _Spread.apply(parameter, lead, hand, index)
    return spread


class _Norm(torch.autograd.Function):
    """torch's own norms, whose kernels take no weights for each slot."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, normalise: Callable[..., torch.Tensor], hand: Hand, own: Mapping[str, int | None],
        *parameters: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        ctx.save_for_backward(x, *parameters)
        ctx.normalise, ctx.hand, ctx.own = normalise, hand, own
        return normalise(x, **dict(zip(own, parameters, strict=True)))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, *parameters = ctx.saved_tensors
        made, d = dict(zip(ctx.own, parameters, strict=True)), gradients[0]
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            y = ctx.normalise(x)
        back = torch.autograd.grad(y, x, (d * made["weight"]).to(y.dtype))[0] if ctx.needs_input_grad[0] else None
        for name, index in ctx.own.items():
            if index is not None:
                ctx.hand("vector", index, _of_slots(d * y.detach() if name == "weight" else d))
        return back, *(None for _ in range(3 + len(parameters)))


def _normalised(module: Any, hand: Hand, own: Mapping[str, int | None], normalise: Forward, x: torch.Tensor) -> Any:
    normalise = partial(normalise, normalized_shape=module.normalized_shape, eps=module.eps)
    return _Norm.apply(x, normalise, hand, own, *(module._parameters[name] for name in own))


def _elementwise(module: torch.nn.Module, hand: Hand, own: Mapping[str, int | None], x: torch.Tensor) -> Any:
    plain = module.__dict__.pop("forward")  # ours; functional_call is to find the module's own
    try:
        return functional_call(module, _spread(module, hand, own, x.shape[:-1]), (x,))
    finally:
        module.__dict__["forward"] = plain


def _is_elementwise(module: torch.nn.Module) -> bool:
    """Whether a module takes its parameters along the last dimension, and a copy of them for each slot as well."""
    shapes = {p.shape for p in module._parameters.values() if p is not None}
    if len(shapes) != 1 or len(size := shapes.pop()) != 1 or next(module.children(), None) is not None:
        return False
    parameters = {name: whole(p) for name, p in module._parameters.items() if p is not None}
    some = next(iter(parameters.values()))
    x = torch.linspace(-2, 3, 2 * 3 * size[0], device=some.device).to(some.dtype).view(2, 3, size[0]).sin()
    try:
        with torch.no_grad():
            plain = functional_call(module, parameters, (x,))
            copies = {name: p.expand(x.shape).clone() for name, p in parameters.items()}
            spread = functional_call(module, copies, (x,))
            for copy in copies.values():
                copy[0, 0] += 1
            moved = functional_call(module, copies, (x,))
    except (RuntimeError, TypeError, ValueError, IndexError):
        return False
    same = isinstance(plain, torch.Tensor) and plain.shape == x.shape and torch.equal(plain, spread)
    return same and torch.equal(plain.flatten(0, 1)[1:], moved.flatten(0, 1)[1:])
