"""Which problems are looked at in which round: an endless stream of chunks, known from its number alone."""

from __future__ import annotations

from collections.abc import Collection

from gradalign.curriculum.shuffled import Shuffled


class Chunks:
    """Chunks of a pool, pass after pass, every pass in a seeded order of its own.

    Nothing is dropped: where a pass ends within a chunk, the next pass fills it, beginning with problems that are not
    in the chunk already. So no chunk holds a problem twice, and after n passes every problem was in n chunks.

    An order is made on disk when its pass begins, in time that grows with the pool; a chunk is then read from it.

    Args:
        keys: of the pool's problems, in its order; gone through once a pass.
        size: problems in a chunk; None or more than there are takes the whole pool every time.
        seed: of the orders.
    """

    def __init__(self, keys: Collection[str], size: int | None, seed: int) -> None:
        self.keys = keys
        self.total = len(keys)
        self.size = min(size or self.total, self.total)
        self.seed = seed
        self._number = -1  # of the pass held
        self._order: Shuffled
        self._first: list[int] = []  # its first `size` places; from there on it is the order

    def __getitem__(self, number: int) -> list[int]:
        """Indices of chunk ``number``'s problems, in pool order."""
        if self.size == self.total:
            return list(range(self.total))
        number_of_pass, offset = divmod(number * self.size, self.total)
        self._go_to(number_of_pass)
        chunk = self._read(offset, offset + self.size)
        if missing := self.size - len(chunk):
            self._go_to(number_of_pass + 1)
            chunk += self._read(0, missing)
        return sorted(chunk)

    def _read(self, start: int, stop: int) -> list[int]:
        """Places ``start`` to ``stop`` - 1 of the pass held, fewer where it ends before."""
        return self._first[start:stop] + self._order.read(max(start, self.size), stop)

    def _go_to(self, number: int) -> None:
        # What a pass ends with depends on the pass before it only where the two chunks at its ends meet.
        start = max(0, number - 1) if self.total >= 2 * self.size else 0
        if not start <= self._number <= number:
            self._number, self._order = start, self._shuffled(start)
            self._first = self._order.read(0, self.size)
        while self._number < number:
            begun = -(self._number + 1) * self.total % self.size  # problems of the next pass that fill the chunk begun
            held = set(self._read(self.total - (self.size - begun), self.total) if begun else [])
            self._number += 1
            self._order = self._shuffled(self._number)
            first = self._order.read(0, self.size)
            head = [index for index in first if index not in held][:begun]
            taken = set(head)
            self._first = head + [index for index in first if index not in taken]

    def _shuffled(self, number: int) -> Shuffled:
        return Shuffled(self.keys, ("chunk", self.seed) if number == 0 else ("chunk", self.seed, number))
