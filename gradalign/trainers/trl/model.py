"""The trainer's model as a policy to sample from and to score."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from gradalign.errors import GradAlignError
from gradalign.policy.load import Policy, cover

if TYPE_CHECKING:
    from gradalign.trainers.trl.trainer import GradAlignTrainer


def require_whole(trainer: GradAlignTrainer) -> None:
    """Refuse to choose with a model that is cut over the processes: they sample and score uneven shares alone.

    Raises:
        GradAlignError: FSDP, or DeepSpeed's third stage.
    """
    plugin = trainer.accelerator.state.deepspeed_plugin if trainer.is_deepspeed_enabled else None
    if trainer.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3):
        name = "fsdp" if trainer.is_fsdp_enabled else "deepspeed: stage 3"
        raise GradAlignError(
            f"{name}: choosing needs the whole policy in every process; train with strategy off, and choose between "
            "trainings by `gradalign score --shard`, or train without it (LoRA, more memory)"
        )


def policy_of(trainer: GradAlignTrainer) -> Policy:
    """The model as it is now, unwrapped, so that no collective waits for uneven work."""
    policy = cover(trainer.accelerator.unwrap_model(trainer.model), str(trainer.model.config._name_or_path))
    policy.given_tokenizer = trainer._tokenizer
    if "_original_forward" in trainer.model.__dict__:  # accelerate has made its forward pass one of mixed precision
        policy.computes_in = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(trainer.accelerator.mixed_precision)
    return policy


@contextlib.contextmanager
def still(trainer: GradAlignTrainer) -> Iterator[Policy]:
    """The policy without dropout; gradients that training has accumulated are put aside.

    Differences of forward passes are lost in bfloat16: for them the weights' own type is computed in.
    """
    model, training = trainer.model, trainer.model.training
    own, unmixed = model.__dict__.get("forward"), model.__dict__.get("_original_forward")
    swapped = unmixed is not None and trainer.curriculum is not None and trainer.curriculum.plan.forward_only
    if swapped:
        model.forward = unmixed
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in gradients:
        parameter.grad = None
    model.eval()
    try:
        policy = policy_of(trainer)
        if swapped:
            policy.computes_in = None
        yield policy
    finally:
        model.train(training)
        if swapped:
            model.forward = own
        for parameter, gradient in gradients:
            parameter.grad = gradient
