"""``gradalign bench audit``: does the audit keep its promise?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from gradalign.bench.audit import AuditPlan, measure_audit
from gradalign.bench.audit_table import finish_audit
from gradalign.bench.machine import machine
from gradalign.bench.results import Results
from gradalign.cli.bench.common import MachineOptions, tell
from gradalign.cli.options import Count
from gradalign.config import parse, resolved
from gradalign.policy.load import load_policy
from gradalign.report.console import progress_bars


class AuditBenchOptions(MachineOptions):
    """Spoil the rewards of some problems of the embedded policy, and see what the audit lists; an interrupted run goes
    on where it stopped."""

    seeds: Count = 8
    """Repetitions; the first has seed --seed, the next one more."""
    problems: Annotated[int, Field(ge=8)] = 256
    """Candidates of each."""
    validation: Annotated[int, Field(ge=8)] = 128
    """Validation problems of each."""
    rollouts: Annotated[tuple[Annotated[int, Field(ge=2)], ...], Field(min_length=1)] = (32, 64)
    """Rollouts of each problem."""
    spoilt: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """Share of the candidates whose rewards are spoilt."""
    fdr: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Nominal share of sound problems on each list."""
    out: Path = Path("audit.json")
    """Results to write (.json); a table in Markdown lands beside it."""


def run(arguments: Sequence[str]) -> None:
    """Run ``gradalign bench audit``."""
    options = parse(AuditBenchOptions, "bench audit", arguments)
    options.use_threads()
    policy = load_policy("embedded", dtype="float32", device=options.device)
    facts = resolved("bench audit", options, machine=machine(policy.device), policy=policy.fingerprint)
    results = Results(options.out, facts, finish_audit)
    o = options
    seeds = range(o.seed, o.seed + o.seeds)
    plan = AuditPlan(seeds, o.problems, o.validation, o.rollouts, o.spoilt, o.fdr, o.batch_tokens)
    with progress_bars() as progress:
        measure_audit(policy, plan, results, progress)
    tell(results)
