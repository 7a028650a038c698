"""A plan: a recipe and its alternatives with their stages, totals, memory and device hours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gradalign.plan.memory import advice, memory, peak
from gradalign.plan.recipe import Recipe, alternatives
from gradalign.plan.work import Setting, Stage, alone, stages


@dataclass(frozen=True)
class Plan:
    """What one recipe costs.

    Attributes:
        recipe: the recipe.
        stages: in order.
        alone: the same training's without choosing; empty where nothing is trained.
        memory: see `gradalign.plan.memory.memory`.
    """

    recipe: Recipe
    stages: list[Stage]
    alone: list[Stage]
    memory: dict[str, dict[str, float]]

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return sum(stage.times * stage.seconds for stage in self.stages)

    @property
    def overhead(self) -> float | None:
        """Time beyond that of the same training without choosing, over the latter; None where nothing is trained."""
        without = sum(stage.times * stage.seconds for stage in self.alone)
        return (self.seconds - without) / without if without else None

    def total(self, name: str) -> float:
        """``rollouts``, ``tokens`` or ``operations`` of the whole run."""
        return float(sum(stage.times * getattr(stage, name) for stage in self.stages))


def make(recipe: Recipe, setting: Setting) -> list[Plan]:
    """The recipe's plan, then its alternatives'."""
    return [
        Plan(one, stages(one, setting), alone(one, setting), memory(one, setting))
        for one in (recipe, *alternatives(recipe))
    ]


def hours(seconds: float, setting: Setting) -> float:
    """GPU-hours, or core-hours of a CPU."""
    return seconds * setting.devices * (1 if setting.speeds.card else setting.speeds.cores) / 3600


def too_much(plan: Plan, setting: Setting) -> str | None:
    """A line that says that the memory does not suffice, and what to change; None where it does."""
    stage, needed = peak(plan.memory)
    held = setting.speeds.memory
    if held is None or needed <= held:
        return None
    return (
        f"{stage} takes about {needed / 1e9:.1f} GB, and {setting.speeds.name} has {held / 1e9:.1f} GB; change one of: "
        f"{advice(plan.recipe, stage)}"
    )


def record(plans: Sequence[Plan], setting: Setting) -> dict[str, Any]:
    """Everything as JSON values."""
    model, speeds = setting.model, setting.speeds
    return {
        "model": {
            "name": model.policy.path, "parameters": model.parameters, "covered": model.covered,
            "layers": model.shape.layers,
        },
        "device": {
            "name": speeds.name, "devices": setting.devices, "memory": speeds.memory, "source": speeds.source,
            "measured": dict(speeds.facts),
        },
        "assumed": {
            "prompt_tokens": setting.prompt, "longest_prompt": setting.longest,
            "response_tokens": setting.candidates.mean, "validation_response_tokens": setting.trusted.mean,
            "counted_in_an_earlier_run": bool(setting.candidates.groups),
        },
        "plans": [_recorded(plan, setting) for plan in plans],
    }  # fmt: skip


def _recorded(plan: Plan, setting: Setting) -> dict[str, Any]:
    engine, budget, mode = plan.recipe.label
    stage, needed = peak(plan.memory)
    return {
        "engine": engine, "budget": budget, "mode": mode, "rounds": plan.recipe.rounds,
        "stages": [asdict(one) for one in plan.stages],
        "rollouts": plan.total("rollouts"), "tokens": plan.total("tokens"), "operations": plan.total("operations"),
        "seconds": plan.seconds, "hours": hours(plan.seconds, setting),
        "hours_are": "GPU-hours" if setting.speeds.card else "core-hours",
        "overhead": plan.overhead, "memory": plan.memory, "peak": {"stage": stage, "bytes": needed},
        "suffices": too_much(plan, setting) is None,
    }  # fmt: skip


def duration(seconds: float) -> str:
    """Seconds as a text: 0.012 s, 34 s, 5.6 min, 7.8 h, 9.1 days."""
    for unit, size, most in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 172800), ("days", 86400, math.inf)):
        if seconds < most:
            return f"{seconds / size:.2g} {unit}" if seconds / size < 10 else f"{seconds / size:,.0f} {unit}"
    raise AssertionError("the last unit takes all")
