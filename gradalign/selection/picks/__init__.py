"""Picks by name: which of the groups that may be chosen are."""

from __future__ import annotations

from gradalign.parts import Registry
from gradalign.selection.parts import Pick
from gradalign.selection.picks.diverse import Diverse
from gradalign.selection.picks.sample import Sample
from gradalign.selection.picks.top import Top

PICKS: Registry[type[Pick]] = Registry(
    "gradalign.picks", {"top": Top, "sample": Sample, "diverse": Diverse}, ("needs", "picks")
)
"""Pick name -> class."""
