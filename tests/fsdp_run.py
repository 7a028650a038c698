"""Scores of small policies, in one process or cut over torchrun's: ``python -m tests.fsdp_run FOLDER`` is the latter.

FOLDER holds a model folder for each name in `CASES`. The first process writes what `everything` gives to
FOLDER/cut.json.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gradalign.alignment.align import Scorer
from gradalign.alignment.saved import load_direction, save_direction
from gradalign.policy.group import Group, Rollout
from gradalign.policy.load import Policy, load_policy
from gradalign.policy.objective import Objective
from gradalign.policy.shards import leave
from tests.conftest import make_groups
from tests.engine_tools import same_responses

OBJECTIVE = Objective("loo", "sequence_mean", 0.7)
EXACT: dict[str, Any] = {"engine": "exact", "contributions": True}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "exact": ("llama", {}, {}),
    "small passes, groups over several": ("llama", {}, {"batch_tokens": 30}),
    "tied": ("llama-tied", {"dtype": "float32"}, EXACT),
    "one-sided": ("llama", {"dtype": "float32"}, EXACT | {"difference": "one-sided", "batch_tokens": 60}),
    "unit": ("qwen2-tied", {}, EXACT | {"unit": True}),
    "some parameters": ("qwen2", {"parameters": ("*layers.1.*",)}, EXACT),
    "not packed, biases, transposed": ("gpt2", {}, EXACT),
    "soft caps, padding row": ("gemma2", {}, EXACT | {"batch_tokens": 60}),
    "adapter": ("lora", {}, EXACT),
    "sources and references": ("llama-tied", {}, {"targets": {"a": 1.0, "b": 2.0}, "reference_weight": 0.3}),
    "central": ("llama-tied", {"dtype": "float32"}, {"engine": "directional"}),
    "forward-mode": ("llama", {}, {"engine": "directional", "difference": "forward-mode", "batch_tokens": 60}),
    "forward-mode, tied": ("gemma", {}, {"engine": "directional", "difference": "forward-mode"}),
}
"""Case -> model, how it is loaded (float64 where nothing is said), how it is scored."""
NAMES = sorted({name for name, _, _ in CASES.values()} - {"lora"})


def groups() -> tuple[list[Group], list[Group], list[Group]]:
    """Candidates (an odd number, one without variance, one whose coefficients cancel), validation, references."""
    candidates = [*make_groups(6, 1, masks=True), same_responses()]
    silent = make_groups(1, 5, prefix="silent")[0]
    for rollout in silent.rollouts:
        rollout.reward = 1.0
    validation = make_groups(7, 2, masks=True, prefix="v")
    for number, group in enumerate(validation):
        group.source = "ab"[number % 2]
    references = [Group(f"v{n}", np.array([3, 4]), [Rollout(np.array([n + 2, 7, 9]), 1.0)]) for n in range(3)]
    return [*candidates[:3], silent, *candidates[3:]], validation, references


def loaded(folder: Path, name: str, shard: bool, dtype: str = "float64", **options: Any) -> Policy:
    """A policy of `CASES`."""
    adapter = str(folder / "lora") if name == "lora" else None
    return load_policy(
        str(folder / ("llama" if adapter else name)), adapter, dtype, "cpu", shard=shard, **options
    )


def numbers_of(policy: Policy, options: dict[str, Any]) -> dict[str, Any]:
    """What is scored; whether the weights are what they were."""
    candidates, validation, references = groups()
    before = policy.fingerprint
    scorer = Scorer(policy, OBJECTIVE, **options)
    if "targets" not in options:
        references = []
    direction = scorer.direction(validation, references=references)
    scored = scorer.measure(candidates, direction)
    names = ("dot", "norm", "cosine", "se", "t", "corr")
    return {
        "fingerprint": before,
        "restored": policy.fingerprint == before,
        "direction": direction.facts(),
        "status": [alignment.status for alignment in scored.alignments],
        "numbers": {name: [getattr(alignment.numbers, name) for alignment in scored.alignments] for name in names},
    }


def everything(folder: Path, shard: bool) -> dict[str, Any]:
    """Every case's numbers."""
    found = {}
    for case, (name, loading, scoring) in CASES.items():
        found[case] = numbers_of(loaded(folder, name, shard, **loading), scoring)
    return found


def direction_in_a_file(folder: Path, shard: bool) -> dict[str, Any]:
    """A direction saved, and read again to be followed."""
    policy = loaded(folder, "llama-tied", shard)
    candidates, validation, _ = groups()
    scorer = Scorer(policy, OBJECTIVE)
    path = folder / f"{'cut' if shard else 'whole'}.safetensors"
    save_direction(path, policy, OBJECTIVE, scorer.direction(validation))
    if shard:
        torch.distributed.barrier()
    direction = load_direction(path, policy, OBJECTIVE)
    mixed = direction.averaged(scorer.direction(validation[:4]), 0.5)
    found = [scorer.measure(candidates, each).alignments for each in (direction, mixed)]
    return {"dots": [[alignment.numbers.dot for alignment in each] for each in found]}


class Watch:
    """How much of a policy, of its direction, and of a gradient one process holds whole; numbers of elements."""

    def __init__(self) -> None:
        from torch.distributed.fsdp._fully_shard._fsdp_param import FSDPParam

        from gradalign.alignment import cut

        self.now: dict[int, int] = {}
        self.peak = self.gathered = self.summed = 0
        self._after(FSDPParam, "to_unsharded", lambda given, _: self._weights(given, True))
        self._after(FSDPParam, "to_sharded", lambda given, _: self._weights(given, False))
        self._after(cut, "whole", self._direction)
        self._after(cut.CutTotal, "head", lambda given, _: self._gradient(given))

    def _after(self, owner: Any, name: str, note: Callable[[Any, Any], None]) -> None:
        own = getattr(owner, name)

        def watched(given: Any, *more: Any) -> Any:
            result = own(given, *more)
            note(given, result)
            return result

        setattr(owner, name, watched)

    def _weights(self, parameter: Any, whole: bool) -> None:
        self.now[id(parameter)] = parameter._orig_size.numel() if whole else 0
        self.peak = max(self.peak, sum(self.now.values()))

    def _direction(self, _: Any, result: torch.Tensor) -> None:
        self.gathered = max(self.gathered, result.numel())

    def _gradient(self, total: Any) -> None:
        self.summed = max(self.summed, sum(tensor.numel() for tensor in total.made.values()))


def held(folder: Path) -> dict[str, Any]:
    """What this process holds of a policy of many blocks while it scores."""
    watch = Watch()
    policy = loaded(folder, "deep", True)
    loading = watch.peak
    numbers_of(policy, EXACT)
    numbers_of(policy, {"engine": "directional", "difference": "forward-mode"})
    own = sum(parameter.detach().to_local().numel() for parameter in policy.model.parameters())  # type: ignore[operator]
    return {"own": own, "loading": loading, "peak": watch.peak, "direction": watch.gathered, "gradient": watch.summed}


def main(folder: Path) -> None:
    """Write what the processes found."""
    torch.set_num_threads(1)
    found = {"cases": everything(folder, True), "file": direction_in_a_file(folder, True), "held": held(folder)}
    shares: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(shares, found)
    if torch.distributed.get_rank() == 0:
        (folder / "cut.json").write_text(json.dumps(shares))
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
