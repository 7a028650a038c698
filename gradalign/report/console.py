"""Progress and summary tables on a terminal; progress is silent where there is none."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from gradalign.alignment.direction import Direction
from gradalign.alignment.record import Alignment
from gradalign.alignment.scored import Scored

Cell = str | float | int | None


def show(item: str | Table) -> None:
    """Print a line or a table on standard output; tables are 120 columns wide where it is not a terminal."""
    out = Console(highlight=False, markup=False)
    if not out.is_terminal:
        out = Console(highlight=False, markup=False, width=120)
    out.print(item, soft_wrap=isinstance(item, str))


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.1f}/s", style="cyan")


@contextlib.contextmanager
def progress_bars() -> Iterator[Callable[[str, int], Callable[..., None]]]:
    """Bars with rate and time left on standard error: call with a stage's name and size, then the result per item."""
    errors = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=errors, disable=not errors.is_terminal) as bars:

        def start(name: str, total: int) -> Callable[..., None]:
            task = bars.add_task(name, total=total)

            def advance(items: int = 1) -> None:
                bars.advance(task, items)

            return advance

        yield start


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], left: int = 1) -> Table:
    """A table; the first ``left`` columns are texts, the others numbers with three significant digits."""
    made = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    cells = [[_cell(cell) for cell in row] for row in rows]
    for i, name in enumerate(columns):
        number = i >= left  # texts may take another line, numbers may not
        made.add_column(name, justify="right" if number else "left", overflow="fold", no_wrap=number)
    for row in cells:
        made.add_row(*map(Text, row))
    return made


def show_scoring(scored: Scored) -> None:
    """Print a line on the validation direction and, where there are some, on finite differences and sketches."""
    direction, step, sketched = scored.direction, scored.step, scored.sketched
    reliability = "not to be told" if direction.reliability is None else f"{direction.reliability:.3f}"
    if direction.reliability_se is not None:
        reliability += f" ± {direction.reliability_se:.3f}"
    silent = f"{direction.n_zero_variance} more carry no gradient"
    if direction.n_invalid:
        silent += f", {direction.n_invalid} have bad rows"
    if direction.n_references:
        silent = f"{direction.n_references} with a trusted response, {silent}"
    show(
        f"validation direction: {direction.n_problems} problems ({silent}), norm {direction.norm:.4g}, "
        f"agreement of its halves {reliability}{_signal(direction)}"
    )
    if len(direction.parts) > 1:
        show(f"it is made of {', '.join(f'{share:.0%} {name}' for name, share in direction.parts.items())}")
    if step is not None:
        show(f"forward-only scores: step {step.length:g}, error against exact dots {step.error:.2%}")
    if sketched is not None:
        kept = "no features" if sketched.dimension is None else f"{sketched.dimension:,} numbers a problem"
        agreements = {"engine exact": sketched.exact, "itself under another seed": sketched.itself}
        told = [f"{value:.3f} with {name}" for name, value in agreements.items() if value is not None]
        text = f"; rank correlation of {sketched.checked} cosines {' and '.join(told)}" if told else ""
        show(f"sketch: of {sketched.covered:.1%} of the trainable parameters, {kept}{text}")


def _signal(direction: Direction) -> str:
    """What the agreement of the halves says of the whole direction."""
    if direction.signal is None:
        return "" if direction.reliability is None else ": no signal to be seen"
    _, cosine, ratio = direction.signal
    told = "" if ratio is None else f", signal to noise {ratio:.3g}"
    return f": expected cosine with the true direction {cosine:.2f}{told}"


def times(seconds: Mapping[str, float]) -> str:
    """Wall-clock times by stage, in one text."""
    return ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items())


def alignment_tables(alignments: Sequence[Alignment], texts: dict[str, str], count: int = 5) -> list[Table]:
    """Counts by status, and the first and last of the scored problems; ``texts`` maps keys to what to show."""
    statuses = [a.status for a in alignments]
    rates = [a.pass_rate for a in alignments if a.pass_rate is not None]
    rows: list[list[Cell]] = [
        [s, statuses.count(s)] for s in ("scored", "zero_variance", "no_tokens", "failed") if s in statuses
    ]
    rows += [["all", len(statuses)], ["mean pass rate", sum(rates) / len(rates) if rates else None]]
    gates = [a.gate for a in alignments if a.gate is not None]
    rows += [[f"refused by gate {gate}", gates.count(gate)] for gate in dict.fromkeys(gates)]
    if alignments[0].selected is not None:
        rows.append(["selected", sum(bool(a.selected) for a in alignments)])
    counts = table("problems", ["status", "problems"], rows)
    scored = sorted((a for a in alignments if a.status == "scored"), key=lambda a: a.rank or 0)
    ends = scored if len(scored) <= 2 * count else [*scored[:count], None, *scored[-count:]]
    columns = ["problem", "source", "rank", "score", "pass rate", "dot", "norm", "cosine", "t", "corr"]
    rows = []
    for a in ends:
        if a is None:
            rows.append(["...", *[""] * (len(columns) - 1)])
            continue
        n = a.numbers
        text = " ".join(texts.get(a.key, a.key).split())
        shown = text if len(text) <= 60 else text[:59] + "\u2026"
        rows.append([shown, a.source, a.rank, a.score, a.pass_rate, n.dot, n.norm, n.cosine, n.t, n.corr])
    kept = [i for i, name in enumerate(columns) if i < 2 or any(row[i] not in (None, "") for row in rows)]
    best = table("first and last", [columns[i] for i in kept], [[row[i] for i in kept] for row in rows], left=2)
    return [counts, best]


def _cell(cell: Cell) -> str:
    if cell is None:
        return "-"
    return cell if isinstance(cell, str) else f"{cell:,}" if isinstance(cell, int) else f"{cell:.3g}"
