"""Log-probabilities of response tokens, with gradient where wanted."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gradalign.errors import warn
from gradalign.policy.group import Group
from gradalign.policy.load import Policy
from gradalign.policy.packing import Batch, Row, lay_out, rows_of


def token_logprobs(policy: Policy, batch: Batch, temperature: float) -> torch.Tensor:
    """(tokens,) log softmax(logits / temperature) of each response token, in float32 at least.

    Logits are formed only in columns where a response token is predicted.
    """
    arguments = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "use_cache": False}
    if "position_ids" in policy.forward_arguments:
        arguments["position_ids"] = batch.position_ids
    column = batch.column
    if "logits_to_keep" in policy.forward_arguments:
        kept, column = torch.unique(batch.column, return_inverse=True)
        arguments["logits_to_keep"] = kept
    with policy.arithmetic():
        logits = policy.model(**arguments).logits
    logits = logits[batch.row, column].to(policy.reduction_dtype)
    if temperature != 1.0:
        logits = logits / temperature
    normaliser = torch.logsumexp(logits, dim=-1)
    return logits[batch.place, batch.target] - normaliser[batch.place]


@torch.no_grad()
def shares_prompts(policy: Policy, groups: Sequence[Group], batch_tokens: int) -> bool:
    """Whether this policy gives these groups the same log-probabilities with each group's prompt computed once.

    Tried on the group with the longest sequence and on the one with the longest packed row, since no list of
    architectures stays true: a recurrent state, positions inside the attention mask, and local attention that the
    sequences outgrow all forbid it.
    """
    if not groups:
        return True
    rows = [max(rows_of(group, batch_tokens, shared=True), key=lambda row: row.tokens) for group in groups]
    tried = [max(rows, key=lambda row: row.longest), max(rows, key=lambda row: row.tokens)]
    agrees = all(_agrees(policy, row) for row in tried)
    if not agrees:
        warn("this architecture cannot share a group's prompt at these lengths: it is computed for each rollout")
    return agrees


def _agrees(policy: Policy, row: Row) -> bool:
    """Whether a packed row gives its longest and its last rollout what they get alone, up to rounding.

    A response of one token is predicted by the prompt alone and shows nothing; the last longer one is taken.

    Distances are root mean squares over tokens; rounding is judged by what padding changes and by the weights' type.
    """

    def logprobs(rows: Sequence[Row]) -> list[torch.Tensor]:
        batch = lay_out(rows, policy.device, policy.dtype)
        values = token_logprobs(policy, batch, 1.0)
        return [values[batch.rollout == index] for index in range(batch.n_rollouts)]

    def distance(some: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> float:
        return (torch.cat(list(some)) - torch.cat(list(others))).square().mean().sqrt().item()

    longest = max(row.rollouts, key=lambda index: len(row.group.rollouts[index].response_ids))
    telling = [index for index in row.rollouts if len(row.group.rollouts[index].response_ids) > 1]
    last = (telling or row.rollouts)[-1]
    pair = [row.only(longest), row.only(last)]
    alone = [logprobs([one])[0] for one in pair]
    noise = distance(alone, logprobs(pair))
    rounding = torch.finfo(policy.computes_in or policy.dtype).eps * torch.cat(alone).square().mean().sqrt().item()
    try:
        packed = logprobs([row])
    except (RuntimeError, ValueError, TypeError, IndexError):
        return False
    error = distance(alone, [packed[row.rollouts.index(index)] for index in (longest, last)])
    return error <= 10 * noise + max(1e-5, 8 * rounding)
