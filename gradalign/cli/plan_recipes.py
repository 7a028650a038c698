"""From the options of ``select`` and ``train`` to what their cost depends on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gradalign.alignment.sketch import USUAL, Sketching
from gradalign.config import parse_further
from gradalign.errors import GradAlignError
from gradalign.plan.anatomy import Anatomy, anatomy
from gradalign.plan.recipe import Recipe, Training
from gradalign.plan.sets import Sized
from gradalign.policy.load import DTYPES
from gradalign.selection import STRATEGIES, find_budget, find_strategy

if TYPE_CHECKING:
    from gradalign.cli.plan import PlanSelectOptions

HERE = ("auto", "cpu")
ELSEWHERE = ("bf16", "fp16", "tf32", "use_cpu", "report_to")
"""Fields of the trainer that it holds against the machine it is on, which need not be the planned one."""


def from_select(options: PlanSelectOptions, model: Anatomy, sets: dict[str, Sized]) -> Recipe:
    """The recipe of ``select``'s options.

    Raises:
        GradAlignError: a strategy or budget that cannot be; no validation set where one is followed.
    """
    strategy = options.chosen_strategy(options.engine, options.contributions)
    find_budget(options.budget, options.rollouts, strategy)
    width = _width(options.dtype, model, options.device)
    pool = sets["pool"].size
    return Recipe(
        strategy, options.engine, options.contributions, options.difference, counted(options.sketching), options.budget,
        "round", options.chunk or pool, _validation(sets, strategy.needs_engine), options.rollouts,
        options.validation_rollouts or options.rollouts, options.max_new_tokens, options.stop, options.batch_rollouts,
        options.batch_tokens, 1, width < 4, width, options.offload, None, 1, pool,
    )  # fmt: skip


def known_to_train() -> set[str]:
    """Names of the options of ``train``.

    Raises:
        GradAlignError: the trainer is not installed.
    """
    from gradalign.cli.train import TrainOptions
    from gradalign.trainers.trl.run import further_options

    return {*TrainOptions.model_fields, *further_options()}


def from_train(
    arguments: Sequence[str], sets_of: Callable[[Any], dict[str, Sized]]
) -> tuple[Any, Recipe, Anatomy, dict[str, Sized]]:
    """The options of ``train`` and of ``plan``, the recipe, its model, and its sets as ``sets_of`` finds them.

    Raises:
        GradAlignError: see `gradalign.cli.train`.
    """
    from gradalign.cli.plan import PlanOptions
    from gradalign.cli.train import TrainOptions, configured, defaults
    from gradalign.trainers.trl.run import further_options
    from gradalign.trainers.trl.setup import with_length

    class PlanTrainOptions(PlanOptions, TrainOptions):
        __doc__ = TrainOptions.__doc__
        pool: str = ""
        reward: tuple[str, ...] = ()
        out: Path = Path("runs/plan")

    options, further = parse_further(PlanTrainOptions, "plan", arguments, further_options())
    sets = sets_of(options)
    given = {name: one for name, one in {**defaults(options), **further}.items() if name not in ELSEWHERE}
    args = configured(given, options.out)
    if "generation_batch_size" not in further:  # it is a device's, times the devices
        args.generation_batch_size *= options.devices
    pool = sets["pool"].size
    args = with_length(args, pool) if args.choosing else args
    model = anatomy(options.model, (), options.lora_r, options.adapter)
    half = _half(options, further)
    width = _width(options.dtype, model, options.device)
    return options, _of_args(args, options, sets, half or width < 4, width), model, sets


def _of_args(args: Any, options: Any, sets: dict[str, Sized], half: bool, width: int) -> Recipe:
    """The recipe of a trainer's configuration."""
    pool, tests = sets["pool"].size, sets["test"].size if "test" in sets else 0
    engine = args.engine or ("directional" if args.mode == "batch" else "exact")
    if args.choosing:
        strategy = find_strategy(args.strategy, engine, args.contributions, args.gates or (), args.rank, args.pick)
        steps, rounds = args.steps_per_round, math.ceil(args.max_steps / args.steps_per_round)
    else:
        strategy, rounds = STRATEGIES["random"], 1
        each = args.per_device_train_batch_size * args.gradient_accumulation_steps * options.devices
        steps = math.ceil(args.num_train_epochs * pool * args.num_generations / each)
        steps = args.max_steps if args.max_steps > 0 else steps
    passes, every = args.gradient_accumulation_steps, args.generation_steps
    corrected = args.use_vllm and args.vllm_importance_sampling_correction
    training = Training(
        steps, passes, args.per_device_train_batch_size, args.num_generations, args.batch_prompts,
        max(1, steps * passes // every), args.recycle, (args.beta != 0) + bool(passes % every or corrected),
        args.gradient_checkpointing, args.use_vllm, tests, args.num_generations_eval or args.num_generations,
        args.per_device_eval_batch_size, _evaluations(args, rounds, rounds * steps) if tests else 0,
    )  # fmt: skip
    return Recipe(
        strategy, engine, args.contributions, args.difference, counted(args.sketching), args.budget, args.mode,
        args.candidates, _validation(sets, strategy.needs_engine), args.most, args.validation_rollouts or args.most,
        args.max_completion_length, options.stop, args.batch_rollouts, args.batch_tokens, rounds, half, width,
        args.offload, training, args.oversample, pool,
    )  # fmt: skip


def _evaluations(args: Any, rounds: int, steps: int) -> int:
    every = {"epoch": rounds, "steps": steps // max(1, int(args.eval_steps or 1))}
    return every.get(str(getattr(args.eval_strategy, "value", args.eval_strategy)), 0) + bool(args.eval_on_start)


def _validation(sets: dict[str, Sized], followed: bool) -> int:
    if "validation" in sets:
        return sets["validation"].size
    if followed:
        raise GradAlignError(
            "option --validation-size is missing: the strategy follows a validation set; name it, or say how many "
            "problems it will hold"
        )
    return 0


def counted(sketching: Sketching) -> Sketching:
    """The sketch that is planned: of the output layer alone, or of all layers, projected from two sides. Sketches of
    fewer layers cost less."""
    layers = sketching.layers if sketching.layers == "lm-head" else USUAL.layers
    projection = sketching.projection if sketching.projection.startswith("two-sided") else USUAL.projection
    return Sketching(layers, projection)


def _width(dtype: str, model: Anatomy, device: str) -> int:
    """Bytes of a weight."""
    if dtype == "auto":
        own = getattr(model.policy.config, "dtype", None)
        here = device in HERE and not torch.cuda.is_available()
        return 4 if here or not isinstance(own, torch.dtype) else own.itemsize
    return DTYPES[dtype].itemsize


def _half(options: Any, further: dict[str, Any]) -> bool:
    """Whether mixed precision computes in half: as given, else on a card but not on a CPU, as the trainer has it."""
    given = {name: bool(further[name].value) for name in ("bf16", "fp16") if name in further}
    if any(given.values()) or "bf16" in given:
        return any(given.values())
    return not (options.device in HERE and not torch.cuda.is_available())
