"""What benchmarks share: where to compute, names that must be known, the table at the end."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gradalign.bench.results import Results
from gradalign.cli.options import Count
from gradalign.config import Options
from gradalign.errors import GradAlignError, nearest
from gradalign.report.console import show


class MachineOptions(Options):
    """Where and how to compute."""

    batch_tokens: Count = 4096
    """Tokens in one forward or backward pass of an engine, at most."""
    device: str = "auto"
    """Where to compute; auto is cuda where there is one, else cpu."""
    threads: Count | None = None
    """Threads on the CPU (default: torch's own choice)."""
    seed: int = 0
    """Seed of all that is random."""

    def use_threads(self) -> None:
        """Have torch use the threads asked for."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)


def known(option: str, names: Sequence[str], known: dict) -> None:
    """Refuse names that are not known, and repeated ones.

    Raises:
        GradAlignError: there is one.
    """
    for index, name in enumerate(names):
        if name not in known:
            raise GradAlignError(
                f"option --{option}: unknown {option.removesuffix('s')} {name!r}{nearest(name, known)}"
            )
        if name in names[:index]:
            raise GradAlignError(f"option --{option}: {name!r} is there twice")


def tell(results: Results) -> None:
    show(results.markdown.read_text(encoding="utf-8"))
    show(f"wrote {results.path} and {results.markdown}")
