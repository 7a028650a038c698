"""Laying groups out as model inputs: a group's prompt once, its responses behind it under a block mask.

A packed row is ``prompt | response 1 | response 2 | ...``; a response's token attends to the prompt and to its own
response up to itself, and its position counts on from the prompt's end. The last token of a response predicts
nothing and is left out. A row with a single response is an ordinary causal sequence and needs no block mask.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from gradalign.policy.group import Group


@dataclass(slots=True)
class Row:
    """One row of a batch: some rollouts of one group."""

    group: Group
    rollouts: list[int]
    tokens: int

    @property
    def longest(self) -> int:
        """Longest prompt and response, in tokens."""
        return len(self.group.prompt_ids) + max(len(self.group.rollouts[i].response_ids) for i in self.rollouts)

    def only(self, index: int) -> Row:
        """A row of one rollout of the group."""
        tokens = len(self.group.prompt_ids) + len(self.group.rollouts[index].response_ids) - 1
        return Row(self.group, [index], tokens)


@dataclass(slots=True)
class Batch:
    """Model inputs of some rows, and where each response token's log-probability is to be found.

    Attributes:
        rows: what was laid out.
        input_ids: (rows, length), right-padded.
        position_ids: (rows, length).
        attention_mask: (rows, length) of 0 and 1 where every row is a plain sequence, else (rows, 1, length, length)
            additive.
        row, column: (places,) where logits are needed, sorted by row then column.
        place: (tokens,) index into ``row`` and ``column`` of the logits that predict a response token.
        target: (tokens,) the response token.
        rollout: (tokens,) index of the token's rollout, counted over the batch's rows.
        counted: (tokens,) false where a response mask hides the token.
    """

    rows: list[Row]
    input_ids: torch.Tensor
    position_ids: torch.Tensor
    attention_mask: torch.Tensor
    row: torch.Tensor
    column: torch.Tensor
    place: torch.Tensor
    target: torch.Tensor
    rollout: torch.Tensor
    counted: torch.Tensor

    @property
    def n_rollouts(self) -> int:
        """Number of rollouts in the batch."""
        return sum(len(row.rollouts) for row in self.rows)


def rows_of(group: Group, batch_tokens: int, shared: bool) -> Iterator[Row]:
    """Cut a group into rows of at most ``batch_tokens`` tokens (at least one rollout each).

    Args:
        group: the group.
        batch_tokens: tokens of work in one pass, at most; one rollout too long for that is a row of its own.
        shared: rollouts of a row share their prompt; false puts every rollout in a row of its own.
    """
    prompt = len(group.prompt_ids)
    row = Row(group, [], prompt)
    for index, rollout in enumerate(group.rollouts):
        more = len(rollout.response_ids) - 1
        if row.rollouts and (not shared or row.tokens + more > batch_tokens):
            yield row
            row = Row(group, [], prompt)
        row.rollouts.append(index)
        row.tokens += more
    if row.rollouts:
        yield row


def batches_of(rows: Iterable[Row], batch_tokens: int) -> Iterator[list[Row]]:
    """Gather rows, in order, into batches of at most ``batch_tokens`` tokens, padding counted."""
    batch: list[Row] = []
    for row in rows:
        longest = max([row.tokens, *(other.tokens for other in batch)])
        if batch and longest * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def lay_out(rows: Sequence[Row], device: torch.device, dtype: torch.dtype) -> Batch:
    """Build the model inputs of ``rows``; ``dtype`` is the additive mask's."""
    length = max(row.tokens for row in rows)
    input_ids = np.zeros((len(rows), length), np.int64)
    position_ids = np.zeros((len(rows), length), np.int64)
    segment = np.full((len(rows), length), -1, np.int64)  # -1 padding, 0 prompt, 1.. responses
    places: list[tuple[int, int]] = []
    place, target, owner, counted = [], [], [], []
    first = 0
    for r, row in enumerate(rows):
        prompt = len(row.group.prompt_ids)
        input_ids[r, :prompt] = row.group.prompt_ids
        position_ids[r, :prompt] = np.arange(prompt)
        segment[r, :prompt] = 0
        places.append((r, prompt - 1))
        prompt_place, start = len(places) - 1, prompt
        for s, index in enumerate(row.rollouts):
            rollout = row.group.rollouts[index]
            more = len(rollout.response_ids) - 1
            input_ids[r, start : start + more] = rollout.response_ids[:-1]
            position_ids[r, start : start + more] = np.arange(prompt, prompt + more)
            segment[r, start : start + more] = s + 1
            place.append(np.r_[prompt_place, np.arange(len(places), len(places) + more)])
            places.extend((r, column) for column in range(start, start + more))
            target.append(rollout.response_ids)
            owner.append(np.full(more + 1, first + s))
            counted.append(rollout.mask)
            start += more
        first += len(row.rollouts)

    def on_device(array: NDArray) -> torch.Tensor:
        return torch.from_numpy(array).to(device)

    plain = all(len(row.rollouts) == 1 for row in rows)
    mask = on_device((segment >= 0).astype(np.int64)) if plain else _block_mask(on_device(segment), dtype)
    where = np.array(places, np.int64)

    return Batch(
        rows=list(rows), input_ids=on_device(input_ids), position_ids=on_device(position_ids),
        attention_mask=mask, row=on_device(where[:, 0]), column=on_device(where[:, 1]),
        place=on_device(np.concatenate(place)), target=on_device(np.concatenate(target)),
        rollout=on_device(np.concatenate(owner)), counted=on_device(np.concatenate(counted)),
    )  # fmt: skip


def _block_mask(seg: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(rows, 1, length, length) additive mask: causal, and only to the prompt or within the own response."""
    length = seg.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=seg.device).tril()
    key, query = seg[:, None, :], seg[:, :, None]
    seen = causal & (((key == 0) & (query >= 0)) | (key == query))
    return torch.zeros(seen.shape, dtype=dtype, device=seg.device).masked_fill_(~seen, torch.finfo(dtype).min)[:, None]
