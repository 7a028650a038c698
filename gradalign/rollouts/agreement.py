"""Is it the same policy? An engine's log-probabilities of what it sampled, held against the loaded policy's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from gradalign.errors import GradAlignError
from gradalign.policy.group import Group, Rollout
from gradalign.policy.load import Policy
from gradalign.policy.logprobs import token_logprobs
from gradalign.policy.packing import lay_out, rows_of
from gradalign.policy.trunk import Split
from gradalign.rollouts.sample import Response

FLOAT32, HALF = 0.001, 0.1
"""Mean absolute difference of a token's log-probabilities, in nats, that rounding explains: where both compute in
float32, and where one of them may compute in bfloat16. Seen with SmolLM2-135M: 0.00001, and 0.04 to 0.05."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How an engine's log-probabilities compare with the policy's.

    Attributes:
        name: of the engine.
        difference: mean absolute difference over ``tokens`` response tokens, in nats.
        tokens: how many were compared.
        tolerance: the largest difference that was accepted.
        raw: whether they are of softmax(logits) where the policy's are of softmax(logits / temperature).
    """

    name: str
    difference: float
    tokens: int
    tolerance: float
    raw: bool


def hold(
    policy: Policy,
    name: str,
    dtype: str | None,
    prompts: Sequence[NDArray[np.int64]],
    responses: Sequence[Response],
    temperature: float,
) -> Agreement:
    """Compare what an engine said of its responses with what the policy says of them.

    Args:
        policy: the loaded one.
        name: of the engine, for messages.
        dtype: of the engine's weights, None where it is not known.
        prompts: (tokens,) each.
        responses: equally many for each prompt, with log-probabilities and the engine's text.
        temperature: of the sampling.

    Raises:
        GradAlignError: they differ by more than rounding; a token that the policy does not have; another text.
    """
    vocabulary = policy.model.get_input_embeddings().weight.shape[0]
    highest = max(token for response in responses for token in response.ids)
    if highest >= vocabulary:
        raise GradAlignError(
            f"{name}: samples token {highest}, and the policy {policy.path} has {vocabulary} tokens; serve that model"
        )
    given = np.concatenate([np.array(response.logprobs, np.float64) for response in responses])
    at = {kept: _own(policy, prompts, responses, kept) for kept in (temperature, 1.0)}
    distance = {kept: float(np.abs(given - own).mean()) for kept, own in at.items()}
    exact = dtype == "float32" and not policy.half
    tolerance = FLOAT32 if exact else HALF
    nearer = min(distance, key=lambda kept: (distance[kept], kept != temperature))
    if not distance[nearer] <= tolerance:
        raise GradAlignError(
            f"{name}: is not the policy {policy.path}: log-probabilities of its own responses differ by "
            f"{distance[temperature]:.3g} a token on average, and rounding explains {tolerance:g}; serve this model, "
            "with these weights"
        )
    _same_text(policy, name, responses)
    raw = nearer != temperature and not distance[temperature] <= tolerance
    return Agreement(name, distance[1.0 if raw else temperature], len(given), tolerance, raw)


@torch.no_grad()
def _own(
    policy: Policy, prompts: Sequence[NDArray[np.int64]], responses: Sequence[Response], temperature: float
) -> NDArray[np.float64]:
    """(tokens of all responses,) the policy's log-probabilities."""
    split, found, count = Split(policy), [], len(responses) // len(prompts)
    for number, prompt in enumerate(prompts):
        own = responses[number * count : (number + 1) * count]
        group = Group("", prompt, [Rollout(np.array(response.ids, np.int64), 0.0) for response in own])
        rows = list(rows_of(group, 1, packed=False))
        values = token_logprobs(split, lay_out(rows, False, policy.device), temperature)
        found.append(values.double().cpu().numpy())
    return np.concatenate(found)


def _same_text(policy: Policy, name: str, responses: Sequence[Response]) -> None:
    """Refuse an engine whose tokenizer reads the same tokens differently: its ``stop`` texts would mean others.

    Spaces are not compared, nor characters that a response cut off in the middle, nor the token that ended it; decoders
    differ there.
    """
    for response in responses:
        ids, theirs = response.ids, response.text
        own = [_bare(policy.decode(some)) for some in (ids, ids[:-1])]
        if theirs is not None and _bare(theirs) not in own:
            raise GradAlignError(
                f"{name}: has another tokenizer: it reads tokens {ids[:8]} as {theirs[:40]!r}, that of {policy.path} "
                f"as {policy.decode(ids)[:40]!r}; serve the model with its own tokenizer"
            )


def _bare(text: str) -> str:
    return "".join(text.replace("\ufffd", "").split())
