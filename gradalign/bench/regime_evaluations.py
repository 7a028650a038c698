"""Evaluating a policy in training with the package's own sampler: a prompt once for all its responses, and no loss."""

from __future__ import annotations

from dataclasses import replace
from statistics import mean
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gradalign.bench.regime_beds import Bed
from gradalign.rollouts.sample import Sampling
from gradalign.rollouts.sampler import PolicySampler, sampled
from gradalign.trainers.trl.model import still
from gradalign.trainers.trl.trainer import GradAlignTrainer


class Evaluations(TrainerCallback):
    """Logs ``eval_reward``, as TRL does, before training and after every round; every time with the same draws.

    Args:
        trainer: whose policy it is.
        bed: whose test set is answered.
        sampling: how.
    """

    def __init__(self, trainer: GradAlignTrainer, bed: Bed, sampling: Sampling) -> None:
        self.trainer, self.bed, self.sampling = trainer, bed, sampling
        self.reward = replace(bed.reward, coin=None)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Before training."""
        self._test(state)

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """After a round."""
        self._test(state)

    def _test(self, state: TrainerState) -> None:
        with still(self.trainer) as policy:
            groups = sampled(PolicySampler(policy, self.reward, self.sampling), self.bed.test)
        accuracy = mean(float(group.rewards.mean()) for group in groups)
        state.log_history.append({"step": state.global_step, "eval_reward": accuracy})
