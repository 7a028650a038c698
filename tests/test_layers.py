"""Engine exact against the reference over layers of any kind, put into a policy."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from gradalign.alignment.capture import Capture
from gradalign.alignment.exact import Exact
from gradalign.alignment.reference import Reference
from gradalign.policy.load import Policy, cover
from tests.conftest import make_groups, make_policy
from tests.engine_tools import OBJECTIVE, exact_against_reference, random_direction


def with_layer(layer: torch.nn.Module) -> Policy:
    """A policy with a further layer behind its last norm."""
    model = make_policy("llama-tied", torch.float64).model
    model.model.norm = torch.nn.Sequential(model.model.norm, layer.double())
    return cover(model, "llama")


class Heads(torch.nn.Module):
    """One layer for all heads."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layer(x.unflatten(-1, (4, 8))).flatten(-2)


class Twice(torch.nn.Module):
    """One layer called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layer(torch.tanh(self.layer(x)))


class Elsewhere(torch.nn.Module):
    """A layer whose weight is also used without it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + torch.nn.functional.linear(torch.tanh(x), self.layer.weight)


class Shared(torch.nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = torch.nn.Linear(32, 32), torch.nn.Linear(32, 32)
        self.other.weight = self.one.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.one(x) + self.other(torch.tanh(x))


class Odd(torch.nn.Module):
    """Parameters of other shapes, used in other ways."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(32))
        self.scale = torch.nn.Parameter(torch.tensor(1.5))
        self.three = torch.nn.Parameter(torch.randn(2, 4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed = torch.einsum("bsgi,gij->bsgj", x[..., :8].unflatten(-1, (2, 4)), self.three).flatten(-2)
        return x * torch.nn.functional.normalize(self.weight, dim=0) * self.scale + mixed.repeat(1, 1, 4)


class TwoInputs(torch.nn.Module):
    """A norm that is also given a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = Gated()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x, torch.sigmoid(x))


class Gated(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(32))

    def forward(self, x: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
        return x * self.weight * (1 if gate is None else gate)


class OneFactor(torch.nn.Module):
    """A parameter of size one."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([0.7]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.nn.functional.softplus(self.weight)


LAYERS: dict[str, tuple[Callable[[], torch.nn.Module], bool]] = {
    "linear, no bias": (lambda: torch.nn.Linear(32, 32, bias=False), True),
    "layer norm": (lambda: torch.nn.LayerNorm(32), True),
    "layer norm without bias": (lambda: torch.nn.LayerNorm(32, bias=False), True),
    "torch's RMS norm": (lambda: torch.nn.RMSNorm(32), True),
    "one factor": (OneFactor, True),
    "layer norm of heads": (lambda: Heads(torch.nn.LayerNorm(8)), True),
    "linear layer of heads": (lambda: Heads(torch.nn.Linear(8, 8)), False),
    "layer norm over heads": (lambda: Heads(torch.nn.LayerNorm((4, 8))), False),
    "a layer called twice": (Twice, False),
    "a weight used elsewhere": (Elsewhere, False),
    "a weight in two layers": (Shared, False),
    "odd parameters": (Odd, False),
    "a layer with two inputs": (TwoInputs, False),
}


@pytest.mark.filterwarnings("ignore::gradalign.errors.GradAlignWarning")
@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_any_kind(name: str) -> None:
    torch.manual_seed(3)
    make, captured = LAYERS[name]
    policy = with_layer(make())
    for parameter in policy.model.model.norm[1].parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    assert exact_against_reference(policy, make_groups(4, 1)) < 1e-8
    assert (not Capture(policy, True).unknown) == captured


@pytest.mark.filterwarnings("ignore::gradalign.errors.GradAlignWarning")
def test_gradients_that_were_there_before_are_not_counted() -> None:
    torch.manual_seed(3)
    policy = with_layer(Odd())
    groups, direction = make_groups(3, 1), random_direction(policy)
    for parameter in policy.parameters:
        parameter.grad = torch.ones_like(parameter)
    found = [n.norm for n in Exact(policy, OBJECTIVE, 4096, True).measure(groups, direction)]
    assert found == pytest.approx([n.norm for n in Reference(policy, OBJECTIVE).measure(groups, direction)], rel=1e-9)


EMBEDDINGS: dict[str, dict[str, float | int | bool]] = {
    "plain": {},
    "a padding row": {"padding_idx": 4},
    "rows rescaled as they are used": {"max_norm": 0.5},
}


@pytest.mark.filterwarnings("ignore::gradalign.errors.GradAlignWarning")
@pytest.mark.parametrize("kind", EMBEDDINGS)
@pytest.mark.parametrize("name", ["llama", "llama-tied"])
def test_embeddings_of_any_kind(name: str, kind: str) -> None:
    policy = make_policy(name, torch.float64)
    for key, value in EMBEDDINGS[kind].items():
        setattr(policy.model.get_input_embeddings(), key, value)
    if kind.startswith("rows"):  # rescaled in place: once, before anything is measured
        policy.model.get_input_embeddings()(torch.arange(61)[None])
    groups = make_groups(4, 1)
    assert any(4 in rollout.response_ids[:-1] for group in groups for rollout in group.rollouts)
    assert exact_against_reference(policy, groups, 4096, 15) < 1e-8
    assert (not Capture(policy, True).unknown) == (kind in ("plain", "a padding row"))


class Scaled(torch.nn.Embedding):
    """As in Gemma3."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) * 5.5


class Shifted(torch.nn.Embedding):
    """As in OPT: its ids count from elsewhere."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward((input + 1) % self.num_embeddings)


@pytest.mark.filterwarnings("ignore::gradalign.errors.GradAlignWarning")
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("kind", "captured"), [(Scaled, True), (Shifted, False)])
def test_embeddings_that_do_something_else_as_well(kind: type[torch.nn.Embedding], captured: bool, tied: bool) -> None:
    model = make_policy("llama-tied" if tied else "llama", torch.float64).model
    own = kind(61, 32).double()
    own.weight = model.get_input_embeddings().weight
    model.set_input_embeddings(own)
    policy = cover(model, "llama")
    assert exact_against_reference(policy, make_groups(4, 1), 4096, 15) < 1e-8
    assert (not Capture(policy, True).unknown) == captured


class Alternating(torch.nn.Module):
    """A layer that only some tokens go through, and only sometimes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        chosen = x[..., 0] > 0
        y = x.clone()
        y[chosen] = x[chosen] + self.layer(x[chosen])
        return y


@pytest.mark.filterwarnings("ignore::gradalign.errors.GradAlignWarning")
def test_tokens_that_are_routed() -> None:
    torch.manual_seed(3)
    policy = with_layer(Alternating())
    assert exact_against_reference(policy, make_groups(4, 1), 4096, 15) < 1e-8
    assert len(Capture(policy, True).unknown) == 2
