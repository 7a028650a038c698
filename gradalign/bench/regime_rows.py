"""The rows of `gradalign bench regimes` on disk: a file a bed, which several processes may add to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from gradalign.bench.regime_arms import ARMS
from gradalign.bench.results import require_own
from gradalign.errors import GradAlignError
from gradalign.files import check_writable, read_json, replacing, write_json

VERSION = 1
"""Of the benchmark: raised whenever runs of before and after are no longer comparable."""
TITLE = "# gradalign bench regimes"


class Rows:
    """A file of rows, and the Markdown made of it beside it.

    Rows of other settings or another version of the benchmark are refused; those of another commit or machine are not,
    and say where they are from.

    Args:
        path: of the JSON.
        facts: bed and setting, as JSON values.
        origin: commit, versions and machine, kept with every row.
        finish: gives the Markdown below the title.

    Raises:
        GradAlignError: the file holds something else, or cannot be written.
    """

    def __init__(
        self, path: Path, facts: dict[str, Any], origin: dict[str, Any], finish: Callable[[dict[str, Any]], str]
    ) -> None:
        if path.suffix != ".json":
            raise GradAlignError(f"option --out: {path}: results are JSON; name it .json")
        self.path, self.origin, self.finish = path, origin, finish
        self.facts = {"benchmark": "regimes", "version": VERSION, **facts, "config_hash": _hash(facts)}
        self.claims = path.with_suffix(".claims")
        check_writable(path)
        self._read()
        require_own(path.with_suffix(".md"), TITLE)
        self.claims.mkdir(exist_ok=True)

    def has(self, arm: str, seed: int) -> bool:
        """Whether a run is there."""
        return not self.missing([(arm, seed)])

    def missing(self, runs: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
        """Those of the runs, (arm, seed), that are not there."""
        there = {(row["arm"], row["seed"]) for row in self._read()["rows"]}
        return [run for run in runs if run not in there]

    def keep(self, row: dict[str, Any]) -> None:
        """Add a run, and write both files."""
        row = {**row, "from": self.origin}
        with FileLock(self.claims / "file.lock"):
            data = self._read()
            data["rows"] = sorted([*data["rows"], row], key=lambda own: (own["seed"], list(ARMS).index(own["arm"])))
            write_json(self.path, data)  # the run is safe, whatever becomes of the tables
            self._write(data)

    def refresh(self) -> None:
        """Write both files again, as this version of the program sums them up."""
        with FileLock(self.claims / "file.lock"):
            if self.path.exists():
                self._write(self._read())

    def _write(self, data: dict[str, Any]) -> None:
        text = self.finish(data)
        write_json(self.path, data)
        with replacing(self.path.with_suffix(".md")) as part:
            part.write_text(f"{TITLE}\n\n{text}\n", encoding="utf-8")

    def _read(self) -> dict[str, Any]:
        if not self.path.exists():
            return {**self.facts, "rows": []}
        saved = read_json(self.path)
        if (
            not isinstance(saved, dict)
            or saved.get("benchmark") != "regimes"
            or not isinstance(saved.get("rows"), list)
        ):
            raise GradAlignError(f"option --out: {self.path} exists and is not of this benchmark; name another file")
        for name, value in self.facts.items():
            if saved.get(name) != value:
                raise GradAlignError(
                    f"option --out: {self.path} holds results of another {name.replace('_', ' ')} "
                    f"({_short(saved.get(name))}, not {_short(value)}); name another file"
                )
        return saved


def _hash(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
