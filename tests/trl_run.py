"""A small training run with the embedded policy, as a function and as a command: ``python -m tests.trl_run '{...}'``.

The command trains, going on from the last checkpoint in ``out`` where there is one, and writes what it ended with to
``out``/end.json.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers.trainer_callback import PrinterCallback
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from gradalign.policy.load import load_policy
from gradalign.problems.embedded import make_pool
from gradalign.problems.write import trl_row
from gradalign.rewards.countdown import countdown
from gradalign.trainers.trl import GradAlignConfig, GradAlignTrainer
from gradalign.trainers.trl.checkpoints import last_complete

ARGUMENTS: dict[str, Any] = {
    "per_device_train_batch_size": 16, "num_generations": 4, "max_completion_length": 8, "learning_rate": 1e-4,
    "logging_steps": 1, "report_to": [], "use_cpu": True, "bf16": False, "disable_tqdm": True, "seed": 0,
}  # fmt: skip
CHOOSING: dict[str, Any] = {"steps_per_round": 2, "chunk": 16, "rollouts": 8, "noise_patience": 0}


def datasets(pool: int = 48, validation: int = 32, test: int = 16) -> tuple[Dataset, Dataset, Dataset]:
    """Pool, validation set, test set."""
    rows = Dataset.from_list([trl_row(problem) for problem in make_pool("mixed", pool + validation + test, 0)])
    cuts = (0, pool, pool + validation, pool + validation + test)
    first, second, third = (rows.select(range(a, b)) for a, b in itertools.pairwise(cuts))
    return first, second, third


def stock(out: Path, **arguments: Any) -> GRPOTrainer:
    """TRL's own trainer."""
    policy = load_policy("embedded", device="cpu")
    args = GRPOConfig(str(out), **ARGUMENTS | {"save_strategy": "epoch"} | arguments)
    reward: Any = countdown
    return GRPOTrainer(policy.model, reward, args, datasets()[0], processing_class=policy.tokenizer)


def trainer(
    out: Path, reward: Any = countdown, pool: int = 48, evaluate: bool = False, lora: Any = None, **arguments: Any
) -> GradAlignTrainer:
    """Ours."""
    policy = load_policy("embedded", device="cpu")
    chosen, validation, test = datasets(pool)
    choosing = {} if arguments.get("strategy") == "off" else CHOOSING
    if arguments.get("mode") == "batch":
        choosing = {name: value for name, value in CHOOSING.items() if name not in ("chunk", "rollouts")}
    if evaluate:
        arguments = {"eval_strategy": "epoch", "per_device_eval_batch_size": 32} | arguments
    args = GradAlignConfig(str(out), **ARGUMENTS | choosing | arguments)
    made = GradAlignTrainer(
        policy.model, reward, args, chosen, test if evaluate else None, validation_dataset=validation,
        processing_class=policy.tokenizer, peft_config=lora,
    )  # fmt: skip
    made.remove_callback(PrinterCallback)
    return made


def losses(made: Any) -> list[tuple[float, float, float]]:
    """Loss, reward and gradient norm of every step."""
    return [(h["loss"], h["reward"], h["grad_norm"]) for h in made.state.log_history if "loss" in h]


def logged(made: Any, name: str) -> list[float]:
    """One of choosing's metrics, as often as it was logged."""
    return [h[f"gradalign/{name}"] for h in made.state.log_history if f"gradalign/{name}" in h]


class Watched(GradAlignTrainer):
    """Notes what each generation batch is made of."""

    batches: list[tuple[int, list[str], list[list[int]], torch.Tensor]]

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> torch.Tensor:
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if self.model.training:
            row = self.state.global_step, [i["key"] for i in inputs], completion_ids_list, rewards
            self.__dict__.setdefault("batches", []).append(row)
        return rewards


def weights(model: Any) -> str:
    """A digest of every weight."""
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def main(options: dict[str, Any]) -> None:
    """Train and write the end."""
    torch.set_num_threads(1)
    out = Path(options.pop("out"))
    made = trainer(out, **options)
    made.train(resume_from_checkpoint=True if last_complete(out) else None)
    if made.accelerator.is_main_process:
        history = list(made.curriculum.state.history) if made.curriculum else []
        end = {"weights": weights(made.model), "choices": history, "step": made.state.global_step}
        (out / "end.json").write_text(json.dumps(end))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
