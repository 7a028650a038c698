"""The corruption of the paper's first regime: some problems are paid by a fair coin."""

from __future__ import annotations

from dataclasses import dataclass

from gradalign.problems.schema import uniform_hash


@dataclass(frozen=True, slots=True)
class Coin:
    """Which problems are paid by coin, and every toss, decided by hashes of the seed and the problem's key.

    Decided per problem and tossed per response, so that every arm of a comparison sees the same coins whatever else
    is in the pool and in whatever order.

    Attributes:
        fraction: chance that a problem is corrupted, in [0, 1].
        seed: of all coins.
        salt: added to the hash of a toss; a curriculum changes it each round.
        chances: of heads; a hash of the key draws a problem's own from them.
    """

    fraction: float
    seed: int = 0
    salt: int = 0
    chances: tuple[float, ...] = (0.5,)

    def corrupts(self, key: str) -> bool:
        """Whether the problem is paid by coin."""
        return uniform_hash("corrupt", self.seed, key) < self.fraction

    def toss(self, key: str, index: int) -> float:
        """0.0 or 1.0 for the problem's rollout number ``index``."""
        chance = self.chances[int(uniform_hash("chance", self.seed, key) * len(self.chances))]
        return float(uniform_hash("toss", self.seed, self.salt, key, index) < chance)
