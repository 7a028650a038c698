"""TRL's GRPOTrainer on the problems that a curriculum chooses.

What is overridden: the order in which problems come (`_get_train_sampler`), the rollouts of a batch where they exist
already (`_generate_and_score_completions`, `_calculate_rewards`), and the state in checkpoints (`_save_checkpoint`,
`train`). The losses, the optimiser and everything else are TRL's.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather
from datasets import Dataset
from torch.utils.data import Sampler
from transformers.trainer import TRAINER_STATE_NAME
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import RepeatSampler

from gradalign.alignment.align import Progress, silent
from gradalign.curriculum.curriculum import Curriculum
from gradalign.curriculum.filter import BatchFilter
from gradalign.curriculum.state import State
from gradalign.errors import GradAlignError, warn
from gradalign.policy.group import Group, Rollout
from gradalign.policy.load import Policy
from gradalign.problems.schema import uniform_hash
from gradalign.rollouts.references import reference_groups
from gradalign.trainers.trl.callbacks import FiniteGradients, Rounds, record
from gradalign.trainers.trl.checkpoints import restore
from gradalign.trainers.trl.config import GradAlignConfig
from gradalign.trainers.trl.dataset import BLOCK, Problems
from gradalign.trainers.trl.model import policy_of, require_whole, still
from gradalign.trainers.trl.order import Places, Resumable
from gradalign.trainers.trl.rewards import reward_identity
from gradalign.trainers.trl.sampler import TrainerSampler
from gradalign.trainers.trl.servers import follow
from gradalign.trainers.trl.setup import (
    find_validation,
    make_curriculum,
    refuse_unknown,
    warn_of_contamination,
    with_length,
)


class GradAlignTrainer(GRPOTrainer):
    """A `trl.GRPOTrainer` that chooses what it trains on.

    Args:
        model: as in TRL.
        reward_funcs: as in TRL; they also pay the rollouts that are scored.
        args: TRL's configuration and how to choose.
        train_dataset: the pool, a `datasets.Dataset`; columns ``key`` and ``source`` are used where there are any.
        eval_dataset: as in TRL: a held-out test set, never the validation set.
        validation_dataset: the small trusted set whose policy gradient is the direction; in the same columns. Needed by
            strategies that follow one.
        progress: shows how sampling and scoring get on.

    Raises:
        GradAlignError: data sets that overlap or cannot be used; a batch that the pool is too small for.
        ValueError: what TRL refuses.
    """

    args: GradAlignConfig
    model: Any
    num_generations: int

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: GradAlignConfig | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Any = None,
        *,
        validation_dataset: Dataset | None = None,
        progress: Progress = silent,
        **others: Any,
    ) -> None:
        if args is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            args = GradAlignConfig(f"{name.split('/')[-1]}-GradAlign")
        if not isinstance(args, GradAlignConfig):
            raise GradAlignError(f"args: is {type(args).__name__}; give a GradAlignConfig, which takes the same fields")
        self.curriculum: Curriculum | None = None
        self.progress = progress
        self._handed: list[Rollout] | None = None  # this process's rollouts of the batch at hand, where they exist
        self.chosen_in = self.started = 0.0  # seconds spent choosing; when training began
        self.begun = False  # whether a round was begun since
        if args.choosing:
            self.pool = Problems(train_dataset, "train_dataset")
            self.validation = find_validation(args, self.pool, validation_dataset, eval_dataset)
            warn_of_contamination(self.pool, eval_dataset)
            train_dataset, args = self.pool.dataset, with_length(args, len(self.pool))
            refuse_unknown(train_dataset, others)
        super().__init__(model, reward_funcs, args, train_dataset, eval_dataset, **others)
        if args.choosing:
            require_whole(self)
        self.add_callback(FiniteGradients(self))
        policy = policy_of(self)
        rewards = [reward_identity(function) for function in self.reward_funcs]
        identity = {"strategy": args.strategy, "seed": args.seed, "model": policy.fingerprint, "rewards": rewards}
        self.reward_states = [reward_identity(function, state=True) for function in self.reward_funcs]
        self.run_state = State(identity)
        if args.choosing:
            self.curriculum = make_curriculum(args, self.pool, self.validation, identity)
            self.add_callback(Rounds(self))
            if self.curriculum.plan.strategy.needs:  # too long prompts are found before anything is done
                candidates, trusted = self._samplers(policy, 0)
                for start in range(0, len(self.pool), BLOCK):
                    candidates.prompts(self.pool[start : start + BLOCK])
                asked = trusted.prompts(self.validation or [])
                if self.curriculum.plan.strategy.needs_engine and args.reference_field is not None:
                    reference_groups(policy, self.validation or [], asked, args.reference_field)

    def train(self, resume_from_checkpoint: str | bool | None = None, *others: Any, **named: Any) -> Any:
        """As in TRL; ``resume_from_checkpoint=True`` takes the last complete checkpoint.

        Raises:
            GradAlignError: the checkpoint is another run's or incomplete, or there is none.
        """
        self.started, self.chosen_in, self.begun = time.perf_counter(), 0.0, False
        resume_from_checkpoint = restore(self, resume_from_checkpoint)
        at_start = self.args.eval_on_start
        self.args.eval_on_start = at_start and not resume_from_checkpoint
        try:
            result = super().train(resume_from_checkpoint, *others, **named)
            # A process may end now: while it waits here, gloo's threads let go of what they last gathered, which at
            # the interpreter's end would abort it.
            self.accelerator.wait_for_everyone()
            return result
        finally:
            self.args.eval_on_start = at_start

    @property
    def places(self) -> list[int]:
        """Rows of the pool that the round trains on, in order; in mode ``batch`` they are drawn as they are needed."""
        assert self.curriculum is not None
        if self.curriculum.ended or self.state.global_step >= self.state.max_steps:
            return []
        if isinstance(self.curriculum, BatchFilter):
            return [0] * self.args.round_prompts
        return self.curriculum.slots(self.args.round_prompts)

    def begin_round(self) -> None:
        """Choose, unless the checkpoint that training goes on from is of the middle of a round."""
        assert self.curriculum is not None
        number, within = divmod(self.state.global_step, self.args.steps_per_round)
        begun, self.begun = self.begun, True
        if within and begun:
            raise GradAlignError(
                f"step {self.state.global_step}: an epoch ended within a round of {self.args.steps_per_round} steps; "
                "let no callback end epochs"
            )
        if within:
            return
        start = time.perf_counter()
        with still(self) as policy:
            samplers = self._samplers(policy, number)
            follow(self, policy, samplers)
            numbers = self.curriculum.begin(number, policy, samplers, self.progress)
        if self.curriculum.ended:
            if self.accelerator.is_main_process:
                warn(f"training stops before round {number}: {self.curriculum.ended}")
            return
        record(self, numbers, time.perf_counter() - start)
        count, needed = len(self.curriculum.chosen), self.args.batch_prompts
        if self.args.mode == "round" and count < needed and self.accelerator.is_main_process:
            warn(
                f"round {number}: {count} problems chosen, fewer than the {needed} of one generation batch: some repeat"
            )

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Sampler:
        if self.curriculum is not None:
            return Places(self)
        stock = super()._get_train_sampler(dataset)
        return Resumable(stock, self) if isinstance(stock, RepeatSampler) and stock.shuffle else stock

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if self.curriculum is None or not self.model.training:
            return super()._generate_and_score_completions(inputs)
        if isinstance(self.curriculum, BatchFilter):
            rollouts, inputs = self._filtered(len(inputs))
        else:
            rollouts = self._recycled(inputs)
        if not rollouts:
            return super()._generate_and_score_completions(inputs)
        self._handed = [rollout for _, rollout in rollouts]
        self._metrics["train"]["gradalign/rollouts_reused_total"] = [float(self.curriculum.state.reused)]
        self.rollout_func = lambda prompts, trainer: {
            "prompt_ids": [ids for ids, _ in rollouts],
            "completion_ids": [rollout.response_ids.tolist() for _, rollout in rollouts],
            "logprobs": [r.logprobs.tolist() for r in self._handed or [] if r.logprobs is not None]
            if self.use_vllm
            else None,
        }
        try:
            return super()._generate_and_score_completions(inputs)
        finally:
            self._handed = self.rollout_func = None

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> torch.Tensor:
        if self._handed is None:
            try:
                return super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
            except Exception as error:
                if self.curriculum is None or isinstance(error, GradAlignError):
                    raise
                raise GradAlignError(
                    f"step {self.state.global_step + 1}: a reward function raised {type(error).__name__}: {error}; "
                    "mend it and go on from the last checkpoint"
                ) from error
        for column in self._logs["extra"]:  # what reward functions logged of other rollouts is not these'
            self._pending_extra_logs[column].extend([None] * len(self._handed))
        rewards = torch.tensor([rollout.rewards for rollout in self._handed], dtype=torch.float32)
        return gather(rewards.to(self.accelerator.device))

    @property
    def _batch_number(self) -> int:
        """Number of the generation batch at hand, counted from the run's start."""
        return self._step // self.args.generation_steps

    def _recycled(self, inputs: list[dict[str, Any]]) -> list[tuple[list[int], Rollout]]:
        """The rows' rollouts from scoring, with their prompts, while the policy is still the one that sampled them."""
        assert self.curriculum is not None
        if not self.args.recycle or not self.curriculum.groups:
            return []
        first = self._batch_number * self.args.batch_prompts % self.args.round_prompts
        served = self.curriculum.serve(self.places[first : first + self.args.batch_prompts], self.num_generations)
        return self._share(served, len(inputs))

    def _share(self, groups: list[tuple[Group, int]], count: int) -> list[tuple[list[int], Rollout]]:
        """This process's ``count`` rows of a generation batch, from its problems' groups and their first rollouts."""
        first, size = self.accelerator.process_index * count, self.num_generations
        places = [divmod(position, size) for position in range(first, first + count)] if groups else []
        return [
            (groups[place][0].prompt_ids.tolist(), groups[place][0].rollouts[groups[place][1] + number])
            for place, number in places
        ]

    def _filtered(self, count: int) -> tuple[list[tuple[list[int], Rollout]], list[dict[str, Any]]]:
        """This process's share of the batch that the filter lets through: prompts and rollouts, and rows."""
        assert isinstance(self.curriculum, BatchFilter)
        start = time.perf_counter()
        number = self._batch_number
        with still(self) as policy:
            sampler = self._sampler(policy, self.pool, self.num_generations, "batch", number, f"step {number}")
            groups, numbers = self.curriculum.filter(number, self.args.batch_prompts, policy, sampler)
        record(self, numbers, time.perf_counter() - start)
        first = self.accelerator.process_index * count
        rows = [self.pool.row(groups[i // self.num_generations].key) for i in range(first, first + count)]
        return self._share([(group, 0) for group in groups], count), rows

    def create_model_card(self, *others: Any, **named: Any) -> None:
        """As in TRL, where the model goes to the hub; a card in a local run's folder would have nothing to say."""
        if self.args.push_to_hub:
            super().create_model_card(*others, **named)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self.args.should_save:  # before older checkpoints make room for this one
            folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / TRAINER_STATE_NAME).unlink(missing_ok=True)  # written last; until then this is no checkpoint
            if self.curriculum is None:
                self.run_state.save(folder)
            else:
                self.curriculum.save(folder, policy_of(self))
        super()._save_checkpoint(model, trial)

    def _samplers(self, policy: Policy, number: int) -> tuple[TrainerSampler, TrainerSampler]:
        """Of a round's candidates and of its validation problems."""
        count, tag = self.args.most, policy.fingerprint
        trusted = self.validation or self.pool  # without a validation set nobody asks
        more = self.args.validation_rollouts or count
        return (
            self._sampler(policy, self.pool, count, "round", number, tag),
            self._sampler(policy, trusted, more, "validation", number, tag),
        )

    def _sampler(
        self, policy: Policy, problems: Problems, rollouts: int, purpose: str, number: int, tag: str
    ) -> TrainerSampler:
        seed = int(uniform_hash(purpose, self.args.seed, number) * 2**31)
        return TrainerSampler(self, policy, problems.row, rollouts, self.args.batch_rollouts, seed, tag)
