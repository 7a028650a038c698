"""Many rollouts of each problem cut into a truth and small draws; the numbers that every arm gave of them, on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gradalign.alignment.record import Numbers
from gradalign.alignment.table import NUMBERS as NAMES
from gradalign.errors import GradAlignError
from gradalign.files import replacing
from gradalign.policy.group import Group

SCHEMA = pa.schema(
    [("arm", pa.string()), ("seed", pa.int64()), ("rollouts", pa.int64()), ("draw", pa.int64()), ("key", pa.string())]
    + [(name, pa.float64()) for name in NAMES]
)
"""Columns of the numbers' table; the numbers of a draw whose rewards do not vary are null."""


def cut(groups: Sequence[Group], sizes: Sequence[int]) -> tuple[list[Group], dict[int, list[list[Group]]]]:
    """(truth, draws by size): two halves of each group's rollouts, one cut into disjoint draws of each size.

    With N rollouts of the group that has fewest, the first N // 2 of each are cut into draws, and all others are the
    truth: no draw shares a rollout with the truth, nor with another draw of its size.

    Raises:
        GradAlignError: a size is more than N // 2.
    """
    fewest = min(groups, key=lambda group: len(group.rollouts))
    half = len(fewest.rollouts) // 2
    if max(sizes) > half:
        raise GradAlignError(
            f"option --rollouts: {max(sizes)}: problem {fewest.key!r} has {len(fewest.rollouts)} rollouts, and half of "
            f"them are the truth; give at most {half}, or sample more"
        )
    truth = [_part(group, half, len(group.rollouts)) for group in groups]
    draws = {n: [[_part(g, i * n, i * n + n) for g in groups] for i in range(half // n)] for n in sizes}
    return truth, draws


def _part(group: Group, start: int, end: int) -> Group:
    return Group(group.key, group.prompt_ids, group.rollouts[start:end], group.source, group.policy, group.invalid)


@dataclass(frozen=True)
class Part:
    """What is measured at one go: an arm, the seed of its own draws, and the rollouts of each problem."""

    arm: str
    seed: int
    rollouts: int


Draws = list[list[Numbers | None]]
"""Numbers by draw and problem; None where the rewards do not vary."""


class Store:
    """The numbers of all parts measured so far, in one Parquet file that is rewritten with each.

    Args:
        path: of the file.
        keys: the problems' keys, in order.
        identity: text that says which run the numbers are of.

    Raises:
        GradAlignError: the file is of another run.
    """

    def __init__(self, path: Path, keys: Sequence[str], identity: str) -> None:
        self.path, self.keys = path, list(keys)
        self._schema = SCHEMA.with_metadata({b"gradalign": identity.encode()})
        self.parts: dict[Part, Draws] = {}
        if path.exists():
            for row in _read(path, self._schema):
                draws = self.parts.setdefault(Part(row["arm"], row["seed"], row["rollouts"]), [])
                if row["draw"] == len(draws):
                    draws.append([])
                own = Numbers(**{name: row[name] for name in NAMES})
                draws[row["draw"]].append(None if own.dot is None else own)

    def add(self, part: Part, draws: Draws) -> None:
        """Keep a part's numbers."""
        self.parts[part] = draws
        rows = [
            {"arm": p.arm, "seed": p.seed, "rollouts": p.rollouts, "draw": i, "key": key}
            | {name: getattr(numbers, name, None) for name in NAMES}
            for p, kept in self.parts.items()
            for i, draw in enumerate(kept)
            for key, numbers in zip(self.keys, draw, strict=True)
        ]
        with replacing(self.path) as temporary:
            pq.write_table(pa.Table.from_pylist(rows, self._schema), temporary)


def _read(path: Path, schema: pa.Schema) -> list[dict[str, Any]]:
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise GradAlignError(f"{path}: cannot be read as Parquet; delete it to measure again") from error
    if not table.schema.equals(schema, check_metadata=True):
        raise GradAlignError(f"{path}: holds numbers of another run; name another --out, or delete it")
    return table.to_pylist()
