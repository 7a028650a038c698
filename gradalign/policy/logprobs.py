"""Log-probabilities of response tokens, with gradient where wanted."""

from __future__ import annotations

import numpy as np
import torch

from gradalign.errors import warn
from gradalign.policy.group import Group, Rollout
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


def longest(groups: list[Group]) -> int:
    """Longest sequence (prompt and response) in tokens."""
    return max((len(g.prompt_ids) + max(len(r.response_ids) for r in g.rollouts) for g in groups), default=0)


@torch.no_grad()
def shares_prompts(policy: Policy, length: int) -> bool:
    """Whether this policy gives the same log-probabilities with a group's prompt computed once.

    Tried on a made-up group, since no list of architectures stays true: models with a recurrent state or with
    positions inside the attention mask do not. ``length`` is the longest sequence to be scored: beyond a sliding
    window the block mask would let layers see too far.
    """
    text = policy.config.get_text_config()
    window = getattr(text, "sliding_window", None)
    if window and getattr(text, "use_sliding_window", True) and length > window:
        warn(f"sequences are longer than the sliding window of {window} tokens: prompts are computed for each rollout")
        return False
    rng = np.random.default_rng(0)

    def ids(count: int) -> np.ndarray:
        return rng.integers(0, text.vocab_size, count)

    group = Group("probe", ids(6), [Rollout(ids(count), 0.0) for count in (4, 2, 5)])

    def logprobs(rows: list[Row]) -> torch.Tensor:
        return token_logprobs(policy, lay_out(rows, policy.device, policy.dtype), 1.0)

    alone = torch.cat([logprobs([row]) for row in rows_of(group, 0, shared=False)])
    padded = logprobs(list(rows_of(group, 0, shared=False)))
    try:
        packed = logprobs(list(rows_of(group, 1000, shared=True)))
    except (RuntimeError, ValueError, TypeError, IndexError):
        packed = torch.full_like(alone, torch.nan)
    noise = (padded - alone).abs().max().item()
    agrees = bool((packed - alone).abs().max() <= 10 * noise + 1e-5)
    if not agrees:
        warn("this architecture cannot share a group's prompt: it is computed for each rollout")
    return agrees
