"""``gradalign bench speed``: engines side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from gradalign.bench.machine import machine
from gradalign.bench.results import Results
from gradalign.bench.speed import SpeedPlan, measure_speed
from gradalign.bench.speed_arms import ARMS as SPEED_ARMS
from gradalign.bench.speed_table import finish_speed
from gradalign.bench.workloads import MODELS, WORKLOADS, build
from gradalign.cli.bench.common import MachineOptions, known, tell
from gradalign.cli.options import Count
from gradalign.config import parse, resolved
from gradalign.report.console import progress_bars


class SpeedOptions(MachineOptions):
    """Time engines side by side on random tokens; an interrupted run goes on where it stopped."""

    model: str = "smollm2"
    """Shape of the model: smollm2 or qwen2.5-1.5b, with random weights, or embedded."""
    workloads: Annotated[tuple[str, ...], Field(min_length=1)] = ("short", "few-shot", "long")
    """Lengths of prompts and responses: short, few-shot, long; tiny (for embedded)."""
    arms: Annotated[tuple[str, ...], Field(min_length=1)] = tuple(SPEED_ARMS)
    """What is timed; speed-ups are against plain."""
    repeats: Count = 5
    """Times that each arm measures all groups."""
    groups: Count | None = None
    """Groups of each workload that are measured, at most (default: all of it)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights."""
    out: Path = Path("speed.json")
    """Results to write (.json); a table in Markdown lands beside it."""


def run(arguments: Sequence[str]) -> None:
    """Run ``gradalign bench speed``."""
    options = parse(SpeedOptions, "bench speed", arguments)
    known("model", [options.model], MODELS)
    known("workloads", options.workloads, WORKLOADS)
    known("arms", options.arms, SPEED_ARMS)
    options.use_threads()
    policy = build(options.model, options.dtype, options.device, options.seed)
    facts = resolved("bench speed", options, machine=machine(policy.device))
    results = Results(options.out, facts, finish_speed)
    o = options
    plan = SpeedPlan(o.workloads, o.arms, o.repeats, o.groups, o.batch_tokens, o.seed)
    with progress_bars() as progress:
        measure_speed(policy, options.model, plan, results, progress)
    tell(results)
