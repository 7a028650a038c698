"""Who samples and pays: from problems to groups, with the loaded policy or with an engine of one's own."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from gradalign.errors import GradAlignError
from gradalign.policy.group import Group, Rollout, Status
from gradalign.policy.load import Policy
from gradalign.problems.schema import Problem
from gradalign.rewards.several import AnyReward, WeightedSum
from gradalign.rollouts.sample import Response, Sampling, end_tokens, plan, sample_batch

Tokens = NDArray[np.int64]
Asked = tuple[Problem, Tokens]
"""A problem with its prompt."""


class Sampler(Protocol):
    """What `gradalign.rollouts.collect.collect` asks for."""

    @property
    def rollouts(self) -> int:
        """Responses for each problem."""
        ...

    @property
    def lockstep(self) -> bool:
        """Whether all processes must sample equally many batches, since they call one engine together."""
        ...

    @property
    def identity(self) -> dict[str, Any]:
        """All that the rollouts depend on besides the problems, as JSON values."""
        ...

    def prompts(self, problems: Sequence[Problem]) -> list[Tokens]:
        """(tokens,) the prompt of each problem."""
        ...

    def batches(self, prompts: Sequence[Tokens]) -> list[list[int]]:
        """Indices of the problems that are sampled together; the same on every run."""
        ...

    def sample(self, problems: Sequence[Problem], prompts: Sequence[Tokens]) -> list[Group]:
        """The groups of one batch."""
        ...

    def part(self, first: int, rollouts: int) -> Self:
        """A sampler of rollouts number ``first`` to ``first + rollouts - 1`` of each problem."""
        ...


@runtime_checkable
class Spreading(Protocol):
    """A `Sampler` whose batches are done side by side."""

    def each(self, batches: Sequence[Sequence[Asked]]) -> Iterator[tuple[int, list[Group]]]:
        """The groups of batches as these are finished, with the batches' numbers."""
        ...


def in_batches(sampler: Sampler, batches: Sequence[Sequence[Asked]]) -> Iterator[tuple[int, list[Group]]]:
    """The groups of batches, with the batches' numbers: one after the other, or as they are finished."""
    if isinstance(sampler, Spreading):
        yield from sampler.each(batches)
        return
    for number, asked in enumerate(batches):
        yield number, sampler.sample([problem for problem, _ in asked], [prompt for _, prompt in asked])


@dataclass
class PaidSampler:
    """What all samplers of a loaded policy share: prompts from its tokenizer, batches, rewards.

    Attributes:
        policy: whose responses are sampled.
        reward: pays them.
        sampling: how many, how long, at which temperature.
    """

    policy: Policy
    reward: AnyReward
    sampling: Sampling
    lockstep: ClassVar[bool] = False

    def responses(self, problems: Sequence[Problem], prompts: Sequence[Tokens]) -> list[list[Response]]:
        """Each problem's responses, decoded."""
        raise NotImplementedError

    @property
    def rollouts(self) -> int:
        """Responses for each problem."""
        return self.sampling.rollouts

    @property
    def identity(self) -> dict[str, Any]:
        """See `Sampler`."""
        return {
            "policy": self.policy.fingerprint,
            "reward": self.reward.identity,
            "coin": asdict(self.reward.coin) if self.reward.coin else None,
            "sampling": json.loads(json.dumps(asdict(self.sampling))),
            "ends": sorted(end_tokens(self.policy)),
        }

    def prompts(self, problems: Sequence[Problem]) -> list[Tokens]:
        """(tokens,) the prompt of each problem.

        Raises:
            GradAlignError: see `prompt_tokens`; a prompt leaves no room for a response.
        """
        return prompts_of(self.policy, problems, self.sampling.max_new_tokens)

    def batches(self, prompts: Sequence[Tokens]) -> list[list[int]]:
        """By length, so that little is padded."""
        return plan(prompts, self.sampling)

    def sample(self, problems: Sequence[Problem], prompts: Sequence[Tokens]) -> list[Group]:
        """The groups of one batch."""
        sampled = self.responses(problems, prompts)
        return [self.paid(*one) for one in zip(problems, prompts, sampled, strict=True)]

    def part(self, first: int, rollouts: int) -> Self:
        """See `Sampler`."""
        return replace(self, sampling=replace(self.sampling, first=first, rollouts=rollouts))

    def paid(self, problem: Problem, prompt: Tokens, responses: Sequence[Response]) -> Group:
        """One problem's responses with their rewards.

        Raises:
            GradAlignError: the reward fails.
        """
        texts, ids = [r.text or "" for r in responses], [r.ids for r in responses]
        if isinstance(self.reward, WeightedSum):
            parts = [term(problem, texts, ids, self.sampling.first) for term in self.reward.terms]
            rewards = self.reward.total(parts)
        else:
            parts, rewards = [], self.reward(problem, texts, ids, self.sampling.first)
        rollouts = [rollout_of(r, value) for r, value in zip(responses, rewards, strict=True)]
        for rollout, own in zip(rollouts, zip(*parts, strict=True), strict=False):
            rollout.rewards = own
        failed: Status | None = "failed" if any(map(math.isnan, rewards)) else None  # a judgement that did not come
        return Group(problem.key, prompt, rollouts, problem.source, self.policy.fingerprint, failed)


class PolicySampler(PaidSampler):
    """Samples with the loaded policy itself, one problem's prompt once."""

    def responses(self, problems: Sequence[Problem], prompts: Sequence[Tokens]) -> list[list[Response]]:
        """See `PaidSampler`."""
        return sample_batch(self.policy, [problem.key for problem in problems], prompts, self.sampling)


def sampled(
    sampler: Sampler, problems: Sequence[Problem], done: Callable[[int], None] = lambda problems: None
) -> list[Group]:
    """The groups of the problems, in their order, kept in memory alone; ``done`` is told of each batch's problems.

    Raises:
        GradAlignError: a prompt that leaves no room for a response; a reward that fails.
    """
    prompts = sampler.prompts(problems)
    found: dict[str, Group] = {}
    for batch in sampler.batches(prompts):
        groups = sampler.sample([problems[i] for i in batch], [prompts[i] for i in batch])
        found |= {group.key: group for group in groups}
        done(len(batch))
    return [found[problem.key] for problem in problems]


def rollout_of(response: Response, reward: float) -> Rollout:
    """A response with its reward."""
    logprobs = None if response.logprobs is None else np.array(response.logprobs, np.float32)
    ids, ended, text = np.array(response.ids, np.int64), response.finish_reason, response.text
    return Rollout(ids, reward, logprobs=logprobs, finish_reason=ended, response=text)


def prompt_tokens(policy: Policy, problem: Problem) -> list[int]:
    """A problem's prompt as token ids: a text as it stands, chat messages through the tokenizer's chat template.

    Raises:
        GradAlignError: the tokenizer has no chat template, or the prompt comes out empty.
    """
    tokenizer, prompt = policy.tokenizer, problem.prompt
    if isinstance(prompt, str):
        ids = tokenizer.encode(prompt)
    elif tokenizer.chat_template is None:
        raise GradAlignError(
            f"model {policy.path}: its tokenizer has no chat template, which problem {problem.key!r} needs; write the "
            "prompt as plain text, or take an instruction-tuned model"
        )
    else:
        ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True, return_dict=False)
    if not ids:
        raise GradAlignError(f"problem {problem.key!r}: its prompt has no token")
    return [int(token) for token in ids]


def prompts_of(policy: Policy, problems: Sequence[Problem], max_new_tokens: int) -> list[NDArray[np.int64]]:
    """(tokens,) the prompt of each problem.

    Raises:
        GradAlignError: see `prompt_tokens`; a prompt leaves no room for a response.
    """
    prompts = [np.array(prompt_tokens(policy, problem), np.int64) for problem in problems]
    for problem, prompt in zip(problems, prompts, strict=True):
        if policy.max_length is not None and len(prompt) + max_new_tokens > policy.max_length:
            raise GradAlignError(
                f"problem {problem.key!r}: its prompt of {len(prompt)} tokens and {max_new_tokens} new ones are more "
                f"than the {policy.max_length} the policy takes; lower --max-new-tokens or leave it out"
            )
    return prompts
