"""``gradalign select``: a pool and a validation set in, the problems to train on now out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Literal

from pydantic import model_validator

from gradalign.alignment.combined import check_targets
from gradalign.alignment.direction import warn_of_noise
from gradalign.alignment.engines import check_difference
from gradalign.cli.executor_options import AtWork, ExecutorOptions
from gradalign.cli.options import Count, PolicyOptions, RewardOptions, SamplingOptions, ScoringOptions, SelectionOptions
from gradalign.cli.problem_options import ProblemOptions
from gradalign.cli.sampler_options import SamplerOptions, sampler_of
from gradalign.config import parse, resolved
from gradalign.curriculum.chunks import Chunks
from gradalign.curriculum.folder import open_run, round_folder
from gradalign.curriculum.round import RoundPlan, run_round, write_choice
from gradalign.errors import GradAlignError
from gradalign.policy.load import Policy
from gradalign.problems.pool import Pool
from gradalign.problems.read import overlap
from gradalign.problems.schema import Problem, fingerprint, prompt_text
from gradalign.problems.write import check_target
from gradalign.report.console import alignment_tables, progress_bars, show, show_scoring, times
from gradalign.rewards.several import AnyReward
from gradalign.rollouts.references import reference_groups
from gradalign.rollouts.sample import Sampling
from gradalign.rollouts.sampler import prompts_of
from gradalign.selection import Strategy, check_rollouts, find_budget


class ChoiceOptions(RewardOptions, SelectionOptions, SamplingOptions, ScoringOptions, ProblemOptions, PolicyOptions):
    """What the problems of a pool are chosen by."""

    pool: str
    """The candidates: a .jsonl, .parquet, .csv or .tsv file, a mixture's .yaml, or scheme:NAME?setting=value
    (embedded:mixed?size=256&seed=0, hf:OWNER/NAME?split=train, ...)."""
    validation: str
    """The small trusted set, in the same forms; never trained on."""
    out: Path
    """Run folder to write; the same command goes on in it where it was interrupted."""
    budget: str = "fixed"
    """fixed: --rollouts for every candidate; "racing(screen=8, mean=12)": few for all, then up to --rollouts where the
    place in the choice is still open, never more than the mean a candidate in all."""
    validation_rollouts: Count | None = None
    """Responses for each validation problem (default: as many as --rollouts)."""
    reference_field: str | None = None
    """Field of the validation problems with a trusted response as text (`answer`: the gold answer): moving along the
    direction makes these likelier, too; with --reference-weight 1 no validation responses are sampled."""
    chunk: Count | None = None
    """Look at this many problems of the pool only, taken by seed (default: all)."""
    allow_overlap: bool = False
    """Leave validation problems out of the pool instead of refusing it."""

    @model_validator(mode="after")
    def _references(self) -> ChoiceOptions:
        if self.reference_weight is not None and self.reference_field is None:
            raise ValueError("--reference-weight is of --reference-field; name the field, or leave it out")
        return self

    def plan(self, strategy: Strategy) -> RoundPlan:
        """How a round chooses.

        Raises:
            GradAlignError: an unknown budget, or one that the strategy cannot be raced by.
        """
        return RoundPlan(
            strategy=strategy, size=self.size, objective=self.objective, engine=self.engine,
            contributions=self.contributions, unit=self.unit, batch_tokens=self.batch_tokens,
            seed=self.seed, difference=self.difference, offload=self.offload, sketching=self.sketching,
            budget=find_budget(self.budget, self.rollouts, strategy),
            targets=self.weighed, reference_field=self.reference_field, reference_weight=self.reference_share,
        )  # fmt: skip

    @property
    def samplings(self) -> tuple[Sampling, Sampling]:
        """How candidates are sampled, and validation problems."""
        first, second = (
            self.sampling(count, self.temperature, self.seed)
            for count in (self.rollouts, self.validation_rollouts or self.rollouts)
        )
        return first, second


class SelectOptions(ChoiceOptions, SamplerOptions, ExecutorOptions):
    """Choose the problems of a pool that this policy should train on now."""

    write: tuple[Literal["trl", "verl", "datasets", "scored"], ...] = ("trl",)
    """Forms of the chosen set: trl (chosen.jsonl, plain JSONL rows), verl (chosen.verl.parquet), datasets (a Hugging
    Face data set, chosen.datasets/); and scored (scored.jsonl): all candidates, best first, with their scores."""


def run(arguments: Sequence[str]) -> None:
    """Run the command."""
    options = parse(SelectOptions, "select", arguments)
    strategy = options.chosen_strategy(options.engine, options.contributions)
    if not options.size.given:
        raise GradAlignError("nothing says how many to choose; give --top, --fraction or --threshold")
    plan = options.plan(strategy)
    for target in options.write:
        check_target(target)
    rewards = options.rewards()
    plain, trusted = read_sets(options)
    asking = options.asking()
    pool, validation = options.asked(plain, asking), options.asked(trusted, asking)
    with options.at_work(options.parameters) as work:
        _run(options, work, plan, rewards, plain, pool, validation)


def _run(
    options: SelectOptions, work: AtWork, plan: RoundPlan, rewards: tuple[AnyReward, AnyReward], plain: Pool,
    pool: Pool, validation: Pool,
) -> None:  # fmt: skip
    policy, strategy = work.policy, plan.strategy
    places = Chunks(pool.keys, options.chunk, options.seed)[0]
    chunk, texts = [pool[i] for i in places], {plain[i].key: prompt_text(plain[i].prompt) for i in places}
    check(policy, options, strategy, chunk, validation)
    known = {
        "policy": policy.fingerprint,
        "problems": fingerprint(chain(pool, validation)),
        "rewards": rewards[0].identity,
    }
    open_run(options.out, resolved("select", options, **known))
    samplings = options.samplings
    engine = options.sampling_engine(policy, chunk, samplings[0]) if strategy.needs else None
    samplers = [sampler_of(engine, work.sampler(*one)) for one in zip(rewards, samplings, strict=True)]
    folder = round_folder(options.out, 0)
    with progress_bars() as progress:
        result = run_round(
            policy, chunk, validation, (samplers[0], samplers[1]), plan, folder, progress, make=work.scorer
        )

    if result.scored is not None:
        warn_of_noise(result.scored.direction)
        show_scoring(result.scored)
    if result.raced is not None:
        reached = [f"{number:,} candidates with {count}" for count, number in result.raced.reached.items()]
        show(f"budget {options.budget}: {', '.join(reached)} rollouts")
    show(f"strategy {strategy.name}: {result.rollouts:,} rollouts; {times(result.seconds) or 'nothing to sample'}")
    for made in alignment_tables(result.alignments, texts):
        show(made)
    if not any(a.selected for a in result.alignments):
        scored = sum(a.status == "scored" for a in result.alignments)
        why = "none could be scored; take problems that the policy solves sometimes, or more rollouts of each"
        if scored:
            why = f"none of the {scored} scored reaches the threshold; lower it"
        raise GradAlignError(f"{folder}: no problem was chosen: {why}")
    written = write_choice(folder, chunk, result.alignments, options.write)
    show(f"wrote {', '.join(map(str, written))}; tables beside it")


def read_sets(options: ChoiceOptions) -> tuple[Pool, Pool]:
    """(pool, validation set), disjoint, prompts as they stand in them.

    Raises:
        GradAlignError: they share problems, or leave no candidate.
    """
    pool, validation = options.read_plain(options.pool), options.read_plain(options.validation)
    shared = overlap(pool, validation, options.near_duplicates)
    if shared and not options.allow_overlap:
        raise GradAlignError(
            f"{options.pool}: {len(shared)} problems are also in the validation set {options.validation} (first: key "
            f"{shared[0]!r}); take them out, or leave them out of the pool by --allow-overlap"
        )
    pool = pool.without(shared)
    if not pool:
        raise GradAlignError(f"{options.pool}: every problem is in the validation set; nothing is left to choose from")
    return pool, validation


def check(
    policy: Policy,
    options: ChoiceOptions,
    strategy: Strategy,
    chunk: Sequence[Problem],
    validation: Sequence[Problem],
) -> None:
    """Find out before anything is sampled what would stop the run after it.

    Raises:
        GradAlignError: too few rollouts, a prompt that cannot be asked, weights that the engine cannot take, targets or
            trusted responses that do not fit the validation set.
    """
    if not strategy.needs:
        return
    prompts_of(policy, chunk, options.max_new_tokens)
    prompts = prompts_of(policy, validation, options.max_new_tokens)
    if strategy.needs_engine:
        check_targets(options.weighed, (problem.source for problem in validation))
        if options.reference_field is not None:
            reference_groups(policy, validation, prompts, options.reference_field)
        for name in ("rollouts", "validation_rollouts"):
            if getattr(options, name) == 1:
                raise GradAlignError(
                    f"option --{name.replace('_', '-')}: one rollout carries no gradient: rewards are compared "
                    "within a problem; sample at least two"
                )
        check_rollouts(strategy, options.rollouts)
        if options.engine == "directional" or (options.engine in ("exact", "sketch") and options.contributions):
            check_difference(options.engine, policy, options.difference)
