"""Log-probabilities of response tokens, by forward passes alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from gradalign.errors import warn
from gradalign.policy.group import Group
from gradalign.policy.load import Policy
from gradalign.policy.packing import Batch, Row, lay_out, rows_of
from gradalign.policy.trunk import Split

PLACES = 512
"""Positions whose logits are formed at a time."""


def token_logprobs(split: Split, batch: Batch, temperature: float) -> torch.Tensor:
    """(response tokens,) log softmax(logits / temperature) of each response token, in float32 at least.

    Logits are formed only where a response token is predicted, some positions and some of the vocabulary at a time.
    """
    with split.policy.opened():
        return _token_logprobs(split, batch, temperature)


def _token_logprobs(split: Split, batch: Batch, temperature: float) -> torch.Tensor:
    hidden = split.hidden_states(batch).index_select(0, batch.slot)
    order, values = [], []
    for start in range(0, len(hidden), PLACES):
        some = ((batch.place >= start) & (batch.place < start + PLACES)).nonzero()[:, 0]
        place, target = batch.place[some] - start, batch.target[some]
        normalisers, chosen = [], torch.zeros_like(target, dtype=split.policy.reduction_dtype)
        for block in split.blocks():
            logits = split.logits(hidden[start : start + PLACES], block)
            if temperature != 1.0:
                logits = logits / temperature
            normalisers.append(torch.logsumexp(logits, 1))
            within = (target >= block.start) & (target < block.stop)
            picked = logits[place, (target - block.start).clamp(0, logits.shape[1] - 1)]
            chosen = torch.where(within, picked, chosen)
        normaliser = torch.logsumexp(torch.stack(normalisers), 0)
        order.append(some)
        values.append(chosen - normaliser[place])
    return torch.cat(values)[torch.argsort(torch.cat(order))]


def per_rollout(batch: Batch, values: torch.Tensor) -> NDArray[np.float64]:
    """(rollouts of the batch,) sums of a value of each response token over those that count, in float64."""
    sums = torch.zeros(batch.n_rollouts, dtype=torch.float64, device=values.device)
    return sums.index_add_(0, batch.rollout, values.detach().double() * batch.counted).cpu().numpy()


def telling(groups: Sequence[Group], batch_tokens: int) -> list[Row]:
    """The packed row with the longest sequence, and the one with the most tokens."""
    rows = [row for group in groups for row in rows_of(group, batch_tokens, packed=True)]
    return [max(rows, key=lambda row: row.longest), max(rows, key=lambda row: row.tokens)]


@torch.no_grad()
def packs(policy: Policy, groups: Sequence[Group], batch_tokens: int) -> bool:
    """Whether this policy gives these groups the same log-probabilities when they are packed.

    Tried on the rows that are `telling`, since no list of
    architectures stays true: a recurrent state, positions inside the attention mask, and attention that is not asked
    of transformers' attention functions all forbid it.
    """
    if not groups:
        return True
    agrees = _agrees(Split(policy), telling(groups, batch_tokens))
    if not agrees:
        warn("this architecture cannot share a group's prompt at these lengths: it is computed for each rollout")
    return agrees


def _agrees(split: Split, rows: Sequence[Row]) -> bool:
    """Whether packed rows give their longest and their last rollouts what these get alone, up to rounding.

    A response of one token is predicted by the prompt alone and shows nothing; the last longer one is taken.

    Distances are root mean squares over tokens; rounding is judged by what padding changes and by the weights' type.
    """
    policy = split.policy

    def logprobs(rows: Sequence[Row], packed: bool) -> list[torch.Tensor]:
        batch = lay_out(rows, packed, policy.device)
        values = token_logprobs(split, batch, 1.0)
        return [values[batch.rollout == index] for index in range(batch.n_rollouts)]

    def distance(some: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> float:
        return (torch.cat(list(some)) - torch.cat(list(others))).square().mean().sqrt().item()

    singles, where = [], []
    for r, row in enumerate(rows):
        before = sum(len(earlier.rollouts) for earlier in rows[:r])
        longest = max(row.rollouts, key=lambda index: len(row.group.rollouts[index].response_ids))
        telling = [index for index in row.rollouts if len(row.group.rollouts[index].response_ids) > 1]
        for index in (longest, (telling or row.rollouts)[-1]):
            singles.append(row.only(index))
            where.append(before + row.rollouts.index(index))
    alone = [logprobs([single], packed=False)[0] for single in singles]
    noise = distance(alone, logprobs(singles, packed=False))
    rounding = torch.finfo(policy.computes_in or policy.dtype).eps * torch.cat(alone).square().mean().sqrt().item()
    try:
        packed = logprobs(rows, packed=True)
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError):
        return False
    error = distance(alone, [packed[index] for index in where])
    return error <= 10 * noise + max(1e-5, 8 * rounding)
