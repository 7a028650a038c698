"""``random``: uniformly from the same chunk, by a seeded hash of the key; the baseline every strategy must beat.

`select` samples and scores nothing for it. Where a table was scored anyway, what was not scored still ranks last.
"""

from gradalign.problems.schema import uniform_hash
from gradalign.selection.strategy import Strategy

STRATEGY = Strategy("random", "nothing", "nothing", lambda alignment, seed: uniform_hash("random", seed, alignment.key))
