"""A policy's weights moved along a direction, or made to carry it as tangents; afterwards they are what they were."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator

import torch
from torch.autograd import forward_ad

from gradalign.alignment.direction import Direction
from gradalign.alignment.sums import inner
from gradalign.policy.load import Policy


@contextlib.contextmanager
def movable(policy: Policy, direction: Direction) -> Iterator[Callable[[float], None]]:
    """Yield ``move(h)``, which puts the weights h away from where they were along v/|v|.

    Afterwards, also after an exception, they are what they were bit for bit. Costs a copy of the covered weights.
    """
    with torch.no_grad(), _padding_embedding_held(policy):
        kept = [parameter.detach().clone() for parameter in policy.parameters]

        def move(length: float) -> None:
            for parameter, old, unit in zip(policy.parameters, kept, direction.unit, strict=True):
                torch.add(old, unit.to(old.device), alpha=length, out=parameter)

        try:
            yield move
        finally:
            for parameter, old in zip(policy.parameters, kept, strict=True):
                parameter.copy_(old)


@contextlib.contextmanager
def tangent(policy: Policy, direction: Direction) -> Iterator[float]:
    """Inside, the weights carry v/|v| times the yielded factor as their tangents (forward-mode differentiation).

    The factor keeps float16 within its range; it is 1 in other types. Attention that is not packed becomes plain
    arithmetic, since fused kernels have no tangents.
    """
    factor = 1.0
    if policy.dtype == torch.float16:
        weights = [parameter.detach().float() for parameter in policy.parameters]
        factor = 2.0 ** round(math.log2(max(inner(weights, weights) ** 0.5, 1e-3)) - 6)
    configs = {id(c): c for c in (policy.config, policy.config.get_text_config())}.values()
    implementations = [config._attn_implementation for config in configs]
    with torch.no_grad(), _padding_embedding_held(policy), forward_ad.dual_level():
        duals = {
            id(parameter): forward_ad.make_dual(
                parameter.detach(), (unit.to(parameter.device) * factor if factor != 1 else unit).to(parameter)
            )
            for parameter, unit in zip(policy.parameters, direction.unit, strict=True)
        }
        places = [
            (module, name, parameter)
            for module in policy.model.modules()
            for name, parameter in module._parameters.items()
            if id(parameter) in duals
        ]
        try:
            for module, name, parameter in places:
                module._parameters[name] = duals[id(parameter)]
            for config in configs:
                config._attn_implementation = "eager"
            yield factor
        finally:
            for module, name, parameter in places:
                module._parameters[name] = parameter
            for config, implementation in zip(configs, implementations, strict=True):
                config._attn_implementation = implementation


@contextlib.contextmanager
def _padding_embedding_held(policy: Policy) -> Iterator[None]:
    """Keep the input embedding of the padding token where it is.

    Autograd gives an embedding's ``padding_idx`` no gradient, so training never moves it as an input; where the
    weights are tied to the output layer, moving them would.
    """
    embedding = policy.model.get_input_embeddings()
    padding = getattr(embedding, "padding_idx", None)
    if padding is None:
        yield
        return
    held = embedding(torch.tensor([padding], device=policy.device))[0]

    def hold(module: torch.nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        return torch.where((inputs[0] == padding)[..., None], held, output)

    hook = embedding.register_forward_hook(hold)
    try:
        yield
    finally:
        hook.remove()
