"""Ready-made strategies by name. A new one is a line here."""

from __future__ import annotations

from gradalign.parts import Registry
from gradalign.selection.gates.consistent import Consistent
from gradalign.selection.ranks.accgreedy import AccGreedy
from gradalign.selection.ranks.corr import Corr
from gradalign.selection.ranks.cosine import Cosine
from gradalign.selection.ranks.dot import Dot
from gradalign.selection.ranks.expected import Expected
from gradalign.selection.ranks.lcb import LowerBound
from gradalign.selection.ranks.learnability import Learnability
from gradalign.selection.ranks.learnalign import LearnAlign
from gradalign.selection.ranks.permutation import Permutation
from gradalign.selection.ranks.random import Random
from gradalign.selection.ranks.shrunk import Shrunk
from gradalign.selection.ranks.tscore import TScore
from gradalign.selection.strategy import Strategy

OWN = (
    Strategy("gradalign", Cosine()),
    Strategy("dot", Dot()),
    Strategy("tscore", TScore()),
    Strategy("corr", Corr()),
    Strategy("permutation", Permutation()),
    Strategy("lcb", LowerBound()),
    Strategy("shrunk", Shrunk()),
    Strategy("expected", Expected()),
    Strategy("guarded", Expected(), (Consistent(),)),
    Strategy("learnalign", LearnAlign()),
    Strategy("accgreedy", AccGreedy()),
    Strategy("learnability", Learnability()),
    Strategy("static", Cosine(), once=True),
    Strategy("random", Random()),
)
STRATEGIES: Registry[Strategy] = Registry(
    "gradalign.strategies", {strategy.name: strategy for strategy in OWN}, ("rank", "gates", "pick")
)
"""Strategy name -> strategy. ``guarded`` is the noise-aware default that the study recommends; ``static`` is the
paper's score taken once, with the policy before training: what adapting is worth shows against it."""
