"""``tscore``: t = dot / se, the alignment in units of its own standard error over rollouts.

Prefers problems whose alignment is sure to those where it is large by luck. Needs forward-only contributions.
"""

from gradalign.selection.strategy import Strategy

STRATEGY = Strategy("tscore", "sure gain along it (dot / standard error)", "t", lambda a, seed: a.numbers.t)
