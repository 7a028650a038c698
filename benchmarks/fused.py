"""What the fused kernel saves on a card: engine exact with it and without, over streams of groups.

    python benchmarks/fused.py [--out benchmarks/speed/fused.json]

Random weights of Qwen2.5-1.5B's shape in bfloat16, lengths of `gradalign bench speed`'s workloads, arms taking turns in
one process. Writes JSON, and a Markdown table beside it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch

from gradalign.alignment import fused
from gradalign.alignment.align import Scorer
from gradalign.alignment.direction import Direction
from gradalign.alignment.exact import Exact
from gradalign.bench.machine import machine, product_seconds, product_width, synchronise
from gradalign.bench.results import markdown_table
from gradalign.bench.workloads import WORKLOADS, build, random_groups
from gradalign.config import Options, resolved
from gradalign.files import write_json
from gradalign.policy.group import Group
from gradalign.policy.load import Policy
from gradalign.policy.objective import Objective

STREAMS = {"short": 104, "few-shot": 32, "long": 14}
"""Workload -> groups."""
SHAPES = ((8960, 1536), (1536, 1536), (256, 1536))
REPEATS = 5
DEVICE = torch.device("cuda")
T = TypeVar("T")


class FusedOptions(Options):
    """What the numbers depend on."""

    batch_tokens: int
    model: str


def seconds(run: Callable[[], Any]) -> list[float]:
    """Of some runs, after one that is not timed."""
    return [timed(run)[0] for _ in range(REPEATS + 1)][1:]


@contextmanager
def without() -> Iterator[None]:
    """Inside, no kernel is used."""
    own = fused.takes
    fused.takes = lambda a, dtype: False
    try:
        yield
    finally:
        fused.takes = own


def streams(policy: Policy, batch_tokens: int) -> dict[str, Any]:
    """Engine exact over each stream, with the kernel and without, by turns."""
    vocabulary = policy.model.get_input_embeddings().weight.shape[0]
    found = {}
    for name, count in STREAMS.items():
        *groups, held_out = random_groups(WORKLOADS[name], count + 1, vocabulary, 0)
        direction = Scorer(policy, Objective(), "exact", batch_tokens).direction([held_out])

        def run(groups: Sequence[Group] = groups, direction: Direction = direction) -> list[float]:
            return [n.norm or 0.0 for n in Exact(policy, Objective(), batch_tokens, True).measure(groups, direction)]

        own: dict[str, list[float]] = {"fused": [], "formed": []}
        norms: dict[str, list[float]] = {}
        for repeat in range(REPEATS + 1):
            for arm in own:
                if arm == "formed":
                    with without():
                        spent, norms[arm] = timed(run)
                else:
                    spent, norms[arm] = timed(run)
                if repeat:
                    own[arm].append(spent)
        torch.cuda.reset_peak_memory_stats()
        run()
        apart = max(abs(a / b - 1) for a, b in zip(norms["fused"], norms["formed"], strict=True))
        found[name] = {
            "groups": count, "tokens": WORKLOADS[name].lengths.tokens * count, "seconds": own,
            "largest_difference_of_norms": apart, "peak_bytes": torch.cuda.max_memory_allocated(),
        }  # fmt: skip
    return found


def timed(run: Callable[[], T]) -> tuple[float, T]:
    """(seconds, what the run gives)."""
    synchronise(DEVICE)
    start = time.perf_counter()
    made = run()
    synchronise(DEVICE)
    return time.perf_counter() - start, made


def kernels() -> list[dict[str, Any]]:
    """The kernel alone, and the product and two sums of every group that it stands for."""
    found = []
    for rows, columns in SHAPES:
        for count, length in ((50, 312), (7, 2176)):
            a, b = (torch.randn(count * length, n, device=DEVICE, dtype=torch.bfloat16) for n in (rows, columns))
            along = torch.randn(rows, columns, device=DEVICE)
            ends = torch.arange(length, count * length + 1, length, device=DEVICE)
            spans = [(end - length, end) for end in ends.tolist()]

            def formed(
                a: torch.Tensor = a, b: torch.Tensor = b, along: torch.Tensor = along,
                spans: list[tuple[int, int]] = spans,
            ) -> list[torch.Tensor]:  # fmt: skip
                made = []
                for start, end in spans:
                    own = torch.mm(a[start:end].t(), b[start:end], out_dtype=torch.float32).reshape(-1)
                    made.append(torch.stack([torch.dot(own, along.reshape(-1)), torch.dot(own, own)]))
                return made

            def one(
                a: torch.Tensor = a, b: torch.Tensor = b, along: torch.Tensor = along, ends: torch.Tensor = ends,
                length: int = length,
            ) -> torch.Tensor:  # fmt: skip
                return fused.reduce(a, b, along, ends - length, ends)

            found.append({
                "rows": rows, "columns": columns, "groups": count, "slots": length, "fused": seconds(one),
                "formed": seconds(formed), "operations": 2 * count * length * rows * columns,
            })  # fmt: skip
    return found


def text(data: dict[str, Any]) -> str:
    """The Markdown."""
    rate = 2 * data["product"]["width"] ** 3 / median(data["product"]["seconds"])
    rows = []
    for name, own in data["streams"].items():
        fast, slow = (median(own["seconds"][arm]) for arm in ("fused", "formed"))
        spread = [f"{own['tokens'] / s:,.0f}" for s in (max(own["seconds"]["fused"]), min(own["seconds"]["fused"]))]
        rows.append([
            name, str(own["groups"]), f"{own['tokens'] / fast:,.0f} ({' to '.join(spread)})",
            f"{own['tokens'] / slow:,.0f}", f"{slow / fast:.2f}", f"{own['peak_bytes'] / 2**30:.1f}",
            f"{own['largest_difference_of_norms']:.1e}",
        ])  # fmt: skip
    alone = [
        [
            f"{k['rows']} x {k['columns']}, {k['groups']} groups of {k['slots']}",
            f"{k['operations'] / median(k['fused']) / 1e12:.0f}", f"{k['operations'] / median(k['formed']) / 1e12:.0f}",
            f"{median(k['formed']) / median(k['fused']):.2f}",
        ]
        for k in data["kernels"]
    ]  # fmt: skip
    versions = ", ".join(f"{name} {value}" for name, value in data["versions"].items())
    return "\n\n".join([
        "# Groups' sums without their gradients, on a card",
        f"Engine exact, random weights of the shape {data['model']}, bfloat16, {data['batch_tokens']:,} tokens a pass "
        f"at most, {data['machine']['card']}; medians of {REPEATS} turns (least to most). `formed`: every group's "
        "gradient of a matrix is formed and reduced.",
        markdown_table(
            ["stream", "groups", "fused, tokens/s", "formed, tokens/s", "faster", "peak GiB", "norms apart"], rows
        ),
        "The kernel alone, in TFLOP/s; a product of two matrices of width "
        f"{data['product']['width']} runs at {rate / 1e12:.0f}.",
        markdown_table(["matrix", "fused", "formed", "faster"], alone),
        f"Commit {data['commit']}; {versions}. `python benchmarks/fused.py`",
    ])  # fmt: skip


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "speed" / "fused.json")
    parser.add_argument("--batch-tokens", type=int, default=16384)
    parser.add_argument("--model", default="qwen2.5-1.5b")
    given = parser.parse_args()
    known = resolved("benchmarks/fused.py", FusedOptions(batch_tokens=given.batch_tokens, model=given.model))
    data: dict[str, Any] = {
        "commit": known["commit"], "versions": known["versions"], "machine": machine(DEVICE), "model": given.model,
        "batch_tokens": given.batch_tokens,
        "product": {"width": product_width(DEVICE), "seconds": product_seconds(DEVICE, torch.bfloat16)},
        "kernels": kernels(),
    }  # fmt: skip
    data["streams"] = streams(build(given.model, "bfloat16", "cuda", 0), given.batch_tokens)
    write_json(given.out, data)
    given.out.with_suffix(".md").write_text(text(data) + "\n", encoding="utf-8")
    print(text(data))


if __name__ == "__main__":
    main()
