"""Sampling with the loaded policy: a problem's prompt once, its KV cache expanded, many problems side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache

from gradalign.errors import GradAlignError
from gradalign.policy.load import Policy
from gradalign.problems.schema import uniform_hash


@dataclass(frozen=True, slots=True)
class Sampling:
    """How responses are sampled.

    Attributes:
        rollouts: responses for each problem.
        max_new_tokens: longest response in tokens.
        temperature: of softmax(logits / temperature); the whole distribution is sampled, without top-k or top-p, so
            that the log-probabilities are those the objective differentiates.
        stop: texts that end a response; the tokens that complete one are part of the response.
        seed: of all draws.
        batch_rollouts: responses decoded side by side, at most (one problem's at least).
        first: number of each problem's first response; further ones than exist already are new draws.
    """

    rollouts: int = 16
    max_new_tokens: int = 128
    temperature: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    batch_rollouts: int = 512
    first: int = 0


@dataclass(slots=True)
class Response:
    """One sampled response: (tokens,) ids and log-probabilities, its text (None until decoded), and why it ended.

    An engine that gives no log-probabilities puts None in their place.
    """

    ids: list[int] = field(default_factory=list)
    logprobs: list[float] | None = field(default_factory=list)
    text: str | None = None
    finish_reason: str = "length"


def plan(prompts: Sequence[NDArray[np.int64]], sampling: Sampling) -> list[list[int]]:
    """Indices of the prompts of each batch: by length, so that little is padded; the same on every run."""
    order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
    size = max(1, sampling.batch_rollouts // sampling.rollouts)
    return [order[start : start + size] for start in range(0, len(order), size)]


@torch.no_grad()
def sample_batch(
    policy: Policy, keys: Sequence[str], prompts: Sequence[NDArray[np.int64]], sampling: Sampling
) -> list[list[Response]]:
    """Sample responses to a batch of prompts.

    Every problem draws from a random stream of its own, seeded by ``sampling.seed``, its key and, beyond 0, the number
    of the first response. Rows that have ended
    leave the batch once half of it has.

    Args:
        policy: the policy.
        keys: the problems' keys.
        prompts: their prompts, (tokens,) each.
        sampling: how to sample.

    Returns:
        ``sampling.rollouts`` responses for each prompt.

    Raises:
        GradAlignError: the model keeps a recurrent state, or its distribution is not finite.
    """
    count, device = sampling.rollouts, policy.device
    draws = torch.stack([_stream(key, sampling) for key in keys])  # (problems, steps, rollouts)
    draws = draws.transpose(1, 2).reshape(len(keys) * count, -1).to(device)
    responses = [Response() for _ in range(len(keys) * count)]
    ends = end_tokens(policy)

    width = max(len(prompt) for prompt in prompts)
    ids = np.zeros((len(prompts), width), np.int64)
    mask = np.zeros((len(prompts), width), np.int64)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = prompt
        mask[row, width - len(prompt) :] = 1
    attention = torch.from_numpy(mask).to(device)
    cache = DynamicCache(config=policy.config)
    logits = _forward(policy, torch.from_numpy(ids).to(device), attention, cache)
    if any("Linear" in type(layer).__name__ for layer in cache.layers):
        raise GradAlignError(
            f"model {policy.path}: sampling is for attention-only models, and this one keeps a recurrent state; sample "
            "with your own engine and give the rollouts to `gradalign score`"
        )
    cache.batch_repeat_interleave(count)
    attention = attention.repeat_interleave(count, 0)
    logits = logits.repeat_interleave(count, 0)
    live = torch.arange(len(responses), device=device)  # rows still in the batch -> response
    running = torch.ones(len(responses), dtype=torch.bool, device=device)  # over rows in the batch

    for step in range(sampling.max_new_tokens):
        logprobs = torch.log_softmax(logits.to(policy.reduction_dtype) / sampling.temperature, dim=-1)
        tokens = _inverse_cdf(logprobs, draws[live, step])
        chosen = logprobs.gather(1, tokens[:, None])[:, 0].tolist()
        if not all(map(math.isfinite, chosen)):
            lost = next(i for i, value in zip(live.tolist(), chosen, strict=True) if not math.isfinite(value))
            raise GradAlignError(
                f"problem {keys[lost // count]!r}: the policy's distribution is not finite (NaN or infinity); check "
                "the weights and the temperature, or sample in float32"
            )
        flags = running.tolist()
        for row, (response, token) in enumerate(zip(live.tolist(), tokens.tolist(), strict=True)):
            if flags[row]:
                flags[row] = not _append(responses[response], token, chosen[row], ends, sampling, policy)
        running = torch.tensor(flags, device=device)
        if step == sampling.max_new_tokens - 1 or not any(flags):
            break
        if 2 * sum(flags) <= len(flags):
            kept = running.nonzero()[:, 0]
            cache.batch_select_indices(kept)
            live, tokens, attention, running = live[kept], tokens[kept], attention[kept], running[kept]
        attention = torch.cat([attention, attention.new_ones(len(attention), 1)], dim=1)
        logits = _forward(policy, tokens[:, None], attention, cache)

    for response in responses:
        if response.text is None:
            response.text = policy.decode(response.ids)
    return [responses[start : start + count] for start in range(0, len(responses), count)]


def _append(response: Response, token: int, logprob: float, ends: set[int], sampling: Sampling, policy: Policy) -> bool:
    """Add a token; true when the response has ended by it."""
    response.ids.append(token)
    assert response.logprobs is not None
    response.logprobs.append(logprob)
    if token in ends:
        response.finish_reason = "stop"
        return True
    if sampling.stop:
        tail = policy.decode(response.ids[-max(map(len, sampling.stop)) - 8 :])
        if any(stop in tail for stop in sampling.stop):
            response.text, response.finish_reason = cut_at(policy.decode(response.ids), sampling.stop), "stop"
            return True
    return False


def cut_at(text: str, stops: Sequence[str]) -> str:
    """``text`` up to the first of the ``stops`` in it."""
    return text[: min((text.index(stop) for stop in stops if stop in text), default=len(text))]


def _forward(policy: Policy, ids: torch.Tensor, attention: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
    """(rows, vocabulary) logits after the last column; the cache grows by the columns of ``ids``."""
    arguments = {"input_ids": ids, "attention_mask": attention, "past_key_values": cache, "use_cache": True}
    if "position_ids" in policy.forward_arguments:
        positions = (attention.cumsum(1) - 1).clamp(min=0)
        arguments["position_ids"] = positions[:, -ids.shape[1] :]
    if "logits_to_keep" in policy.forward_arguments:
        arguments["logits_to_keep"] = 1
    with policy.arithmetic():
        return policy.model(**arguments).logits[:, -1]


def _inverse_cdf(logprobs: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """(rows,) the token at which the cumulative distribution passes each row's uniform draw."""
    tokens = []
    for rows, uniform in zip(logprobs.split(64), draws.split(64), strict=True):  # float64 for few rows at a time
        cumulative = rows.double().exp().cumsum(-1)
        tokens.append(torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True)[:, 0])
    return torch.cat(tokens).clamp(max=logprobs.shape[-1] - 1)


def _stream(key: str, sampling: Sampling) -> torch.Tensor:
    """(steps, rollouts) uniform draws of one problem."""
    later = (sampling.first,) if sampling.first else ()
    generator = torch.Generator().manual_seed(int(uniform_hash("sample", sampling.seed, key, *later) * 2**53))
    return torch.rand(sampling.max_new_tokens, sampling.rollouts, generator=generator, dtype=torch.float64)


def end_tokens(policy: Policy) -> set[int]:
    """Token ids that end a response: the generation configuration's and the tokenizer's."""
    ends: set[int] = set()
    for value in (
        getattr(getattr(policy.model, "generation_config", None), "eos_token_id", None),
        policy.config.get_text_config().eos_token_id,
        policy.tokenizer.eos_token_id,
    ):
        ends.update(value if isinstance(value, list) else [] if value is None else [value])
    return ends
