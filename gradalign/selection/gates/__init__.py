"""Gates by name: which groups may be chosen. That a group must have been scored goes without saying."""

from __future__ import annotations

from gradalign.parts import Registry
from gradalign.selection.gates.band import Band
from gradalign.selection.gates.consistent import Consistent
from gradalign.selection.gates.dtv import Dtv
from gradalign.selection.gates.oracle import Oracle
from gradalign.selection.gates.sound import Sound
from gradalign.selection.parts import Gate

GATES: Registry[type[Gate]] = Registry(
    "gradalign.gates",
    {"sound": Sound, "consistent": Consistent, "band": Band, "dtv": Dtv, "oracle": Oracle},
    ("needs", "final", "passes"),
)
"""Gate name -> class."""
