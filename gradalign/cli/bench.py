"""``gradalign bench speed | fidelity | noise | audit``: how fast engines are, how far their numbers can be trusted,
which strategy sees through rewards gone wrong, and whether the audit keeps its promise."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator

from gradalign.alignment.align import Progress
from gradalign.bench.audit import AuditPlan, measure_audit
from gradalign.bench.audit_table import finish_audit
from gradalign.bench.fidelity import FidelityPlan, measure_fidelity
from gradalign.bench.fidelity_arms import ARMS as FIDELITY_ARMS
from gradalign.bench.fidelity_table import finish_fidelity
from gradalign.bench.machine import machine
from gradalign.bench.noise import NoisePlan, measure_noise
from gradalign.bench.noise_data import Setting
from gradalign.bench.noise_table import finish_noise
from gradalign.bench.results import Results
from gradalign.bench.speed import SpeedPlan, measure_speed
from gradalign.bench.speed_arms import ARMS as SPEED_ARMS
from gradalign.bench.speed_table import finish_speed
from gradalign.bench.workloads import MODELS, WORKLOADS, build
from gradalign.cli.options import Count
from gradalign.config import Options, parse, resolved
from gradalign.errors import GradAlignError, nearest
from gradalign.policy.group import Group
from gradalign.policy.load import Policy, load_policy
from gradalign.problems.embedded import make_pool
from gradalign.report.console import progress_bars, show
from gradalign.rewards.base import Reward
from gradalign.rewards.countdown import countdown
from gradalign.rollouts.collect import collect
from gradalign.rollouts.sample import Sampling
from gradalign.rollouts.sampler import PolicySampler
from gradalign.rollouts.table import Limits, read_rollouts


class _Machine(Options):
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


class SpeedOptions(_Machine):
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


class FidelityOptions(_Machine):
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


class AuditBenchOptions(_Machine):
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


def speed(arguments: Sequence[str]) -> None:
    """Run ``gradalign bench speed``."""
    options = parse(SpeedOptions, "bench speed", arguments)
    _known("model", [options.model], MODELS)
    _known("workloads", options.workloads, WORKLOADS)
    _known("arms", options.arms, SPEED_ARMS)
    options.use_threads()
    policy = build(options.model, options.dtype, options.device, options.seed)
    facts = resolved("bench speed", options, machine=machine(policy.device))
    results = Results(options.out, facts, finish_speed)
    o = options
    plan = SpeedPlan(o.workloads, o.arms, o.repeats, o.groups, o.batch_tokens, o.seed)
    with progress_bars() as progress:
        measure_speed(policy, options.model, plan, results, progress)
    _tell(results)


def fidelity(arguments: Sequence[str]) -> None:
    """Run ``gradalign bench fidelity``."""
    options = parse(FidelityOptions, "bench fidelity", arguments)
    _known("arms", options.arms, FIDELITY_ARMS)
    if len(set(options.rollouts)) < len(options.rollouts):
        raise GradAlignError("option --rollouts: a number is there twice")
    options.use_threads()
    policy = load_policy(options.model, dtype="float32", device=options.device)
    tables = [path for path in (options.candidates, options.validation) if path is not None]
    known = {"policy": policy.fingerprint, "tables": [_digest(path) for path in tables]}
    facts = resolved("bench fidelity", options, machine=machine(policy.device), **known)
    results = Results(options.out, facts, finish_fidelity)
    o = options
    plan = FidelityPlan(o.arms, o.rollouts, o.fraction, o.batch_tokens, o.seed)
    with progress_bars() as progress:
        if tables:
            candidates, validation = (read_rollouts(path, Limits.of(policy)) for path in tables)
        else:
            candidates, validation = _sampled(policy, options, progress)
        measure_fidelity(policy, candidates, validation, plan, results, progress)
    _tell(results)


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


def noise(arguments: Sequence[str]) -> None:
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
    _tell(results)


def audit(arguments: Sequence[str]) -> None:
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
    _tell(results)


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


BENCHMARKS: dict[str, tuple[str, Callable[[Sequence[str]], None]]] = {
    "speed": ("engines side by side: time, memory, share of the machine's own rate", speed),
    "fidelity": ("few rollouts and other engines against exact with many rollouts", fidelity),
    "noise": ("which strategy sees through rewards gone wrong, with how few rollouts", noise),
    "audit": ("spoilt rewards: what share of the audit's lists is sound, what share of the spoilt they hold", audit),
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
