"""A report's plots for the page, as plotly figures.

Colours are names (a trace's ``meta``) that the page's style gives a value, one in light and one in dark; what names
mean is told in the page beside the plots, so no figure has a legend of its own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from plotly import graph_objects

from gradalign.report.series import COLOURS, Panel, Spread, Stack, mark

MARKS = ("circle", "diamond", "square", "triangle-up", "x", "star", "cross", "hexagon")
SIGNS = "●◆■▲✕★✚⬢"
"""The marks as characters, for legends."""
Figure = dict[str, Any]


def panel(made: Panel, names: Sequence[str]) -> Figure:
    """Lines, a colour and a mark a run.

    Args:
        made: the lines.
        names: of the runs.
    """
    traces = []
    for line in made.lines:
        if not line.x:
            continue
        name = f"{names[line.run]}{', ' if line.name else ''}{line.name}"
        dense = len(line.x) > 60
        aside = (
            0.3 * (line.run - (len(names) - 1) / 2) / max(6, len(names)) if line.error is not None else 0.0
        )  # bars beside one another
        traces.append(graph_objects.Scatter(
            x=[x + aside for x in line.x], y=[_short(y) for y in line.y], name=name, meta=f"run-{line.run % COLOURS}",
            mode="lines" if dense else "lines+markers", opacity=0.6 if line.dashed else 1,
            line={"width": 1.6 if dense else 2, "dash": "dot" if line.dashed else "solid"},
            marker={"symbol": MARKS[mark(line.run)], "size": 5 if line.dashed else 7},
            error_y=None if line.error is None else {"array": [_short(e) for e in line.error], "thickness": 1.2},
            hovertemplate=f"%{{y:.4g}}<extra>{_plain(name)}</extra>", customdata=[line.run] * len(line.x),
            cliponaxis=False,
        ))  # fmt: skip
    whole, heights = (sorted({v for line in made.lines for v in getattr(line, axis)}) for axis in "xy")
    ticks: Figure = {"dtick": 1} if whole[-1] <= 8 else {}
    level = {"range": [0, 1.2 * heights[0]]} if len(heights) == 1 and heights[0] > 0 else {}
    if made.x == "round":
        every = max(1, -(-len(whole) // 8))
        ticks = {"dtick": every, "tick0": 0, "tickformat": "d"}
        if len(whole) == 1:
            ticks["range"] = [whole[0] - 1, whole[0] + 1]
    return _figure(traces, {
        "height": 250, "hovermode": "closest" if made.zero else "x unified",
        "xaxis": {"title": {"text": made.x}, "zeroline": False, **ticks},
        "yaxis": {"title": {"text": made.y, "standoff": 8}, "zeroline": made.zero, **level},
    })  # fmt: skip


def stack(made: Stack, kind: str, x: str, percent: bool = False) -> Figure:
    """Lying bars made of parts.

    Args:
        made: the bars.
        kind: of colour: ``source`` or ``cost``.
        x: what the horizontal axis is.
        percent: lengths are shares.
    """
    form = ".0%" if percent else ",.1f"
    traces = [
        graph_objects.Bar(
            y=list(map(_plain, made.bars)), x=list(map(_short, values)), name=name, meta=f"{kind}-{index % COLOURS}",
            orientation="h", hovertemplate=f"%{{y}}: {_plain(name)} %{{x:{form}}}<extra></extra>",
        )
        for index, (name, values) in enumerate(made.parts.items())
    ]  # fmt: skip
    axis: Figure = {"title": {"text": x}} | (
        {"tickformat": ".0%", "range": [0, 1.01], "dtick": 0.25} if percent else {}
    )
    return _figure(traces, {
        "barmode": "stack", "height": 90 + 30 * len(made.bars), "bargap": 0.3, "xaxis": axis,
        "yaxis": {"autorange": "reversed", "automargin": True, "type": "category"},
    })  # fmt: skip


def boxes(made: Spread, score: str) -> Figure:
    """A box a source for the chosen and one for those left; whiskers from 5 to 95 %."""
    traces = []
    for name, rows in (("chosen", made.chosen), ("left", made.left)):
        known = [(source, row) for source, row in zip(made.sources, rows, strict=True) if row is not None]
        if known:
            low, first, middle, third, high = ([_short(row[i]) for _, row in known] for i in range(5))
            traces.append(graph_objects.Box(
                y=[_plain(source) for source, _ in known], lowerfence=low, q1=first, median=middle, q3=third,
                upperfence=high, name=name, meta=name, orientation="h", line={"width": 1.5},
            ))  # fmt: skip
    return _figure(traces, {
        "boxmode": "group", "height": 110 + 46 * len(made.sources), "xaxis": {"title": {"text": _plain(score)}},
        "yaxis": {"autorange": "reversed", "automargin": True, "type": "category"},
    })  # fmt: skip


def _figure(traces: Sequence[Any], layout: Figure) -> Figure:
    common = {"margin": {"l": 58, "r": 12, "t": 12, "b": 44}, "showlegend": False, "template": "none"}
    made = graph_objects.Figure(traces, layout | common)
    figure: Figure = json.loads(made.to_json())
    return figure


def _plain(text: str) -> str:
    """A name where plotly knows tags and %{...}."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("%{", "% {")


def _short(value: float) -> float:
    return float(f"{value:.5g}")
