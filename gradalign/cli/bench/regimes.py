"""``gradalign bench regimes``: does choosing train better policies, under three kinds of bad data?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator

from gradalign.bench.machine import machine
from gradalign.bench.regime_arms import ARMS
from gradalign.bench.regime_beds import BEDS, SHARES, Sizes
from gradalign.bench.regime_rows import Rows
from gradalign.bench.regime_tables import finish_regimes
from gradalign.cli.bench.common import known
from gradalign.cli.options import Count
from gradalign.config import Options, parse, resolved
from gradalign.errors import GradAlignError, missing_extra
from gradalign.report.console import show

try:
    from gradalign.bench.regimes import RegimesPlan, Setting, identity, measure_regimes
except ImportError as missing:
    raise missing_extra(str(missing.name), "train") from missing


class RegimesOptions(Options):
    """Train the embedded policy with TRL on what every strategy chooses from bad data; an interrupted run goes on where
    it stopped, and the same command in another process shares the work."""

    bed: Literal["coins", "matched_coins", "wrong_gold", "imbalance", "low_utility"]
    """coins, matched_coins, wrong_gold (unreliable reward), imbalance, low_utility."""
    arms: Annotated[tuple[str, ...], Field(min_length=1)] = tuple(ARMS)
    """What is run; the strategies by name, and racing, batch, oracle."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = tuple(range(8))
    """Seeds of problems, coins and sampling."""
    fewer: Count = 4
    """Arms that are not headline arms run on so many of the seeds, the first."""
    pool: Count = 768
    """Candidates."""
    validation: Count = 64
    """Trusted problems."""
    test: Count = 256
    """Test problems."""
    share: float | None = None
    """Share of the pool that ought to be chosen (default: 0.5 of unreliable rewards, 0.1 otherwise)."""
    rounds: Annotated[int, Field(ge=2)] = 8
    """Rounds of choosing and training."""
    steps_per_round: Count = 12
    """Optimiser steps in a round."""
    chunk: Count | None = None
    """Candidates in a round (default: a quarter of the pool where half of it is good, else half of it)."""
    top: Count = 32
    """Problems chosen of them."""
    rollouts: Annotated[int, Field(ge=2)] = 16
    """Responses for each candidate and each problem that is trained on."""
    validation_rollouts: Annotated[int, Field(ge=2)] = 32
    """Responses for each trusted problem."""
    test_rollouts: Count = 16
    """Responses for each test problem."""
    batch: Count = 256
    """Responses in a training step."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-5
    """Constant."""
    threads: Count | None = None
    """Threads on the CPU (default: torch's own choice)."""
    out: Path | None = None
    """Results to write (.json; default: BED.json); tables in Markdown land beside it."""

    @model_validator(mode="after")
    def _possible(self) -> RegimesOptions:
        if self.share is not None and not 0 < self.share < 1:
            raise ValueError(f"--share is {self.share:g}; some problems, and not all, must be good: between 0 and 1")
        if self.top > self.candidates or self.candidates > self.pool:
            raise ValueError(
                f"--top {self.top} of --chunk {self.candidates} of --pool {self.pool}: each at most the next"
            )
        if self.batch % self.rollouts:
            raise ValueError(f"--batch {self.batch} is no multiple of --rollouts {self.rollouts}; make it one")
        return self

    @property
    def good(self) -> float:
        """Share of the pool that ought to be chosen."""
        return SHARES[BEDS[self.bed][0]][1] if self.share is None else self.share

    @property
    def candidates(self) -> int:
        """Problems in a chunk."""
        return self.chunk or max(1, self.pool // (4 if self.good >= 0.5 else 2))


def run(arguments: Sequence[str]) -> None:
    """Run the command."""
    o = parse(RegimesOptions, "bench regimes", arguments)
    known("arms", o.arms, ARMS)
    if len(set(o.seeds)) < len(o.seeds):
        raise GradAlignError("option --seeds: a number is there twice")
    if o.threads is not None:
        torch.set_num_threads(o.threads)
    regime = BEDS[o.bed][0]
    setting = Setting(
        Sizes(o.pool, o.validation, o.test, o.good), o.rounds, o.steps_per_round, o.candidates, o.top, o.rollouts,
        o.validation_rollouts, o.test_rollouts, o.batch, o.learning_rate,
    )  # fmt: skip
    facts = resolved("bench regimes", o)
    origin = {"commit": facts["commit"], **facts["versions"], "cpu": machine(torch.device("cpu"))["cpu"]}
    out = Path(f"{o.bed}.json") if o.out is None else o.out
    rows = Rows(out, {"regime": regime, "bed": o.bed, "setting": identity(setting)}, origin, finish_regimes)
    plan = RegimesPlan(o.bed, o.arms, o.seeds, o.fewer, setting)
    show(f"{len(plan.runs)} runs, {len(rows.missing(plan.runs))} of them to do")
    measure_regimes(plan, rows, show)
    rows.refresh()
    if out.with_suffix(".md").exists():
        show(out.with_suffix(".md").read_text(encoding="utf-8"))
    show(f"wrote {out} and {out.with_suffix('.md')}")
