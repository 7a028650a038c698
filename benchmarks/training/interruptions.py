"""Kill training runs with signal 9 at 20 random points and go on: are choices and weights those of an undisturbed run?

    python benchmarks/training/interruptions.py [OUT_FOLDER]

Points, calls and options are drawn from seed 0, over every phase of `tests.kill_run.POINTS` that the mode has. Writes
interruptions.json and interruptions.md beside this file.
"""

from __future__ import annotations

import json
import platform
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
import trl

from tests.kill_run import POINTS, run

HERE = Path(__file__).parent
MODES: dict[str, tuple[int, dict[str, Any], set[str]]] = {
    "round": (
        12,
        {"max_steps": 8, "evaluate": True, "save_total_limit": 1, "direction_average": 0.5},
        {"forward-only scoring", "batch's alignments written"},
    ),
    "batch": (
        8,
        {"max_steps": 8, "mode": "batch", "steps_per_round": 4, "save_strategy": "steps", "save_steps": 2,
         "save_total_limit": 2},
        {"rollouts written", "scoring", "alignments written", "round's numbers written", "choice written",
         "evaluation"},
    ),
}  # fmt: skip
"""Mode -> how many kills, the run's options, the points that it does not pass."""


def main(out: Path) -> None:
    rng = random.Random(0)
    results = []
    for mode, (count, options, absent) in MODES.items():
        points = [point for point in POINTS if point not in absent]
        rng.shuffle(points)
        kills = []
        for number in range(count):
            point = points[number % len(points)]
            often = point in ("scoring", "forward-only scoring")
            kills.append((point, rng.randint(1, 60 if point == "scoring" else 8 if often else 3), rng.random() < 0.5))
        results += [{"mode": mode, **result} for result in run(out / mode, kills, options)]
    versions = {module.__name__: module.__version__ for module in (torch, transformers, trl)}
    versions["python"] = platform.python_version()
    facts = {"seed": 0, "versions": versions, "machine": f"{platform.machine()} CPU, float32, one thread"}
    rows = json.dumps({**facts, "rows": results}, indent=1)
    (HERE / "interruptions.json").write_text(rows + "\n", encoding="utf-8")
    lines = ["| mode | killed at | call | same choices and weights | rounds kept |", "|---|---|---|---|---|"]
    for r in results:
        when = "after" if r["after"] else "before"
        call = f"{when} {r['call']}" if r["killed"] else f"{r['call']}: never reached"
        lines.append(f"| {r['mode']} | {r['point']} | {call} | {_yes(r['same'])} | {_yes(r['rounds_kept'])} |")
    (HERE / "interruptions.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def _yes(value: bool) -> str:
    return "yes" if value else "NO"


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp()))
