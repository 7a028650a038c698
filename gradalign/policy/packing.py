"""Laying groups out as model inputs, in one of two ways.

Packed: every row is ``prompt | response 1 | response 2 | ...``, and all rows of a batch follow one another in a single
sequence without padding; `gradalign.policy.attention` lets a response's token attend to its own prompt and to its own
response up to itself, and its position counts on from the prompt's end. Padded: every rollout is an ordinary sequence
of its own, for models whose attention cannot be led that way.

The last token of a response predicts nothing and is left out.
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
    """One row of a batch: some rollouts of one group.

    Attributes:
        group: the group.
        rollouts: which of its rollouts.
        tokens: to pass through the model, the prompt once.
    """

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
class Part:
    """What a batch holds of one group: slices of the batch's tensors.

    Attributes:
        slots: of the flattened inputs.
        places: of ``Batch.slot``.
        targets: of ``Batch.place``, ``target``, ``rollout``, ``counted``.
        rollouts: of the batch's rollouts.
    """

    slots: slice
    places: slice
    targets: slice
    rollouts: slice


@dataclass(slots=True)
class Batch:
    """Model inputs of some rows, and where each response token's log-probability is to be found.

    Attributes:
        input_ids: (1, tokens) packed, (rows, length) right-padded; a "slot" counts it flattened.
        position_ids: of the same shape.
        attention_mask: (rows, length) of 0 and 1 where padded; None where packed.
        prompts: of each row, its prompt's slots.
        responses: of each rollout, row by row, the slots of its input tokens, and its row.
        parts: one a group, in order.
        slot: (places,) slots where logits are needed.
        place: (response tokens,) index into ``slot`` of the logits that predict a response token.
        target: (response tokens,) the response token.
        rollout: (response tokens,) index of the token's rollout, counted over the batch's rows.
        counted: (response tokens,) false where a response mask hides the token.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    attention_mask: torch.Tensor | None
    prompts: list[tuple[int, int]]
    responses: list[tuple[int, int, int]]
    parts: list[Part]
    slot: torch.Tensor
    place: torch.Tensor
    target: torch.Tensor
    rollout: torch.Tensor
    counted: torch.Tensor

    @property
    def n_rollouts(self) -> int:
        """Number of rollouts in the batch."""
        return len(self.responses)


COPIES = 8
"""Tokens of prompts, each counted once for every response of a pass, over ``batch_tokens``, at most: a response's
attention has a copy of its prompt's keys and values."""


def rows_of(group: Group, batch_tokens: int, packed: bool) -> Iterator[Row]:
    """Cut a group into rows of at most ``batch_tokens`` tokens and `COPIES` times as many copies (at least one rollout
    each).

    Args:
        group: the group.
        batch_tokens: tokens of work in one pass, at most; one rollout too long for that is a row of its own.
        packed: rollouts of a row share their prompt; false puts every rollout in a row of its own.
    """
    prompt = len(group.prompt_ids)
    row = Row(group, [], prompt)
    for index, rollout in enumerate(group.rollouts):
        more = len(rollout.response_ids) - 1
        copied = (len(row.rollouts) + 1) * prompt > COPIES * batch_tokens
        if row.rollouts and (not packed or row.tokens + more > batch_tokens or copied):
            yield row
            row = Row(group, [], prompt)
        row.rollouts.append(index)
        row.tokens += more
    if row.rollouts:
        yield row


def size(rows: Sequence[Row], packed: bool) -> int:
    """Tokens in a pass over these rows, padding counted where it is computed."""
    return sum(row.tokens for row in rows) if packed else max(row.tokens for row in rows) * len(rows)


def batches_of(rows: Iterable[Row], batch_tokens: int, packed: bool) -> Iterator[list[Row]]:
    """Gather rows, in order, into batches that hold to the same; a single row always is one."""
    batch: list[Row] = []
    copied = 0
    for row in rows:
        more = len(row.rollouts) * len(row.group.prompt_ids) if packed else 0
        if batch and (size([*batch, row], packed) > batch_tokens or copied + more > COPIES * batch_tokens):
            yield batch
            batch, copied = [], 0
        batch.append(row)
        copied += more
    if batch:
        yield batch


def lay_out(rows: Sequence[Row], packed: bool, device: torch.device) -> Batch:
    """Build the model inputs of ``rows``.

    Args:
        rows: rows of one group stand together.
        packed: see the module's text; without it each row holds one rollout.
        device: where the tensors are wanted.
    """
    length = max(row.tokens for row in rows)
    total = size(rows, packed)
    input_ids, position_ids, attention = np.zeros((3, total), np.int64)
    prompts: list[tuple[int, int]] = []
    responses: list[tuple[int, int, int]] = []
    slot: list[NDArray] = []
    place: list[NDArray] = []
    target: list[NDArray] = []
    counted: list[NDArray] = []
    parts: list[Part] = []
    n_places = n_targets = end = 0
    for r, row in enumerate(rows):
        start = end if packed else r * length
        prompt = len(row.group.prompt_ids)
        end = start + prompt
        input_ids[start:end] = row.group.prompt_ids
        position_ids[start:end] = np.arange(prompt)
        prompts.append((start, end))
        slot.append(np.array([end - 1]))
        before = n_places, n_targets, len(responses)
        n_places += 1
        for index in row.rollouts:
            rollout = row.group.rollouts[index]
            more = len(rollout.response_ids) - 1
            input_ids[end : end + more] = rollout.response_ids[:-1]
            position_ids[end : end + more] = np.arange(prompt, prompt + more)
            responses.append((end, end + more, r))
            slot.append(np.arange(end, end + more))
            place.append(np.r_[before[0], np.arange(n_places, n_places + more)])
            target.append(rollout.response_ids)
            counted.append(rollout.mask)
            n_places += more
            n_targets += more + 1
            end += more
        attention[start:end] = 1
        last = end if packed else start + length
        if r and row.group is rows[r - 1].group:
            known = parts.pop()
            start, before = known.slots.start, (known.places.start, known.targets.start, known.rollouts.start)
        places, targets, rollouts = map(slice, before, (n_places, n_targets, len(responses)))
        parts.append(Part(slice(start, last), places, targets, rollouts))

    def on_device(array: NDArray) -> torch.Tensor:
        return torch.from_numpy(array).to(device)

    shape = (1, -1) if packed else (len(rows), length)
    owner = np.repeat(np.arange(len(target)), [len(ids) for ids in target])
    return Batch(
        on_device(input_ids.reshape(shape)),
        on_device(position_ids.reshape(shape)),
        None if packed else on_device(attention.reshape(shape)),
        prompts,
        responses,
        parts,
        on_device(np.concatenate(slot)),
        on_device(np.concatenate(place)),
        on_device(np.concatenate(target)),
        on_device(owner),
        on_device(np.concatenate(counted)),
    )
