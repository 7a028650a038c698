"""A round's files: whose they are, whether all are there, and reading them back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradalign.alignment.record import Alignment
from gradalign.alignment.table import read_alignments
from gradalign.errors import GradAlignError, warn
from gradalign.files import read_json, write_json
from gradalign.policy.group import Group
from gradalign.processes import Processes
from gradalign.rollouts.table import read_rollouts

Found = tuple[list[Alignment], dict[str, Any], list[Group]]
"""A round's alignments, its ``metrics.json``, its groups."""


def open_round(folder: Path, identity: dict[str, Any], needed: Sequence[str], processes: Processes) -> bool:
    """Make ``folder`` that of a round; whether that very round is complete in it. What another left there goes.

    Args:
        folder: of the round.
        identity: all that its files depend on; kept in ``round.json``.
        needed: files without which it is not complete, besides ``metrics.json``.
        processes: the first one looks and writes.
    """

    def work() -> bool:
        if not processes.first:
            return False
        marker = folder / "round.json"
        if marker.exists() and read_json(marker) == identity:
            return all((folder / name).exists() for name in ("metrics.json", *needed))
        _clear(folder)
        write_json(marker, identity)
        return False

    return processes.together(work)[0]


def read_round(folder: Path, processes: Processes) -> Found | None:
    """A complete round; None where a file is damaged, all but the marker gone then."""
    found: Found | None = None
    try:
        table = folder / "candidates.parquet"
        groups = read_rollouts(table, on_bad_row="mark") if table.exists() else []
        found = read_alignments(folder / "alignments.parquet"), read_json(folder / "metrics.json"), groups
    except GradAlignError as error:
        warn(f"{error}; the round is done again")
    if all(processes.gather(found is not None)):
        return found
    if processes.first:
        _clear(folder, but="round.json")
    processes.gather(None)
    return None


def read_groups(folder: Path, keys: Sequence[str]) -> list[Group]:
    """The rollouts that a round has sampled of the problems ``keys``, in their order.

    Raises:
        GradAlignError: they are no longer there, or are of other problems.
    """
    table = folder / "candidates.parquet"
    groups = read_rollouts(table, on_bad_row="mark")
    if [group.key for group in groups] != list(keys):
        raise GradAlignError(f"{table}: holds rollouts of other problems than the pool's; train anew in another folder")
    return groups


def _clear(folder: Path, but: str = "") -> None:
    for path in folder.iterdir() if folder.exists() else []:
        if path.name != but:
            path.unlink()
