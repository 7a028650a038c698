"""``gradalign bench fidelity``: few rollouts, and other engines, against exact ones from many."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from gradalign.alignment.align import Progress
from gradalign.bench.fidelity import FidelityPlan, measure_fidelity
from gradalign.bench.fidelity_arms import ARMS as FIDELITY_ARMS
from gradalign.bench.fidelity_table import finish_fidelity
from gradalign.bench.machine import machine
from gradalign.bench.results import Results
from gradalign.cli.bench.common import MachineOptions, known, tell
from gradalign.cli.options import Count
from gradalign.config import parse, resolved
from gradalign.errors import GradAlignError
from gradalign.policy.group import Group
from gradalign.policy.load import Policy, load_policy
from gradalign.problems.embedded import make_pool
from gradalign.report.console import progress_bars
from gradalign.rewards.base import Reward
from gradalign.rewards.countdown import countdown
from gradalign.rollouts.collect import collect
from gradalign.rollouts.sample import Sampling
from gradalign.rollouts.sampler import PolicySampler
from gradalign.rollouts.table import Limits, read_rollouts


class FidelityOptions(MachineOptions):
    """Compare few rollouts, and other engines, with exact alignments from many rollouts; an interrupted run goes on
    where it stopped."""

    model: str = "embedded"
    """The policy: hub id, folder, .gguf file, or embedded; its weights are taken in float32."""
    candidates: Path | None = None
    """Rollouts of the problems, many of each (default: small Countdown problems, sampled with the embedded policy)."""
    validation: Path | None = None
    """Rollouts of the validation set, likewise."""
    problems: Count = 256
    """Countdown problems, where no tables are given."""
    validation_problems: Count = 64
    """Countdown validation problems, where no tables are given."""
    samples: Annotated[int, Field(ge=4)] = 128
    """Responses sampled for each of them; half of the problems' are the truth."""
    rollouts: Annotated[tuple[Annotated[int, Field(ge=2)], ...], Field(min_length=1)] = (4, 8, 16, 32)
    """Rollouts in a draw."""
    arms: Annotated[tuple[str, ...], Field(min_length=1)] = tuple(FIDELITY_ARMS)
    """What is compared; exact always is."""
    fraction: Annotated[float, Field(gt=0, le=1)] = 0.125
    """Share of the problems that counts as the top."""
    out: Path = Path("fidelity.json")
    """Results to write (.json); beside it land tables in Markdown, all numbers, and rollouts that were sampled."""

    @model_validator(mode="after")
    def _both_tables(self) -> FidelityOptions:
        if (self.candidates is None) != (self.validation is None):
            raise ValueError("--candidates and --validation go together; give both")
        if self.candidates is None and self.model != "embedded":
            raise ValueError("--candidates and --validation are needed with a --model that is not embedded")
        return self


def run(arguments: Sequence[str]) -> None:
    """Run ``gradalign bench fidelity``."""
    options = parse(FidelityOptions, "bench fidelity", arguments)
    known("arms", options.arms, FIDELITY_ARMS)
    if len(set(options.rollouts)) < len(options.rollouts):
        raise GradAlignError("option --rollouts: a number is there twice")
    options.use_threads()
    policy = load_policy(options.model, dtype="float32", device=options.device)
    tables = [path for path in (options.candidates, options.validation) if path is not None]
    depends = {"policy": policy.fingerprint, "tables": [_digest(path) for path in tables]}
    facts = resolved("bench fidelity", options, machine=machine(policy.device), **depends)
    results = Results(options.out, facts, finish_fidelity)
    o = options
    plan = FidelityPlan(o.arms, o.rollouts, o.fraction, o.batch_tokens, o.seed)
    with progress_bars() as progress:
        if tables:
            candidates, validation = (read_rollouts(path, Limits.of(policy)) for path in tables)
        else:
            candidates, validation = _sampled(policy, options, progress)
        measure_fidelity(policy, candidates, validation, plan, results, progress)
    tell(results)


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise GradAlignError(f"{path}: cannot be read ({error.strerror})") from error


def _sampled(policy: Policy, options: FidelityOptions, progress: Progress) -> tuple[list[Group], list[Group]]:
    """Many rollouts of embedded problems: (candidates, validation)."""
    size = options.problems + options.validation_problems
    try:
        made = make_pool("countdown", size, options.seed)
    except ValueError as error:
        raise GradAlignError(f"option --problems: {error}") from error
    sampling = Sampling(options.samples, max_new_tokens=16, seed=options.seed)
    sampler = PolicySampler(policy, Reward("countdown", countdown), sampling)
    tick = progress("rollouts", size * options.samples)
    pools = {"candidates": made[: options.problems], "validation": made[options.problems :]}
    found = [collect(sampler, pool, options.out.with_suffix(f".{name}.parquet"), tick) for name, pool in pools.items()]
    return found[0], found[1]
