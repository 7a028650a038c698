"""A benchmark's results: JSON, and Markdown made from it beside it; rewritten after every measurement.

The same command goes on in them where it was interrupted. Results of other settings, another commit or another machine
are refused: numbers in one file are comparable.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gradalign.errors import GradAlignError
from gradalign.files import check_writable, read_json, replacing, write_json

TITLE = "# gradalign bench "
"""How the Markdown starts."""


class Results:
    """See the module's text.

    Args:
        path: of the JSON.
        facts: what `gradalign.config.resolved` gives, with whatever else the numbers depend on.
        finish: called with `data` before it is written; fills in summaries and gives the Markdown below the title.

    Attributes:
        identity: 16 hexadecimal digits that depend on every fact and option but the file's name.
        data: the facts, and under ``measured`` what was measured.

    Raises:
        GradAlignError: the files hold something else, or cannot be written.
    """

    def __init__(self, path: Path, facts: dict[str, Any], finish: Callable[[dict[str, Any]], str]) -> None:
        if path.suffix != ".json":
            raise GradAlignError(f"option --out: {path}: results are JSON; name it .json")
        self.path, self.markdown = path, path.with_suffix(".md")
        self._finish = finish
        own = {**facts, "options": {name: value for name, value in facts["options"].items() if name != "out"}}
        self.identity = hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:16]
        self.data: dict[str, Any] = {**facts, "measured": {}}
        if path.exists():
            self.data = _same(path, facts)
        require_own(self.markdown, TITLE)
        check_writable(path)

    @property
    def measured(self) -> dict[str, Any]:
        """What was measured so far."""
        return self.data["measured"]

    def save(self) -> None:
        """Write both files."""
        text = self._finish(self.data)
        write_json(self.path, self.data)
        with replacing(self.markdown) as part:
            part.write_text(f"{TITLE}{self.data['command'].split()[-1]}\n\n{text}\n", encoding="utf-8")


def _same(path: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """The results at ``path``, which are of the same run as ``facts``."""
    saved = read_json(path)
    if not isinstance(saved, dict) or not isinstance(saved.get("measured"), dict) or "options" not in saved:
        raise GradAlignError(f"option --out: {path} exists and holds no results of a benchmark; name another file")
    if saved.get("command") != facts["command"]:
        raise GradAlignError(f"option --out: {path} holds results of {saved.get('command')}; name another file")
    differ = _differences(saved, facts)
    if differ:
        raise GradAlignError(
            f"option --out: {path} holds results of other settings (differs in {', '.join(differ)}); name another "
            "file, or delete it"
        )
    return saved


def _differences(saved: dict[str, Any], facts: dict[str, Any]) -> list[str]:
    """Names of the facts and options that differ; what follows from the facts is not compared."""
    differ = {name for name, value in facts.items() if name != "options" and saved.get(name) != value}
    options, old = facts["options"], saved["options"]
    differ |= {name for name in options.keys() | old.keys() if options.get(name) != old.get(name)}
    return sorted(differ - {"out"})


def require_own(path: Path, title: str) -> None:
    """Refuse to overwrite what is no benchmark's Markdown.

    Raises:
        GradAlignError: the file begins with something else than ``title``.
    """
    if not path.exists():
        return
    try:
        with path.open(encoding="utf-8") as file:
            own = file.read(len(title)) == title
    except (OSError, UnicodeDecodeError):
        own = False
    if not own:
        raise GradAlignError(f"option --out: {path} would be overwritten, and holds no results; name another file")


def markdown_table(columns: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; the first column is a text, the others are numbers."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def text_of(value: float | None, form: str = ".3g") -> str:
    """A number as text, a dash for None."""
    return "-" if value is None else f"{value:{form}}"


def provenance(data: dict[str, Any]) -> str:
    """Where the numbers are from, in a paragraph."""
    options = ", ".join(f"{k} {_plain(v)}" for k, v in data["options"].items() if v is not None and k != "out")
    versions = ", ".join(f"{k} {v}" for k, v in data["versions"].items())
    machine = ", ".join(f"{k} {v}" for k, v in data["machine"].items() if v is not None)
    return f"Options: {options}.\n\nCommit {data['commit']}; {versions}.\n\nMachine: {machine}."


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
