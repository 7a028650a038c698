"""Engine ``sketch``: each group's gradient as a short vector of features, of which all numbers are made.

Layers are chosen (`gradalign.alignment.coverage`) and each parameter's gradient is projected as the backward pass hands
its factors on (`gradalign.alignment.projection`). A projection is linear: a tied matrix's two uses, and the passes of a
group too large for one, add up. With phi_i the features of group i and phi_v those of the unit direction,

    dot = <phi_i, phi_v>,    norm = |phi_i|,    cosine = dot / (norm |phi_v|).

The direction is restricted to the chosen layers and made of length 1 there. Without a projection the numbers are those
of engine ``exact`` over the chosen layers, and no features are kept.

A sketch is approximate by nature: a run begins by telling how its cosines of a few groups agree with those of engine
``exact`` over all layers, and with its own under another seed.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gradalign.alignment.coverage import Coverage, Layers
from gradalign.alignment.direction import Direction
from gradalign.alignment.exact import Exact
from gradalign.alignment.features import Project
from gradalign.alignment.gram import gram
from gradalign.alignment.passes import Budget, Weighted, over_batches, weighted
from gradalign.alignment.projection import Kept, Projection
from gradalign.alignment.ranks import spearman
from gradalign.alignment.record import Floats, Numbers
from gradalign.alignment.store import FeatureStore, digest
from gradalign.alignment.sums import inner
from gradalign.errors import GradAlignError, warn
from gradalign.policy.group import Group
from gradalign.policy.load import Policy
from gradalign.policy.objective import Objective
from gradalign.policy.packing import Row
from gradalign.problems.schema import uniform_hash

Features = NDArray[np.floating]
CHECKED = 16
"""Groups on which a sketch is compared with engine exact and with itself, at most."""
FEWEST = 8
"""With fewer groups no agreement is told: it would be chance."""
POOR = 0.5
"""A rank correlation with itself below which a warning says so."""


@dataclass(frozen=True)
class Sketching:
    """What is sketched, and where features go.

    Attributes:
        layers: ``all``, ``lm-head``, ``last:K`` or ``lora:R``.
        projection: ``two-sided:R``, ``coordinates:N`` or ``none``.
        store: folder of a feature store, which spares what is in it already.
        gram: also write the inner products of all of the store's rows.

    Raises:
        GradAlignError: an unknown choice, or some that do not go together.
    """

    layers: str = "all"
    projection: str = "two-sided:8"
    store: Path | None = None
    gram: bool = False

    def __post_init__(self) -> None:
        Layers.of(self.layers)
        Projection.of(self.projection)
        if self.store is not None and not self.keeps_features:
            raise GradAlignError(
                "a feature store cannot hold unprojected gradients, each as large as its layers; take a projection, as "
                "two-sided:8, or no store"
            )
        if self.gram and self.store is None:
            raise GradAlignError("inner products (--gram) are those of a feature store's rows; name one by --store")

    @property
    def keeps_features(self) -> bool:
        """Whether there are features at all."""
        return Projection.of(self.projection).random

    @property
    def random(self) -> bool:
        """Whether numbers depend on a seed."""
        return self.keeps_features or Layers.of(self.layers).kind == "lora"


USUAL = Sketching()
"""Every layer, each matrix projected to 8 x 8."""


@dataclass(frozen=True, slots=True)
class Sketched:
    """What a run says of its sketch.

    Attributes:
        covered: share of the trainable parameters whose gradients are looked at.
        dimension: numbers that are kept of a group; None without a projection.
        checked: groups on which the agreements were taken.
        exact: Spearman correlation of their cosines with those of engine exact over all covered parameters; None
            where it cannot be told.
        itself: the same with the sketch's own under the next seed; None also where no seed plays a part.
    """

    covered: float
    dimension: int | None
    checked: int = 0
    exact: float | None = None
    itself: float | None = None


class Sketch:
    """See the module's text.

    Args:
        policy: the policy.
        objective: what is differentiated.
        batch_tokens: tokens in one forward and backward pass, at most (one rollout at least).
        packed: a group's prompt is computed once; see `gradalign.policy.logprobs.packs`.
        sketching: what is sketched.
        seed: of all that is drawn.
        keep: numbers keep the features of groups that are measured, for scores among them.

    Raises:
        GradAlignError: the policy has no such layers.
    """

    provides = frozenset({"dot", "norm", "cosine", "learnalign", "sources", "near", "features"})

    def __init__(
        self, policy: Policy, objective: Objective, batch_tokens: int, packed: bool,
        sketching: Sketching = USUAL, seed: int = 0, keep: bool = False,
    ) -> None:  # fmt: skip
        self.policy, self.objective, self.packed = policy, objective, packed
        self.sketching, self.seed, self.keep = sketching, seed, keep
        self.budget = Budget(batch_tokens)
        self.coverage = Coverage(policy, Layers.of(sketching.layers), seed)
        self.projection = Projection.of(sketching.projection)
        self.passes = self.coverage.passes(objective.temperature, packed)
        self.like = torch.empty(0, dtype=policy.reduction_dtype, device=policy.device)
        self.store: FeatureStore | None = None

    @cached_property
    def parts(self) -> list[Kept]:
        """What is kept of each parameter."""
        return self.projection.kept(self.coverage.policy.names, self.coverage.shapes, self.seed, self.like)

    @property
    def dimension(self) -> int:
        """Numbers kept of a group."""
        return sum(own.size for own in self.parts)

    @property
    def identity(self) -> dict[str, Any]:
        """All that features depend on besides their group."""
        return {
            "policy": self.policy.fingerprint,
            "objective": dataclasses.asdict(self.objective),
            "layers": self.sketching.layers,
            "projection": self.sketching.projection,
            "seed": self.seed,
            "dimension": self.dimension,
            "parameters": self.coverage.policy.names,
        }

    @contextlib.contextmanager
    def stored(self) -> Iterator[None]:
        """Inside, features come from the store where they are there, and go there; at its end inner products do.

        Raises:
            GradAlignError: see `FeatureStore.open`.
        """
        if self.sketching.store is None:
            yield
            return
        with FeatureStore.open(self.sketching.store, self.identity) as self.store:
            try:
                yield
                if self.sketching.gram:
                    gram(self.store)
            finally:
                self.store = None

    def measure(self, groups: Sequence[Group], direction: Direction) -> Iterator[Numbers]:
        """Dot, norm and cosine of each group."""
        unit = self.coverage.restricted(direction.unit)
        length = inner(unit, unit) ** 0.5
        if length == 0:
            raise GradAlignError(f"layers {self.sketching.layers}: the direction does not move them; take others")
        if not self.sketching.random:
            part = dataclasses.replace(direction, unit=[tensor / length for tensor in unit])
            exact = Exact(self.coverage.policy, self.objective, self.budget.tokens, self.packed, self.passes)
            yield from exact.measure(groups, part)
            return
        along = self.project(unit).double().cpu().numpy() / length
        for features in self.features(groups):
            own = features.astype(np.float64)
            dot, norm, cosine = float(own @ along), float(np.linalg.norm(own)), cosine_of(own, along)
            sources = {name: cosine_of(own, other) for name, other in direction.sources.items()} or None
            near = None if direction.each is None else direction.each @ (own / norm if norm else own)
            kept = features if self.keep else None
            yield Numbers(dot=dot, norm=norm, cosine=cosine, sources=sources, near=near, features=kept)

    def project(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """(numbers,) features of a gradient that is given whole, one tensor a chosen parameter."""
        made = []
        for tensor, adapter, own in zip(tensors, self.coverage.adapters, self.parts, strict=True):
            gradient = tensor.to(self.like)
            made.append(own.whole(gradient if adapter is None else adapter.whole(gradient)))
        return torch.cat(made)

    def features(self, groups: Sequence[Group]) -> Iterator[Features]:
        """(numbers,) features of each group; those that a store holds are not computed."""
        if self.store is None:
            yield from self._computed(groups)
            return
        store, names = self.store, [digest(group) for group in groups]
        missing = {name: group for name, group in zip(names, groups, strict=True) if name not in store}
        computed = self._computed(list(missing.values()))
        for group, name in zip(groups, names, strict=True):
            if name not in store:
                store.append(group, next(computed))
            yield store.features([name])[0]

    def _computed(self, groups: Iterable[Group]) -> Iterator[Features]:
        policy, passes = self.policy, self.passes

        def run(some: list[Weighted], batches: list[list[Row]]) -> torch.Tensor:
            place = {id(each.group): number for number, each in enumerate(some)}
            sums = self.like.new_zeros(len(some), self.dimension)
            for rows in batches:
                batch = passes.lay_out(rows)
                own = list(dict.fromkeys(place[id(row.group)] for row in rows))
                coefficients: Floats = np.concatenate(
                    [some[place[id(row.group)]].coefficients[row.rollouts] for row in rows]
                )
                sink = Project(batch, self.parts, self.coverage.adapters, self.like)
                passes.run(batch, coefficients, sink)
                sums[own] += sink.features * self.like.new_tensor([some[number].scale for number in own])[:, None]
            return sums

        each = (weighted(group, self.objective, policy.half, every=False) for group in groups)
        together = not passes.capture.unknown
        for sums in over_batches(each, self.budget, self.packed, together, run):
            yield from sums.cpu().numpy()

    def check(self, groups: Sequence[Group], direction: Direction) -> Sketched:
        """Compare cosines of up to `CHECKED` of ``groups``, all ``scored``, with exact ones and another seed's.

        Warns where the sketch agrees with itself by less than `POOR`.
        """
        covered, dimension = self.coverage.policy.covered, self.dimension if self.sketching.random else None
        some = sorted(groups, key=lambda group: uniform_hash("calibrate", group.key))[:CHECKED]
        if len(some) < FEWEST:
            return Sketched(covered, dimension)

        def cosines(engine: Exact | Sketch) -> list[float]:
            return [float(numbers.cosine or 0.0) for numbers in engine.measure(some, direction)]

        def sketch(seed: int) -> Sketch:
            return Sketch(self.policy, self.objective, self.budget.tokens, self.packed, self.sketching, seed)

        own = cosines(sketch(self.seed))
        exact = spearman(own, cosines(Exact(self.policy, self.objective, self.budget.tokens, self.packed)))
        itself = spearman(own, cosines(sketch(self.seed + 1))) if self.sketching.random else None
        if itself is not None and itself < POOR:
            warn(
                f"this sketch ranks {len(some)} problems as it does under another seed by {itself:.2f} only (Spearman "
                "correlation of cosines): its rankings are mostly chance; take a larger --projection, or --engine exact"
            )
        return Sketched(covered, dimension, len(some), exact, itself)


def cosine_of(a: Floats, b: Floats) -> float:
    """Cosine of two vectors; 0 where one of them is zero."""
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / lengths if lengths > 0 else 0.0
