"""Workers as Ray actors: one replica of the policy each, on the machines of a cluster.

A worker holds two batches, one that it does and one that waits, so that it need not wait for the driver; no more are
under way. A worker that is lost, with its machine or alone, is replaced; what it was at is tried again
(`gradalign.executors.pieces`), so nothing but work in flight is lost. The job itself is put into the object store once.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gradalign.errors import GradAlignError, warn
from gradalign.executors.base import Job, PolicySpec, R, T
from gradalign.executors.cluster import Needs, connected, room
from gradalign.executors.pieces import TRIES, Piece, Pieces
from gradalign.executors.worker import Outcome, Worker

AT_ONCE = 2
"""Batches that a worker has, the one it does included."""
PATIENCE, SHORT = 300.0, 60.0
"""Seconds without any worker after which a run gives up; seconds where workers are lost over loading."""
LONGEST = 30.0
"""Seconds between two attempts to start workers, at most: a machine's loss may not be known everywhere yet."""


@dataclass(eq=False, slots=True)
class Hand:
    """A worker as the driver sees it.

    Attributes:
        actor: its handle.
        loaded: reference to what `Worker.load` gives; None once that is known.
        under_way: references to results with what was sent, in the order in which they are done.
    """

    actor: Any
    loaded: Any
    under_way: deque[tuple[Any, Piece]] = field(default_factory=deque)

    @property
    def next(self) -> Any:
        """What is to be waited for; None where there is nothing."""
        return self.loaded if self.loaded is not None else self.under_way[0][0] if self.under_way else None


class RayExecutor:
    """See the module's text; made by `ray_executor`.

    Attributes:
        workers: how many work side by side.
        dtype: of the replicas' weights.
        fingerprint: of the replicas' weights.
    """

    def __init__(self, ray: Any, spec: PolicySpec, workers: int, needs: Needs) -> None:
        self.ray, self.spec, self.needs = ray, spec, needs
        self.workers = workers
        self.dtype = self.fingerprint = ""
        options = {"num_cpus": needs.cpus, "num_gpus": needs.gpus, "scheduling_strategy": "SPREAD"}
        self._remote = ray.remote(Worker).options(**options, max_restarts=0, max_task_retries=0)
        self._hands: list[Hand] = []
        self._failures = 0  # workers in a row that were lost while they loaded
        self._again = 0.0  # when others may be started
        self._seen = time.monotonic()  # when there was a worker
        self._jobs = 0
        self._said: set[str] = set()

    def start(self) -> None:
        """Start the workers; returns when the first one is ready.

        Raises:
            GradAlignError: the policy cannot be loaded; no worker can be had.
        """
        while not any(hand.loaded is None for hand in self._hands):
            self._fill()
            for hand in self._ready():
                self._take_in(hand)

    def each(self, job: Job[T, R], batches: Sequence[Sequence[T]]) -> Iterator[tuple[int, list[R | None]]]:
        """See `gradalign.executors.base.Executor`.

        Raises:
            GradAlignError: the job raises one; no worker is left, and none can be had.
        """
        pieces = Pieces(batches, job.name)
        sent = [self.ray.put(job)]
        self._jobs += 1
        self._seen = time.monotonic()
        try:
            while pieces.unfinished:
                self._fill()
                self._send(pieces, sent)
                for hand in self._ready():
                    if hand.loaded is not None:
                        self._take_in(hand)
                    else:
                        yield from self._results(hand, pieces)
        finally:
            for hand in [hand for hand in self._hands if hand.under_way]:  # the run ends, or this job does
                self._let_go(hand)

    def close(self) -> None:
        """Stop all workers."""
        for hand in [*self._hands]:
            self._let_go(hand)

    def _fill(self) -> None:
        """Start workers in the place of those that were lost."""
        threads = max(1, self.needs.cpus)
        while len(self._hands) < self.workers and time.monotonic() >= self._again:
            actor = self._remote.remote(threads, os.getcwd(), [place for place in sys.path if place])
            self._hands.append(Hand(actor, actor.load.remote(self.spec)))

    def _send(self, pieces: Pieces, sent: Sequence[Any]) -> None:
        """Give workers something to do, and something to do next; the last batches go to whoever is free first."""
        for held in range(AT_ONCE):
            for hand in self._hands:
                few = not pieces.waiting or (held and len(pieces.waiting) <= len(self._hands))
                if hand.loaded is None and len(hand.under_way) == held and not few:
                    piece = pieces.waiting.popleft()
                    result = hand.actor.work.remote(self._jobs, sent, piece.items, piece.cut)
                    hand.under_way.append((result, piece))

    def _ready(self) -> list[Hand]:
        """Workers that have something to tell; waits a second at most."""
        without = self._without()  # noted however quickly results come
        waited = {hand.next: hand for hand in self._hands if hand.next is not None}
        if not waited:
            time.sleep(1.0)
            return []
        found, _ = self.ray.wait(list(waited), num_returns=len(waited), timeout=0)
        if not found:
            found, _ = self.ray.wait(list(waited), num_returns=1, timeout=1.0)
        if not found and without > PATIENCE:
            raise GradAlignError(
                f"option --executor ray: no worker could be started within {PATIENCE:.0f} s (each takes "
                f"{self.needs.cpus} CPUs and {self.needs.gpus:g} GPUs); see `ray status` for what the cluster has free"
            )
        return [waited[reference] for reference in found]

    def _without(self) -> float:
        """Seconds since there was a worker that had loaded its replica."""
        if any(hand.loaded is None for hand in self._hands):
            self._seen = time.monotonic()
        return time.monotonic() - self._seen

    def _take_in(self, hand: Hand) -> None:
        """A worker has loaded its replica, or was lost over it."""
        try:
            outcome: Outcome = self.ray.get(hand.loaded)
        except self.ray.exceptions.RayError as error:
            self._raise_if_raised(error)
            outcome = Outcome(memory=_reason(error))
        self._tell(outcome)
        if outcome.error is not None:
            raise GradAlignError(f"{outcome.error} (a worker on machine {outcome.machine})") from outcome.error
        if outcome.memory is not None:
            self._let_go(hand)
            self._failures += 1
            self._again = time.monotonic() + min(LONGEST, 2.0**self._failures)
            if self._failures >= TRIES and self._without() > SHORT:
                raise GradAlignError(
                    f"option --executor ray: {self._failures} workers in a row were lost while they loaded the policy "
                    f"({outcome.memory}); a replica may need more memory than there is: take fewer --workers"
                )
            return
        fingerprint, dtype = outcome.value
        if self.fingerprint and (fingerprint, dtype) != (self.fingerprint, self.dtype):
            raise GradAlignError(
                f"model {self.spec.model}: workers have loaded different weights ({self.fingerprint} in {self.dtype}, "
                f"on machine {outcome.machine} {fingerprint} in {dtype}); it must be the same everywhere"
            )
        self.fingerprint, self.dtype = fingerprint, dtype
        self._failures, hand.loaded = 0, None

    def _results(self, hand: Hand, pieces: Pieces) -> Iterator[tuple[int, list[Any]]]:
        """Take what a worker has finished; where it was lost, see that its batches are done by another one."""
        result, piece = hand.under_way.popleft()
        try:
            outcome: Outcome = self.ray.get(result)
        except self.ray.exceptions.RayError as error:
            self._raise_if_raised(error)
            for _, waiting in reversed(hand.under_way):
                pieces.again(waiting)
            hand.under_way.clear()
            self._let_go(hand)
            batch = pieces.failed(piece, _reason(error))
        else:
            self._tell(outcome)
            if outcome.error is not None:
                raise outcome.error
            if outcome.memory is not None:
                batch = pieces.failed(piece, outcome.memory, memory=True)
            else:
                batch = pieces.finished(piece, outcome.value)
        if batch is not None:
            yield piece.batch, batch

    def _raise_if_raised(self, error: Exception) -> None:
        """Raise what a worker's code has raised: a bug, not a loss."""
        if isinstance(error, self.ray.exceptions.RayTaskError):
            raise error.as_instanceof_cause()

    def _tell(self, outcome: Outcome) -> None:
        for message in outcome.warnings:
            if message not in self._said:  # by another worker
                self._said.add(message)
                warn(message)

    def _let_go(self, hand: Hand) -> None:
        self._hands.remove(hand)
        with contextlib.suppress(Exception):  # it, or all of Ray, may be gone
            self.ray.kill(hand.actor)


@contextlib.contextmanager
def ray_executor(
    spec: PolicySpec, needs: Needs, workers: int | None = None, address: str | None = None
) -> Iterator[RayExecutor]:
    """Workers on a Ray cluster, the first of them ready.

    Args:
        spec: of their replicas.
        needs: what each takes.
        workers: how many; None takes as many as the cluster has room for.
        address: see `gradalign.executors.cluster.connected`.

    Raises:
        GradAlignError: ray is not installed or does not answer; no machine is large enough; the policy cannot be
            loaded.
    """
    with connected(address) as ray:
        most, needs = room(ray, needs, spec.device)
        if not needs.gpus and spec.device == "auto":  # it may see some all the same
            spec = replace(spec, device="cpu")
        if workers is not None and workers > most:
            warn(f"option --workers: the cluster has room for {most} of {workers}; the others wait for it to grow")
        executor = RayExecutor(ray, spec, workers or most, needs)
        try:
            executor.start()
            yield executor
        finally:
            executor.close()


def _reason(error: BaseException) -> str:
    """What became of a worker, in a few words."""
    text = str(error)
    if "low on memory" in text:  # among several lines
        return "its machine ran out of memory"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:160] if lines else type(error).__name__
