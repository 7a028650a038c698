"""How the arms of `gradalign bench regimes` choose: each a few fields of `GradAlignConfig`."""

from __future__ import annotations

from typing import Any

DEFAULT = "guarded"
"""The noise-aware default, pre-registered."""
CONTENDERS = (DEFAULT, "nearest")
"""Arms of this project's own that are tested against the baselines."""
ORACLE = "oracle"
"""The arm that knows the problems that ought to be chosen, and draws among them."""

ARMS: dict[str, dict[str, Any]] = {
    "random": {"strategy": "random"},
    "accgreedy": {"strategy": "accgreedy"},
    "accband": {"strategy": "accband"},
    "learnability": {"strategy": "learnability"},
    "dynamic": {"strategy": "dynamic"},
    "learnalign": {"strategy": "learnalign", "engine": "sketch", "projection": "two-sided:8"},
    "cropi": {"strategy": "cropi", "engine": "sketch", "projection": "coordinates:4096"},
    "static": {"strategy": "static"},
    "gradalign": {"strategy": "gradalign"},
    "nearest": {"strategy": "nearest", "engine": "sketch", "projection": "two-sided:16"},
    "dot": {"strategy": "dot", "engine": "directional"},
    "guarded": {"strategy": "guarded", "engine": "directional"},
    "racing": {"strategy": "guarded", "engine": "directional", "budget": "racing(screen={quarter}, mean={half})"},
    "batch": {"strategy": "dot", "gates": ["consistent"], "mode": "batch", "oversample": 3},
    "oracle": {"strategy": "oracle"},
}
"""Arm -> how it chooses; ``oracle`` gets the keys of the good problems beside. A race screens with a quarter of the
others' rollouts, spends half of them on average, and gives a problem twice as many at most."""
HEADLINE = ("random", "accgreedy", "gradalign", "dot", "guarded", "racing", "batch", "nearest", "oracle")
"""Arms that run on every seed."""
BASELINES = (
    "random", "accgreedy", "accband", "learnability", "dynamic", "learnalign", "cropi", "static", "gradalign", "dot",
)  # fmt: skip
"""What these are tested against."""
