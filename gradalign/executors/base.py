"""What is asked of an executor, and what it is given: jobs, which workers begin with a replica of the policy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from gradalign.policy.load import Policy, load_policy

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)
R = TypeVar("R")


class Job(Protocol[T_contra, R]):
    """Work on items; pickled once, and sent to every worker."""

    def begin(self, policy: Policy, cut: int) -> Callable[[Sequence[T_contra]], list[R]]:
        """What does a batch of items, one result each, in order.

        Args:
            policy: the worker's replica.
            cut: how often an item of this job has cost its worker already; take less memory the higher it is.
        """
        ...

    def name(self, item: T_contra) -> str:
        """How messages call an item."""
        ...


class Executor(Protocol):
    """Workers that do jobs."""

    @property
    def workers(self) -> int:
        """How many work side by side."""
        ...

    def each(self, job: Job[T, R], batches: Sequence[Sequence[T]]) -> Iterator[tuple[int, list[R | None]]]:
        """The batches' results as they are finished, with the batches' numbers; None for an item that was given up.

        A batch is done as a whole, by one worker, so that no result depends on how many workers there are, on who does
        what, or on which of them are lost.

        Raises:
            GradAlignError: the job raises one; no worker is left, and none can be had.
        """
        ...


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """How a worker loads its replica; the arguments of `load_policy`."""

    model: str
    adapter: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    parameters: tuple[str, ...] = ()

    def load(self) -> Policy:
        """Load it.

        Raises:
            GradAlignError: see `load_policy`.
        """
        return load_policy(self.model, self.adapter, self.dtype, self.device, self.parameters)


def once(executor: Executor, job: Job[T, R], item: T) -> R | None:
    """The result of a single item."""
    found: list[Any] = [results for _, results in executor.each(job, [[item]])]
    return found[0][0]
