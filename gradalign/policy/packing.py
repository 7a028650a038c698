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

Span = tuple[int, int]


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
class Batch:
    """Model inputs of some rows, and where each response token's log-probability is to be found.

    Attributes:
        rows: what was laid out.
        input_ids: (1, tokens) packed, (rows, length) right-padded; "slots" below count it flattened.
        position_ids: of the same shape.
        attention_mask: (rows, length) of 0 and 1 where padded; None where packed.
        spans: of each row, first slot and end.
        prompts: of each row, first slot and end of the prompt.
        responses: of each rollout (over the rows, in order), first slot and end of its input tokens, and its row.
        slot: (places,) slots where logits are needed, row by row.
        places: of each row, its first place and end.
        place: (response tokens,) index into ``slot`` of the logits that predict a response token.
        target: (response tokens,) the response token.
        rollout: (response tokens,) index of the token's rollout, counted over the batch's rows.
        counted: (response tokens,) false where a response mask hides the token.
        targets: of each row, its first response token and end.
    """

    rows: list[Row]
    input_ids: torch.Tensor
    position_ids: torch.Tensor
    attention_mask: torch.Tensor | None
    spans: list[Span]
    prompts: list[Span]
    responses: list[tuple[int, int, int]]
    slot: torch.Tensor
    places: list[Span]
    place: torch.Tensor
    target: torch.Tensor
    rollout: torch.Tensor
    counted: torch.Tensor
    targets: list[Span]

    @property
    def n_rollouts(self) -> int:
        """Number of rollouts in the batch."""
        return len(self.responses)


def rows_of(group: Group, batch_tokens: int, packed: bool) -> Iterator[Row]:
    """Cut a group into rows of at most ``batch_tokens`` tokens (at least one rollout each).

    Args:
        group: the group.
        batch_tokens: tokens of work in one pass, at most; one rollout too long for that is a row of its own.
        packed: rollouts of a row share their prompt; false puts every rollout in a row of its own.
    """
    prompt = len(group.prompt_ids)
    row = Row(group, [], prompt)
    for index, rollout in enumerate(group.rollouts):
        more = len(rollout.response_ids) - 1
        if row.rollouts and (not packed or row.tokens + more > batch_tokens):
            yield row
            row = Row(group, [], prompt)
        row.rollouts.append(index)
        row.tokens += more
    if row.rollouts:
        yield row


def fits(rows: Sequence[Row], batch_tokens: int, packed: bool) -> bool:
    """Whether some rows go into one pass: a single row always does; padding counts where it is computed."""
    if packed:
        return len(rows) == 1 or sum(row.tokens for row in rows) <= batch_tokens
    return len(rows) == 1 or max(row.tokens for row in rows) * len(rows) <= batch_tokens


def batches_of(rows: Iterable[Row], batch_tokens: int, packed: bool) -> Iterator[list[Row]]:
    """Gather rows, in order, into batches of at most ``batch_tokens`` tokens, padding counted."""
    batch: list[Row] = []
    for row in rows:
        if not fits([*batch, row], batch_tokens, packed):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def lay_out(rows: Sequence[Row], packed: bool, device: torch.device) -> Batch:
    """Build the model inputs of ``rows``; with ``packed`` false, each row holds one rollout."""
    length = max(row.tokens for row in rows)
    total = sum(row.tokens for row in rows) if packed else length * len(rows)
    input_ids, position_ids, attention = np.zeros((3, total), np.int64)
    spans, prompts, responses, places, targets = [], [], [], [], []
    slot: list[NDArray] = []
    place, target, owner, counted = [], [], [], []
    n_places = n_targets = end = 0
    for r, row in enumerate(rows):
        start = end if packed else r * length
        prompt = len(row.group.prompt_ids)
        end = start + prompt
        input_ids[start:end] = row.group.prompt_ids
        position_ids[start:end] = np.arange(prompt)
        prompts.append((start, end))
        first_place, first_target = n_places, n_targets
        slot.append(np.array([end - 1]))
        n_places += 1
        for index in row.rollouts:
            rollout = row.group.rollouts[index]
            more = len(rollout.response_ids) - 1
            input_ids[end : end + more] = rollout.response_ids[:-1]
            position_ids[end : end + more] = np.arange(prompt, prompt + more)
            responses.append((end, end + more, r))
            slot.append(np.arange(end, end + more))
            place.append(np.r_[first_place, np.arange(n_places, n_places + more)])
            target.append(rollout.response_ids)
            owner.append(np.full(more + 1, len(responses) - 1))
            counted.append(rollout.mask)
            n_places += more
            n_targets += more + 1
            end += more
        attention[start:end] = 1
        spans.append((start, end))
        places.append((first_place, n_places))
        targets.append((first_target, n_targets))

    def on_device(array: NDArray) -> torch.Tensor:
        return torch.from_numpy(array).to(device)

    shape = (1, -1) if packed else (len(rows), length)
    return Batch(
        rows=list(rows), input_ids=on_device(input_ids.reshape(shape)),
        position_ids=on_device(position_ids.reshape(shape)),
        attention_mask=None if packed else on_device(attention.reshape(shape)),
        spans=spans, prompts=prompts, responses=responses, slot=on_device(np.concatenate(slot)), places=places,
        place=on_device(np.concatenate(place)), target=on_device(np.concatenate(target)),
        rollout=on_device(np.concatenate(owner)), counted=on_device(np.concatenate(counted)), targets=targets,
    )  # fmt: skip
