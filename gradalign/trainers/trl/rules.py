"""Rules over several fields of the configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradalign.errors import GradAlignError, nearest, warn

if TYPE_CHECKING:
    from gradalign.trainers.trl.config import GradAlignConfig

SAMPLERS = ("policy", "server")
SEQUENCE_MEAN, SUM = ("grpo", "sapo"), ("dapo", "bnpo", "dr_grpo", "cispo", "luspo")
"""TRL's loss types by the aggregation that their gradient has on-policy. ``sum``: their denominator is common to all
groups (the batch's tokens, or a constant)."""


def check_sampler(args: GradAlignConfig) -> None:
    """Refuse what does not go with who samples.

    Raises:
        ValueError: something does not.
    """
    if args.sampler not in SAMPLERS:
        raise ValueError(f"sampler: unknown {args.sampler!r}{nearest(args.sampler, SAMPLERS)}")
    if (args.sampler == "server") != bool(args.endpoints):
        raise ValueError("sampler server and endpoints belong together; give both or none")
    if args.sampler == "policy":
        return
    if args.mode == "batch":
        raise ValueError("sampler server belongs to mode round: weights are loaded once a round; take sampler policy")
    narrowed = [name for name in ("top_k", "min_p", "generation_kwargs") if getattr(args, name)]
    narrowed += ["top_p"] if args.top_p != 1.0 else []
    narrowed += ["repetition_penalty"] if args.repetition_penalty != 1.0 else []
    narrowed += [name for name in ("use_vllm", "use_transformers_continuous_batching") if getattr(args, name)]
    if narrowed:
        raise ValueError(
            f"{narrowed[0]}: servers sample the policy's whole distribution; leave it out, or take sampler policy"
        )


def check_together(args: GradAlignConfig) -> None:
    """Refuse fields that do not go together.

    Raises:
        ValueError: some do not.
    """
    if args.reference_weight is not None and not 0 < args.reference_weight <= 1:
        raise ValueError(f"reference_weight is {args.reference_weight}; it must be in (0, 1]")
    if args.reference_weight is not None and args.reference_field is None:
        raise ValueError("reference_weight is of reference_field; name the field, or leave it out")
    if args.reference_weight == 1 and args.targets:
        raise ValueError("targets weighs policy gradients, and reference_weight 1 follows none; leave one out")
    given = [name for name in ("top", "fraction", "threshold") if getattr(args, name) is not None]
    if len(given) > 1:
        raise ValueError(f"{given[0]} and {given[1]} exclude each other; give one of them")
    if args.mode == "batch":
        names = ("top", "fraction", "threshold", "chunk", "rollouts")
        unread = [name for name in names if getattr(args, name) is not None]
        if unread:
            raise ValueError(f"{unread[0]} belongs to mode round; mode batch takes oversample")
        if args.budget != "fixed":
            raise ValueError(f"budget {args.budget} belongs to mode round; mode batch samples every problem alike")
        if args.composed.once or args.composed.stale:
            does = "scores once, before training," if args.composed.once else "scores rollouts that it samples once,"
            raise ValueError(f"strategy {args.strategy} {does} and belongs to mode round")
    if args.composed.stale and args.budget != "fixed":
        raise ValueError(
            f"budget {args.budget} samples further rollouts as it goes, and strategy {args.strategy} keeps to those of "
            "its first round; take budget fixed"
        )
    check_sampler(args)
    try:
        args.raced  # noqa: B018
    except GradAlignError as error:
        raise ValueError(str(error)) from error
    steps, every = args.steps_per_round * args.gradient_accumulation_steps, args.generation_steps
    if steps % every:
        raise ValueError(
            f"steps_per_round ({args.steps_per_round}) times gradient_accumulation_steps "
            f"({args.gradient_accumulation_steps}) must be a multiple of the {every} passes that a generation "
            "batch is used for (steps_per_generation times num_iterations), so that no round trains on the last "
            "one's rollouts"
        )
    if args.loss_type not in (*SEQUENCE_MEAN, *SUM):
        raise ValueError(
            f"loss_type {args.loss_type!r} weighs rollouts in a way that scores do not know; take one of "
            f"{', '.join((*SEQUENCE_MEAN, *SUM))}, or strategy off"
        )
    if args.top_entropy_quantile < 1:
        raise ValueError("top_entropy_quantile below 1 leaves tokens out that scores count; or take strategy off")
    if args.fsdp or args.deepspeed:
        name = "fsdp" if args.fsdp else "deepspeed"
        raise ValueError(f"{name}: choosing needs the whole policy in each process; or take strategy off")
    if args.ignore_data_skip:
        raise ValueError("ignore_data_skip: a run that goes on within a round must skip what it has seen of it")
    if args.multi_objective_aggregation != "sum_then_normalize":
        raise ValueError(
            "multi_objective_aggregation must be sum_then_normalize: scores are of the summed reward; or take "
            "strategy off"
        )
    if args.mode == "round" and args.top is not None and args.top < args.batch_prompts:
        raise ValueError(
            f"top ({args.top}) is less than the {args.batch_prompts} problems of one generation batch "
            "(generation_batch_size / num_generations); raise top, or lower the batch"
        )
    if args.save_strategy == "steps" and args.save_steps >= 1:
        passes = int(args.save_steps) * args.gradient_accumulation_steps
        if passes % every:
            warn(
                f"save_steps ({args.save_steps:g}) does not end with a generation batch: a run that goes on from "
                "such a checkpoint samples anew and may end differently; save_strategy='epoch' saves after rounds"
            )
