"""``gradalign bench WORD``: how fast engines are, how far their numbers can be trusted, and what choosing is worth."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from gradalign.errors import GradAlignError, nearest

BENCHMARKS = {
    "speed": "engines side by side: time, memory, share of the machine's own rate",
    "fidelity": "few rollouts and other engines against exact with many rollouts",
    "noise": "which strategy sees through rewards gone wrong, with how few rollouts",
    "audit": "spoilt rewards: what share of the audit's lists is sound, what share of the spoilt they hold",
    "regimes": "training on what every strategy chooses, under unreliable rewards, imbalance and low utility",
}
"""Second word -> one line of help; the module of the same name has ``run(arguments)``."""


def run(arguments: Sequence[str]) -> None:
    """Run the command."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        width = max(map(len, BENCHMARKS))
        lines = [f"  gradalign bench {name:<{width}}  {text}" for name, text in BENCHMARKS.items()]
        print("\n".join([*lines, "", "gradalign bench WORD --help tells its options."]))
        return
    if arguments[0] not in BENCHMARKS:
        raise GradAlignError(f"unknown benchmark {arguments[0]!r}{nearest(arguments[0], BENCHMARKS)}")
    importlib.import_module(f"gradalign.cli.bench.{arguments[0]}").run(arguments[1:])
