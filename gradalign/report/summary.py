"""Runs in numbers: the tables of a report, the same for a page and for Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from gradalign.alignment.record import Alignment
from gradalign.report.runs import Round, Run

Cell = str | float | int | None


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: its heading.
        note: how to read it.
        columns: their headings.
        rows: cells; None where not known.
        left: how many columns are texts.
    """

    title: str
    note: str
    columns: list[str]
    rows: list[list[Cell]]
    left: int = 1


@dataclass(frozen=True)
class Told:
    """A round in numbers; None where not known.

    Attributes:
        problems: looked at.
        scored: share of them that carry a gradient; None where nothing was sampled.
        chosen: how many were.
        rate: mean pass rate of those looked at.
        chosen_rate: likewise of the chosen.
        reliability: agreement of the direction's halves.
        error: its standard error.
        steps: taken before and after the round.
        reward: mean training reward over the round's steps.
        test: mean reward on the test set at the round's end.
        validation_rollouts: sampled for the direction.
        rollouts: sampled of the candidates in this round.
        tokens: of these rollouts' responses.
        seconds: spent on choosing.
    """

    problems: int
    scored: float | None
    chosen: int
    rate: float | None
    chosen_rate: float | None
    reliability: float | None
    error: float | None
    steps: tuple[int, int] | None
    reward: float | None
    test: float | None
    validation_rollouts: int | None
    rollouts: int
    tokens: int
    seconds: float | None


def tell(run: Run, one: Round) -> Told:
    """A round of a run in numbers."""
    made, log = one.alignments, run.log
    span = None if log is None else log.span(one.number)
    reward = test = None
    if log is not None and span is not None:
        reward = mean([value for step, value in log.series("reward") if span[0] < step <= span[1]])
        test = dict(log.series("eval_reward")).get(span[1])
    mine = made if one.sampled else []
    rollouts, spent = sum(a.n_rollouts for a in mine), (one.metrics or {}).get("rollouts")
    trusted = None if spent is None else spent if one.batches else spent - rollouts
    scored = sum(a.status == "scored" for a in made) / len(made) if any(a.n_rollouts for a in made) else None
    return Told(
        len(made), scored, len(one.chosen), rate_of(made), rate_of(one.chosen), one.direction.get("reliability"),
        one.direction.get("reliability_se"), span, reward, test, trusted, rollouts, sum(a.n_tokens for a in mine),
        sum(one.seconds.values()) if one.seconds else None,
    )  # fmt: skip


def mean(values: Sequence[float]) -> float | None:
    """Their mean; None where there are none."""
    return fmean(values) if values else None


def rate_of(alignments: Sequence[Alignment]) -> float | None:
    """Mean pass rate of those that have one."""
    return mean([a.pass_rate for a in alignments if a.pass_rate is not None])


def costs(run: Run) -> dict[str, float]:
    """Wall-clock seconds by what they were spent on; what took no time is left out."""
    names = {"validation rollouts": "validation rollouts", "direction": "direction"}
    found: dict[str, float] = dict.fromkeys(("validation rollouts", "direction", "candidate rollouts", "scoring"), 0.0)
    for one in run.rounds:
        for name, value in one.seconds.items():
            stage = names.get(name) or ("candidate rollouts" if name.startswith("candidate rollouts") else "scoring")
            found[stage] += value
    if run.log is not None:
        found |= run.log.seconds(sum(one.batches for one in run.rounds))
    return {name: value for name, value in found.items() if value}


def final(runs: Sequence[Run]) -> Table:
    """Final numbers, a column a run."""
    made = [_final(run) for run in runs]
    names = [name for name in made[0] if any(one[name] is not None for one in made)]
    note = "A dash: not known or not measured. Times are wall-clock, of the machine that ran them."
    return Table("In short", note, ["", *(run.name for run in runs)], [[n, *(one[n] for one in made)] for n in names])


def _final(run: Run) -> dict[str, Cell]:
    told = [tell(run, one) for one in run.rounds]
    log, last = run.log, told[-1]
    tests = [] if log is None else [value for _, value in log.series("eval_reward")]
    rewards = [one.reward for one in told if one.reward is not None]
    looked = {a.key for one in run.rounds for a in one.alignments}
    chosen = {a.key for one in run.rounds for a in one.chosen}
    chosen |= {key for keys in log.history for key in keys} if log is not None else set()
    spent = costs(run)
    choosing = sum(value for name, value in spent.items() if name not in ("training", "evaluation"))
    known = [one.reliability for one in told if one.reliability is not None]
    rates = [one.rate for one in told if one.rate is not None]
    mine = [one.chosen_rate for one in told if one.chosen_rate is not None]
    trusted = [one.validation_rollouts for one in told if one.validation_rollouts is not None]
    tokens = [] if log is None else log.series("num_tokens")
    return {
        "made by": f"gradalign {run.command}",
        "strategy": run.strategy or None,
        "state": "unfinished" if run.unfinished else "finished",
        "rounds of choosing": len(told),
        "training steps": None if log is None else log.step,
        "problems looked at": len(looked),
        "problems chosen": len(chosen),
        "share that could be scored": mean([one.scored for one in told if one.scored is not None]),
        "pass rate, looked at": mean(rates),
        "pass rate, chosen": mean(mine),
        "direction's reliability, mean of rounds": mean(known),
        "direction's reliability, last round": pm(last.reliability, last.error),
        "test reward before training": tests[0] if tests else None,
        "test reward, last": tests[-1] if len(tests) > 1 else None,
        "test reward, best": max(tests) if len(tests) > 1 else None,
        "training reward, first round": rewards[0] if rewards else None,
        "training reward, last round": rewards[-1] if len(rewards) > 1 else None,
        "rollouts of candidates": sum(one.rollouts for one in told),
        "rollouts of validation problems": sum(trusted) if trusted else None,
        "of these rollouts, trained on": None if log is None else log.reused,
        "response tokens of candidates": sum(one.tokens for one in told),
        "tokens seen in training": int(tokens[-1][1]) if tokens else None,
        "seconds choosing": choosing or None,
        "seconds training": spent.get("training"),
        "seconds evaluating": spent.get("evaluation"),
    }


def pm(value: float | None, error: float | None) -> str | None:
    """A number with its standard error."""
    return None if value is None else f"{value:.3f}" if error is None else f"{value:.3f} ± {error:.3f}"


def rounds(runs: Sequence[Run]) -> Table:
    """A row a round of every run."""
    columns = [
        "run", "round", "steps", "problems", "scored", "chosen", "pass rate", "of chosen", "reliability",
        "±", "training reward", "test reward", "rollouts", "tokens", "seconds",
    ]  # fmt: skip
    rows: list[list[Cell]] = []
    for run in runs:
        for one in run.rounds:
            t = tell(run, one)
            span = None if t.steps is None else t.steps[1]
            rows.append([
                run.name, one.number, span, t.problems, t.scored, t.chosen, t.rate, t.chosen_rate, t.reliability,
                t.error, t.reward, t.test, t.rollouts + (t.validation_rollouts or 0), t.tokens, t.seconds,
            ])  # fmt: skip
    note = (
        "Steps: optimiser steps taken when the round ended. Reliability: agreement (cosine) of the direction's halves, "
        "with its standard error. Rollouts, response tokens of candidates and seconds: spent on choosing."
    )
    return _kept(Table("Rounds", note, columns, rows))


def cost_table(runs: Sequence[Run]) -> Table:
    """Seconds by what they were spent on."""
    made = [costs(run) for run in runs]
    names = list(dict.fromkeys(name for one in made for name in one))
    rows: list[list[Cell]] = [
        [run.name, *(one.get(name) for name in names), sum(one.values())] for run, one in zip(runs, made, strict=True)
    ]
    note = (
        "Wall-clock seconds. Training includes sampling what is trained on; what else the program did is not counted."
    )
    return Table("Cost", note, ["run", *names, "all"], rows)


def sources(runs: Sequence[Run]) -> Table:
    """What was looked at and chosen, by source, over all rounds of every run."""
    rows: list[list[Cell]] = []
    for run in runs:
        made = [a for one in run.rounds for a in one.alignments]
        mine = [a for a in made if a.selected]
        for source in sorted({a.source for a in made}):
            own, taken = ([a for a in some if a.source == source] for some in (made, mine))
            share = len(taken) / len(mine) if mine else None
            rows.append([
                run.name, source or "none", len(own), len(own) / len(made), len(taken), share, rate_of(own),
                mean([a.score for a in own if a.score is not None]),
            ])  # fmt: skip
    columns = ["run", "source", "looked at", "share", "chosen", "share of chosen", "pass rate", "mean score"]
    return _kept(Table("Sources", "Summed over rounds; a problem counts in every round that looked at it.",
                       columns, rows, left=2))  # fmt: skip


def agreement(runs: Sequence[Run]) -> Table:
    """Of each run's chosen problems, the share that each other run chose too."""
    chosen = [{a.key for one in run.rounds for a in one.chosen} for run in runs]
    rows: list[list[Cell]] = [
        [run.name, *(len(mine & other) / len(mine) if mine else None for other in chosen)]
        for run, mine in zip(runs, chosen, strict=True)
    ]
    note = "Of the problems that the row's run chose in any round, the share that the column's run chose in any round."
    return Table("Chosen by both", note, ["run", *(run.name for run in runs)], rows)


def tables(runs: Sequence[Run]) -> list[Table]:
    """All of them."""
    made = [final(runs), rounds(runs), sources(runs), cost_table(runs)]
    return made if len(runs) == 1 else [*made, agreement(runs)]


def _kept(table: Table) -> Table:
    """Without columns that no row knows."""
    kept = [i for i in range(len(table.columns)) if i < table.left or any(row[i] is not None for row in table.rows)]
    rows = [[row[i] for i in kept] for row in table.rows]
    return Table(table.title, table.note, [table.columns[i] for i in kept], rows, table.left)


def shown(cell: Cell) -> str:
    """A cell as text: whole numbers in full, others with three significant digits."""
    if cell is None or (isinstance(cell, float) and not math.isfinite(cell)):
        return "-"
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.3g}"
    return f"{cell:,}" if isinstance(cell, int) else cell
