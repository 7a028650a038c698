"""A group: one problem with its rollouts, as token ids. What the mathematics is written on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Status = Literal["scored", "zero_variance", "no_tokens", "failed"]


@dataclass(slots=True)
class Rollout:
    """One sampled response.

    Attributes:
        response_ids: (tokens,) the token ids as sampled, end-of-sequence token included.
        reward: its reward.
        response_mask: (tokens,) false where a token is not the policy's own (tool output); None means all true.
        logprobs: (tokens,) log-probabilities under the sampling policy at its temperature, where known.
        finish_reason: ``stop`` or ``length``, where known.
        response: the text, where known.
        rewards: of each reward function, NaN where one gave none; for rollouts paid by several.
    """

    response_ids: NDArray[np.int64]
    reward: float
    response_mask: NDArray[np.bool_] | None = None
    logprobs: NDArray[np.float32] | None = None
    finish_reason: str | None = None
    response: str | None = None
    rewards: tuple[float, ...] | None = None

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(tokens,) true where a token counts."""
        return np.ones(len(self.response_ids), bool) if self.response_mask is None else self.response_mask

    @property
    def n_tokens(self) -> int:
        """Number of tokens that count."""
        return len(self.response_ids) if self.response_mask is None else int(self.response_mask.sum())


@dataclass(slots=True)
class Group:
    """One problem with its rollouts.

    Attributes:
        key: the problem's key.
        prompt_ids: (tokens,) the prompt.
        rollouts: the sampled responses, in sampling order.
        source: where the problem is from.
        policy: fingerprint of the weights that sampled the rollouts, where known.
        invalid: why the group cannot be scored (its status), for groups that bad rows have marked.
    """

    key: str
    prompt_ids: NDArray[np.int64]
    rollouts: Sequence[Rollout]
    source: str = ""
    policy: str | None = None
    invalid: Status | None = None

    @property
    def rewards(self) -> NDArray[np.float64]:
        """(rollouts,) the rewards."""
        return np.array([rollout.reward for rollout in self.rollouts], np.float64)

    @property
    def n_tokens(self) -> int:
        """Response tokens that count, over all rollouts."""
        return sum(rollout.n_tokens for rollout in self.rollouts)

    def distinct(self) -> tuple[Group, NDArray[np.int64]]:
        """The group with each distinct response once, and (rollouts,) which of them each rollout is.

        Equal tokens under equal masks have equal log-probabilities and gradients: computing them once is cheaper, and
        what cancels between them cancels exactly instead of to rounding.
        """
        found: dict[tuple[bytes, bytes], int] = {}
        kept: list[Rollout] = []
        owner = np.zeros(len(self.rollouts), np.int64)
        for index, rollout in enumerate(self.rollouts):
            mask = rollout.response_mask
            counted = b"" if mask is None or mask.all() else mask.tobytes()
            identity = rollout.response_ids.tobytes(), counted
            if identity not in found:
                found[identity] = len(kept)
                kept.append(rollout)
            owner[index] = found[identity]
        return Group(self.key, self.prompt_ids, kept), owner

    @property
    def status(self) -> Status:
        """``scored`` when the group carries a gradient; otherwise why it does not."""
        if self.invalid is not None:
            return self.invalid
        rewards = self.rewards
        return "zero_variance" if rewards.max() == rewards.min() else "scored"
