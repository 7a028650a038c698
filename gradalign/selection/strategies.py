"""Ready-made strategies by name. A new one is a line here."""

from __future__ import annotations

from gradalign.parts import Registry
from gradalign.selection.gates.band import Band
from gradalign.selection.gates.consistent import Consistent
from gradalign.selection.gates.dtv import Dtv
from gradalign.selection.gates.oracle import Oracle
from gradalign.selection.ranks.accgreedy import AccGreedy
from gradalign.selection.ranks.corr import Corr
from gradalign.selection.ranks.cosine import Cosine
from gradalign.selection.ranks.cropi import Cropi
from gradalign.selection.ranks.dot import Dot
from gradalign.selection.ranks.dynamic import Dynamic
from gradalign.selection.ranks.expected import Expected
from gradalign.selection.ranks.lcb import LowerBound
from gradalign.selection.ranks.learnability import Learnability
from gradalign.selection.ranks.learnalign import LearnAlign
from gradalign.selection.ranks.nearest import Nearest
from gradalign.selection.ranks.negative import Negative
from gradalign.selection.ranks.norm import Norm
from gradalign.selection.ranks.permutation import Permutation
from gradalign.selection.ranks.random import Random
from gradalign.selection.ranks.shrunk import Shrunk
from gradalign.selection.ranks.simacc import SimAcc
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
    Strategy("nearest", Nearest(), (Consistent(),)),
    Strategy("learnalign", LearnAlign(), warmup=1),
    Strategy("cropi", Cropi(), stale=True),
    Strategy("simacc", SimAcc()),
    Strategy("norm", Norm()),
    Strategy("negative", Negative()),
    Strategy("dtv", Random(), (Dtv(),)),
    Strategy("accgreedy", AccGreedy()),
    Strategy("accband", Random(), (Band(),)),
    Strategy("learnability", Learnability()),
    Strategy("dynamic", Dynamic()),
    Strategy("static", Cosine(), once=True),
    Strategy("oracle", Random(), (Oracle(),)),
    Strategy("random", Random()),
)
STRATEGIES: Registry[Strategy] = Registry(
    "gradalign.strategies",
    {strategy.name: strategy for strategy in OWN},
    ("rank", "gates", "pick", "once", "warmup", "stale", "needs", "recipe"),
)
"""Strategy name -> strategy. ``guarded`` is the noise-aware default that the study recommends; ``static`` is the
paper's score taken once, with the policy before training: what adapting is worth shows against it. ``accband``, ``dtv``
and ``oracle`` are gates that the problems are drawn behind at random."""
