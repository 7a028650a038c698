"""What only a card can show: that it computes what a CPU does, and how far 16 bits are from it.

    python scripts/check_gpu.py [--device cuda] [--out FILE.json]

Compares every engine on the card with engine ``reference`` in float64 on the CPU, over the same rollouts of the
embedded policy; the fused kernel with float64; rollouts' pass rates; and trains two rounds with TRL on the card.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from gradalign.alignment import fused
from gradalign.bench.machine import machine
from gradalign.bench.measures import relative_rms_error
from gradalign.cli.main import main as gradalign
from gradalign.config import Options, resolved

ENGINES = {
    ("reference", "float64"): 1e-9, ("exact", "float64"): 1e-9, ("exact", "float32"): 1e-4, ("exact", "bfloat16"): 0.1,
    ("exact", "float16"): 0.02, ("directional", "float32"): 0.01, ("directional", "float64"): 1e-3,
    ("directional --difference forward-mode", "float32"): 1e-4,
    ("directional --difference forward-mode", "bfloat16"): 0.1,
}  # fmt: skip
"""(Engine, type) -> root mean square error of its dots over theirs, at most."""
SHAPES = ((128, 128, (64,)), (1536, 8960, (312, 40, 1)), (130, 77, (5, 300)), (1, 200, (33, 7)))
"""Rows, columns and groups' slots that the kernel is tried on."""
KERNEL = 1e-5
"""Error of the kernel's numbers over |a^T b| |v|, at most."""


class CheckOptions(Options):
    """What the numbers depend on."""

    device: str


def command(*words: Any) -> str:
    """What a gradalign command prints.

    Raises:
        RuntimeError: it fails.
    """
    said, failed = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(failed):
        status = gradalign([str(word) for word in words])
    if status:
        raise RuntimeError(f"gradalign {words[0]}: {failed.getvalue()[-2000:]}")
    return said.getvalue()


def sampled(folder: Path, name: str, device: str, size: int, seed: int) -> Path:
    """A rollouts table of the embedded policy."""
    out = folder / f"{name}-{device}.parquet"
    command(
        "rollout", "--model", "embedded", "--reward", "exact", "--problems",
        f"embedded:mixed?size={size}&seed={seed}", "--rollouts", 16,
        "--seed", seed, "--device", device, "--out", out,
    )  # fmt: skip
    return out


def engines(folder: Path, device: str) -> dict[str, float]:
    """Errors of engines on the card, against the reference on the CPU."""
    candidates, validation = (sampled(folder, n, "cpu", 32, seed) for n, seed in (("candidates", 0), ("validation", 1)))

    def dots(name: str, engine: str, dtype: str, place: str) -> list[float]:
        out = folder / f"{name}.parquet"
        command(
            "score", "--model", "embedded", "--candidates", candidates, "--validation", validation, "--out", out,
            "--engine", *engine.split(), "--dtype", dtype, "--device", place, "--no-contributions",
        )  # fmt: skip
        table = pq.read_table(out, columns=["dot", "status"]).to_pydict()
        return [dot for dot, status in zip(table["dot"], table["status"], strict=True) if status == "scored"]

    referee = dots("referee", "reference", "float64", "cpu")
    found = {}
    for number, ((engine, dtype), most) in enumerate(ENGINES.items()):
        error = relative_rms_error(dots(str(number), engine, dtype, device), referee)
        assert error is not None
        found[f"{engine} {dtype}"] = error
        assert error <= most, f"{engine} in {dtype}: error {error:.2e}, at most {most:g} expected"
    return found


def kernel(device: str) -> dict[str, float]:
    """Errors of `gradalign.alignment.fused`, by type."""
    source = torch.Generator(device).manual_seed(0)
    found = {}
    for dtype in (torch.bfloat16, torch.float16):
        worst = 0.0
        for rows, columns, slots in SHAPES:
            a, b = (torch.randn(sum(slots), n, generator=source, device=device).to(dtype) for n in (rows, columns))
            along = torch.randn(rows, columns, generator=source, device=device)
            ends = torch.tensor(slots, device=device).cumsum(0)
            starts = ends - torch.tensor(slots, device=device)
            for number, start, end in zip(
                fused.reduce(a, b, along, starts, ends).tolist(), starts.tolist(), ends.tolist(), strict=True
            ):
                gradient = a[start:end].double().T @ b[start:end].double()
                norm = float(gradient.norm())
                dot_error = abs(number[0] - float((gradient * along).sum())) / (norm * float(along.double().norm()))
                worst = max(worst, dot_error, abs(number[1] - norm**2) / norm**2)
        found[str(dtype).removeprefix("torch.")] = worst
        assert worst <= KERNEL, f"kernel in {dtype}: error {worst:.2e}"
    return found


def rollouts(folder: Path, device: str) -> dict[str, float]:
    """Pass rates of the same problems on both."""
    found = {}
    for name, place in (("cpu", "cpu"), ("card", device)):
        rewards = pq.read_table(sampled(folder, "rates", place, 128, 3), columns=["reward"])["reward"].to_pylist()
        found[name] = sum(rewards) / len(rewards)
    most = 5 * math.sqrt(2 * 0.25 / (128 * 16))
    assert abs(found["card"] - found["cpu"]) < most, found
    return found


def training(folder: Path, device: str) -> dict[str, Any]:
    """Two rounds with TRL, once in float32 and once in bfloat16."""
    found = {}
    for dtype in ("float32", "bfloat16"):
        words = (
            "train", "--model", "embedded", "--reward", "exact", "--dtype", "float32",
            "--pool", "embedded:mixed?size=96&seed=0",
            "--validation", "embedded:mixed?size=24&seed=1", "--test", "embedded:mixed?size=32&seed=2", "--out",
            folder / f"run-{dtype}", "--strategy", "gradalign", "--steps-per-round", 2, "--max-steps", 4, "--chunk", 32,
            "--top", 8, "--rollouts", 8, "--validation-rollouts", 8, "--num-generations", 8,
            "--per-device-train-batch-size", 64, "--max-completion-length", 16, "--report-to", "none",
            "--bf16", str(dtype == "bfloat16").lower(), *(("--use-cpu", "true") if device == "cpu" else ()),
        )  # fmt: skip
        found[dtype] = [line for line in command(*words).splitlines() if line.startswith("test")]
    return found


def main() -> int:
    """Run all; gives the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    device = given.device
    known = resolved("scripts/check_gpu.py", CheckOptions(device=device))
    facts: dict[str, Any] = {
        "commit": known["commit"], "versions": known["versions"], "machine": machine(torch.device(device))
    }  # fmt: skip
    failed = 0
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for name, check in {
            "kernel": lambda: kernel(device), "engines": lambda: engines(folder, device),
            "rollouts": lambda: rollouts(folder, device), "training": lambda: training(folder, device),
        }.items():  # fmt: skip
            try:
                facts[name] = check()
            except (AssertionError, RuntimeError) as error:
                failed += 1
                facts[name] = {"failed": str(error)}
            print(f"{name}: {json.dumps(facts[name], indent=1)}", flush=True)
    if given.out is not None:
        given.out.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
