"""``learnalign``: the mean over the candidates j of V_i V_j cos(g_i, g_j), with V = p (1 - p).

arXiv 2506.11480. Prefers problems that are neither solved nor hopeless and whose gradients go with those of the others
like them; the validation set's direction plays no part. Needs an engine that compares candidates with each other
(``sketch``).
"""

from gradalign.selection.strategy import Strategy

STRATEGY = Strategy(
    "learnalign", "learnable, and along the others like it", "learnalign", lambda a, seed: a.numbers.learnalign
)
