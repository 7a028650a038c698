"""A policy's forward pass in two parts: the trunk up to the last hidden states, and the head that makes logits of them.

Between the two, logits can be made where they are needed alone, and some of the vocabulary at a time. Nothing is known
of architectures: the trunk's result is taken while the model itself runs, and what a model does to its head's output
(scaling, soft caps) is done by the model itself, its trunk and head replaced by what they gave. A model that cannot be
cut in two that way is all trunk: its logits stand for the hidden states, and the head leaves them as they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from transformers.modeling_outputs import BaseModelOutputWithPast

from gradalign.policy.attention import led
from gradalign.policy.load import Policy
from gradalign.policy.packing import Batch

BLOCK = {"cpu": 2**12}
"""By device: tokens of the vocabulary whose logits are formed at a time; 2**15 on others."""


class _Given(BaseModelOutputWithPast):
    """Stands for a trunk's result; anything but the hidden states is None."""

    def __getattr__(self, name: str) -> None:
        return None


class Split:
    """A policy's trunk and head: logits = after(hidden @ weight.T + bias), ``after`` elementwise.

    Attributes:
        policy: the policy.
        module: the output layer; None where the model is all trunk.
        plain: whether ``after`` changes nothing.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        model = policy.model.get_base_model() if hasattr(policy.model, "get_base_model") else policy.model
        self.trunk = model.base_model
        self.module: Any = model.get_output_embeddings()
        self.plain = False
        with policy.opened():
            if self.trunk is model or not isinstance(self.module, torch.nn.Linear) or not self._adds_up():
                self.join()

    def join(self) -> None:
        """Take the model for all trunk."""
        self.module, self.plain = None, True

    @torch.no_grad()
    def _adds_up(self) -> bool:
        """Whether the two parts, one after the other, give what the model gives; finds out whether it is plain."""
        policy = self.policy
        if "logits_to_keep" not in policy.forward_arguments:
            return False
        ids = torch.arange(5, device=policy.device)[None] % len(self.module.weight)
        whole = self._logits(input_ids=ids)[0].to(policy.reduction_dtype)
        try:
            values = torch.linspace(-50, 50, 64, dtype=policy.reduction_dtype, device=policy.device)[None]
            self.plain = torch.equal(self.after(values), values)
            parts = self.logits(self._hidden(input_ids=ids)[0], slice(None))
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, KeyError):
            return False
        close = 16 * torch.finfo(policy.computes_in or policy.dtype).eps * whole.abs().max()
        return parts.shape == whole.shape and bool((parts - whole).abs().max() <= close)

    @property
    def vocabulary(self) -> int:
        """Number of tokens with a logit."""
        return len(self.module.weight) if self.module is not None else self.policy.config.get_text_config().vocab_size

    def blocks(self) -> Iterator[slice]:
        """The vocabulary, some at a time."""
        block = BLOCK.get(self.policy.device.type, 2**15)
        for start in range(0, self.vocabulary, block):
            yield slice(start, min(start + block, self.vocabulary))

    def after(self, values: torch.Tensor) -> torch.Tensor:
        """(places, tokens) logits from the head's output."""
        if self.plain:
            return values
        hidden = values.new_zeros(1, len(values), 1)
        given = _Given(last_hidden_state=hidden)
        model, given_ = self.policy.model, lambda *_, **__: values[None]
        with replaced(self.trunk, lambda *_, **__: given), replaced(self.module, given_), self.policy.arithmetic():
            return model.forward(input_ids=hidden[..., 0].long(), use_cache=False).logits[0]  # past FSDP's hooks

    def before(self, values: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
        """(places, tokens) gradient by the head's output ``values`` from that by the logits."""
        if self.plain:
            return d
        with torch.enable_grad():
            values = values.detach().requires_grad_()
            return torch.autograd.grad(self.after(values), values, d)[0]

    def raw(self, hidden: torch.Tensor, block: slice) -> torch.Tensor:
        """(places, block) the head's output in the reduction dtype, of (places, hidden) hidden states."""
        if self.module is None:
            return hidden[:, block].to(self.policy.reduction_dtype)
        return F.linear(hidden, *self.weights(block)).to(self.policy.reduction_dtype)

    def logits(self, hidden: torch.Tensor, block: slice) -> torch.Tensor:
        """(places, block) logits in the reduction dtype, of (places, hidden) hidden states."""
        return self.after(self.raw(hidden, block))

    def weights(self, block: slice) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The head's (block, hidden) weight and (block,) bias, in the type it computes in."""
        bias = self.module.bias
        type_ = self.policy.computes_in or self.module.weight.dtype
        return self.module.weight[block].to(type_), None if bias is None else bias[block].to(type_)

    def hidden_states(self, batch: Batch) -> torch.Tensor:
        """(slots, hidden) what the head is to be given; called where the policy is `Policy.opened`."""
        policy = self.policy
        arguments = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        if "position_ids" in policy.forward_arguments:
            arguments["position_ids"] = batch.position_ids
        attention = led(policy.model, batch) if batch.attention_mask is None else contextlib.nullcontext()
        with attention:
            if self.module is None:
                return self._logits(**arguments).flatten(0, 1)
            return self._hidden(**arguments).flatten(0, 1)

    def _hidden(self, **arguments: Any) -> torch.Tensor:
        """(rows, length, hidden)."""
        taken: list[torch.Tensor] = []
        own = self.trunk.forward

        def taking(*args: Any, **kwargs: Any) -> Any:
            result = own(*args, **kwargs)
            taken.append(result[0])
            return result

        with replaced(self.trunk, taking):
            self._logits(**arguments, logits_to_keep=torch.zeros(0, dtype=torch.long, device=self.policy.device))
        return taken[0].to(self.policy.computes_in or taken[0].dtype)

    def _logits(self, **arguments: Any) -> torch.Tensor:
        with self.policy.arithmetic():
            return self.policy.model(**arguments, use_cache=False).logits


@contextlib.contextmanager
def replaced(module: torch.nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """``module`` with another forward."""
    own = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own
