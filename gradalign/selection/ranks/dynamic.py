"""``dynamic``: uniformly at random among the problems whose rewards vary; DAPO's dynamic sampling (arXiv 2503.14476).

With rewards of 0 and 1 these are the problems with 0 < p < 1. All others carry no gradient: their status is
``zero_variance``, and such problems are never chosen, so the score is that of ``random``. What it adds is that the
problems are sampled first. In training, mode ``batch`` is DAPO's own way: more problems are sampled than a batch takes,
and those without a gradient are left out of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from gradalign.selection.parts import Needs
from gradalign.selection.ranks.random import Random


@dataclass(frozen=True)
class Dynamic(Random):
    """See the module's text."""

    needs: ClassVar[Needs] = frozenset({"pass_rate"})
    prefers: ClassVar[str] = "nothing, among those whose rewards vary"
