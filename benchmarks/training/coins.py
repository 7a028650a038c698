"""Does a cleaner choice train better? Half of the problems are paid by coin; the tiny policy is trained on each
strategy's choices, chosen again every round.

    python benchmarks/training/coins.py [--seeds 0 1 2] [--arms guarded random ...]

Writes coins.json and coins.md beside this file, run by run; what is there is not run again. ``clean`` is the oracle:
drawn at random from the problems that are paid correctly.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
import transformers
import trl
from filelock import FileLock

from gradalign.bench.results import markdown_table
from gradalign.policy.load import load_policy
from gradalign.problems.embedded import make_pool
from gradalign.rewards.base import Reward
from gradalign.rewards.coin import Coin
from gradalign.rewards.countdown import countdown
from gradalign.trainers.trl.config import GradAlignConfig
from gradalign.trainers.trl.run import TrainJob

HERE = Path(__file__).parent
ARMS: dict[str, dict[str, Any]] = {
    "gradalign": {"strategy": "gradalign"},
    "guarded": {"strategy": "guarded", "engine": "directional"},
    "guarded-learnability": {
        "strategy": "guarded", "engine": "directional", "rank": "expected(worth=learnability)",
    },
    "random": {"strategy": "random"},
    "clean": {"strategy": "random"},
}  # fmt: skip
"""Arm -> how it chooses."""
POOL, VALIDATION, TEST = 768, 64, 256
ROUNDS, STEPS, CHUNK, TOP = 8, 12, 192, 32


def run(arm: str, seed: int, out: Path) -> dict[str, Any]:
    """Train one arm; accuracies by round, corrupted share by round, rollouts."""
    problems = make_pool("mixed", POOL + VALIDATION + TEST, seed)
    pool, validation, test = problems[:POOL], problems[POOL : POOL + VALIDATION], problems[POOL + VALIDATION :]
    coin = Coin(0.5, seed)
    if arm == "clean":
        pool = [problem for problem in pool if not coin.corrupts(problem.key)]
    args = GradAlignConfig(
        str(out), **ARMS[arm], steps_per_round=STEPS, seed=seed,
        max_steps=ROUNDS * STEPS, chunk=CHUNK, top=TOP, rollouts=16, validation_rollouts=32, noise_patience=0,
        per_device_train_batch_size=256, num_generations=16, max_completion_length=16, learning_rate=2e-5,
        lr_scheduler_type="constant", scale_rewards="none", gradient_checkpointing=False, eval_strategy="epoch",
        eval_on_start=True, per_device_eval_batch_size=1024, num_generations_eval=8, save_total_limit=1,
        logging_steps=STEPS, report_to="none", disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    policy, reward = load_policy("embedded", device="cpu"), Reward("countdown", countdown, coin=coin)
    trainer = TrainJob(policy, reward, args, pool, validation, test).run()
    assert trainer.curriculum is not None
    accuracy = {h["step"]: h["eval_reward"] for h in trainer.state.log_history if "eval_reward" in h}
    return {
        "arm": arm, "seed": seed, "accuracy": [accuracy[step] for step in sorted(accuracy)],
        "chosen_share": [mean(map(coin.corrupts, keys)) for keys in trainer.curriculum.state.history],
        "rollouts": trainer.curriculum.state.sampled, "reused": trainer.curriculum.state.reused,
    }  # fmt: skip


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for seed in arguments.seeds:
        for arm in arguments.arms:
            if (arm, seed) not in {(row["arm"], row["seed"]) for row in _kept()}:
                with tempfile.TemporaryDirectory() as folder:
                    _keep(run(arm, seed, Path(folder)))


def _kept() -> list[dict[str, Any]]:
    path = HERE / "coins.json"
    return json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []


def _keep(row: dict[str, Any]) -> None:
    with FileLock(HERE / ".coins.lock"):  # several processes may share the work
        rows = sorted([*_kept(), row], key=lambda own: (own["seed"], list(ARMS).index(own["arm"])))
        modules = (torch, transformers, trl)
        facts = {
            "setting": {
                "pool": POOL, "validation": VALIDATION, "test": TEST, "rounds": ROUNDS, "steps_per_round": STEPS,
                "chunk": CHUNK, "top": TOP, "rollouts": 16, "learning_rate": 2e-5, "coins": 0.5,
            },
            "versions": {m.__name__: m.__version__ for m in modules} | {"python": platform.python_version()},
            "machine": f"{platform.machine()} CPU, 1 thread a run",
            "rows": rows,
        }  # fmt: skip
        for name, text in (("coins.json", json.dumps(facts, indent=1)), ("coins.md", _table(rows))):
            part = HERE / f".{name}.part"
            part.write_text(text + "\n", encoding="utf-8")
            os.replace(part, HERE / name)


def _table(rows: list[dict[str, Any]]) -> str:
    lines = []
    for arm in ARMS:
        own = [row for row in rows if row["arm"] == arm]
        if own:
            last = [mean(row["accuracy"][-4:]) for row in own]
            lines.append([
                f"`{arm}`", str(len(own)), _spread(row["accuracy"][0] for row in own), _spread(last),
                _spread(max(row["accuracy"]) for row in own), _spread(mean(row["chosen_share"]) for row in own),
                f"{median(row['rollouts'] for row in own):,.0f}",
            ])  # fmt: skip
    columns = ["chosen by", "seeds", "before", "last four", "best", "corrupted chosen", "rollouts to choose"]
    return (
        f"# Training with half of the problems paid by coin\n\nMean reward on {TEST} test problems, 8 responses each, "
        f"before training and after each of {ROUNDS} rounds of {STEPS} steps (last four: mean of the last four); "
        f"medians over seeds (least to largest).\n\n{markdown_table(columns, lines)}"
    )


def _spread(values: Iterable[float]) -> str:
    found = sorted(values)
    return f"{median(found):.3f} ({found[0]:.3f}-{found[-1]:.3f})"


if __name__ == "__main__":
    main()
