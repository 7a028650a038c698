"""A causal language model in two parts: the trunk up to its last hidden states, and the head from there to logits.

Logits are by far the widest thing in a pass, and most positions need none. Apart, the head can be run on the positions
that predict a response token, some at a time. What it does (scaling, capping) is the model's own code, run with the
trunk's place taken by the hidden states.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from gradalign.errors import warn
from gradalign.policy.attention import led
from gradalign.policy.packing import Batch

if TYPE_CHECKING:
    from gradalign.policy.load import Policy

LOGITS = 2**25
"""Logits formed at a time, at most, unless a single position has more."""


@dataclass(frozen=True)
class Parts:
    """How a model comes apart.

    Attributes:
        whole: the causal language model (inside an adapter's wrapping).
        trunk: its part that gives hidden states; None where it does not come apart.
        linear: its output layer, where logits are that layer's outputs and nothing else is done to them.
    """

    whole: Any
    trunk: Any | None
    linear: torch.nn.Linear | None


def parts(policy: Policy) -> Parts:
    """Take the model apart, and try on two tokens whether the parts give what the whole does."""
    model = policy.model
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    trunk = getattr(whole, "base_model", whole)
    ids = torch.tensor([[0, 1]], device=policy.device)
    with torch.no_grad(), policy.arithmetic():
        logits = model(input_ids=ids, use_cache=False).logits[0]
        try:
            assert trunk is not whole
            hidden = trunk(input_ids=ids, use_cache=False)[0][0]
            apart = Parts(whole, trunk, None)
            if not torch.equal(head(policy, hidden, apart), logits):
                raise ValueError("other logits")
        except (AssertionError, AttributeError, RuntimeError, ValueError, TypeError, IndexError, KeyError):
            warn("this model's output layer cannot be run apart from it: logits are formed at every position")
            return Parts(whole, None, None)
        output = whole.get_output_embeddings()
        # A wrapped output layer (an adapter's) is more than its weight.
        if type(output) is torch.nn.Linear and torch.equal(output(hidden), logits):
            return Parts(whole, trunk, output)
    return apart


def hidden_states(policy: Policy, batch: Batch) -> torch.Tensor:
    """(slots, width) last hidden states of a batch; (slots, vocabulary) logits where the model has no trunk."""
    given = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "use_cache": False}
    if "position_ids" in policy.forward_arguments:
        given["position_ids"] = batch.position_ids
    whole, trunk = policy.parts.whole, policy.parts.trunk
    attention = led(whole, batch) if batch.attention_mask is None else contextlib.nullcontext()
    with policy.arithmetic(), attention:
        out = whole(**given).logits if trunk is None else trunk(**given)[0]
    return out.flatten(0, 1)


def head(policy: Policy, hidden: torch.Tensor, apart: Parts | None = None) -> torch.Tensor:
    """(places, vocabulary) logits of (places, width) hidden states."""
    apart = apart or policy.parts
    if apart.trunk is None:
        return hidden
    with policy.arithmetic():
        if apart.linear is not None:
            return apart.linear(hidden)
        with _answering(apart.trunk, hidden[None]):
            ids = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
            return apart.whole(input_ids=ids, use_cache=False).logits[0]


def chunk(vocabulary: int) -> int:
    """Places whose logits are formed at a time."""
    return max(1, LOGITS // vocabulary)


@contextlib.contextmanager
def _answering(trunk: Any, hidden: torch.Tensor) -> Iterator[None]:
    """Inside, the trunk gives these hidden states whatever it is asked."""
    own = trunk.__dict__.get("forward")
    trunk.forward = lambda *_, **__: BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=hidden)
    try:
        yield
    finally:
        if own is None:
            del trunk.forward
        else:
            trunk.forward = own
