"""Engines that sample in the loaded policy's place: prompts and responses as token ids, held to be of the same policy.

An engine gets one request a rollout, with a seed of its own that depends on the run's seed, the problem's key and the
rollout's number alone: a run that goes on, or samples further rollouts, asks the same again. What comes back of it is
the engine's: batching changes rounding, so the same request may still give another response.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gradalign.errors import GradAlignError, warn
from gradalign.policy.load import Policy
from gradalign.problems.schema import Problem, uniform_hash
from gradalign.rollouts.agreement import Agreement, hold
from gradalign.rollouts.sample import Response, Sampling, cut_at, end_tokens
from gradalign.rollouts.sampler import PaidSampler, Tokens

PROBES, RESPONSES, PROBE_TOKENS = 4, 4, 32
"""Prompts, responses to each and tokens of a response by which an engine's policy is compared with the loaded one."""


@dataclass(frozen=True, slots=True)
class Request:
    """One response that is wanted.

    Attributes:
        key: of its problem, for messages.
        prompt: token ids.
        seed: of its draws, in [0, 2**31).
        ends: token ids that end it.
        sampling: how; its number of rollouts does not matter.
    """

    key: str
    prompt: tuple[int, ...]
    seed: int
    ends: tuple[int, ...]
    sampling: Sampling


class Engine(Protocol):
    """Samples responses to prompts of token ids; the whole distribution, at the request's temperature."""

    @property
    def identity(self) -> dict[str, Any]:
        """What it is, as JSON values: engine, model, versions."""
        ...

    @property
    def max_length(self) -> int | None:
        """Longest prompt and response together, in tokens, where it says."""
        ...

    def respond(self, requests: Sequence[Request]) -> list[Response]:
        """A response to each request: ids, log-probabilities, why it ended.

        Raises:
            GradAlignError: it cannot be had.
        """
        ...

    def each(self, requests: Sequence[Request]) -> list[tuple[str, str | None, list[Response]]]:
        """(name, type of its weights where it tells, responses) of every copy of the policy that answers."""
        ...

    def load(self, folder: Path) -> None:
        """Take the weights of a model folder in place of those it has.

        Raises:
            GradAlignError: it cannot.
        """
        ...


def requests_of(policy: Policy, keys: Sequence[str], prompts: Sequence[Tokens], sampling: Sampling) -> list[Request]:
    """``sampling.rollouts`` requests for each problem, one problem after the other."""
    ends = tuple(sorted(end_tokens(policy)))
    return [
        Request(key, tuple(prompt.tolist()), _seed(sampling.seed, key, number), ends, sampling)
        for key, prompt in zip(keys, prompts, strict=True)
        for number in range(sampling.first, sampling.first + sampling.rollouts)
    ]


def _seed(seed: int, key: str, number: int) -> int:
    return int(uniform_hash("rollout", seed, key, number) * 2**31)


@dataclass
class EngineSampling:
    """Samples with an engine that was held against the policy by `verified`.

    Attributes:
        engine: samples.
        agreement: what was found; log-probabilities of another quantity than the policy's are not kept.
    """

    engine: Engine
    agreement: Agreement

    def responses(
        self, policy: Policy, keys: Sequence[str], prompts: Sequence[Tokens], sampling: Sampling
    ) -> list[list[Response]]:
        """``sampling.rollouts`` responses for each prompt, decoded.

        Raises:
            GradAlignError: see `Engine.respond`; a token that the policy does not have.
        """
        requests = requests_of(policy, keys, prompts, sampling)
        found = self.engine.respond(requests)
        vocabulary = policy.model.get_input_embeddings().weight.shape[0]
        for request, response in zip(requests, found, strict=True):
            if max(response.ids) >= vocabulary:
                raise GradAlignError(
                    f"problem {request.key!r}: the engine sampled token {max(response.ids)}, outside the policy's "
                    f"vocabulary of {vocabulary}; let it serve the policy's own model"
                )
            finish(policy, response, sampling.stop)
            if self.agreement.raw:
                response.logprobs = None
        count = sampling.rollouts
        return [found[start : start + count] for start in range(0, len(found), count)]


def finish(policy: Policy, response: Response, stop: Sequence[str]) -> None:
    """Give a response its text, cut before the first of the ``stop`` texts."""
    text = policy.decode(response.ids)
    response.text = cut_at(text, stop)
    if len(response.text) < len(text):
        response.finish_reason = "stop"


def verified(
    engine: Engine, policy: Policy, keys: Sequence[str], prompts: Sequence[Tokens], sampling: Sampling
) -> EngineSampling:
    """Hold an engine's policy against the loaded one: a few short responses, whose log-probabilities must be the same.

    Args:
        engine: to be checked, every copy of it.
        policy: the loaded one.
        keys: of some of the run's problems, the first `PROBES` of which are asked.
        prompts: (tokens,) of these.
        sampling: of the run.

    Raises:
        GradAlignError: another model, other weights, another tokenizer, log-probabilities of another quantity.
    """
    tokens = min(sampling.max_new_tokens, PROBE_TOKENS)
    asked = replace(sampling, rollouts=RESPONSES, first=0, max_new_tokens=tokens, stop=())
    probes = [*prompts[:PROBES]]
    requests = requests_of(policy, keys[:PROBES], probes, asked)
    found = [
        hold(policy, name, dtype, probes, responses, sampling.temperature)
        for name, dtype, responses in engine.each(requests)
    ]
    agreement = max(found, key=lambda one: (one.raw, one.difference))
    if agreement.raw:
        warn(
            f"{agreement.name}: its log-probabilities are of the distribution at temperature 1, not at "
            f"{sampling.temperature:g}; they are left out of the rollouts (vLLM gives the others with --logprobs-mode "
            "processed_logprobs)"
        )
    return EngineSampling(engine, agreement)


@dataclass
class EngineSampler(PaidSampler):
    """Samples with an engine, one request a rollout.

    Attributes:
        by: the engine, checked.
    """

    by: EngineSampling

    @property
    def identity(self) -> dict[str, Any]:
        """See `gradalign.rollouts.sampler.Sampler`."""
        return {**super().identity, "engine": self.by.engine.identity, "raw": self.by.agreement.raw}

    def prompts(self, problems: Sequence[Problem]) -> list[NDArray[np.int64]]:
        """(tokens,) the prompt of each problem.

        Raises:
            GradAlignError: see `PaidSampler.prompts`; a prompt leaves the engine no room for a response.
        """
        found = super().prompts(problems)
        longest, new = self.by.engine.max_length, self.sampling.max_new_tokens
        for problem, prompt in zip(problems, found, strict=True):
            if longest is not None and len(prompt) + new > longest:
                raise GradAlignError(
                    f"problem {problem.key!r}: its prompt of {len(prompt)} tokens and {new} new ones are more than the "
                    f"{longest} that the engine takes; start it with a larger --max-model-len (vLLM) or "
                    "--context-length (SGLang), or lower --max-new-tokens"
                )
        return found

    def responses(self, problems: Sequence[Problem], prompts: Sequence[Tokens]) -> list[list[Response]]:
        """See `PaidSampler`."""
        return self.by.responses(self.policy, [problem.key for problem in problems], prompts, self.sampling)
