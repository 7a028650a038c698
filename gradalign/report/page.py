"""The shell of every HTML page: one file that needs no network, right in light and dark, on a laptop and a phone.

Styles and scripts are files beside this one, put into the page; so is what a page adds of its own. Tables are real
tables; the headings of sortable ones are buttons, so that a keyboard reaches them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from gradalign.errors import GradAlignError
from gradalign.files import replacing

ASSETS = Path(__file__).parent / "assets"
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
"""What a page may load: what is in it. Browsers hold it to that."""


def asset(name: str) -> str:
    """The text of a style or a script."""
    return (ASSETS / name).read_text(encoding="utf-8")


def write_page(
    path: Path,
    mark: str,
    title: str,
    heading: str,
    body: str,
    styles: Sequence[str] = (),
    scripts: Sequence[str] = (),
) -> None:
    """Write a page.

    Args:
        path: of the page.
        mark: comment by which `check_own` knows it again.
        title: of the window.
        heading: of the page.
        body: HTML below the heading.
        styles: texts that follow the common style.
        scripts: texts that follow the body, the common script last.

    Raises:
        GradAlignError: the place cannot be written to.
    """
    style = "\n".join([asset("page.css"), *styles])
    script = "\n".join([*scripts, asset("page.js")])
    with replacing(path) as part:
        part.write_text(
            f"<!doctype html>{mark}\n<html lang=en><head><meta charset=utf-8>\n"
            f'<meta http-equiv=Content-Security-Policy content="{POLICY}">\n'
            f"<title>{escape(title)}</title>\n"
            f'<meta name=viewport content="width=device-width,initial-scale=1"><style>{style}</style></head>\n'
            f'<body><header><h1>{escape(heading)}</h1><button id=theme type=button></button></header>\n'
            f"<main>\n{body}\n</main>\n<script>{script}</script></body></html>\n",
            encoding="utf-8", errors="replace",
        )  # fmt: skip


def check_own(path: Path, start: str, whose: str, mend: str) -> None:
    """Refuse a place that holds something else than an earlier file of the same kind.

    Args:
        path: where a file is to be written.
        start: how files of that kind begin.
        whose: what an error calls such a file's owner.
        mend: what to do about it.

    Raises:
        GradAlignError: it holds something else.
    """
    if not path.exists():
        return
    try:
        with path.open(encoding="utf-8") as file:
            own = file.read(len(start)) == start
    except (OSError, UnicodeDecodeError):
        own = False
    if not own:
        raise GradAlignError(f"{path}: would be overwritten, and is no {whose}; {mend}")


def beginning(mark: str) -> str:
    """How a page with that mark begins."""
    return f"<!doctype html>{mark}"


def embedded(name: str, value: Any) -> str:
    """A value for scripts, as JSON in an element of its own; no text in it can end the element.

    Numbers that are not finite become null.
    """
    text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    safe = text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return f'<script type="application/json" id={name}>{safe}</script>'


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(
    caption: str, columns: Sequence[str], rows: Sequence[Sequence[tuple[str, str]]], left: int, sortable: bool = True
) -> str:
    """A table.

    Args:
        caption: what it is of, for those who cannot see where it stands.
        columns: headings.
        rows: cells as (what to sort by, text); the first one heads its row.
        left: how many columns are texts, the others numbers.
        sortable: headings are buttons.
    """
    heads = "".join(
        f"<th scope=col{' class=text' if i < left else ''}>"
        + (f"<button type=button>{escape(name)}</button>" if sortable else escape(name)) + "</th>"
        for i, name in enumerate(columns)
    )  # fmt: skip
    body = "\n".join(f"<tr>{''.join(_cell(*cell, i, left) for i, cell in enumerate(row))}</tr>" for row in rows)
    kind = " class=sortable" if sortable else ""
    return (
        f"<div class=wide role=region tabindex=0 aria-label=\"{escape(caption, quote=True)}\"><table{kind}>"
        f"<caption>{escape(caption)}</caption><thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )  # fmt: skip


def _cell(sort: str, text: str, index: int, left: int) -> str:
    kind, name = " class=text" if index < left else "", "td"
    if index == 0:
        kind, name = f" scope=row{kind}", "th"
    return f'<{name}{kind} data-v="{escape(sort, quote=True)}">{escape(text)}</{name}>'
