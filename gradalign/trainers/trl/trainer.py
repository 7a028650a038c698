"""TRL's GRPOTrainer on the problems that a curriculum chooses.

What is overridden: the order in which problems come (`_get_train_sampler`), the rollouts of a batch where they exist
already (`_generate_and_score_completions`, `_calculate_rewards`), and the state in checkpoints (`_save_checkpoint`,
`train`). The losses, the optimiser and everything else are TRL's.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather
from datasets import Dataset
from torch.utils.data import Sampler
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import RepeatSampler

from gradalign.alignment.align import Progress, silent
from gradalign.curriculum.curriculum import Curriculum
from gradalign.curriculum.filter import BatchFilter
from gradalign.curriculum.state import State
from gradalign.errors import GradAlignError, warn
from gradalign.policy.group import Rollout
from gradalign.policy.load import Policy, cover
from gradalign.problems.schema import uniform_hash
from gradalign.trainers.trl.callbacks import FiniteGradients, Rounds
from gradalign.trainers.trl.checkpoints import last_complete, require_complete
from gradalign.trainers.trl.config import GradAlignConfig
from gradalign.trainers.trl.dataset import Problems
from gradalign.trainers.trl.order import Places, Resumable
from gradalign.trainers.trl.sampler import TrainerSampler
from gradalign.trainers.trl.setup import find_validation, make_curriculum, with_length


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
        others: TRL's further arguments.

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
        self._used: Counter[str] = Counter()  # how often a problem's rollouts were trained on since they were sampled
        self._chosen_in = self._started = 0.0  # seconds spent choosing; when training began
        if args.choosing:
            self.pool = Problems(train_dataset, "train_dataset")
            self.validation = find_validation(args, self.pool, validation_dataset, eval_dataset)
            train_dataset, args = self.pool.dataset, with_length(args, len(self.pool))
            for name in ("tools", "environment_factory", "rollout_func"):
                if others.get(name):
                    raise GradAlignError(
                        f"{name}: choosing samples single responses itself; take strategy='off' with it"
                    )
        super().__init__(model, reward_funcs, args, train_dataset, eval_dataset, **others)
        self.add_callback(FiniteGradients(self))
        identity = {"strategy": args.strategy, "seed": args.seed, "model": self._policy().fingerprint}
        self._run = State(identity)
        if args.choosing:
            self.curriculum = make_curriculum(args, self.pool, self.validation, identity)
            self.add_callback(Rounds(self))

    def train(self, resume_from_checkpoint: str | bool | None = None, *others: Any, **named: Any) -> Any:
        """As in TRL; ``resume_from_checkpoint=True`` takes the last complete checkpoint.

        Raises:
            GradAlignError: the checkpoint is another run's or incomplete, or there is none.
        """
        self._started, self._chosen_in = time.perf_counter(), 0.0
        if resume_from_checkpoint is True:
            found = last_complete(Path(self.args.output_dir or "."))
            if found is None:
                raise GradAlignError(f"{self.args.output_dir}: holds no complete checkpoint; train without resuming")
            resume_from_checkpoint = str(found)
        if resume_from_checkpoint:
            require_complete(Path(resume_from_checkpoint))
        if self.curriculum is None:
            if resume_from_checkpoint:
                self._run.load(Path(resume_from_checkpoint))
        elif resume_from_checkpoint:
            self.curriculum.load(Path(resume_from_checkpoint), self._policy())
        else:
            self.curriculum.restart()
        return super().train(resume_from_checkpoint, *others, **named)

    @property
    def places(self) -> list[int]:
        """Rows of the pool that the round trains on, in order; in mode ``batch`` they are drawn as they are needed."""
        assert self.curriculum is not None
        if self.curriculum.ended:
            return []
        if isinstance(self.curriculum, BatchFilter):
            return [0] * self.args.round_prompts
        return self.curriculum.slots(self.args.round_prompts)

    def begin_round(self) -> None:
        """Choose, unless the checkpoint that training goes on from is of the middle of a round."""
        assert self.curriculum is not None
        number, within = divmod(self.state.global_step, self.args.steps_per_round)
        if within:
            return
        start = time.perf_counter()
        with self._still() as policy:
            samplers = self._samplers(policy, number)
            numbers = self.curriculum.begin(number, policy, samplers, self.progress)
        self._used.clear()
        if self.curriculum.ended:
            if self.accelerator.is_main_process:
                warn(f"training stops before round {number}: {self.curriculum.ended}")
            return
        self._log(numbers, time.perf_counter() - start)
        needed = self.args.batch_prompts
        if self.args.mode == "round" and len(self.curriculum.chosen) < needed and self.accelerator.is_main_process:
            warn(
                f"round {number}: {len(self.curriculum.chosen)} problems could be chosen, fewer than the {needed} of "
                "one generation batch; some come twice in it"
            )

    def _log(self, numbers: dict[str, float], seconds: float) -> None:
        assert self.curriculum is not None
        self._chosen_in += seconds
        known = numbers | {
            "overhead_seconds": max(0.0, seconds - numbers.get("seconds", numbers.get("validation_seconds", seconds))),
            "time_share": self._chosen_in / max(time.perf_counter() - self._started, 1e-9),
            "round": float(self.curriculum.state.round),
        }
        for name, value in known.items():
            logged = self._metrics["train"][f"gradalign/{name}"]
            if name.endswith("total"):  # TRL averages what it finds between two logs; of a total the last one counts
                logged.clear()
            logged.append(value)

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
            return super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        rewards = torch.tensor([rollout.rewards for rollout in self._handed], dtype=torch.float32)
        return gather(rewards.to(self.accelerator.device))

    @property
    def _batch_number(self) -> int:
        """Number of the generation batch at hand, counted from the run's start."""
        passes = self.args.gradient_accumulation_steps
        return (self.state.global_step * passes + self._step % passes) // self.args.generation_steps

    def _positions(self, count: int) -> range:
        """Where this process's rows are in the generation batch."""
        return range(self.accelerator.process_index * count, (self.accelerator.process_index + 1) * count)

    def _recycled(self, inputs: list[dict[str, Any]]) -> list[tuple[list[int], Rollout]]:
        """The rows' rollouts from scoring, with their prompts, while the policy is still the one that sampled them."""
        assert self.curriculum is not None
        groups = self.curriculum.groups
        if not self.args.recycle or not groups:
            return []
        size, count = self.args.batch_prompts, self.num_generations
        first = self._batch_number * size % self.args.round_prompts
        keys = [self.pool.keys[place] for place in self.places[first : first + size]]
        used, takes = self._used.copy(), []
        for key in keys:  # a problem that comes again takes its next rollouts
            takes.append(used[key] * count)
            used[key] += 1
        if max(takes) + count > self._sampled_for_scoring():
            return []
        self._used = used
        self.curriculum.state.reused += size * count
        handed = []
        for position in self._positions(len(inputs)):
            group, take = groups[keys[position // count]], takes[position // count]
            handed.append((group.prompt_ids.tolist(), group.rollouts[take + position % count]))
        return handed

    def _filtered(self, count: int) -> tuple[list[tuple[list[int], Rollout]], list[dict[str, Any]]]:
        """This process's share of the batch that the filter lets through: prompts and rollouts, and rows."""
        assert isinstance(self.curriculum, BatchFilter)
        start = time.perf_counter()
        number = self._batch_number
        with self._still() as policy:
            sampler = self._sampler(policy, self.pool, self.num_generations, "batch", number, f"step {number}")
            groups, numbers = self.curriculum.filter(number, self.args.batch_prompts, policy, sampler)
        self._log(numbers, time.perf_counter() - start)
        handed, rows = [], []
        for position in self._positions(count):
            group = groups[position // self.num_generations]
            handed.append((group.prompt_ids.tolist(), group.rollouts[position % self.num_generations]))
            rows.append(self.pool.row(group.key))
        return handed, rows

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self.args.should_save:  # before older checkpoints make room for this one
            folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
            folder.mkdir(parents=True, exist_ok=True)
            if self.curriculum is None:
                self._run.save(folder)
            else:
                self.curriculum.save(folder, self._policy())
        super()._save_checkpoint(model, trial)

    def _sampled_for_scoring(self) -> int:
        return self.args.rollouts or self.num_generations

    def _samplers(self, policy: Policy, number: int) -> tuple[TrainerSampler, TrainerSampler]:
        """Of a round's candidates and of its validation problems."""
        count = self._sampled_for_scoring()
        more = self.args.validation_rollouts or count
        candidates = self._sampler(policy, self.pool, count, "round", number, policy.fingerprint)
        trusted = self.validation or self.pool  # without a validation set nobody asks
        return candidates, self._sampler(policy, trusted, more, "validation", number, policy.fingerprint)

    def _sampler(
        self, policy: Policy, problems: Problems, rollouts: int, purpose: str, number: int, tag: str
    ) -> TrainerSampler:
        seed = int(uniform_hash(purpose, self.args.seed, number) * 2**31)
        return TrainerSampler(self, policy, problems.row, rollouts, self.args.batch_rollouts, seed, tag)

    def _policy(self) -> Policy:
        """The model as it is now, for scoring: unwrapped, so that no collective waits for uneven work."""
        policy = cover(self.accelerator.unwrap_model(self.model), str(self.model.config._name_or_path))
        policy.given_tokenizer = self._tokenizer
        return policy

    @contextlib.contextmanager
    def _still(self) -> Iterator[Policy]:
        """The policy without dropout; gradients that training has accumulated are put aside."""
        training = self.model.training
        gradients = [(parameter, parameter.grad) for parameter in self.model.parameters()]
        for parameter, _ in gradients:
            parameter.grad = None
        self.model.eval()
        try:
            yield self._policy()
        finally:
            self.model.train(training)
            for parameter, gradient in gradients:
                parameter.grad = gradient
