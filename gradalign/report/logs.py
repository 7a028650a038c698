"""What training left of itself: the trainer's log and the curriculum's state, from a run's last whole checkpoint.

Both are written beside one another, so the last checkpoint tells of the whole run: a trainer's log is cumulative. A
checkpoint that a kill left half-written is passed over with a warning, as it is when the run goes on.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradalign.curriculum.history import saved_history
from gradalign.curriculum.state import HISTORY, STATE
from gradalign.errors import GradAlignError, warn

TRAINER_STATE = "trainer_state.json"
"""The trainer's own file in a checkpoint."""


@dataclass(frozen=True)
class Log:
    """What a run's trainer logged.

    Attributes:
        entries: of the log, in order; every one has ``step``.
        step: optimiser steps taken.
        planned: those that were to be taken.
        history: of every round, the keys chosen, best first; empty where nothing was chosen by a curriculum.
        sampled: rollouts sampled for choosing; None where not told.
        reused: of these, rollouts that were trained on; None where not told.
    """

    entries: list[dict[str, Any]]
    step: int
    planned: int
    history: list[list[str]]
    sampled: int | None
    reused: int | None

    def series(self, name: str) -> list[tuple[int, float]]:
        """(step, value) wherever ``name`` was logged as a finite number."""
        found = [(int(entry["step"]), entry[name]) for entry in self.entries if _number(entry.get(name))]
        return [(step, float(value)) for step, value in found]

    @property
    def round_steps(self) -> int | None:
        """Steps of a round, which is an epoch to the trainer; None where the log does not tell."""
        known = [(entry["step"], entry["epoch"]) for entry in self.entries if _number(entry.get("epoch"))]
        return next((round(step / epoch) for step, epoch in reversed(known) if epoch > 0), None)

    def span(self, number: int) -> tuple[int, int] | None:
        """Steps taken before and after round ``number``; None where none was taken, or the log does not tell."""
        steps = self.round_steps
        if steps is None or number * steps >= self.step:
            return None
        return number * steps, min((number + 1) * steps, self.step)

    def seconds(self, batches: int) -> dict[str, float]:
        """Wall-clock time of training and evaluation.

        Args:
            batches: that were chosen while a step was timed; what choosing them took is taken off.
        """
        took, before = 0.0, 0
        for step, mean in self.series("step_time"):  # a mean over the steps since the last entry
            took, before = took + mean * (step - before), step
        choosing = [value for _, value in self.series("gradalign/seconds")] if batches else []
        off = batches * sum(choosing) / len(choosing) if choosing else 0.0
        known = {"training": max(0.0, took - off), "evaluation": sum(v for _, v in self.series("eval_runtime"))}
        if off:
            known["choosing batches"] = off
        return {name: value for name, value in known.items() if value}


def read_log(folder: Path) -> Log | None:
    """The log of the training run in ``folder``; None where no whole checkpoint is there.

    Raises:
        GradAlignError: a file of the last checkpoint is not what it must be.
    """
    found = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    for path in sorted(found, key=lambda path: int(path.name.split("-")[1]), reverse=True):
        try:
            trainer = json.loads((path / TRAINER_STATE).read_text(encoding="utf-8"))
            state = json.loads((path / STATE).read_text(encoding="utf-8")) if (path / STATE).exists() else {}
        except (OSError, ValueError):
            warn(f"{path}: is half-written or damaged, and passed over")
            continue
        try:
            entries = [dict(entry) for entry in trainer["log_history"]]
            steps = int(trainer["global_step"]), int(trainer["max_steps"])
            if any(not isinstance(entry["step"], int) for entry in entries):
                raise ValueError("a step of the log is no whole number")
            history = list(saved_history(path / HISTORY)) if (path / HISTORY).exists() else []
            return Log(entries, *steps, history, state.get("sampled"), state.get("reused"))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise GradAlignError(
                f"{path / TRAINER_STATE}: is no trainer's state ({error}); take the checkpoint out, or train again"
            ) from error
    return None


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
