"""Projections: how a parameter's gradient becomes a few numbers, from its factors alone.

A matrix's gradient is G = a^T b, over slots. ``two-sided:R`` keeps the R x R numbers

    P^T G Q = (a P)^T (b Q),

with P, Q Gaussian of variance 1 / R, so that E[P P^T] = E[Q Q^T] = 1 and inner products are kept in expectation:
E<P^T G Q, P^T H Q> = <G, H>. A side that is not longer than R is kept as it is. A vector's gradient is projected to R^2
numbers, as many as a matrix has, or kept whole. ``coordinates:N`` keeps N of all D coordinates, drawn without
replacement and multiplied by sqrt(D / N) (the first stage of CROPI, arXiv 2510.26491): one number is
G[o, i] = sum_s a[s, o] b[s, i]. G itself is never formed, and P, Q depend on the seed and the parameter's name alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F

from gradalign.errors import GradAlignError, nearest
from gradalign.problems.schema import uniform_hash

HELD = 2**22
"""Products of single coordinates that are held at a time."""


class Kept(Protocol):
    """What is kept of one parameter's gradient; a vector's is a matrix of one column.

    Attributes:
        size: numbers kept.
    """

    size: int

    def matrix(self, a: torch.Tensor, b: torch.Tensor, spans: Sequence[slice]) -> torch.Tensor:
        """(groups, size) of a^T b over each group's span of slots."""

    def rows(self, ids: torch.Tensor, d: torch.Tensor, spans: Sequence[slice]) -> torch.Tensor:
        """(groups, size) of d added up into rows ``ids``, over each group's span of slots."""

    def block(self, start: int, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """(size,) of a^T b where that is rows ``start`` on, all others being zero."""

    def whole(self, gradient: torch.Tensor) -> torch.Tensor:
        """(size,) of a gradient as it is."""


class TwoSided:
    """P^T G Q; see the module's text.

    Args:
        shape: (rows, columns) of G.
        left, right: P and Q; None is the identity.
    """

    def __init__(self, shape: tuple[int, int], left: torch.Tensor | None, right: torch.Tensor | None) -> None:
        self.shape, self.left, self.right = shape, left, right
        self.size = (shape[0] if left is None else left.shape[1]) * (shape[1] if right is None else right.shape[1])

    def matrix(self, a: torch.Tensor, b: torch.Tensor, spans: Sequence[slice]) -> torch.Tensor:
        """See `Kept`."""
        p, q = _through(a, self.left), _through(b, self.right)
        return torch.stack([(p[span].t() @ q[span]).flatten() for span in spans])

    def rows(self, ids: torch.Tensor, d: torch.Tensor, spans: Sequence[slice]) -> torch.Tensor:
        """See `Kept`."""
        p = F.one_hot(ids, self.shape[0]).to(d.dtype) if self.left is None else self.left[ids]
        q = _through(d, self.right)
        return torch.stack([(p[span].t() @ q[span]).flatten() for span in spans])

    def block(self, start: int, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """See `Kept`."""
        stop, q = start + a.shape[1], _through(b, self.right)
        if self.left is not None:
            return ((a @ self.left[start:stop]).t() @ q).flatten()
        made = q.new_zeros(self.shape[0], q.shape[1])
        made[start:stop] = a.t() @ q
        return made.flatten()

    def whole(self, gradient: torch.Tensor) -> torch.Tensor:
        """See `Kept`."""
        made = _through(gradient.reshape(self.shape), self.right)
        return (made if self.left is None else self.left.t() @ made).flatten()


class Coordinates:
    """Some elements of G times a factor; see the module's text.

    Args:
        columns: of G.
        places: (size,) indices of the elements of G, flattened.
        factor: multiplies them.
    """

    def __init__(self, columns: int, places: torch.Tensor, factor: float) -> None:
        self.places, self.factor, self.size = places, factor, len(places)
        self.row, self.column = places // columns, places % columns

    def matrix(self, a: torch.Tensor, b: torch.Tensor, spans: Sequence[slice]) -> torch.Tensor:
        """See `Kept`."""
        return torch.stack([self._products(a[span], b[span], self.row, self.column) for span in spans])

    def rows(self, ids: torch.Tensor, d: torch.Tensor, spans: Sequence[slice]) -> torch.Tensor:
        """See `Kept`."""
        words, inverse = torch.unique(ids, return_inverse=True)
        met = torch.isin(self.row, words).nonzero()[:, 0]
        row = torch.searchsorted(words, self.row[met])
        made = d.new_zeros(len(spans), self.size)
        for group, span in enumerate(spans):
            a = F.one_hot(inverse[span], len(words)).to(d.dtype)
            made[group, met] = self._products(a, d[span], row, self.column[met])
        return made

    def block(self, start: int, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """See `Kept`."""
        met = ((self.row >= start) & (self.row < start + a.shape[1])).nonzero()[:, 0]
        made = a.new_zeros(self.size)
        made[met] = self._products(a, b, self.row[met] - start, self.column[met])
        return made

    def whole(self, gradient: torch.Tensor) -> torch.Tensor:
        """See `Kept`."""
        return gradient.reshape(-1)[self.places] * self.factor

    def _products(self, a: torch.Tensor, b: torch.Tensor, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        made, some = a.new_zeros(len(row)), max(1, HELD // len(a))
        for start in range(0, len(row), some):
            own = slice(start, start + some)
            made[own] = (a[:, row[own]] * b[:, column[own]]).sum(0)
        return made * self.factor


def _through(x: torch.Tensor, side: torch.Tensor | None) -> torch.Tensor:
    return x if side is None else x @ side


@dataclass(frozen=True, slots=True)
class Projection:
    """A projection of all covered parameters' gradients.

    Attributes:
        kind: ``two-sided``, ``coordinates`` or ``none``.
        number: R or N; 0 for ``none``.
    """

    kind: str
    number: int

    @classmethod
    def of(cls, text: str) -> Projection:
        """From ``two-sided:R``, ``coordinates:N`` or ``none``.

        Raises:
            GradAlignError: it is none of them.
        """
        return cls(*parsed("projection", text, {"two-sided": "R", "coordinates": "N", "none": ""}))

    @property
    def random(self) -> bool:
        """Whether it depends on a seed."""
        return self.kind != "none"

    def kept(
        self, names: Sequence[str], shapes: Sequence[tuple[int, int]], seed: int, like: torch.Tensor
    ) -> list[Kept]:
        """What is kept of each parameter.

        Args:
            names: of the parameters.
            shapes: (rows, columns) of their gradients.
            seed: of the draws.
            like: a tensor of the type and on the device that sums are to be taken in.
        """
        if self.kind == "coordinates":
            return self._coordinates(shapes, seed, like)
        return [self._two_sided(name, shape, seed, like) for name, shape in zip(names, shapes, strict=True)]

    def _two_sided(self, name: str, shape: tuple[int, int], seed: int, like: torch.Tensor) -> TwoSided:
        ranks = (self.number**2, 1) if shape[1] == 1 else (self.number, self.number)
        left, right = (
            gaussian((size, rank), like, "sketch", seed, name, side) if self.random and size > rank else None
            for side, (size, rank) in enumerate(zip(shape, ranks, strict=True))
        )
        return TwoSided(shape, left, right)

    def _coordinates(self, shapes: Sequence[tuple[int, int]], seed: int, like: torch.Tensor) -> list[Kept]:
        ends = np.cumsum([rows * columns for rows, columns in shapes])
        total = int(ends[-1])
        count = min(self.number, total)
        drawn = np.sort(_generator("coordinates", seed).choice(total, count, replace=False, shuffle=False))
        cuts = np.searchsorted(drawn, ends)
        made: list[Kept] = []
        for (rows, columns), end, first, last in zip(shapes, ends, [0, *cuts[:-1]], cuts, strict=True):
            places = torch.from_numpy(drawn[first:last] - (end - rows * columns)).to(like.device)
            made.append(Coordinates(columns, places, (total / count) ** 0.5))
        return made


def gaussian(shape: tuple[int, int], like: torch.Tensor, *seeds: str | int) -> torch.Tensor:
    """A (size, rank) matrix M of independent normal numbers of variance 1 / rank, so that E[M M^T] = 1.

    Args:
        shape: (size, rank).
        like: a tensor of the type and on the device wanted.
        seeds: what it depends on.
    """
    drawn = _generator(*seeds).standard_normal(shape, np.float32) / np.float32(shape[1] ** 0.5)
    return torch.from_numpy(drawn).to(like)


def _generator(*seeds: str | int) -> np.random.Generator:
    return np.random.default_rng(int(uniform_hash(*seeds) * 2**53))


def parsed(option: str, text: str, known: dict[str, str]) -> tuple[str, int]:
    """Kind and number of a text such as ``two-sided:8``.

    Args:
        option: what the text is, for the error.
        text: the text.
        known: kind -> letter of its number, empty where it has none.

    Raises:
        GradAlignError: an unknown kind, a number too much or missing, or one below 1.
    """
    forms = {f"{kind}:{letter}" if letter else kind: kind for kind, letter in known.items()}
    kind, colon, number = text.partition(":")
    if kind not in known:
        close = nearest(kind, known).split(" (known")[0]
        raise GradAlignError(f"{option} {text!r} is unknown{close} (known: {', '.join(forms)})")
    if not known[kind]:
        if colon:
            raise GradAlignError(f"{option} {text!r}: {kind} takes no number; write {kind}")
        return kind, 0
    if not (number.isascii() and number.isdigit() and int(number) >= 1):
        raise GradAlignError(f"{option} {text!r}: {known[kind]} must be a whole number of at least 1, as in {kind}:8")
    return kind, int(number)
