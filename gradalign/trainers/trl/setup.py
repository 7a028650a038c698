"""From a trainer's arguments to its curriculum."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from datasets import Dataset

from gradalign.alignment.combined import check_targets
from gradalign.curriculum.curriculum import Curriculum
from gradalign.curriculum.filter import BatchFilter
from gradalign.curriculum.round import RoundPlan
from gradalign.errors import GradAlignError, warn
from gradalign.problems.schema import fingerprint, normalised
from gradalign.processes import Processes
from gradalign.selection import Size, find_strategy
from gradalign.trainers.trl.config import GradAlignConfig
from gradalign.trainers.trl.dataset import Problems, column


def with_length(args: GradAlignConfig, problems: int) -> GradAlignConfig:
    """A copy whose ``max_steps`` says how long ``num_train_epochs`` looks at the pool take, where it is not given."""
    args = copy.copy(args)
    if args.max_steps <= 0:
        looks = math.ceil(args.num_train_epochs * problems / min(args.candidates, problems))
        if args.mode == "batch":
            args.max_steps = math.ceil(looks * args.generation_steps / args.gradient_accumulation_steps)
        else:
            args.max_steps = looks * args.steps_per_round
    return args


def refuse_unknown(dataset: Dataset, others: dict[str, Any]) -> None:
    """Refuse what choosing cannot sample.

    Raises:
        GradAlignError: tools, environments, a rollout function of one's own, or images.
    """
    names = [name for name in ("tools", "environment_factory", "rollout_func") if others.get(name)]
    names += [f"column {name!r}" for name in ("image", "images") if name in dataset.column_names]
    if names:
        raise GradAlignError(f"{names[0]}: choosing samples single text responses itself; with it take strategy off")


def find_validation(args: GradAlignConfig, pool: Problems, dataset: Dataset | None, test: Any) -> Problems | None:
    """The validation set, held against everything else.

    Raises:
        GradAlignError: it is missing where a direction is followed, or one of its problems is trained or tested on.
    """
    if dataset is None:
        if args.composed.needs_engine:
            raise GradAlignError(
                f"validation_dataset: is missing, and strategy {args.strategy!r} follows its gradient; give a small "
                "trusted set that is neither trained nor tested on"
            )
        return None
    validation = Problems(dataset, "validation_dataset")
    if args.composed.needs_engine:
        check_targets(args.weighed, (problem.source for problem in validation))
    validation.require_disjoint(pool.dataset, "train_dataset", "validation_dataset")
    tests = test.values() if isinstance(test, dict) else [] if test is None else [test]
    for other in tests:
        if isinstance(other, Dataset):
            validation.require_disjoint(other, "eval_dataset", "validation_dataset")
    return validation


def warn_of_contamination(pool: Problems, test: Any) -> None:
    """Warn where problems that may be trained on are also tested on."""
    others = [other for other in (test.values() if isinstance(test, dict) else [test]) if isinstance(other, Dataset)]
    tested = [[normalised(prompt) for prompt in column(other, "prompt")] for other in others]
    texts = {text for own in tested for text in own}
    found = {text for prompt in column(pool.dataset, "prompt") if texts and (text := normalised(prompt)) in texts}
    for own in tested:
        shared = sum(text in found for text in own)
        if shared:
            warn(f"eval_dataset: {shared} of its problems are in train_dataset; what it says of them is of no use")


def make_curriculum(
    args: GradAlignConfig, pool: Problems, validation: Problems | None, run: dict[str, Any]
) -> Curriculum:
    """The curriculum that ``args`` describe; ``run`` is what else may not differ when the run goes on.

    Raises:
        GradAlignError: the strategy needs what the engine does not give; the pool is smaller than a batch.
    """
    engine = args.engine or ("directional" if args.mode == "batch" else "exact")
    strategy = find_strategy(args.strategy, engine, args.contributions, args.gates or (), args.rank, args.pick)
    if args.batch_prompts > len(pool):
        raise GradAlignError(
            f"train_dataset: has {len(pool)} problems, and one generation batch needs {args.batch_prompts} "
            "(generation_batch_size / num_generations); give more problems, or lower the batch"
        )
    size = args.size
    if strategy.once and not Size(args.top, args.fraction, args.threshold).given:  # it has to last for all rounds
        size = Size(top=max(args.round_prompts, len(pool) // 8))
    plan = RoundPlan(
        strategy, size, args.objective, engine, args.contributions, args.unit, args.batch_tokens, args.seed,
        args.difference, args.offload, args.sketching, args.raced, args.weighed, args.reference_field,
        args.reference_share,
    )  # fmt: skip
    identity = run | {
        "mode": args.mode, "steps_per_round": args.steps_per_round, "candidates": args.candidates, "engine": engine,
        "train_dataset": fingerprint(pool), "validation_dataset": fingerprint(validation or []),
        "recipe": strategy.recipe, "size": asdict(size), "objective": asdict(args.objective), "rollouts": args.most,
    }  # fmt: skip
    if plan.budget.staged:
        identity["budget"] = args.budget
    if args.targets or args.reference_field:
        identity["followed"] = [args.weighed, args.reference_field, args.reference_share]
    kind = BatchFilter if args.mode == "batch" else Curriculum
    return kind(
        pool, pool.keys, validation or [], plan, args.candidates, Path(args.output_dir or "."),
        json.loads(json.dumps(identity)), args.direction_average, args.noise_patience, Processes.current(),
    )  # fmt: skip
