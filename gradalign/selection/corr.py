"""``corr``: Pearson correlation, over a problem's rollouts, of the reward with the weighted directional derivative.

Does a better reward go with moving along v? Lies in [-1, 1]; zero in expectation when the reward ignores the response.
Needs forward-only contributions.
"""

from gradalign.selection.strategy import Strategy

STRATEGY = Strategy("corr", "reward that goes with moving along it", "corr", lambda a, seed: a.numbers.corr)
