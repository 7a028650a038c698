"""``gradalign bench speed | fidelity``: how fast engines are, and how far their numbers can be trusted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field

from gradalign.bench.machine import machine
from gradalign.bench.results import Results
from gradalign.bench.speed import Plan, measure_speed
from gradalign.bench.speed_arms import ARMS as SPEED_ARMS
from gradalign.bench.speed_table import finish_speed
from gradalign.bench.workloads import MODELS, WORKLOADS, build
from gradalign.cli.options import Count
from gradalign.config import Options, parse, resolved
from gradalign.errors import GradAlignError, nearest
from gradalign.report.console import progress_bars, show


class SpeedOptions(Options):
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
    batch_tokens: Count = 4096
    """Tokens in one forward or backward pass of an engine, at most (plain takes a group at a time)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights."""
    device: str = "auto"
    """Where to compute; auto is cuda where there is one, else cpu."""
    threads: Count | None = None
    """Threads on the CPU (default: torch's own choice)."""
    seed: int = 0
    """Seed of weights and tokens."""
    out: Path = Path("speed.json")
    """Results to write (.json); a table in Markdown lands beside it."""


def speed(arguments: Sequence[str]) -> None:
    """Run ``gradalign bench speed``."""
    options = parse(SpeedOptions, "bench speed", arguments)
    _known("model", [options.model], MODELS)
    _known("workloads", options.workloads, WORKLOADS)
    _known("arms", options.arms, SPEED_ARMS)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    policy = build(options.model, options.dtype, options.device, options.seed)
    facts = resolved("bench speed", options, machine=machine(policy.device))
    results = Results(options.out, facts, finish_speed)
    o = options
    plan = Plan(o.workloads, o.arms, o.repeats, o.groups, o.batch_tokens, o.seed)
    with progress_bars() as progress:
        measure_speed(policy, options.model, plan, results, progress)
    _tell(results)


BENCHMARKS: dict[str, tuple[str, Callable[[Sequence[str]], None]]] = {
    "speed": ("engines side by side: time, memory, share of the machine's own rate", speed),
}
"""Second word -> one line of help, and what runs it."""


def run(arguments: Sequence[str]) -> None:
    """Run the command."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        width = max(map(len, BENCHMARKS))
        lines = [f"  gradalign bench {name:<{width}}  {text}" for name, (text, _) in BENCHMARKS.items()]
        print("\n".join([*lines, "", "gradalign bench WORD --help tells its options."]))
        return
    if arguments[0] not in BENCHMARKS:
        raise GradAlignError(f"unknown benchmark {arguments[0]!r}{nearest(arguments[0], BENCHMARKS)}")
    BENCHMARKS[arguments[0]][1](arguments[1:])


def _known(option: str, names: Sequence[str], known: dict) -> None:
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


def _tell(results: Results) -> None:
    show(results.markdown.read_text(encoding="utf-8"))
    show(f"wrote {results.path} and {results.markdown}")
