"""``static``: the paper's score taken once, with the policy before training; the choice is never revised.

What adapting is worth shows against it. In `gradalign select` it is the same as ``gradalign``.
"""

from gradalign.selection.strategy import Strategy

STRATEGY = Strategy("static", "the same, scored once before training", "cosine", lambda a, seed: a.numbers.cosine, True)
