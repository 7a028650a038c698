"""Which problems are looked at in which round: an endless stream of chunks, known from its number alone."""

from __future__ import annotations

from collections.abc import Sequence

from gradalign.problems.schema import uniform_hash


class Chunks:
    """Chunks of a pool, pass after pass, every pass in a seeded order of its own.

    Nothing is dropped: where a pass ends within a chunk, the next pass fills it, beginning with problems that are not
    in the chunk already. So no chunk holds a problem twice, and after n passes every problem was in n chunks.

    Args:
        keys: of the pool's problems.
        size: problems in a chunk; None or more than there are takes the whole pool every time.
        seed: of the orders.
    """

    def __init__(self, keys: Sequence[str], size: int | None, seed: int) -> None:
        self.keys = keys
        self.size = min(size or len(keys), len(keys))
        self.seed = seed
        self._number = 0  # of the pass held
        self._order = self._shuffled(0)

    def __getitem__(self, number: int) -> list[int]:
        """Indices of chunk ``number``'s problems, in pool order."""
        start, total = number * self.size, len(self.keys)
        first, offset = divmod(start, total)
        self._go_to(first)
        chunk = self._order[offset : offset + self.size]
        if len(chunk) < self.size:
            self._go_to(first + 1)
            chunk = chunk + self._order[: self.size - len(chunk)]
        return sorted(chunk)

    def _go_to(self, number: int) -> None:
        if number < self._number:
            self._number, self._order = 0, self._shuffled(0)
        while self._number < number:
            last = self._order
            self._number += 1
            order = self._shuffled(self._number)
            begun = -self._number * len(self.keys) % self.size  # problems of this pass that fill the chunk begun
            if begun:
                held = set(last[len(last) - (self.size - begun) :])
                head = [index for index in order if index not in held][:begun]
                order = head + [index for index in order if index not in set(head)]
            self._order = order

    def _shuffled(self, number: int) -> list[int]:
        parts = ("chunk", self.seed) if number == 0 else ("chunk", self.seed, number)
        draws = [uniform_hash(*parts, key) for key in self.keys]
        return sorted(range(len(draws)), key=draws.__getitem__)
