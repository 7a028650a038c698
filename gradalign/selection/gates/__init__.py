"""Gates by name: which groups may be chosen. That a group must have been scored goes without saying."""

from __future__ import annotations

from gradalign.selection.gates.band import Band
from gradalign.selection.gates.consistent import Consistent
from gradalign.selection.gates.sound import Sound
from gradalign.selection.parts import Gate

GATES: dict[str, type[Gate]] = {"sound": Sound, "consistent": Consistent, "band": Band}
"""Gate name -> class."""
