"""A report as one HTML page that needs no network: lines of all runs, and each round's problems to look through."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from gradalign.alignment.align import Progress, silent
from gradalign.errors import missing_extra
from gradalign.report.markdown import MARK
from gradalign.report.page import asset, embedded, table, write_page
from gradalign.report.problems import FIELDS, View, views
from gradalign.report.runs import Run
from gradalign.report.series import COLOURS, cost_stack, main_sources, mark, panels, source_shares, spread
from gradalign.report.summary import Cell, Table, agreement, cost_table, final, rounds, shown, sources

try:
    from plotly.offline import get_plotlyjs

    from gradalign.report import charts
except ImportError as error:
    raise missing_extra(str(error.name), "report") from error


def write_html(path: Path, runs: Sequence[Run], progress: Progress = silent) -> list[str]:
    """Write the page.

    Args:
        path: of the page.
        runs: the runs.
        progress: of reading rollouts; see `gradalign.alignment.align.Progress`.

    Returns:
        What it leaves out, in sentences; the page says it too.

    Raises:
        GradAlignError: texts cannot be read; the place cannot be written to.
    """
    made, notes = views(runs, progress)
    names = [run.name for run in runs]
    parts = main_sources(runs)
    figures: dict[str, charts.Figure] = {}
    sections = [_intro(runs, notes), _section("short", final(runs), sortable=False)]

    lines = []
    for one in panels(runs):
        figures[one.name] = charts.panel(one, names)
        lines.append(_plot(one.name, one.title, one.note))
    timeline = f"{_runs_legend(names)}<div class=grid>{''.join(lines)}</div>" if lines else ""
    sections.append(_wrapped("timeline", "Timeline", timeline + _tabled(rounds(runs))))

    shares = []
    for stack in source_shares(runs, parts):
        figures[stack.name] = charts.stack(stack, "source", "share", percent=True)
        shares.append(_plot(stack.name, stack.title, ""))
    drawn = f"{_legend('source', parts)}<div class=grid>{''.join(shares)}</div>" if shares else ""
    sections.append(_wrapped("sources", "Sources of the chosen problems", drawn + _tabled(sources(runs))))

    cost = cost_stack(runs)
    drawn = ""
    if cost.parts:
        figures["cost"] = charts.stack(cost, "cost", "seconds")
        drawn = _legend("cost", list(cost.parts)) + _plot("cost", "", "")
    sections.append(_wrapped("cost", "Cost", drawn + _tabled(cost_table(runs))))
    if len(runs) > 1:
        sections.append(_section("both", agreement(runs)))
    sections.append(_problems(runs, made))

    data = {"fields": FIELDS, "figures": figures, "views": [_view(runs, view, parts) for view in made]}
    title = names[0] if len(names) == 1 else f"{len(names)} runs"
    write_page(
        path, MARK, f"Report of {title}", f"GradAlign: {title}", "\n".join([*sections, embedded("data", data)]),
        [asset("report.css")], [get_plotlyjs(), asset("plots.js"), asset("problems.js")],
    )  # fmt: skip
    return notes


def _view(runs: Sequence[Run], view: View, parts: Sequence[str]) -> dict[str, object]:
    run = runs[view.run]
    label = run.name if run.command in ("score", "select") else f"{run.name}, round {view.round}"
    found = spread(view.alignments, parts)
    name = f"score by {run.strategy}" if run.strategy else "score"
    return {
        "label": label, "rows": view.rows, "all": len(view.alignments), "score": name,
        "boxes": None if found is None else charts.boxes(found, name),
    }  # fmt: skip


def _intro(runs: Sequence[Run], notes: Sequence[str]) -> str:
    warnings = [f"{run.name}: unfinished: {run.unfinished}. What is there is shown." for run in runs if run.unfinished]
    said = "".join(f"<p class=warning role=note>{escape(text)}</p>" for text in warnings)
    said += "".join(f"<p class=note>{escape(text)}</p>" for text in notes)
    places = ["short", "timeline", "sources", "cost", *(["both"] if len(runs) > 1 else []), "problems"]
    titles = {"short": "In short", "both": "Chosen by both"}
    links = "".join(f"<a href=#{name}>{titles.get(name, name.capitalize())}</a>" for name in places)
    return f"{said}<nav aria-label=sections>{links}</nav><noscript><p>Plots need JavaScript.</p></noscript>"


def _section(name: str, made: Table, sortable: bool = True) -> str:
    return _wrapped(name, made.title, _tabled(made, sortable))


def _wrapped(name: str, title: str, body: str) -> str:
    return f"<section id={name} aria-labelledby={name}-title><h2 id={name}-title>{escape(title)}</h2>{body}</section>"


def _tabled(made: Table, sortable: bool = True) -> str:
    rows = [[(_sorting(cell), shown(cell)) for cell in row] for row in made.rows]
    note = f"<p class=note>{escape(made.note)}</p>"
    return note + table(made.title, made.columns, rows, made.left, sortable)


def _sorting(cell: Cell) -> str:
    return "" if cell is None else str(cell)


def _plot(name: str, title: str, note: str) -> str:
    label = escape(". ".join(text for text in (title or "Cost", note, "The numbers are in the table below.") if text))
    head = f"<figcaption><h3>{escape(title)}</h3><p class=note>{escape(note)}</p></figcaption>" if title else ""
    return f'<figure>{head}<div class=plot data-figure={name} role=img aria-label="{label}"></div></figure>'


def _legend(kind: str, names: Sequence[str]) -> str:
    items = "".join(
        f'<li><i style="background:var(--{kind}-{i % COLOURS})"></i>{escape(name)}</li>' for i, name in enumerate(names)
    )
    return f"<ul class=legend>{items}</ul>"


def _runs_legend(names: Sequence[str]) -> str:
    """Which colour and mark is which run; the boxes hide runs. One run alone needs none."""
    if len(names) == 1:
        return ""
    items = "".join(
        f"<li><label><input type=checkbox checked data-run={i}>"
        f'<b style="color:var(--run-{i % COLOURS})" aria-hidden=true>{charts.SIGNS[mark(i)]}</b>'
        f"{escape(name)}</label></li>"
        for i, name in enumerate(names)
    )
    return f'<ul class=legend aria-label="runs shown">{items}</ul>'


def _problems(runs: Sequence[Run], made: Sequence[View]) -> str:
    body = """
<form id=choose><label>round <select id=view></select></label></form>
<p class=note id=view-note></p>
<div class=grid>
<figure><figcaption><h3>Scores by source</h3>
<p class=note><span id=box-legend></span> Boxes hold the middle half, whiskers reach from 5 to 95 %.</p></figcaption>
<div class=plot id=boxes role=img aria-label="Scores by source, chosen and left"></div></figure>
<figure><figcaption><h3>Pass rate against alignment</h3>
<p class=note><label>alignment <select id=measure></select></label> A point is a problem: point at it to see it,
press it to keep it below. <span id=point-note></span></p></figcaption>
<div class=plot id=scatter role=img aria-label="Pass rate against alignment; the problems are in the table below"></div>
</figure></div>
<aside id=kept aria-live=polite hidden></aside>
<form id=filter>
<label>search <input type=search id=search placeholder="words of problem, answer, response, key"></label>
<label>show <select id=which><option value="">all</option><option value=1>chosen</option><option value=0>left</option>
</select></label>
<label>source <select id=source></select></label>
</form>
<div class=wide role=region tabindex=0 aria-label=problems><table id=problems-table><caption>problems</caption>
<thead></thead><tbody></tbody></table></div>
<div class=pager><button type=button id=before>before</button><span role=status id=place></span>
<button type=button id=after>after</button></div>
"""
    return _wrapped("problems", "Problems", body)
