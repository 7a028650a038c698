"""What a report draws, as numbers: lines over rounds and steps, shares, quantiles. Pages and pictures draw the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from gradalign.alignment.record import Alignment
from gradalign.report.problems import evenly
from gradalign.report.runs import Run
from gradalign.report.summary import Told, costs, tell

POINTS = 200
"""Points of a line, at most; longer ones are averaged over neighbours."""
SOURCES = 8
"""Sources that are told apart; the rest is one."""
OTHERS = "all others"
BARS = 24
"""Rounds whose sources are drawn, at most."""
COLOURS = 8
"""Colours and marks of runs."""


def mark(run: int) -> int:
    """A run's mark: the eight with the same colour have different ones."""
    return (run + run // COLOURS) % COLOURS


@dataclass(frozen=True)
class Line:
    """A line of one run.

    Attributes:
        run: which of the runs.
        x: where.
        y: what.
        error: half of the 95 % interval of each; None where not known.
        dashed: the second line of a run in one panel.
        name: of the line, where a run has two.
    """

    run: int
    x: list[float]
    y: list[float]
    error: list[float] | None = None
    dashed: bool = False
    name: str = ""


@dataclass(frozen=True)
class Panel:
    """Lines that belong together.

    Attributes:
        name: of the panel, for files and scripts.
        title: its heading.
        note: how to read it.
        x: what the horizontal axis is.
        y: what the vertical axis is.
        lines: the lines.
        zero: a line at zero is drawn.
    """

    name: str
    title: str
    note: str
    x: str
    y: str
    lines: list[Line]
    zero: bool = False


@dataclass(frozen=True)
class Stack:
    """Bars made of parts.

    Attributes:
        name: of the picture.
        title: its heading.
        bars: what each bar is.
        parts: name of a part -> its length in each bar.
    """

    name: str
    title: str
    bars: list[str]
    parts: dict[str, list[float]]


@dataclass(frozen=True)
class Spread:
    """How scores are spread: the quantiles 0.05, 0.25, 0.5, 0.75, 0.95 by source, of the chosen and of those left.

    Attributes:
        sources: with the most problems first.
        chosen: quantiles of the chosen ones' scores, a row a source; None where there are none.
        left: likewise of the others that were scored.
        counts: (chosen, left) by source.
    """

    sources: list[str]
    chosen: list[list[float] | None]
    left: list[list[float] | None]
    counts: list[tuple[int, int]]


def panels(runs: Sequence[Run]) -> list[Panel]:
    """Lines over training and over rounds; those with nothing to draw are left out."""
    told = [[tell(run, one) for one in run.rounds] for run in runs]

    def by_round(value: Callable[[Told], float | None], dashed: bool = False, name: str = "") -> list[Line]:
        lines = []
        for index, run in enumerate(runs):
            pairs = [(float(r.number), v) for r, t in zip(run.rounds, told[index], strict=True)
                     if (v := value(t)) is not None]  # fmt: skip
            lines.append(Line(index, [x for x, _ in pairs], [y for _, y in pairs], None, dashed, name))
        return lines

    test, reward = (
        [Line(i, *_thinned([] if run.log is None else run.log.series(name))) for i, run in enumerate(runs)]
        for name in ("eval_reward", "reward")
    )
    chosen = by_round(lambda t: float(t.chosen))
    made = [
        Panel("test", "Test reward", "Mean reward on the test set, which nothing was chosen or trained by.",
              "training step", "mean reward", test),
        Panel("training", "Training reward", "Mean reward of what was trained on; an easier choice is paid more.",
              "training step", "mean reward", reward),
        Panel("reliability", "Reliability of the direction",
              "Agreement (cosine) of the validation direction's two halves; bars are 95 % intervals. Around zero the "
              "direction cannot be told from noise.", "round", "agreement", _reliability(runs, told), zero=True),
    ]  # fmt: skip
    if any(len(run.rounds) > 1 for run in runs):
        picked = by_round(lambda t: t.chosen_rate, name="chosen")
        looked = by_round(lambda t: t.rate, dashed=True, name="looked at")
        made += [
            Panel("pass_rate", "Pass rate", "Mean pass rate of the chosen (solid) and of all looked at (dashed).",
                  "round", "pass rate", [*picked, *looked]),
            Panel("scored", "Problems that could be scored", "Share of those looked at whose rewards vary.",
                  "round", "share", by_round(lambda t: t.scored)),
            Panel("rollouts", "Rollouts for choosing", "Sampled up to the round's end, validation problems included.",
                  "round", "rollouts", _summed(by_round(lambda t: float(t.rollouts + (t.validation_rollouts or 0))))),
            Panel("seconds", "Time for choosing", "Wall-clock seconds of each round, without training.",
                  "round", "seconds", by_round(lambda t: t.seconds)),
        ]  # fmt: skip
        if len({y for line in chosen for y in line.y}) > 1:
            made.append(
                Panel("chosen", "Problems chosen", "How many the round's choice holds.", "round", "problems", chosen)
            )
    return [panel for panel in made if any(any(line.y) for line in panel.lines)]


def _summed(lines: Sequence[Line]) -> list[Line]:
    return [Line(line.run, line.x, np.cumsum(line.y).tolist()) for line in lines]


def _reliability(runs: Sequence[Run], told: Sequence[Sequence[Told]]) -> list[Line]:
    lines = []
    for index, run in enumerate(runs):
        known = [(float(r.number), t.reliability, t.error) for r, t in zip(run.rounds, told[index], strict=True)
                 if t.reliability is not None]  # fmt: skip
        errors = [1.96 * (error or 0.0) for _, _, error in known]
        lines.append(Line(index, [x for x, _, _ in known], [y for _, y, _ in known], errors))
    return lines


def _thinned(pairs: Sequence[tuple[int, float]]) -> tuple[list[float], list[float]]:
    """Neighbours averaged until there are at most `POINTS`."""
    if not pairs:
        return [], []
    groups = np.array_split(np.array(pairs, np.float64), min(POINTS, len(pairs)))
    means = np.array([group.mean(axis=0) for group in groups])
    return means[:, 0].tolist(), means[:, 1].tolist()


def main_sources(runs: Sequence[Run]) -> list[str]:
    """The sources that are told apart, the largest first, over all runs and rounds."""
    counts = Counter(a.source or "none" for run in runs for one in run.rounds for a in one.alignments)
    names = sorted(counts, key=lambda name: (-counts[name], name))
    return names if len(names) <= SOURCES else [*names[: SOURCES - 1], OTHERS]


def source_shares(runs: Sequence[Run], names: Sequence[str]) -> list[Stack]:
    """For each run, which sources the chosen problems of each round are from, beside all that were looked at."""
    stacks = []
    for index, run in enumerate(runs):
        sets = [("looked at", [a for one in run.rounds for a in one.alignments])]
        rounds = [one for one in run.rounds if one.chosen]
        sets += [(f"round {one.number}", one.chosen) for one in evenly(rounds, BARS)]
        if len(sets) > 1:
            shares = [_shares(made, names) for _, made in sets]
            parts = {name: [share[i] for share in shares] for i, name in enumerate(names)}
            stacks.append(Stack(f"sources_{index}", run.name, [label for label, _ in sets], parts))
    return stacks


def _shares(alignments: Sequence[Alignment], names: Sequence[str]) -> list[float]:
    counts = Counter(a.source or "none" for a in alignments)
    known = [counts[name] for name in names if name != OTHERS]
    more = [len(alignments) - sum(known)] if OTHERS in names else []
    return [count / len(alignments) for count in [*known, *more]]


def cost_stack(runs: Sequence[Run]) -> Stack:
    """Seconds of each run by what they were spent on."""
    made = [costs(run) for run in runs]
    names = list(dict.fromkeys(name for one in made for name in one))
    bars = [run.name for run in runs]
    return Stack("cost", "Cost", bars, {name: [one.get(name, 0.0) for one in made] for name in names})


def spread(alignments: Sequence[Alignment], names: Sequence[str]) -> Spread | None:
    """How a round's scores are spread; None where nothing has a score."""
    scores: dict[str, tuple[list[float], list[float]]] = {}
    for a in alignments:
        if a.score is not None:
            name = (a.source or "none") if (a.source or "none") in names else OTHERS
            scores.setdefault(name, ([], []))[0 if a.selected else 1].append(a.score)
    if not scores:
        return None
    order = sorted(scores, key=lambda name: (name == OTHERS, -sum(map(len, scores[name])), name))
    chosen, left = ([_quantiles(scores[name][side]) for name in order] for side in (0, 1))
    return Spread(order, chosen, left, [(len(scores[name][0]), len(scores[name][1])) for name in order])


def _quantiles(values: Sequence[float]) -> list[float] | None:
    return np.quantile(values, (0.05, 0.25, 0.5, 0.75, 0.95)).tolist() if values else None
