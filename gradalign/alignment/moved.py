"""A policy's weights moved along a direction, or made to carry it as tangents; afterwards they are what they were."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch.autograd import forward_ad

from gradalign.alignment.direction import Direction
from gradalign.alignment.sums import inner
from gradalign.policy.load import Policy
from gradalign.policy.shards import local, whole


@contextlib.contextmanager
def movable(policy: Policy, direction: Direction) -> Iterator[Callable[[float], None]]:
    """Yield ``move(h)``, which puts the weights h away from where they were along v/|v|.

    Afterwards, also after an exception, they are what they were bit for bit. Costs a copy of the covered weights.
    """
    with torch.no_grad(), _padding_embedding_held(policy):
        mine = [local(parameter) for parameter in policy.parameters]
        kept = [parameter.detach().clone() for parameter in mine]

        def move(length: float) -> None:
            for parameter, old, unit in zip(mine, kept, direction.unit, strict=True):
                torch.add(old, local(unit).to(old.device), alpha=length, out=parameter)

        try:
            yield move
        finally:
            for parameter, old in zip(mine, kept, strict=True):
                parameter.copy_(old)


@contextlib.contextmanager
def tangent(policy: Policy, direction: Direction) -> Iterator[float]:
    """Inside, the weights carry v/|v| times the yielded factor as their tangents (forward-mode differentiation).

    The factor keeps float16 within its range; it is 1 in other types. Attention that is not packed, and experts, become
    plain arithmetic, since fused kernels have no tangents.
    """
    factor = 1.0
    if policy.dtype == torch.float16:
        weights = [parameter.detach().float() for parameter in policy.parameters]
        factor = 2.0 ** round(math.log2(max(inner(weights, weights) ** 0.5, 1e-3)) - 6)
    configs = {id(c): c for c in (policy.config, policy.config.get_text_config())}.values()
    names = ("_attn_implementation", "_experts_implementation")
    before = [(config, name, getattr(config, name)) for config in configs for name in names if hasattr(config, name)]
    with torch.no_grad(), _padding_embedding_held(policy), forward_ad.dual_level(), _carried(policy, direction, factor):
        try:
            for config, name, _ in before:
                setattr(config, name, "eager")
            yield factor
        finally:
            for config, name, implementation in before:
                setattr(config, name, implementation)


@contextlib.contextmanager
def _carried(policy: Policy, direction: Direction, factor: float) -> Iterator[None]:
    """Inside, the weights carry their tangents: of a policy that is cut, those inside of blocks while these compute."""
    index = {id(parameter): i for i, parameter in enumerate(policy.parameters)}
    own = {
        module: {name: index[id(p)] for name, p in module._parameters.items() if id(p) in index}
        for module in policy.model.modules()
    }
    inside = set() if policy.shards is None else policy.shards.inside()
    plain: dict[tuple[torch.nn.Module, str], torch.nn.Parameter | None] = {}
    lasting: dict[int, torch.Tensor] = {}

    def dual(parameter: torch.Tensor, i: int) -> torch.Tensor:
        unit = whole(direction.unit[i]).to(parameter.device)
        return forward_ad.make_dual(parameter.detach(), (unit * factor if factor != 1 else unit).to(parameter))

    def dress(module: torch.nn.Module, *_: object) -> None:
        for name, i in own[module].items():
            parameter: Any = module._parameters[name]
            made = lasting[i] if i in lasting else dual(parameter, i)
            if id(module) not in inside:
                lasting[i] = made  # one for both uses of a tied matrix
            plain[module, name] = parameter
            module._parameters[name] = cast(torch.nn.Parameter, made)

    def undress(module: torch.nn.Module, *_: object) -> None:
        for name in own[module]:
            module._parameters[name] = plain.pop((module, name))

    with policy.opened(), contextlib.ExitStack() as stack:
        try:
            for module in own:
                if id(module) in inside and own[module]:
                    stack.callback(module.register_forward_pre_hook(dress).remove)
                    stack.callback(module.register_forward_hook(undress, prepend=True).remove)
                else:
                    dress(module)
            yield
        finally:
            for (module, name), parameter in plain.items():
                module._parameters[name] = parameter


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
    with policy.opened():
        held = embedding(torch.tensor([padding], device=policy.device))[0]

    def hold(module: torch.nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        return torch.where((inputs[0] == padding)[..., None], held, output)

    hook = embedding.register_forward_hook(hold)
    try:
        yield
    finally:
        hook.remove()
