"""Who samples and scores: this process, or workers on a Ray cluster."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from gradalign.alignment.align import Scorer
from gradalign.alignment.spread import SpreadScorer
from gradalign.cli.options import Count, PolicyOptions
from gradalign.errors import GradAlignError
from gradalign.executors.base import Executor, PolicySpec
from gradalign.executors.cluster import Needs
from gradalign.executors.ray import ray_executor
from gradalign.policy.load import Policy, load_policy
from gradalign.policy.where import require_model
from gradalign.rewards.several import AnyReward
from gradalign.rollouts.sample import Sampling
from gradalign.rollouts.sampler import PolicySampler
from gradalign.rollouts.spread import SpreadSampler


@dataclass(frozen=True)
class AtWork:
    """The policy, and who works with it.

    Attributes:
        policy: this process's; it stays idle where there is an executor.
        executor: workers with replicas of it; None where this process does the work.
    """

    policy: Policy
    executor: Executor | None

    def sampler(self, reward: AnyReward, sampling: Sampling) -> PolicySampler:
        """Who samples."""
        if self.executor is None:
            return PolicySampler(self.policy, reward, sampling)
        return SpreadSampler(self.policy, reward, sampling, executor=self.executor)

    @property
    def scorer(self) -> Callable[..., Scorer]:
        """Makes who scores, from the arguments of `Scorer`."""
        return Scorer if self.executor is None else partial(SpreadScorer, executor=self.executor)


class ExecutorOptions(PolicyOptions):
    """Which policy, and who works with it."""

    executor: Literal["local", "ray"] = "local"
    """local: this process; ray: workers on a Ray cluster, one replica of the policy each, with the same results."""
    workers: Count | None = None
    """With ray: how many (default: as many as the cluster has GPUs, or CPUs, for)."""
    ray_address: Annotated[str, Field(min_length=1)] | None = None
    """With ray: auto for the cluster that this machine is a node of, or HOST:PORT of its head (default: Ray is started
    on this machine for the run)."""
    worker_cpus: Count = 1
    """With ray: CPUs that each worker takes, and its threads."""
    worker_gpus: Annotated[float, Field(ge=0, le=64)] | None = None
    """With ray: GPUs that each worker takes, or a share of one, as 0.5 (default: 1 where the cluster has some)."""

    @model_validator(mode="after")
    def _ray_alone(self) -> ExecutorOptions:
        names = ("workers", "ray_address", "worker_cpus", "worker_gpus")
        given = [name for name in names if getattr(self, name) != type(self).model_fields[name].default]
        if self.executor == "local" and given:
            option = given[0].replace("_", "-")
            raise ValueError(f"option --{option} is of --executor ray; add that, or leave the option out")
        if self.worker_gpus is not None and self.worker_gpus > 1 and not self.worker_gpus.is_integer():
            raise ValueError(f"option --worker-gpus: {self.worker_gpus:g}: take a share of one GPU, or whole ones")
        return self

    @contextlib.contextmanager
    def at_work(self, parameters: Sequence[str] = (), shard: bool = False) -> Iterator[AtWork]:
        """The policy, loaded, and who works with it, at work until the end of the block; see `load_policy`.

        Raises:
            GradAlignError: see `load_policy` and `ray_executor`.
        """
        if self.executor == "local":
            yield AtWork(self.policy(parameters, shard), None)
            return
        require_model(self.model)
        model = self.model if self.model == "embedded" else _absolute(self.model)
        adapter = None if self.adapter is None else _absolute(self.adapter)
        spec = PolicySpec(model, adapter, self.dtype, self.device, tuple(parameters))
        needs = Needs(self.worker_cpus, self.worker_gpus)
        with ray_executor(spec, needs, self.workers, self.ray_address) as executor:
            policy = load_policy(self.model, self.adapter, executor.dtype, "cpu", parameters)
            if policy.fingerprint != executor.fingerprint:
                raise GradAlignError(
                    f"model {self.model}: the workers have loaded other weights ({executor.fingerprint}; here they are "
                    f"{policy.fingerprint}); it must be the same on every machine"
                )
            yield AtWork(policy, executor)


def _absolute(place: str) -> str:
    """The place as workers find it, which need not be at work in the same folder; a hub id as it is."""
    path = Path(place).expanduser()
    return str(path.resolve()) if path.exists() else place
