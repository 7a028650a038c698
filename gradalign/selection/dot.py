"""``dot``: <g_i, v/|v|>, the first-order gain of a unit step along the problem's gradient; keeps the magnitude."""

from gradalign.selection.strategy import Strategy

STRATEGY = Strategy("dot", "large gain along it (inner product)", "dot", lambda a, seed: a.numbers.dot)
