"""``gradalign``: the paper's score, cos(g_i, v): problems whose policy gradient points where the validation's does.

arXiv 2602.21492. Needs an engine that gives cosine (``exact``, ``sketch``, ``reference``).
"""

from gradalign.selection.strategy import Strategy

STRATEGY = Strategy("gradalign", "gradient along the validation's (cosine)", "cosine", lambda a, seed: a.numbers.cosine)
