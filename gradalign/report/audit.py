"""What an audit found, as CSV for programs and as one HTML page for people; the page needs no network."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import get_args

from gradalign.alignment.record import Alignment
from gradalign.files import replacing
from gradalign.report.page import asset, beginning, write_page
from gradalign.report.page import check_own as check_place
from gradalign.selection.audit import LISTS, Audit, Finding, Verdict

COLUMNS = (
    "key", "source", "verdict", "p_reversed", "q_reversed", "p_uninformative", "q_uninformative", "pass_rate", "dot",
    "se", "t", "corr", "n_rollouts", "contradictions", "problem", "answer", "rewarded", "unrewarded",
)  # fmt: skip
"""Columns of the CSV; numbers that are not known are empty."""
MARK = "<!-- gradalign audit -->"
Cell = str | float | int | None


@dataclass(frozen=True, slots=True)
class Evidenced:
    """A problem with what was found of it.

    Attributes:
        alignment: of the problem.
        finding: of the audit.
        problem: its text.
        answer: its gold answer; None where not known.
        rewarded: a typical response among those paid more than the mean; None where there is none.
        unrewarded: likewise among the others.
    """

    alignment: Alignment
    finding: Finding
    problem: str
    answer: str | None
    rewarded: str | None
    unrewarded: str | None

    @property
    def cells(self) -> dict[str, Cell]:
        """By column of `COLUMNS`."""
        a, f = self.alignment, self.finding
        tests = {f"{kind}_{name}": getattr(f, kind)[name] for name in LISTS for kind in ("p", "q")}
        numbers = {name: getattr(a.numbers, name) for name in ("dot", "se", "t", "corr")}
        own = {"key": a.key, "source": a.source, "verdict": f.verdict, "pass_rate": a.pass_rate}
        counts = {"n_rollouts": a.n_rollouts, "contradictions": f.contradictions}
        texts = {name: getattr(self, name) for name in ("problem", "answer", "rewarded", "unrewarded")}
        return {**own, **tests, **numbers, **counts, **texts}

    @property
    def place(self) -> tuple[int, float]:
        """Worst first."""
        names = get_args(Verdict)
        p = [value for value in self.finding.p.values() if value is not None]
        return names.index(self.finding.verdict), min(p, default=1.0)


def check_own(csv_file: Path, page: Path) -> None:
    """Refuse places that hold something else than an earlier audit.

    Raises:
        GradAlignError: one does.
    """
    for path, start in ((csv_file, ",".join(COLUMNS)), (page, beginning(MARK))):
        check_place(path, start, "audit's", "name another folder")


def write_csv(path: Path, rows: Sequence[Evidenced]) -> None:
    """Write the table, worst first.

    Raises:
        GradAlignError: the place cannot be written to.
    """
    with replacing(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(row.cells for row in sorted(rows, key=lambda row: row.place))


def write_html(path: Path, rows: Sequence[Evidenced], found: Audit, notes: Sequence[str]) -> None:
    """Write the page, worst first.

    Args:
        path: of the page.
        rows: the problems.
        found: the audit that they are of.
        notes: paragraphs above the table.

    Raises:
        GradAlignError: the place cannot be written to.
    """
    boxes = "".join(
        f"<label><input type=checkbox value={name} {'checked' if name in LISTS else ''}> {name} {count:,}</label>"
        for name, count in found.counts.items()
    )
    heads = "".join(
        f"<th scope=col{' class=text' if name in _TEXTS else ''}><button type=button>{title}</button></th>"
        for name, title in _SHOWN.items()
    )
    lines = "\n".join(_row(row) for row in sorted(rows, key=lambda row: row.place))
    text = "".join(f"<p>{escape(note)}</p>" for note in notes)
    body = (
        f"{text}\n<form>{boxes}<input type=search placeholder=search aria-label=search></form>\n"
        "<div class=wide role=region tabindex=0 aria-label=problems><table class=sortable><caption>problems</caption>"
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{lines}\n</tbody></table></div>"
    )
    write_page(path, MARK, "Audit", "Problems whose reward is suspect", body, [asset("audit.css")], [asset("audit.js")])


_SHOWN = {
    "verdict": "verdict", "problem": "problem", "p_reversed": "p reversed", "p_uninformative": "p uninformative",
    "pass_rate": "pass rate", "t": "t", "contradictions": "contradictions",
}  # fmt: skip
_TEXTS = ("verdict", "problem")


def _row(row: Evidenced) -> str:
    cells = row.cells
    shown = []
    for name in _SHOWN:
        value = cells[name]
        sort = "" if value is None else escape(str(value), quote=True)
        inner = _details(row) if name == "problem" else escape(_text(value))
        kind = f'"text {name}"' if name in _TEXTS else name
        shown.append(f'<td class={kind} data-v="{sort}">{inner}</td>')
    return f"<tr data-verdict={row.finding.verdict}>{''.join(shown)}</tr>"


def _details(row: Evidenced) -> str:
    cells = row.cells
    title = " ".join(row.problem.split()) or row.alignment.key
    short = title if len(title) <= 80 else title[:79] + "\u2026"
    texts = "".join(
        f"<dt>{name}</dt><dd><pre>{escape(str(cells[name]))}</pre></dd>"
        for name in ("problem", "answer", "rewarded", "unrewarded") if cells[name] is not None
    )  # fmt: skip
    others = [name for name in COLUMNS if name not in ("verdict", "problem", "answer", "rewarded", "unrewarded")]
    numbers = ", ".join(f"{name} {_text(cells[name])}" for name in others)
    return f"<details><summary>{escape(short)}</summary><dl>{texts}</dl><small>{escape(numbers)}</small></details>"


def _text(value: Cell) -> str:
    return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
