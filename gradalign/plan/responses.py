"""What is assumed of responses before any was sampled: how long, how many of a problem differ, how often rewards do.

From an earlier run's rollouts these are counted; without one, the most that can be is assumed: every response differs,
every problem's rewards vary, and responses end by chance, at the same chance after every token, so that their mean is
the one given (or all are of the most tokens allowed).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gradalign.errors import GradAlignError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Responses:
    """What responses are like.

    Attributes:
        running: (tokens + 1,) share of responses longer than 0, 1, ... tokens; the last is 0.
        groups: of an earlier run's problems, how often each distinct response and each reward came, and the distinct
            responses' lengths; empty where there was none.
    """

    running: Floats
    groups: tuple[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]], ...] = ()

    @classmethod
    def assumed(cls, mean: float | None, most: int) -> Responses:
        """Responses of ``mean`` tokens, at most ``most``; None takes all as long as can be.

        Raises:
            GradAlignError: the mean is above the most, or below one token.
        """
        mean = most if mean is None else mean
        if not 1 <= mean <= most:
            raise GradAlignError(
                f"option --response-tokens: {mean:g} is not between 1 and the {most} that may be sampled"
            )
        low, high = 0.0, 1.0  # the chance to go on, by bisection: the mean rises with it
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if (middle ** np.arange(most)).sum() < mean else (low, middle)
        return cls(np.append(high ** np.arange(most), 0.0))

    @classmethod
    def of(cls, table: Path, most: int) -> Responses:
        """Those of a rollout table, cut to ``most`` tokens."""
        rows = pq.read_table(table, columns=["key", "response_ids", "reward"]).to_pylist()
        by_key: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in rows:
            by_key[row["key"]].append(row)
        groups = []
        for own in by_key.values():
            texts = Counter(tuple(row["response_ids"][:most]) for row in own)
            rewards = Counter(row["reward"] for row in own)
            groups.append((tuple(texts.values()), tuple(rewards.values()), tuple(map(len, texts))))
        lengths = np.array([min(len(row["response_ids"]), most) for row in rows])
        return cls((lengths[:, None] > np.arange(lengths.max() + 1)).mean(0), tuple(groups))

    @property
    def mean(self) -> float:
        """Mean tokens of a response."""
        return float(self.running.sum())

    def longest(self, count: int) -> int:
        """Tokens of the longest of ``count`` responses, about."""
        return int((count * self.running >= 0.5).sum())

    def varying(self, rollouts: int) -> float:
        """Share of problems whose rewards vary over so many rollouts."""
        return self._mean([1 - _none_differ(rewards, rollouts) for _, rewards, _ in self.groups], 1.0)

    def distinct(self, rollouts: int) -> float:
        """Distinct responses among so many of a problem."""
        return self._mean([_distinct(texts, rollouts) for texts, _, _ in self.groups], float(rollouts))

    @property
    def distinct_mean(self) -> float:
        """Mean tokens of a distinct response."""
        return self._mean([sum(lengths) / len(lengths) for _, _, lengths in self.groups], self.mean)

    def lengths(self, place: int, count: int) -> list[int]:
        """Tokens of ``count`` distinct responses to one problem, the ``place``-th: as an earlier run's, or evenly from
        all lengths that are assumed."""
        if self.groups:
            known = sorted(self.groups[place % len(self.groups)][2])
            return [known[i * len(known) // count] for i in range(count)]
        spread = (np.arange(count) + 0.5 + place % 7 / 16 - 0.2) / count
        return [max(1, int((self.running > 1 - share).sum())) for share in spread.clip(0, 1 - 1e-9)]

    def _mean(self, values: Sequence[float], otherwise: float) -> float:
        return sum(values) / len(values) if values else otherwise

    def decoding(self, rows: int, leaving: bool) -> list[tuple[int, int]]:
        """(rows, steps) of decoding ``rows`` responses side by side, after their prompts.

        Args:
            rows: to begin with.
            leaving: rows that have ended leave once half of them have, as in `gradalign.rollouts.sample`.
        """
        found: list[tuple[int, int]] = []
        inside = rows
        for share in self.running[1 : self.longest(rows)]:
            left = max(1, round(rows * float(share)))
            if leaving and 2 * left <= inside:
                inside = left
            if found and found[-1][0] == inside:
                found[-1] = inside, found[-1][1] + 1
            else:
                found.append((inside, 1))
        return found


def _none_differ(counts: Sequence[int], drawn: int) -> float:
    """Chance that ``drawn`` of the rollouts have one reward; of more than there are, that all have."""
    whole = sum(counts)
    return sum(comb(count, min(drawn, whole)) for count in counts) / comb(whole, min(drawn, whole))


def _distinct(counts: Sequence[int], drawn: int) -> float:
    """Expected distinct responses among ``drawn``; beyond what there are, in proportion."""
    whole = sum(counts)
    if drawn >= whole:
        return len(counts) * drawn / whole
    return sum(1 - comb(whole - count, drawn) / comb(whole, drawn) for count in counts)


def earlier(run: Path, most: int) -> tuple[Responses, Responses] | None:
    """(candidates', validation problems') responses in an earlier run's folder; None where it holds no rollouts.

    A run without one of the two lends the other. A demo's folder, and a curriculum's, count by their first round.

    Raises:
        GradAlignError: a table that cannot be read.
    """
    found: dict[str, Responses] = {}
    for name in ("candidates", "validation"):
        tables = sorted(run.glob(f"round-*/{name}.parquet")) or sorted(run.glob(f"*/round-*/{name}.parquet"))
        if tables:
            try:
                found[name] = Responses.of(tables[0], most)
            except (OSError, ValueError, KeyError) as error:
                raise GradAlignError(f"{tables[0]}: cannot be read ({str(error).splitlines()[0]})") from error
    if not found:
        return None
    some = next(iter(found.values()))
    return found.get("candidates", some), found.get("validation", some)
