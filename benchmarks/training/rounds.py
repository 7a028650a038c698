"""200 rounds on a tiny pool: does memory grow, and how much time goes to neither rollouts nor scoring nor training?

    python benchmarks/training/rounds.py [ROUNDS]

Writes rounds.json and rounds.md beside this file: resident memory after every tenth round; and, over all rounds, the
seconds of sampling and scoring, of training, and of what choosing adds besides (reading, ranking, writing, hashing).
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers
import trl
from transformers import TrainerCallback

from tests.trl_run import trainer

HERE = Path(__file__).parent


class Watch(TrainerCallback):
    """Notes memory and time at each round's end."""

    def __init__(self) -> None:
        self.megabytes: list[float] = []

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        self.megabytes.append(psutil.Process().memory_info().rss / 2**20)


def main(rounds: int) -> None:
    torch.set_num_threads(2)
    out = Path(tempfile.mkdtemp())
    steps = 2
    made: Any = trainer(
        out, pool=64, max_steps=rounds * steps, steps_per_round=steps, save_total_limit=1, learning_rate=1e-6,
        direction_average=0.5,
    )  # fmt: skip
    spent = {"choosing": 0.0, "training": 0.0, "checkpoints": 0.0}
    for name, method in (
        ("choosing", "begin_round"),
        ("training", "training_step"),
        ("checkpoints", "_save_checkpoint"),
    ):
        setattr(made, method, _timed(getattr(made, method), spent, name))
    watch = Watch()
    made.add_callback(watch)
    start = time.perf_counter()
    made.train()
    total = time.perf_counter() - start
    numbers = [json.loads(path.read_text()) for path in sorted(out.glob("round-*/metrics.json"))]
    stages = sum(sum(one["seconds"].values()) for one in numbers)
    facts: dict[str, Any] = {
        "rounds": len(numbers),
        "seconds": {"total": total, "sampling and scoring": stages, "choosing besides": spent["choosing"] - stages,
                    "training": spent["training"], "checkpoints": spent["checkpoints"]},
        "overhead_of_choosing": (spent["choosing"] - stages) / total,
        "megabytes": [round(value, 1) for value in watch.megabytes],
        "versions": {module.__name__: module.__version__ for module in (torch, transformers, trl)}
        | {"python": platform.python_version()},
        "machine": f"{platform.machine()} CPU, 2 threads",
    }  # fmt: skip
    (HERE / "rounds.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    shown = watch.megabytes[9 :: max(10, rounds // 10)]
    lines = [
        f"{len(numbers)} rounds of {steps} steps, {total:.0f} s.",
        "",
        "| | share of the time |",
        "|---|---|",
        *(f"| {name} | {value / total:.1%} |" for name, value in facts["seconds"].items() if name != "total"),
        "",
        f"| after round | {' | '.join(str(10 + i * max(10, rounds // 10)) for i in range(len(shown)))} |",
        f"|---|{'---|' * len(shown)}",
        f"| resident MiB | {' | '.join(f'{value:.0f}' for value in shown)} |",
    ]  # fmt: skip
    (HERE / "rounds.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def _timed(method: Any, spent: dict[str, float], name: str) -> Any:
    def timed(*args: Any, **named: Any) -> Any:
        start = time.perf_counter()
        try:
            return method(*args, **named)
        finally:
            spent[name] += time.perf_counter() - start

    return timed


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
