"""Ranks by name: how useful a group is to train on now."""

from __future__ import annotations

from gradalign.parts import Registry
from gradalign.selection.parts import Rank
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

RANKS: Registry[type[Rank]] = Registry(
    "gradalign.ranks",
    {
        "cosine": Cosine,
        "dot": Dot,
        "tscore": TScore,
        "corr": Corr,
        "permutation": Permutation,
        "lcb": LowerBound,
        "shrunk": Shrunk,
        "expected": Expected,
        "norm": Norm,
        "nearest": Nearest,
        "negative": Negative,
        "simacc": SimAcc,
        "learnability": Learnability,
        "learnalign": LearnAlign,
        "cropi": Cropi,
        "accgreedy": AccGreedy,
        "dynamic": Dynamic,
        "random": Random,
    },
    ("needs", "prefers", "scores"),
)
"""Rank name -> class."""
