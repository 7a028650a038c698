"""Kill training runs with signal 9 at chosen points, go on, compare the ends.

    python -m tests.kill_run OUT '[["sampling", 2, false], ...]' '{...options of tests.trl_run...}'

Each item is a point of `POINTS`, which call of it, and whether to die after it instead of before. Prints a JSON list,
one item a kill: ``{"point", "call", "after", "killed", "same", "rounds_kept"}``. Processes are forked from one that has
imported everything and computed nothing, which is what makes twenty kills affordable.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import Any

import torch

import gradalign.alignment.align as align
import gradalign.curriculum.curriculum as curriculum
import gradalign.curriculum.filter as batch_filter
import gradalign.curriculum.round as rounds
import gradalign.rollouts.collect as collect
import gradalign.trainers.trl.sampler as sampler
from gradalign.alignment.directional import Directional
from gradalign.alignment.passes import Passes
from gradalign.trainers.trl.trainer import GradAlignTrainer
from tests.trl_run import main as train

POINTS: dict[str, tuple[Any, str]] = {
    "sampling": (sampler, "sample_batch"),
    "rollouts written": (collect, "write_rollouts"),
    "direction": (align, "build_direction"),
    "scoring": (Passes, "run"),
    "forward-only scoring": (Directional, "derivatives"),
    "alignments written": (rounds, "write_alignments"),
    "batch's alignments written": (batch_filter, "write_alignments"),
    "round's numbers written": (rounds, "write_json"),
    "choice written": (curriculum, "write_choice"),
    "generation": (GradAlignTrainer, "_generate_and_score_completions"),
    "training": (GradAlignTrainer, "training_step"),
    "optimiser step": (torch.optim.AdamW, "step"),
    "evaluation": (GradAlignTrainer, "evaluate"),
    "state saved": (curriculum.Curriculum, "save"),
    "model saved": (GradAlignTrainer, "save_model"),
    "optimiser saved": (GradAlignTrainer, "_save_optimizer_and_scheduler"),
    "random state saved": (GradAlignTrainer, "_save_rng_state"),
    "checkpoint saved": (GradAlignTrainer, "_save_checkpoint"),
}


def die_at(point: str, call: int, after: bool) -> None:
    """From now on, call number ``call`` (from 1) of the point is this process's last."""
    holder, name = POINTS[point]
    function: Callable[..., Any] = getattr(holder, name)
    calls = 0

    @wraps(function)
    def dying(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **named)
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(holder, name, dying)


def doomed(point: str, call: int, after: bool, options: dict[str, Any]) -> None:
    """Train until the point is reached."""
    die_at(point, call, after)
    train(options)


def forked(work: Callable[[], Any], log: Path) -> int:
    """Run ``work`` in a process of its own; gives its exit status, -9 when it was killed."""
    pid = os.fork()
    if pid == 0:
        with log.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        try:
            work()
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run(out: Path, kills: list[tuple[str, int, bool]], options: dict[str, Any]) -> list[dict[str, Any]]:
    """See the module's text."""
    out.mkdir(parents=True, exist_ok=True)
    log = out / "log.txt"
    whole = out / "whole"
    status = forked(lambda: train({"out": str(whole), **options}), log)
    if status != 0:
        raise RuntimeError(f"the undisturbed run ended with {status}:\n{log.read_text()[-3000:]}")
    end = json.loads((whole / "end.json").read_text())
    results = []
    for number, (point, call, after) in enumerate(kills):
        folder = out / f"kill-{number:02d}"

        killed = forked(partial(doomed, point, call, after, {"out": str(folder), **options}), log)
        before = {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("round-*/metrics.json")}
        status = forked(partial(train, {"out": str(folder), **options}), log)
        if status != 0:
            raise RuntimeError(f"after a kill at {point} {call}: ended with {status}:\n{log.read_text()[-3000:]}")
        kept = all((folder / name / "metrics.json").stat().st_mtime_ns == time for name, time in before.items())
        same = json.loads((folder / "end.json").read_text()) == end
        results.append({"point": point, "call": call, "after": after, "killed": killed == -9, "same": same,
                        "rounds_kept": kept})  # fmt: skip
    return results


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3]))))
