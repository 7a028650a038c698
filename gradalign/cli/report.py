"""``gradalign report``: runs in, one page to look at out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from gradalign.alignment.align import Progress
from gradalign.config import Options, parse
from gradalign.errors import GradAlignError
from gradalign.files import check_writable
from gradalign.report.console import progress_bars, show
from gradalign.report.markdown import MARK, write_markdown
from gradalign.report.page import beginning, check_own
from gradalign.report.runs import Run, read_runs

SUFFIXES = {"html": (".html", ".htm"), "md": (".md", ".markdown")}
"""Format -> how files of it may be named."""


class ReportOptions(Options):
    """Show runs: folders that gradalign select, train or demo wrote, and tables that gradalign score wrote."""

    positional: ClassVar[str | None] = "runs"

    runs: tuple[Path, ...]
    """Folders of gradalign select, train or demo, or tables of gradalign score; several are compared."""
    format: Literal["html", "md"] = "html"
    """html: one page that needs no network; md: Markdown tables."""
    out: Path | None = None
    """File to write (default: report.html or report.md in the first run's folder, or beside its table)."""
    png: Path | None = None
    """Folder to write the plots to as well, as PNG files for papers."""


def run(arguments: Sequence[str]) -> None:
    """Run the command."""
    options = parse(ReportOptions, "report", arguments)
    out = options.out or _beside(options.runs[0], options.format)
    if out.suffix not in SUFFIXES[options.format]:
        raise GradAlignError(
            f"option --out: {out}: a report in --format {options.format} is named {SUFFIXES[options.format][0]}; name "
            "it so, or give another --format"
        )
    runs = read_runs(options.runs)
    check_own(out, beginning(MARK) if options.format == "html" else MARK, "report", "name another file by --out")
    check_writable(out)
    if options.png is not None and options.png.exists() and not options.png.is_dir():
        raise GradAlignError(f"option --png: {options.png} is a file; name a folder")
    write_page = _writer(options.format)
    pictures: list[Path] = []
    if options.png is not None:
        from gradalign.report.pictures import write_pictures  # needs the extra

        pictures = write_pictures(options.png, runs)
    with progress_bars() as progress:
        notes = write_page(out, runs, progress)

    for line in [*map(_told, runs), *notes]:
        show(line)
    more = f", and {len(pictures)} pictures to {options.png}" if pictures else ""
    show(f"wrote {out}{more}")


def _writer(form: str) -> Callable[[Path, Sequence[Run], Progress], list[str]]:
    """Who writes a report of that format, and tells what it leaves out."""
    if form == "md":
        return write_markdown
    from gradalign.report.html import write_html  # needs the extra

    return write_html


def _beside(run: Path, form: str) -> Path:
    return run / f"report.{form}" if run.is_dir() else run.with_suffix(f".report.{form}")


def _told(run: Run) -> str:
    count = len(run.rounds)
    state = f"unfinished: {run.unfinished}" if run.unfinished else "finished"
    strategy = f" by {run.strategy}" if run.strategy else ""
    return f"{run.name}: gradalign {run.command}{strategy}, {count} round{'s' if count > 1 else ''}, {state}"
