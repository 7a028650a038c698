"""Picks by name: which of the groups that may be chosen are."""

from __future__ import annotations

from gradalign.selection.parts import Pick
from gradalign.selection.picks.diverse import Diverse
from gradalign.selection.picks.sample import Sample
from gradalign.selection.picks.top import Top

PICKS: dict[str, type[Pick]] = {"top": Top, "sample": Sample, "diverse": Diverse}
"""Pick name -> class."""
