"""``gradalign rollout``: problems in, rollout table out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from gradalign.cli.executor_options import AtWork, ExecutorOptions
from gradalign.cli.options import RewardOptions, SamplingOptions, distinct
from gradalign.cli.problem_options import ProblemOptions
from gradalign.cli.sampler_options import SamplerOptions, sampler_of
from gradalign.config import parse, resolved
from gradalign.curriculum.folder import claim, same_run
from gradalign.errors import GradAlignError
from gradalign.files import check_writable, write_json
from gradalign.policy.group import Group
from gradalign.problems.schema import Problem, fingerprint
from gradalign.report.console import Cell, progress_bars, show, table
from gradalign.rewards.several import AnyReward
from gradalign.rollouts.collect import collect
from gradalign.rollouts.table import writer_of


class RolloutOptions(RewardOptions, SamplingOptions, ProblemOptions, SamplerOptions, ExecutorOptions):
    """Sample responses to problems and reward them; an interrupted run goes on where it stopped."""

    problems: str
    """The problems: a .jsonl, .parquet, .csv or .tsv file, a mixture's .yaml, or scheme:NAME?setting=value
    (embedded:mixed?size=256&seed=0, hf:OWNER/NAME?split=train, ...)."""
    out: Path
    """Rollout table to write, .parquet or .jsonl."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Sampling temperature."""
    seed: int = 0
    """Seed of sampling."""

    @model_validator(mode="after")
    def _one_at_work(self) -> RolloutOptions:
        if self.executor != "local" and self.sampler != "policy":
            raise ValueError(f"--executor {self.executor} and --sampler {self.sampler} exclude each other; take one")
        return self


def run(arguments: Sequence[str]) -> None:
    """Run the command."""
    options = parse(RolloutOptions, "rollout", arguments)
    writer_of(options.out)
    distinct("out", options.out, options.problems)
    reward, _ = options.rewards()
    problems = options.asked(options.read_plain(options.problems), options.asking())
    with options.at_work() as work:
        _run(options, work, reward, problems)


def _run(options: RolloutOptions, work: AtWork, reward: AnyReward, problems: Sequence[Problem]) -> None:
    policy = work.policy
    config = options.out.with_suffix(".config.json")
    known = {"policy": policy.fingerprint, "problems": fingerprint(problems), "rewards": reward.identity}
    facts = resolved("rollout", options, **known)
    claim(config, "rollout", options.out)
    if options.out.exists() and not same_run(config, facts):
        raise GradAlignError(f"{options.out}: exists and is of another run; name another file, or delete it")
    check_writable(options.out)
    sampling = options.sampling(options.rollouts, options.temperature, options.seed)
    engine = None if options.out.exists() else options.sampling_engine(policy, problems, sampling)
    start = time.perf_counter()
    with progress_bars() as progress:
        tick = progress("rollouts", len(problems) * options.rollouts)
        sampler = sampler_of(engine, work.sampler(reward, sampling))
        groups = collect(sampler, problems, options.out, tick, lambda: write_json(config, facts))
    show(table("rollouts", ["", "value"], _summary(groups, time.perf_counter() - start)))
    show(f"wrote {options.out} and {config}")


def _summary(groups: Sequence[Group], seconds: float) -> list[list[Cell]]:
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    tokens = sum(len(rollout.response_ids) for rollout in rollouts)
    rewards = [rollout.reward for group in groups if group.status != "failed" for rollout in group.rollouts]
    failed = sum(group.status == "failed" for group in groups)
    silent = sum(group.status == "zero_variance" for group in groups)
    unjudged: list[list[Cell]] = [["problems that could not be judged", failed]] if failed else []
    return [
        ["problems", len(groups)],
        ["rollouts", len(rollouts)],
        ["response tokens", tokens],
        ["mean reward", sum(rewards) / len(rewards) if rewards else None],
        *unjudged,
        ["problems whose rewards do not vary", silent],
        ["cut at --max-new-tokens", sum(rollout.finish_reason == "length" for rollout in rollouts)],
        ["seconds", seconds],
        ["tokens a second", tokens / seconds],
    ]
