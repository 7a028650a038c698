"""What runs in a worker: a replica of the policy, and the job that it was sent."""

from __future__ import annotations

import os
import platform
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Outcome:
    """What a call of a worker gives.

    Attributes:
        value: the result.
        error: a mistake that the user can mend, which ends the run.
        memory: memory ran out, as this says.
        warnings: what the user is to be told.
        machine: where the worker is.
    """

    value: Any = None
    error: Exception | None = None
    memory: str | None = None
    warnings: list[str] = field(default_factory=list)
    machine: str = field(default_factory=platform.node)


class Worker:
    """One replica; its methods are called one after the other.

    Args:
        threads: of torch's operations on a CPU.
        folder: the driver's working folder, where it is there on this machine too.
        places: of modules that the driver imports from.
    """

    def __init__(self, threads: int, folder: str, places: Sequence[str]) -> None:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported
        if os.path.isdir(folder):
            os.chdir(folder)
        sys.path.extend(place for place in places if place not in sys.path)
        self.threads = threads
        self.policy: Any = None
        self.job: tuple[int, Any] = (-1, None)
        self.begun: dict[int, Callable[[Sequence[Any]], list[Any]]] = {}

    def load(self, spec: Any) -> Outcome:
        """Load the policy of a `gradalign.executors.base.PolicySpec`; gives its fingerprint and its weights' type."""
        import torch

        torch.set_num_threads(self.threads)

        def load() -> tuple[str, str]:
            self.policy = spec.load()
            return self.policy.fingerprint, str(self.policy.dtype).removeprefix("torch.")

        return _outcome(load)

    def work(self, number: int, sent: Sequence[Any], items: Sequence[Any], cut: int) -> Outcome:
        """Do a batch.

        Args:
            number: of the job.
            sent: one reference to the job, which is fetched where it is another one than before.
            items: of the batch.
            cut: see `gradalign.executors.base.Job.begin`.
        """

        def work() -> list[Any]:
            if self.job[0] != number:
                import ray

                self.begun, self.job = {}, (-1, None)  # freed before the next one comes
                self.job = number, ray.get(sent[0])
            if cut not in self.begun:
                self.begun[cut] = self.job[1].begin(self.policy, cut)
            return self.begun[cut](items)

        return _outcome(work)


def _outcome(work: Callable[[], Any]) -> Outcome:
    from gradalign.errors import GradAlignError, GradAlignWarning
    from gradalign.policy.memory import out_of_memory

    made = Outcome()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", GradAlignWarning)
        try:
            made.value = work()
        except GradAlignError as error:
            made.error = error.with_traceback(None)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            made.memory = next(iter(str(error).splitlines()), "out of memory")
    made.warnings = [str(one.message) for one in caught]
    return made
