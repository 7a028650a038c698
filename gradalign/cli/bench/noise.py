"""``gradalign bench noise``: which strategy sees through rewards gone wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, model_validator

from gradalign.bench.machine import machine
from gradalign.bench.noise import NoisePlan, measure_noise
from gradalign.bench.noise_data import Setting
from gradalign.bench.noise_table import finish_noise
from gradalign.bench.results import Results
from gradalign.cli.bench.common import tell
from gradalign.cli.options import Count
from gradalign.config import Options, parse, resolved
from gradalign.policy.load import load_policy
from gradalign.report.console import progress_bars


class NoiseOptions(Options):
    """Choose among embedded problems, half of them with rewards gone wrong, by every strategy and number of rollouts;
    an interrupted run goes on where it stopped."""

    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = tuple(range(12))
    """Seeds of problems, rollouts and corruptions."""
    problems: Count = 512
    """Candidates, half of them corrupted."""
    choose: Count = 128
    """Problems in a choice."""
    validation_problems: Count = 64
    """Trusted problems."""
    validation_rollouts: Annotated[int, Field(ge=2)] = 32
    """Responses for each of them."""
    rollouts: Annotated[tuple[Annotated[int, Field(ge=2)], ...], Field(min_length=1)] = (8, 16, 32, 64)
    """Responses for each candidate that a strategy sees."""
    truth: Annotated[int, Field(ge=4)] = 512
    """Responses for each candidate that the oracle sees."""
    threads: Count | None = None
    """Threads on the CPU (default: torch's own choice)."""
    out: Path = Path("noise.json")
    """Results to write (.json); tables in Markdown land beside it, and a folder of the seeds' numbers (.data)."""

    @model_validator(mode="after")
    def _enough(self) -> NoiseOptions:
        if max(self.rollouts) > self.truth:
            raise ValueError(f"--rollouts {max(self.rollouts)} is more than --truth, the oracle's; raise that")
        if self.choose > self.problems:
            raise ValueError(f"--choose {self.choose} is more than --problems; lower it")
        return self


def run(arguments: Sequence[str]) -> None:
    """Run ``gradalign bench noise``."""
    options = parse(NoiseOptions, "bench noise", arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    policy = load_policy("embedded", device="cpu")
    facts = resolved("bench noise", options, machine=machine(policy.device), policy=policy.fingerprint)
    results = Results(options.out, facts, finish_noise)
    o = options
    setting = Setting(
        o.problems, o.validation_problems, o.validation_rollouts, rollouts=tuple(sorted(set(o.rollouts))), truth=o.truth
    )
    with progress_bars() as progress:
        measure_noise(policy, NoisePlan(o.seeds, o.choose, setting), results, o.out.with_suffix(".data"), progress)
    tell(results)
