"""``gradalign demo``: the main job, end to end, on the embedded default."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from gradalign.alignment.direction import warn_of_noise
from gradalign.alignment.record import unscored
from gradalign.cli.options import Count, Share
from gradalign.config import Options, parse, resolved
from gradalign.curriculum.folder import open_run, round_folder
from gradalign.curriculum.round import RoundPlan, run_round, write_choice
from gradalign.errors import missing_extra
from gradalign.policy.load import Policy, load_policy
from gradalign.problems.embedded import make_pool
from gradalign.problems.schema import Problem, fingerprint, prompt_text
from gradalign.report.console import Cell, alignment_tables, progress_bars, show, show_scoring, table, times
from gradalign.rewards.base import Reward
from gradalign.rewards.coin import Coin
from gradalign.rewards.countdown import countdown
from gradalign.rollouts.sample import Sampling
from gradalign.rollouts.sampler import PolicySampler
from gradalign.selection import STRATEGIES, Size, choose


class DemoOptions(Options):
    """Choose from a pool of small sums, half of them paid by a coin, with a tiny policy that comes in the package; then
    train it on problems chosen again each round."""

    out: Path = Path("runs/demo")
    """Run folder to write; the same command goes on in it where it was interrupted."""
    problems: Count = 256
    """Candidates."""
    validation: Count = 128
    """Trusted validation problems."""
    test: Count = 128
    """Held-out problems that the trained policies are evaluated on."""
    rollouts: Count = 32
    """Responses for each candidate."""
    validation_rollouts: Count = 32
    """Responses for each validation problem."""
    fraction: Annotated[float, Field(gt=0, le=1)] = 0.125
    """Share of the candidates to choose."""
    rounds: Annotated[int, Field(ge=0)] = 4
    """Rounds of training; 0 chooses once and trains nothing."""
    steps_per_round: Count = 8
    """Optimiser steps in a round."""
    corrupt: Share = 0.5
    """Chance of each candidate to be paid by a fair coin."""
    seed: int = 0
    """Seed of problems, coins, and sampling."""


LISTED = (
    "gradalign", "dot", "tscore", "corr", "permutation", "lcb", "shrunk", "expected", "guarded", "accgreedy",
    "learnability", "static", "random",
)  # fmt: skip
"""Strategies whose choices the demo compares; its engine serves them all."""

ARMS = ("gradalign", "guarded", "random")
"""Strategies that the demo trains with, one after the other."""


def run(arguments: Sequence[str]) -> None:
    """Run the command."""
    options = parse(DemoOptions, "demo", arguments)
    start = time.perf_counter()
    policy = load_policy("embedded", device="cpu")
    problems = make_pool("mixed", options.problems + options.validation + options.test, options.seed)
    open_run(options.out, resolved("demo", options, policy=policy.fingerprint, problems=fingerprint(problems)))
    pool, validation = problems[: options.problems], problems[options.problems :][: options.validation]
    test = problems[options.problems + options.validation :]
    unsound = Reward("countdown", countdown, coin=Coin(options.corrupt, options.seed))
    choose_once(options, policy, pool, validation, unsound)
    if options.rounds:
        train(options, policy, (pool, validation, test), unsound)
    show(f"\neverything is in {options.out}; {time.perf_counter() - start:.0f} s in all")
    show(f"to look at it: gradalign report {options.out}")


def choose_once(
    options: DemoOptions, policy: Policy, pool: list[Problem], validation: list[Problem], unsound: Reward
) -> None:
    """Score the pool once, and let every strategy choose from it."""
    coin = unsound.coin
    assert coin is not None
    show(
        f"{len(pool)} candidate problems, {sum(coin.corrupts(p.key) for p in pool)} of them paid by a fair coin "
        f"whatever the response; {len(validation)} trusted validation problems; a policy of "
        f"{sum(p.numel() for p in policy.parameters):,} parameters.\n"
    )
    plan = RoundPlan(
        strategy=STRATEGIES["gradalign"], size=Size(fraction=options.fraction), contributions=True, seed=options.seed
    )
    trusted = Reward("countdown", countdown)
    samplers = (
        PolicySampler(policy, unsound, Sampling(options.rollouts, max_new_tokens=16, seed=options.seed)),
        PolicySampler(policy, trusted, Sampling(options.validation_rollouts, max_new_tokens=16, seed=options.seed)),
    )
    folder = round_folder(options.out, 0)
    with progress_bars() as progress:
        result = run_round(policy, pool, validation, samplers, plan, folder, progress)
    assert result.scored is not None
    warn_of_noise(result.scored.direction)
    written = write_choice(folder, pool, result.alignments, ["trl"])
    show_scoring(result.scored)
    show(f"{result.rollouts:,} rollouts; {times(result.seconds)}\n")
    for made in alignment_tables(result.alignments, {p.key: prompt_text(p.prompt) for p in pool}):
        show(made)

    rates = {group.key: float(group.rewards.mean()) for group in result.groups}
    rows: list[list[Cell]] = []
    for name in LISTED:
        strategy = STRATEGIES[name]
        blind = not strategy.needs
        alignments = [unscored(p.key, p.source) for p in pool] if blind else result.alignments
        choose(alignments, strategy, plan.size, options.seed)
        chosen = [a.key for a in alignments if a.selected]
        corrupted = sum(map(coin.corrupts, chosen))
        rate = sum(rates[key] for key in chosen) / len(chosen)
        rows.append([name, strategy.prefers, len(chosen), corrupted / len(chosen), rate])
    title = "share of corrupted problems among the chosen (lower is better)"
    show(table(title, ["strategy", "prefers", "chosen", "corrupted", "mean reward"], rows, left=2))
    show(f"wrote {written[0]} (what `gradalign` chose) and, beside it, rollouts, alignments.parquet, metrics.json\n")


def train(
    options: DemoOptions,
    policy: Policy,
    sets: tuple[list[Problem], list[Problem], list[Problem]],
    unsound: Reward,
) -> None:
    """Train with TRL by several strategies, each choosing again every round; evaluate after every round."""
    try:
        from gradalign.trainers.trl.config import GradAlignConfig
        from gradalign.trainers.trl.run import TrainJob
    except ImportError as error:
        raise missing_extra(str(error.name), "train") from error
    pool, validation, test = sets
    coin = unsound.coin
    assert coin is not None
    rows: list[list[Cell]] = []
    for strategy in ARMS:
        show(f"training with TRL's GRPO on what {strategy} chooses:")
        out = options.out / f"train-{strategy}"
        args = GradAlignConfig(
            str(out), strategy=strategy, steps_per_round=options.steps_per_round, seed=options.seed,
            max_steps=options.rounds * options.steps_per_round, chunk=max(1, len(pool) // 2), top=32, rollouts=16,
            validation_rollouts=16, contributions=strategy == "guarded", noise_patience=0,
            per_device_train_batch_size=256, num_generations=16, max_completion_length=16, learning_rate=5e-5,
            lr_scheduler_type="constant", scale_rewards="none", gradient_checkpointing=False, eval_strategy="epoch",
            eval_on_start=True, per_device_eval_batch_size=512, num_generations_eval=8, save_total_limit=1,
            logging_steps=1, report_to="none", disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        fresh = load_policy("embedded", device="cpu")
        with progress_bars() as progress:
            trainer = TrainJob(fresh, unsound, args, pool, validation, test).run(None, progress, show)
        assert trainer.curriculum is not None
        history = trainer.curriculum.state.history
        shares = [sum(map(coin.corrupts, keys)) / len(keys) for keys in history]
        accuracy = {h["step"]: h["eval_reward"] for h in trainer.state.log_history if "eval_reward" in h}
        spent, reused = trainer.curriculum.state.sampled, trainer.curriculum.state.reused
        rows.append([strategy, accuracy[0], accuracy[max(accuracy)], sum(shares) / len(shares), spent, reused])
        show("")
    columns = ["chosen by", "test before", "test after", "corrupted chosen", "rollouts to choose", "trained on again"]
    show(table(f"mean reward on {len(test)} test problems, {options.rounds} rounds", columns, rows))
