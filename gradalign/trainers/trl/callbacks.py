"""What happens between a trainer's steps."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gradalign.errors import GradAlignError
from gradalign.trainers.trl.checkpoints import is_complete, last_complete

if TYPE_CHECKING:
    from gradalign.trainers.trl.trainer import GradAlignTrainer


def record(trainer: GradAlignTrainer, numbers: dict[str, float], seconds: float) -> None:
    """Put numbers of choosing, which took ``seconds``, among the metrics that the trainer logs next."""
    assert trainer.curriculum is not None
    trainer.chosen_in += seconds
    spent = numbers.get("seconds", numbers.get("validation_seconds", seconds))
    known = numbers | {
        "overhead_seconds": max(0.0, seconds - spent),
        "time_share": trainer.chosen_in / max(time.perf_counter() - trainer.started, 1e-9),
        "round": float(trainer.curriculum.state.round),
    }
    for name, value in known.items():
        logged = trainer._metrics["train"][f"gradalign/{name}"]
        if name in ("round", "time_share", "rollouts_total"):  # TRL averages between two logs; here the last counts
            logged.clear()
        logged.append(value)


class Rounds(TrainerCallback):
    """Begins each round, and forgets rollouts once the policy that sampled them has moved."""

    def __init__(self, trainer: GradAlignTrainer) -> None:
        self.trainer = trainer
        self.begun_at = -1

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Count passes from the run's start, so that generation batches end with rounds after a resume too."""
        self.trainer._step = state.global_step * args.gradient_accumulation_steps
        self.trainer._buffered_inputs = None

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """A round is an epoch."""
        self.begun_at = state.global_step
        self.trainer.begin_round()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The policy has moved."""
        assert self.trainer.curriculum is not None
        self.trainer.curriculum.groups = {}

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Where nothing was trained in this epoch, since nothing was left to choose or the run had ended before, only
        what is not saved yet is saved."""
        assert self.trainer.curriculum is not None
        if self.trainer.curriculum.ended or state.global_step == self.begun_at:
            control.should_evaluate = False
            last = Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"
            control.should_save = state.global_step > 0 and not is_complete(last)


class FiniteGradients(TrainerCallback):
    """Stops before a gradient that is not finite reaches the weights; in half precision the loss scaler sees to it."""

    def __init__(self, trainer: GradAlignTrainer) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Look at every gradient."""
        gradients = [p.grad for p in self.trainer.model.parameters() if p.grad is not None]
        if self.trainer.accelerator.scaler is not None or not gradients:
            return
        if not bool(torch.isfinite(torch.stack(torch._foreach_norm(gradients))).all()):
            last = last_complete(Path(args.output_dir or "."))
            raise GradAlignError(
                f"step {state.global_step + 1}: the loss or its gradient is not finite (NaN or infinity); lower the "
                f"learning rate or train in float32; the last good checkpoint is {last or 'the model you began with'}"
            )
