"""``gradalign demo``: the main job, end to end, on the embedded default."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from gradalign.alignment.record import unscored
from gradalign.cli.options import Count, Share
from gradalign.config import Options, parse, resolved
from gradalign.curriculum.folder import open_run, round_folder
from gradalign.curriculum.round import RoundPlan, run_round, write_choice
from gradalign.policy.load import load_policy
from gradalign.problems.embedded import make_pool
from gradalign.problems.schema import fingerprint, prompt_text
from gradalign.report.console import Cell, alignment_tables, progress_bars, show, show_scoring, table, times
from gradalign.rewards.base import Reward
from gradalign.rewards.coin import Coin
from gradalign.rewards.countdown import countdown
from gradalign.rollouts.sample import Sampling
from gradalign.rollouts.sampler import PolicySampler
from gradalign.selection import STRATEGIES, Size, choose


class DemoOptions(Options):
    """Choose from a pool of small sums, half of them paid by a coin, with a tiny policy that comes in the package."""

    out: Path = Path("runs/demo")
    """Run folder to write; the same command goes on in it where it was interrupted."""
    problems: Count = 256
    """Candidates."""
    validation: Count = 128
    """Trusted validation problems."""
    rollouts: Count = 32
    """Responses for each candidate."""
    validation_rollouts: Count = 32
    """Responses for each validation problem."""
    fraction: Annotated[float, Field(gt=0, le=1)] = 0.125
    """Share of the candidates to choose."""
    corrupt: Share = 0.5
    """Chance of each candidate to be paid by a fair coin."""
    seed: int = 0
    """Seed of problems, coins, and sampling."""


def run(arguments: Sequence[str]) -> None:
    """Run the command."""
    options = parse(DemoOptions, "demo", arguments)
    start = time.perf_counter()
    policy = load_policy("embedded", device="cpu")
    problems = make_pool("mixed", options.problems + options.validation, options.seed)
    open_run(options.out, resolved("demo", options, policy=policy.fingerprint, problems=fingerprint(problems)))
    pool, validation = problems[: options.problems], problems[options.problems :]
    coin = Coin(options.corrupt, options.seed)
    trusted = Reward("countdown", countdown)
    show(
        f"{len(pool)} candidate problems, {sum(coin.corrupts(p.key) for p in pool)} of them paid by a fair coin "
        f"whatever the response; {len(validation)} trusted validation problems; a policy of "
        f"{sum(p.numel() for p in policy.parameters):,} parameters.\n"
    )
    plan = RoundPlan(
        strategy=STRATEGIES["gradalign"], size=Size(fraction=options.fraction), contributions=True, seed=options.seed
    )
    unsound = Reward("countdown", countdown, coin=coin)
    samplers = (
        PolicySampler(policy, unsound, Sampling(options.rollouts, max_new_tokens=16, seed=options.seed)),
        PolicySampler(policy, trusted, Sampling(options.validation_rollouts, max_new_tokens=16, seed=options.seed)),
    )
    folder = round_folder(options.out, 0)
    with progress_bars() as progress:
        result = run_round(policy, pool, validation, samplers, plan, folder, progress)
    assert result.scored is not None
    written = write_choice(folder, pool, result.alignments, ["trl"])
    show_scoring(result.scored)
    show(f"{result.rollouts:,} rollouts; {times(result.seconds)}\n")
    for made in alignment_tables(result.alignments, {p.key: prompt_text(p.prompt) for p in pool}):
        show(made)

    rates = {group.key: float(group.rewards.mean()) for group in result.groups}
    rows: list[list[Cell]] = []
    for name, strategy in STRATEGIES.items():
        blind = strategy.needs == "nothing"
        alignments = [unscored(p.key, p.source) for p in pool] if blind else result.alignments
        choose(alignments, strategy, plan.size, options.seed)
        chosen = [a.key for a in alignments if a.selected]
        corrupted = sum(map(coin.corrupts, chosen))
        rate = sum(rates[key] for key in chosen) / len(chosen)
        rows.append([name, strategy.prefers, len(chosen), corrupted / len(chosen), rate])
    title = "share of corrupted problems among the chosen (lower is better)"
    show(table(title, ["strategy", "prefers", "chosen", "corrupted", "mean reward"], rows, left=2))
    show(
        f"\nwrote {written[0]} (what `gradalign` chose) and, beside it, rollouts, alignments.parquet and metrics.json; "
        f"{time.perf_counter() - start:.0f} s in all",
    )
