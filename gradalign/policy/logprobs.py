"""Log-probabilities of response tokens, by forward passes alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gradalign.errors import warn
from gradalign.policy.group import Group
from gradalign.policy.load import Policy
from gradalign.policy.packing import Batch, Row, lay_out, rows_of
from gradalign.policy.trunk import chunk, head, hidden_states


def token_logprobs(policy: Policy, batch: Batch, temperature: float) -> torch.Tensor:
    """(response tokens,) log softmax(logits / temperature) of each response token, in float32 at least.

    Logits are formed only where a response token is predicted, and some positions at a time.
    """
    hidden = hidden_states(policy, batch)[batch.slot]
    values = []
    for start in range(0, len(hidden), size := chunk(policy.vocabulary)):
        logits = head(policy, hidden[start : start + size]).to(policy.reduction_dtype)
        if temperature != 1.0:
            logits = logits / temperature
        some = ((batch.place >= start) & (batch.place < start + size)).nonzero()[:, 0]
        place = batch.place[some] - start
        values.append(logits[place, batch.target[some]] - torch.logsumexp(logits, dim=-1)[place])
    return torch.cat(values)[torch.argsort(_chunk_order(batch.place, size))]


def _chunk_order(place: torch.Tensor, size: int) -> torch.Tensor:
    """(response tokens,) which token each value belongs to when values come chunk by chunk."""
    return torch.argsort(place // size, stable=True)
