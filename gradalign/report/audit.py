"""What an audit found, as CSV for programs and as one HTML page for people; the page needs no network."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import get_args

from gradalign.alignment.record import Alignment
from gradalign.errors import GradAlignError
from gradalign.files import replacing
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
    for path, start in ((csv_file, ",".join(COLUMNS)), (page, f"<!doctype html>{MARK}")):
        if not path.exists():
            continue
        try:
            with path.open(encoding="utf-8") as file:
                own = file.read(len(start)) == start
        except (OSError, UnicodeDecodeError):
            own = False
        if not own:
            raise GradAlignError(f"{path}: would be overwritten, and is no audit's; name another folder")


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
    heads = "".join(f"<th><button data-by={name}>{title}</button></th>" for name, title in _SHOWN.items())
    body = "\n".join(_row(row) for row in sorted(rows, key=lambda row: row.place))
    text = "".join(f"<p>{escape(note)}</p>" for note in notes)
    with replacing(path) as part:
        part.write_text(
            f"<!doctype html>{MARK}\n<html lang=en><head><meta charset=utf-8><title>Audit</title>\n"
            f'<meta name=viewport content="width=device-width,initial-scale=1"><style>{_STYLE}</style></head>\n'
            f"<body><h1>Problems whose reward is suspect</h1>{text}\n"
            f"<form>{boxes}<input type=search placeholder='search' aria-label=search></form>\n"
            f"<div class=wide><table><thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>\n"
            f"<script>{_SCRIPT}</script></body></html>\n",
            encoding="utf-8", errors="replace",
        )  # fmt: skip


_SHOWN = {
    "verdict": "verdict", "problem": "problem", "p_reversed": "p reversed", "p_uninformative": "p uninformative",
    "pass_rate": "pass rate", "t": "t", "contradictions": "contradictions",
}  # fmt: skip


def _row(row: Evidenced) -> str:
    cells = row.cells
    shown = []
    for name in _SHOWN:
        value = cells[name]
        sort = "" if value is None else escape(str(value), quote=True)
        inner = _details(row) if name == "problem" else escape(_text(value))
        shown.append(f'<td class={name} data-v="{sort}">{inner}</td>')
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


_STYLE = """
:root{color-scheme:light dark}
body{font:15px/1.45 system-ui,sans-serif;margin:1rem auto;max-width:75rem;padding:0 1rem}
h1{font-size:1.3rem}p{max-width:45rem}
form{display:flex;flex-wrap:wrap;gap:.4rem 1rem;align-items:center;margin:1rem 0}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%}
th,td{padding:.3rem .5rem;text-align:right;vertical-align:top;border-bottom:1px solid #8884}
td.verdict,td.problem,th:nth-child(-n+2){text-align:left}
td.problem{min-width:14rem;overflow-wrap:anywhere}
th button{font:inherit;font-weight:600;border:0;background:none;color:inherit;cursor:pointer;padding:0}
pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:0;max-height:20rem;overflow:auto}
dd{margin:0 0 .5rem 1rem}dt,small{opacity:.75}
tr[data-verdict=reversed] td.verdict{color:light-dark(#a00,#f88)}
tr[data-verdict=uninformative] td.verdict{color:light-dark(#850,#fb6)}
@media(max-width:40rem){td,th{padding:.3rem}td.problem{min-width:11rem}}
"""
_SCRIPT = """
const body=document.querySelector('tbody'),rows=[...body.rows],form=document.forms[0];
function filter(){const on=new Set([...form.querySelectorAll(':checked')].map(b=>b.value));
const word=form.querySelector('[type=search]').value.toLowerCase();
for(const r of rows)r.hidden=!on.has(r.dataset.verdict)||!r.textContent.toLowerCase().includes(word)}
form.oninput=filter;form.onsubmit=e=>e.preventDefault();filter();
let last,down=1;
document.querySelectorAll('th button').forEach((b,i)=>b.onclick=()=>{down=last===i?-down:1;last=i;
const key=r=>r.cells[i].dataset.v,number=x=>x===''?Infinity:Number(x);
rows.sort((a,b)=>{const x=key(a),y=key(b),m=number(x),n=number(y);
return down*(isNaN(m)||isNaN(n)?x.localeCompare(y):m===n?0:m-n)});body.append(...rows)});
"""
