"""A training run from problems to a plain model folder, for the command line and the demo."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import HfArgumentParser, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from gradalign.alignment.align import Progress, silent
from gradalign.errors import GradAlignError
from gradalign.policy.load import Policy
from gradalign.problems.arrow import SeveralKindsError
from gradalign.problems.schema import Problem
from gradalign.problems.write import trl_row
from gradalign.rewards.several import AnyReward, WeightedSum
from gradalign.trainers.trl.checkpoints import last_complete
from gradalign.trainers.trl.config import GradAlignConfig
from gradalign.trainers.trl.dataset import on_disk
from gradalign.trainers.trl.rewards import COIN, RewardFunction
from gradalign.trainers.trl.trainer import GradAlignTrainer

MODEL = "model"
"""Folder of the trained model in a run's folder."""


def further_options() -> dict[str, Mapping[str, Any]]:
    """Every field of `GradAlignConfig` but run folder and rewards' weights, as arguments of ``add_argument``."""
    found: dict[str, Mapping[str, Any]] = {}
    kind: Any = GradAlignConfig
    for action in HfArgumentParser(kind)._actions:
        if action.dest not in ("help", "output_dir", "reward_weights") and not action.option_strings[0].startswith(
            "--no_"
        ):
            names = ("type", "nargs", "const", "choices")
            settings = {name: getattr(action, name) for name in names if getattr(action, name) is not None}
            help_text = " ".join(str(action.help or "").split())
            own = action.dest in GradAlignConfig.__annotations__
            if action.default is not None:
                help_text += f" (default: {action.default})"
            found[action.dest] = settings | {
                "help": help_text.replace("%", "%%"),
                "metavar": "VALUE",
                "group": "choosing" if own else "TRL (trl.GRPOConfig, transformers.TrainingArguments)",
            }
    return dict(sorted(found.items(), key=lambda item: item[1]["group"] != "choosing"))


@dataclass
class TrainJob:
    """What a training run needs.

    Attributes:
        policy: to start from; its model is trained in place.
        reward: of the pool, with its coin; validation and test are never paid by coin.
        args: the trainer's.
        pool: what is chosen from.
        validation: the trusted set; may be empty where the strategy follows no direction.
        test: held-out problems; may be empty.
    """

    policy: Policy
    reward: AnyReward
    args: GradAlignConfig
    pool: Sequence[Problem]
    validation: Sequence[Problem]
    test: Sequence[Problem]

    def run(
        self,
        lora: dict[str, Any] | None = None,
        progress: Progress = silent,
        tell: Callable[[str], None] = lambda line: None,
    ) -> GradAlignTrainer:
        """Train, going on from the last complete checkpoint where there is one, and export the model.

        Args:
            lora: arguments of `peft.LoraConfig`; None trains the policy's own trainable parameters.
            progress: of sampling and scoring.
            tell: gets a line for each round and evaluation, in the first process.

        Returns:
            The trainer, at the end of training; the model is in ``output_dir``/model.

        Raises:
            GradAlignError: what TRL or this package refuses.
        """
        trainer = self.make(lora, progress)
        self.train(trainer, tell)
        return trainer

    def train(self, trainer: GradAlignTrainer, tell: Callable[[str], None]) -> None:
        """`run` with a trainer that `make` gave."""
        for chatty in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(chatty)
        if trainer.accelerator.is_main_process:
            trainer.add_callback(Lines(tell))
        out = Path(self.args.output_dir or ".")
        found = last_complete(out)
        speak = tell if trainer.accelerator.is_main_process else lambda line: None
        if found is not None:
            speak(f"going on from {found}")
        try:
            trainer.train(resume_from_checkpoint=None if found is None else str(found))
        except (TypeError, ValueError) as error:
            if trainer.curriculum is None or trainer.begun:
                raise
            raise GradAlignError(f"training cannot begin: {' '.join(str(error).split())}") from error
        export(trainer, out / MODEL)
        best = trainer.state.best_model_checkpoint if self.args.load_best_model_at_end else None
        which = f"as of {best}, the best on the test set" if best else f"as of step {trainer.state.global_step}"
        merged = ", its adapter merged" if hasattr(trainer.model, "peft_config") else ""
        speak(f"wrote {out / MODEL}: the policy {which}{merged}")

    def make(self, lora: dict[str, Any] | None = None, progress: Progress = silent) -> GradAlignTrainer:
        """The trainer of `run`.

        Raises:
            GradAlignError: what it refuses, TRL's reasons included.
        """
        others: dict[str, Any] = {}
        if lora is not None:
            from peft import LoraConfig

            others["peft_config"] = LoraConfig(**lora)
        functions = [RewardFunction(term) for term in self.reward.terms]
        if isinstance(self.reward, WeightedSum):
            self.args.reward_weights = list(self.reward.weights)
        try:
            return GradAlignTrainer(
                self.policy.model, functions, self.args, self._rows(self.pool, coins=True),
                self._rows(self.test), validation_dataset=self._rows(self.validation),
                processing_class=self.policy.tokenizer, progress=progress, **others,
            )  # fmt: skip
        except (ImportError, ValueError, NotImplementedError, RuntimeError) as error:
            raise GradAlignError(f"the trainer cannot be made: {' '.join(str(error).split())}") from error

    def _rows(self, problems: Sequence[Problem], coins: bool = False) -> Dataset | None:
        coin = self.reward.coin if coins else None

        def rows() -> Iterator[dict[str, Any]]:
            for problem in problems:
                yield trl_row(problem) | {COIN: coin is not None and coin.corrupts(problem.key)}

        return data_set(rows) if problems else None


def data_set(rows: Callable[[], Iterable[Mapping[str, Any]]]) -> Dataset:
    """A data set, in a temporary file, with every field that any row has; null where a row has none.

    Raises:
        GradAlignError: a field's values cannot be in one column as they are.
    """
    try:
        return on_disk(rows)
    except SeveralKindsError as error:
        name = str(error)
        mend = "ask all as messages (--chat)" if name == "prompt" else "give it one kind, or leave the field out"
        raise GradAlignError(f"the problems' field {name!r} has values of several kinds; {mend}") from error


def export(trainer: GradAlignTrainer, folder: Path) -> None:
    """Save the trained model as a plain Hugging Face folder, an adapter merged into its base; training is over then."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if not trainer.accelerator.is_main_process:
        return
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    model.save_pretrained(folder)
    trainer._tokenizer.save_pretrained(folder)


class Lines(TrainerCallback):
    """A line for each round and each evaluation."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.tell = tell
        self.known: dict[str, float] = {}
        self.rewards: list[float] = []

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        """Keep what the round's line needs."""
        self.known |= {name: value for name, value in (logs or {}).items() if name.startswith("gradalign/")}
        if "reward" in (logs or {}):
            self.rewards.append(logs["reward"])

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Tell of the round."""
        if not self.rewards:
            return
        known = {name.removeprefix("gradalign/"): value for name, value in self.known.items()}
        parts = [f"step {state.global_step}"]
        if "chosen" in known:
            chose = f"chose {known['chosen']:.0f} of {known['problems']:.0f}"
            if known.get("rollouts"):
                chose += f" ({known['scored_share'] * known['problems']:.0f} whose rewards vary)"
            parts.append(chose)
        if "direction/reliability" in known:
            error = known.get("direction/reliability_se")
            parts.append(
                f"direction agrees {known['direction/reliability']:.2f}" + ("" if error is None else f" ± {error:.2f}")
            )
        if known.get("rollouts_total"):
            parts.append(f"{known['rollouts_total']:,.0f} rollouts for choosing")
        parts.append(f"training reward {sum(self.rewards) / len(self.rewards):.3f}")
        self.tell(f"{self._name(args, state)}: {', '.join(parts)}")
        self.known, self.rewards = {}, []

    def _name(self, args: Any, state: TrainerState) -> str:
        if args.choosing:
            return f"round {(state.global_step - 1) // args.steps_per_round}"
        return f"epoch {math.ceil(state.epoch or 0) - 1}"

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any = None, **_: Any
    ) -> None:
        """Tell of the evaluation."""
        reward = (metrics or {}).get("eval_reward")
        if reward is not None:
            when = f"after step {state.global_step}" if state.global_step else "before training"
            self.tell(f"test {when}: mean reward {reward:.3f}")
