"""How fast work is done: on a named card from published peaks, on this machine from what was measured.

- Scoring, prompts and training are bound by arithmetic: operations over a rate.
- Sampling is bound by memory: in every step all weights and the rows' keys and values are read once.
- Small models are bound by neither, but by the time that the host takes to start each layer's work.

Rates of a card are its peak times the share of a machine's matrix-product rate that each kind of work reached in
benchmarks/speed (SmolLM2's shapes, medians of three workloads): measured on a CPU, not on that card.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from gradalign.errors import GradAlignError, nearest
from gradalign.plan.anatomy import Anatomy

SHARES = {"forward": 0.71, "exact": 0.65, "direction": 0.65, "forward-mode": 0.72, "sketch": 0.59, "train": 0.65}
"""Kind of work -> share of the matrix-product rate, from benchmarks/speed: arms one-sided, exact, exact, forward-mode,
sketch, plain."""
READ = 0.6
"""Share of the memory's published bandwidth that is taken to be reached in sampling."""
HOST = 4e-4
"""Seconds that the host is taken to need to start one layer's forward pass; see docs/plan.md."""
BACKWARD = 3
"""Passes of a forward pass's host time that a forward and backward pass takes."""


@dataclass(frozen=True)
class Card:
    """A card as its maker's data sheet describes it.

    Attributes:
        half: dense bfloat16 operations a second.
        single: float32 operations a second, without tensor cores.
        bandwidth: of its memory, in bytes a second.
        memory: in bytes.
        source: the data sheet.
    """

    half: float
    single: float
    bandwidth: float
    memory: float
    source: str


CARDS = {
    "b200": Card(2250e12, 75e12, 7.7e12, 180e9, "NVIDIA DGX B200 data sheet"),
    "h200": Card(989e12, 67e12, 4.8e12, 141e9, "NVIDIA H200 data sheet, SXM"),
    "h100": Card(989e12, 67e12, 3.35e12, 80e9, "NVIDIA H100 data sheet, SXM"),
    "h100-pcie": Card(756e12, 51e12, 2.0e12, 80e9, "NVIDIA H100 data sheet, PCIe"),
    "a100": Card(312e12, 19.5e12, 2.039e12, 80e9, "NVIDIA A100 data sheet, 80 GB SXM"),
    "a100-40gb": Card(312e12, 19.5e12, 1.555e12, 40e9, "NVIDIA A100 data sheet, 40 GB"),
    "l40s": Card(362e12, 91.6e12, 0.864e12, 48e9, "NVIDIA L40S data sheet"),
    "l4": Card(121e12, 30.3e12, 0.3e12, 24e9, "NVIDIA L4 data sheet"),
    "rtx4090": Card(165.2e12, 82.6e12, 1.008e12, 24e9, "NVIDIA Ada GPU architecture white paper"),
}
"""Name -> card."""


def find_card(name: str) -> Card:
    """The card of a name, upper or lower case.

    Raises:
        GradAlignError: it is not known.
    """
    if name.lower() not in CARDS:
        raise GradAlignError(f"option --device: unknown card {name!r}{nearest(name.lower(), ['auto', *CARDS])}")
    return CARDS[name.lower()]


@dataclass(frozen=True)
class Steps:
    """Measured seconds of a decoding step by the rows decoded side by side, rising; straight lines between them."""

    rows: tuple[int, ...]
    seconds: tuple[float, ...]

    def __call__(self, rows: int) -> float:
        """Seconds of a step."""
        if rows <= self.rows[-1] or len(self.rows) == 1:
            return float(np.interp(rows, self.rows, self.seconds))
        (x, y), (x1, y1) = list(zip(self.rows, self.seconds, strict=True))[-2:]
        return y1 + max(0.0, (y1 - y) / (x1 - x)) * (rows - x1)


@dataclass(frozen=True)
class Speeds:
    """A device's speeds.

    Attributes:
        name: of the device.
        source: where the numbers are from.
        rates: kind of work -> operations a second.
        bandwidth: bytes a second.
        memory: bytes; None where not known.
        card: whether device hours are GPU-hours, else core-hours.
        cores: that a CPU works with.
        host: seconds to start a layer's forward pass; 0 where that is within the measured times.
        sampling: measured steps of the sampler; None counts bytes and operations.
        generating: measured steps of the trainer's own generation.
        facts: measured numbers behind it, for the record.
    """

    name: str
    source: str
    rates: Mapping[str, float]
    bandwidth: float
    memory: float | None
    card: bool
    cores: int = 1
    host: float = 0.0
    sampling: Steps | None = None
    generating: Steps | None = None
    facts: Mapping[str, object] = field(default_factory=dict)

    def work(self, kind: str, operations: float, passes: float, layers: int) -> float:
        """Seconds of ``operations`` in so many passes over the model, none faster than the host starts its layers."""
        least = self.sampling(1) if self.sampling is not None else layers * self.host
        return max(operations / self.rates[kind], passes * least * (1 if kind == "forward" else BACKWARD))

    def moved(self, amount: float) -> float:
        """Seconds to read or write ``amount`` bytes."""
        return amount / self.bandwidth

    def step(self, model: Anatomy, rows: int, context: float, width: int, trainer: bool, served: bool) -> float:
        """Seconds of a decoding step.

        Args:
            model: the model.
            rows: decoded side by side.
            context: tokens that each row looks back on.
            width: bytes of a number.
            trainer: by the trainer's own generation, not by the sampler.
            served: by an engine that does not wait for the host (vLLM).
        """
        measured = self.generating if trainer and self.generating is not None else self.sampling
        if measured is not None:
            return measured(rows)
        shape = model.shape
        weights = shape.layers * shape.layer_weights + shape.head_weights
        read = width * (weights + rows * context * 2 * model.keys * shape.layers)
        operations = 2 * rows * (weights + 2 * context * shape.layers * shape.attention_width)
        host = 0.0 if served else shape.layers * self.host
        return max(self.moved(read), operations / self.rates["forward"]) + host


def of_card(name: str, half: bool) -> Speeds:
    """A named card's speeds, computing in half precision or in float32."""
    card = find_card(name)
    peak = card.half if half else card.single
    kind = "bfloat16" if half else "float32"
    source = (
        f"{card.source}: {peak / 1e12:g} TFLOP/s {kind}, {card.bandwidth / 1e12:g} TB/s, times the shares that engines "
        "reach of a CPU's own rate; not measured on that card"
    )
    rates = {kind: peak * share for kind, share in SHARES.items()}
    return Speeds(name.lower(), source, rates, card.bandwidth * READ, card.memory, True, host=HOST)
