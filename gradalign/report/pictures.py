"""A report's plots as PNG files for papers: the same lines, shares and quantiles that the page draws."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from gradalign.errors import GradAlignError, missing_extra
from gradalign.files import check_writable, replacing
from gradalign.report.runs import Run
from gradalign.report.series import (
    Panel,
    Spread,
    Stack,
    cost_stack,
    main_sources,
    mark,
    panels,
    source_shares,
    spread,
)

try:
    from matplotlib import rc_context
    from matplotlib.figure import Figure
except ImportError as error:
    raise missing_extra(str(error.name), "report") from error

MADE_BY = "gradalign report"
"""What the files' ``Software`` says, by which they are known again."""
COLOURS = ("#0b63a5", "#c1560f", "#0a7a55", "#a02878", "#8a7600", "#5b3fb0", "#4a5560", "#a8202a")
MARKS = "oDs^XP*h"
Draw = Callable[[Any], None]


def write_pictures(folder: Path, runs: Sequence[Run]) -> list[Path]:
    """Write a PNG file for every plot; gives their paths.

    Raises:
        GradAlignError: a place cannot be written to, or holds another picture.
    """
    names, parts = [run.name for run in runs], main_sources(runs)
    made: dict[str, tuple[Draw, float]] = {}
    for one in panels(runs):
        told = sum(bool(line.x) for line in one.lines)
        made[one.name] = partial(_lines, made=one, names=names), 2.8 + 0.17 * -(-told // 2)
    for stack in source_shares(runs, parts):
        made[f"sources_{_slug(stack.title)}"] = (
            partial(_bars, made=stack, x="share"),
            1.6 + 0.32 * len(stack.bars),
        )
    cost = cost_stack(runs)
    if cost.parts:
        made["cost"] = partial(_bars, made=cost, x="seconds"), 1.6 + 0.32 * len(cost.bars)
    for run in runs:
        last = run.rounds[-1].alignments
        found, name = spread(last, parts), f"score by {run.strategy}" if run.strategy else "score"
        if found is not None:
            made[f"scores_{_slug(run.name)}"] = (
                partial(_boxes, made=found, score=name), 1.4 + 0.5 * len(found.sources)
            )  # fmt: skip
    paths = {folder / f"{name}.png": drawn for name, drawn in made.items()}
    for path in paths:
        _check_own(path)
    for path, (draw, height) in paths.items():
        figure = Figure(figsize=(6, height), layout="constrained")
        with rc_context({"text.parse_math": False}), replacing(path) as part:  # a name's $ is a $
            draw(figure.add_subplot())
            figure.savefig(part, format="png", dpi=200, metadata={"Software": MADE_BY})
    return list(paths)


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name)


def _check_own(path: Path) -> None:
    if path.exists() and MADE_BY.encode() not in path.read_bytes()[:2048]:
        raise GradAlignError(f"{path}: would be overwritten, and is no report's; name another folder")
    check_writable(path)


def _lines(axes: Any, made: Panel, names: Sequence[str]) -> None:
    for line in made.lines:
        if line.x:
            label = f"{names[line.run]}{', ' if line.name else ''}{line.name}"
            style: dict[str, Any] = {
                "color": COLOURS[line.run % len(COLOURS)], "label": label, "ls": ":" if line.dashed else "-", "lw": 1.4,
                "marker": "" if len(line.x) > 60 else MARKS[mark(line.run)], "ms": 4,
            }  # fmt: skip
            if line.error is None:
                axes.plot(line.x, line.y, **style)
            else:
                axes.errorbar(line.x, line.y, yerr=line.error, capsize=2, elinewidth=0.8, **style)
    if made.zero:
        axes.axhline(0, color="#888888", lw=0.8)
    axes.set(xlabel=made.x, ylabel=made.y, title=made.title)
    axes.locator_params(axis="x", integer=True)
    axes.grid(alpha=0.25)
    if len({line.run for line in made.lines}) > 1 or any(line.dashed for line in made.lines):
        axes.figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)


def _bars(axes: Any, made: Stack, x: str) -> None:
    begun = [0.0] * len(made.bars)
    for index, (name, values) in enumerate(made.parts.items()):
        axes.barh(made.bars, values, left=begun, color=COLOURS[index % len(COLOURS)], alpha=0.8, label=name, height=0.7)
        begun = [a + b for a, b in zip(begun, values, strict=True)]
    axes.invert_yaxis()
    axes.set_xlim(0, 1.02 * max(begun))
    axes.set(xlabel=x, title=made.title)
    axes.figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)


def _boxes(axes: Any, made: Spread, score: str) -> None:
    names = ("whislo", "q1", "med", "q3", "whishi")
    for offset, rows, colour, label in (
        (-0.18, made.chosen, COLOURS[1], "chosen"),
        (0.18, made.left, "#5c7f9e", "left"),
    ):
        known = [(place + offset, row) for place, row in enumerate(rows) if row is not None]
        if known:
            drawn = axes.bxp(
                [dict(zip(names, row, strict=True)) for _, row in known], positions=[place for place, _ in known],
                widths=0.3, orientation="horizontal", showfliers=False, patch_artist=True,
                boxprops={"facecolor": colour, "alpha": 0.6}, medianprops={"color": "#111111"},
            )  # fmt: skip
            drawn["boxes"][0].set_label(label)
    axes.set_yticks(range(len(made.sources)), made.sources)
    axes.invert_yaxis()
    axes.set(xlabel=score)
    axes.legend(frameon=False, fontsize=8)
