"""What the tests of engine ``server`` share."""

from __future__ import annotations

from gradalign.policy.load import Policy
from gradalign.problems.embedded import make_pool
from gradalign.rewards.base import Reward
from gradalign.rewards.countdown import countdown
from gradalign.rollouts.engine import EngineSampler, EngineSampling, verified
from gradalign.rollouts.sample import Sampling
from gradalign.rollouts.sampler import prompts_of
from gradalign.rollouts.server import connect

REWARD = Reward("countdown", countdown)
SAMPLING = Sampling(rollouts=4, max_new_tokens=8, batch_rollouts=16)
PROBLEMS = make_pool("mixed", 12, 0)
ROLLOUT = ["--model", "embedded", "--problems", "embedded:mixed?size=12&seed=0", "--reward", "countdown", "-n", 4,
           "--max-new-tokens", 8, "--batch-rollouts", 16, "--sampler", "server"]  # fmt: skip


def checked(
    policy: Policy, *servers: str, sampling: Sampling = SAMPLING, concurrency: int = 8, timeout: float = 60.0
) -> EngineSampling:
    problems = PROBLEMS[:4]
    keys, prompts = [p.key for p in problems], prompts_of(policy, problems, sampling.max_new_tokens)
    return verified(connect(servers, concurrency, timeout), policy, keys, prompts, sampling)


def sampler(policy: Policy, engine: EngineSampling, sampling: Sampling = SAMPLING) -> EngineSampler:
    return EngineSampler(policy, REWARD, sampling, engine)
