"""A report as Markdown: the tables, and the first of the problems that were chosen and of those that were left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gradalign.alignment.align import Progress, silent
from gradalign.alignment.record import Alignment
from gradalign.files import replacing
from gradalign.report.runs import Round, Run
from gradalign.report.summary import Cell, Table, shown, tables
from gradalign.report.texts import Text, decoder, read_texts

MARK = "<!-- gradalign report -->"
PROBLEMS = 10
"""Problems listed of the chosen and of the left ones of each run's last round."""


def write_markdown(path: Path, runs: Sequence[Run], progress: Progress = silent) -> list[str]:
    """Write the report.

    Args:
        path: of the file.
        runs: the runs.
        progress: of reading rollouts; see `gradalign.alignment.align.Progress`.

    Returns:
        What it leaves out, in sentences.

    Raises:
        GradAlignError: texts cannot be read; the place cannot be written to.
    """
    lines = [MARK, "", f"# Report of {', '.join(_plain(run.name) for run in runs)}", ""]
    lines += [f"**{_plain(run.name)} is unfinished**: {run.unfinished}.\n" for run in runs if run.unfinished]
    tick = progress("rounds read", len(runs))
    last = []
    for run in runs:
        last.append(_last(run))
        tick()
    for made in [*tables(runs), *last]:
        lines += [f"## {_plain(made.title)}", "", made.note, "", *_rows(made), ""]
    with replacing(path) as part:
        part.write_text("\n".join(lines), encoding="utf-8", errors="replace")
    return [f"Problems are listed of each run's last round, {PROBLEMS} chosen and {PROBLEMS} left at most."]


def _last(run: Run) -> Table:
    """The first problems, chosen and left, of a run's last round."""
    one: Round = run.rounds[-1]
    left = sorted((a for a in one.alignments if not a.selected), key=lambda a: a.rank or 0)
    rows = [*one.chosen[:PROBLEMS], *left[:PROBLEMS]]
    texts = read_texts(one, {a.key for a in rows}, decoder(run))
    note = f"The first {PROBLEMS} of {len(one.chosen):,} chosen and of {len(left):,} left."
    columns = ["problem", "source", "choice", "rank", "pass rate", "score", "responses (times, mean reward)"]
    return Table(f"Problems of {run.name}, round {one.number}", note, columns,
                 [_problem(a, texts.get(a.key)) for a in rows], left=3)  # fmt: skip


def _problem(a: Alignment, text: Text | None) -> list[Cell]:
    told = "; ".join(f"{_short(r)} ({n}, {reward:.3g})" for r, n, reward in text.responses[:2]) if text else ""
    choice = "chosen" if a.selected else f"gate {a.gate}" if a.gate else "left" if a.status == "scored" else a.status
    return [_short(text.prompt if text else "") or a.key, a.source, choice, a.rank, a.pass_rate, a.score, told]


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 80 else line[:79] + "\u2026"


def _rows(made: Table) -> list[str]:
    texts = [i < made.left or any(isinstance(row[i], str) for row in made.rows) for i in range(len(made.columns))]
    lines = [made.columns, ["---" if text else "---:" for text in texts]]
    lines += [[shown(cell) for cell in row] for row in made.rows]
    return [f"| {' | '.join(cell if i == 1 else _plain(cell) for cell in line)} |" for i, line in enumerate(lines)]


def _plain(text: str) -> str:
    """A text that Markdown leaves alone, in one line."""
    one = " ".join(text.split())
    return "".join(f"\\{c}" if c in "\\|`*_<>[]" else c for c in one)
