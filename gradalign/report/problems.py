"""Problems for a page to search, sort and plot: round by round, with their texts and some responses.

A page that holds everything would not open, so rounds and problems are capped, and a page says what it leaves out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from gradalign.alignment.align import Progress, silent
from gradalign.alignment.record import Alignment
from gradalign.report.runs import Run
from gradalign.report.texts import Text, decoder, read_texts

PROBLEMS = 4000
"""Problems in a page, over all its rounds, as a rule."""
ROUNDS = 60
"""Rounds whose problems are in a page, at most."""
FEWEST = 40
"""Problems of each of these rounds, where there are as many."""
FIELDS = (
    "key", "source", "status", "gate", "selected", "rank", "score", "pass_rate", "n_rollouts", "cosine", "dot", "norm",
    "se", "t", "corr", "prompt", "answer", "responses", "distinct",
)  # fmt: skip
"""What a page holds of a problem, in this order."""
T = TypeVar("T")


@dataclass(frozen=True)
class View:
    """The problems of one round.

    Attributes:
        run: which of the runs.
        round: its number.
        rows: by `FIELDS`.
        alignments: all of the round's, also those that are not among the rows.
    """

    run: int
    round: int
    rows: list[list[Any]]
    alignments: list[Alignment]


def views(runs: Sequence[Run], progress: Progress = silent) -> tuple[list[View], list[str]]:
    """The rounds to show, each run's last one first, and what is left out, in sentences.

    Args:
        runs: the runs.
        progress: of reading rollouts; see `gradalign.alignment.align.Progress`.

    Raises:
        GradAlignError: texts cannot be read.
    """
    most = max(1, ROUNDS // len(runs))
    shown = [evenly(run.rounds, most) for run in runs]
    quota = max(FEWEST, PROBLEMS // sum(map(len, shown)))
    made: list[View] = []
    tick = progress("rounds read", sum(map(len, shown)))
    for index, (run, rounds) in enumerate(zip(runs, shown, strict=True)):
        decode = decoder(run)
        for one in reversed(rounds):
            kept = sample(one.alignments, quota)
            texts = read_texts(one, {a.key for a in kept}, decode)
            rows = [_row(a, texts.get(a.key)) for a in kept]
            made.append(View(index, one.number, rows, one.alignments))
            tick()
    notes = []
    if any(len(run.rounds) > len(some) for run, some in zip(runs, shown, strict=True)):
        notes.append(
            f"Problems are shown of {sum(map(len, shown))} of {sum(len(run.rounds) for run in runs)} rounds, evenly "
            "spaced, the first and the last of every run among them; lines and tables are of all rounds."
        )
    if any(len(view.rows) < len(view.alignments) for view in made):
        notes.append(
            f"At most {quota:,} problems of a round are listed and plotted one by one: the chosen first, then the "
            "others evenly by rank; numbers, lines and boxes are of all problems."
        )
    return made, notes


def sample(alignments: Sequence[Alignment], quota: int) -> list[Alignment]:
    """At most ``quota`` problems, best first: the chosen, if need be half of the quota's, and the others evenly."""
    ranked = sorted(alignments, key=lambda a: a.rank or 0)
    chosen, left = ([a for a in ranked if bool(a.selected) is side] for side in (True, False))
    mine = evenly(chosen, max(quota // 2, quota - len(left)))
    return sorted([*mine, *evenly(left, quota - len(mine))], key=lambda a: a.rank or 0)


def evenly(items: Sequence[T], count: int) -> list[T]:
    """At most ``count`` of them, evenly spaced, the first and the last among them."""
    if len(items) <= count:
        return list(items)
    if count <= 1:
        return list(items[-1:])[:count]
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def _row(a: Alignment, text: Text | None) -> list[Any]:
    n = a.numbers
    numbers = [_short(value) for value in (n.cosine, n.dot, n.norm, n.se, n.t, n.corr)]
    own = [a.key, a.source or "none", a.status, a.gate, int(bool(a.selected)), a.rank, _short(a.score)]
    own += [_short(a.pass_rate), a.n_rollouts, *numbers]
    if text is None:
        return [*own, "", None, [], 0]
    responses = [[told, count, _short(reward)] for told, count, reward in text.responses]
    return [*own, text.prompt, text.answer, responses, text.distinct]


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
