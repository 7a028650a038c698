"""``gradalign reward``: what a reward accepts and rejects, and how long it takes, before anything is trained on it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

from gradalign.cli.options import Count, PayOptions
from gradalign.cli.problem_options import FieldOptions
from gradalign.config import parse
from gradalign.errors import GradAlignError, GradAlignWarning, nearest
from gradalign.problems.schema import Problem, prompt_text
from gradalign.report.console import Cell, progress_bars, show, table
from gradalign.rewards.several import AnyReward
from gradalign.rows import Row, read_rows

RESPONSE_FIELDS = ("response", "completion")
FAR = 64
"""How many problems on another answer is looked for."""


class CheckOptions(PayOptions, FieldOptions):
    """Run a reward over responses and show what it accepts (pays more than 0) and rejects, and how long it takes.

    Without --check the responses are the gold answers themselves, plain and boxed, and junk that no reward should pay:
    nothing, the prompt repeated, another problem's answer."""

    problems: str
    """The problems: a pool in any form that `gradalign pool` reads."""
    check: Path | None = None
    """Responses to them, .parquet or .jsonl: key, and response or completion; a rollout table is one."""
    limit: Count | None = None
    """Look at the first so many problems, or rows of --check (default: all)."""
    examples: Count = 3
    """Responses to show of each outcome and kind; of errors, different ones."""


@dataclass(frozen=True)
class Probe:
    """A response to try."""

    kind: str
    problem: Problem
    response: str


@dataclass(frozen=True)
class Tried:
    """What became of a probe: its reward, or the error or warning in its place."""

    probe: Probe
    reward: float | None
    said: str
    seconds: float

    @property
    def outcome(self) -> str:
        """accepted, rejected, error."""
        return "error" if self.reward is None else "accepted" if self.reward > 0 else "rejected"


def run(arguments: Sequence[str]) -> None:
    """Run the command."""
    options = parse(CheckOptions, "reward", arguments)
    reward = options.paid_by()
    problems = options.read_plain(options.problems)
    if options.check is None:
        probes = list(own_probes(problems[: options.limit], problems))
    else:
        probes = list(read_probes(options.check, problems, options.limit))
    with progress_bars() as progress:
        tick = progress("responses", len(probes))
        tried = []
        for probe in probes:
            tried.append(_tried(reward, probe))
            tick(1)
    columns = ["response", "tried", "accepted", "rejected", "errors", "mean reward", "median ms", "max ms"]
    kinds = list(dict.fromkeys(probe.kind for probe in probes))
    rows = [_counts(kind, [one for one in tried if one.probe.kind == kind]) for kind in kinds]
    show(table(f"reward {reward.name}", columns, rows if len(kinds) == 1 else [*rows, _counts("all", tried)]))
    for outcome in ("accepted", "rejected", "error"):
        found = [one for kind in kinds for one in tried if one.probe.kind == kind and one.outcome == outcome]
        shown = [one for kind in kinds for one in [f for f in found if f.probe.kind == kind][: options.examples]]
        if outcome == "error":  # what is wrong with a problem is said of each of its responses: once is enough
            shown = list({one.said: one for one in reversed(found)}.values())[::-1][: options.examples]
        if shown:
            names = ["response", "problem", "its answer", "text", "said" if outcome == "error" else "reward"]
            cells: list[list[Cell]] = [
                [
                    one.probe.kind, _short(one.probe.problem.key, 16), _short(one.probe.problem.answer, 24),
                    _short(one.probe.response, 40) or "(empty)",
                    one.said if one.reward is None else f"{one.reward:.3g}{f' ({one.said})' if one.said else ''}",
                ]
                for one in shown
            ]  # fmt: skip
            show(table(f"{outcome} ({len(found)})", names, cells, left=len(names)))


def own_probes(problems: Sequence[Problem], pool: Sequence[Problem]) -> Iterator[Probe]:
    """Gold answers, and junk; another problem's answer is the next one of ``pool`` that differs, if it is not far."""
    for index, problem in enumerate(problems):
        yield Probe("gold answer", problem, problem.answer)
        yield Probe("gold answer, boxed", problem, f"The answer is \\boxed{{{problem.answer}}}.")
        yield Probe("nothing", problem, "")
        yield Probe("the prompt", problem, prompt_text(problem.prompt))
        others = (pool[(index + step) % len(pool)].answer for step in range(1, min(FAR, len(pool))))
        other = next((answer for answer in others if answer.strip() != problem.answer.strip()), None)
        if other is not None:
            yield Probe("another answer", problem, other)


def read_probes(path: Path, problems: Sequence[Problem], limit: int | None = None) -> Iterator[Probe]:
    """The responses of a file, in its order.

    Raises:
        GradAlignError: missing or unreadable file, a row without a known key or a text, no row.
    """
    known = {problem.key: problem for problem in problems}
    count = 0
    for number, row in read_rows(path):
        if count == limit:
            break
        where, key = f"{path}:{number}", row.get("key")
        if key is None or str(key) not in known:
            hint = nearest(str(key), known).split(" (known")[0]
            missing = "is missing" if key is None else f"is {str(key)!r}, which no problem of --problems has{hint}"
            raise GradAlignError(f"{where}: field 'key' {missing}; give the pool that these responses are to")
        yield Probe("response", known[str(key)], _response(row, where))
        count += 1
    if not count:
        raise GradAlignError(f"{path}: holds no response; write one a row")


def _response(row: Row, where: str) -> str:
    for name in RESPONSE_FIELDS:
        value = row.get(name)
        if isinstance(value, list) and value and isinstance(value[-1], dict):  # a chat completion
            value = value[-1].get("content")
        if isinstance(value, str):
            return value
    raise GradAlignError(
        f"{where}: no text in {' or '.join(RESPONSE_FIELDS)} (the row has {', '.join(row)}); write the response's text"
    )


def _tried(reward: AnyReward, probe: Probe) -> Tried:
    start = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", GradAlignWarning)
        value: float | None = None
        try:
            value = reward(probe.problem, [probe.response], [[]])[0]
            said = "; ".join(str(one.message) for one in caught)
        except GradAlignError as error:
            said = str(error)
    seconds = time.perf_counter() - start
    return Tried(probe, None if value is None or value != value else value, said, seconds)


def _counts(kind: str, tried: Sequence[Tried]) -> list[Cell]:
    outcomes = [one.outcome for one in tried]
    paid = [one.reward for one in tried if one.reward is not None]
    times = [1000 * one.seconds for one in tried]
    return [
        kind, len(tried), *(outcomes.count(name) for name in ("accepted", "rejected", "error")),
        mean(paid) if paid else None, median(times), max(times),
    ]  # fmt: skip


def _short(text: str, length: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "\u2026"
