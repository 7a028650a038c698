"""The processes of one run, as torch.distributed knows them: sharing work, adding up, speaking with one voice.

Every method is a plain local operation where there is a single process. The others are collective: every process must
call them, in the same order, however much work its own share is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from gradalign.errors import GradAlignError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Processes:
    """One process among its equals.

    Attributes:
        rank: this one's number, 0 to count - 1.
        count: how many there are.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def current(cls) -> Processes:
        """The processes of the initialised default group; a single one where there is none."""
        import torch.distributed as dist

        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    def mine(self, items: Sequence[T]) -> Sequence[T]:
        """This process's share of ``items``: every count-th. `joined` undoes it."""
        return items[self.rank :: self.count]

    def joined(self, shares: Sequence[Sequence[T]]) -> list[T]:
        """The items that were shared out, in their order, from every process's share."""
        items: list[Any] = [None] * sum(map(len, shares))
        for rank, share in enumerate(shares):
            items[rank :: self.count] = share
        return items

    def gather(self, item: T) -> list[T]:
        """Every process's ``item`` (anything that pickles), by rank."""
        if self.count == 1:
            return [item]
        import torch.distributed as dist

        items: list[Any] = [None] * self.count
        dist.all_gather_object(items, item)
        return items

    def add_up(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace each tensor by its sum over the processes."""
        if self.count == 1:
            return
        import torch.distributed as dist

        for tensor in tensors:
            dist.all_reduce(tensor)

    def together(self, work: Callable[[], T]) -> list[T]:
        """Run ``work`` in every process and gather the results; where one fails, all do, so that none waits for ever.

        Raises:
            GradAlignError: the first process's error, in every process. Other exceptions are raised where they
                happened, a GradAlignError naming them elsewhere.
        """
        if self.count == 1:
            return [work()]
        result: Any = None
        error: Exception | None = None
        try:
            result = work()
        except Exception as caught:
            error = caught
        told = None if error is None else str(error) if isinstance(error, GradAlignError) else repr(error)
        outcomes = self.gather((told, result))
        if error is not None and not isinstance(error, GradAlignError):
            raise error
        for rank, (message, _) in enumerate(outcomes):
            if message is not None:
                own = isinstance(error, GradAlignError) and rank == self.rank
                raise GradAlignError(message if own else f"process {rank}: {message}") from error
        return [outcome for _, outcome in outcomes]


ALONE = Processes()
"""A single process."""
