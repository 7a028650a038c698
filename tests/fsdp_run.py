"""Scores of small policies, in one process or cut over torchrun's: ``python -m tests.fsdp_run FOLDER`` is the latter.

FOLDER holds a model folder for each name in `NAMES`, ``deep`` and an adapter ``lora``, and the rows that `write_rows`
writes. The first process writes what all have found to FOLDER/cut.json.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gradalign.alignment.align import Scorer
from gradalign.alignment.saved import load_direction, save_direction
from gradalign.cli.main import main
from gradalign.errors import GradAlignError
from gradalign.policy.group import Group, Rollout
from gradalign.policy.load import Policy, load_policy
from gradalign.policy.objective import Objective
from gradalign.processes import Processes
from tests.conftest import make_groups
from tests.engine_tools import same_responses

OBJECTIVE = Objective("loo", "sequence_mean", 0.7)
EXACT: dict[str, Any] = {"engine": "exact", "contributions": True}
FORWARD: dict[str, Any] = {"engine": "directional", "difference": "forward-mode"}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "small passes, groups over several": ("llama", {}, EXACT | {"difference": "one-sided", "batch_tokens": 30}),
    "float32, tied": ("llama-tied", {"dtype": "float32"}, EXACT),
    "unit": ("qwen2-tied", {}, EXACT | {"unit": True}),
    "some parameters": ("qwen2", {"parameters": ("*layers.1.*",)}, EXACT),
    "transposed, learnt positions": ("gpt2", {}, EXACT),
    "soft caps, padding row": ("gemma2", {}, EXACT | {"batch_tokens": 60}),
    "adapter": ("lora", {}, EXACT),
    "sources and references": ("llama-tied", {}, {"targets": {"a": 1.0, "b": 2.0}, "reference_weight": 0.3}),
    "central": ("llama-tied", {"dtype": "float32"}, {"engine": "directional"}),
    "forward-mode": ("llama", {}, FORWARD | {"batch_tokens": 60}),
    "forward-mode, padding row, tied": ("gemma", {}, FORWARD),
}
"""Case -> model, how it is loaded (float64 where nothing is said), how it is scored."""
NAMES = sorted({name for name, _, _ in CASES.values()} - {"lora"})


def groups() -> tuple[list[Group], list[Group], list[Group]]:
    """Candidates (an odd number, one without variance, one whose coefficients cancel), validation, references."""
    candidates = [*make_groups(5, 1, masks=True), same_responses()]
    silent = make_groups(1, 5, prefix="silent")[0]
    for rollout in silent.rollouts:
        rollout.reward = 1.0
    validation = make_groups(7, 2, masks=True, prefix="v")
    for number, group in enumerate(validation):
        group.source = "ab"[number % 2]
    references = [Group(f"v{n}", np.array([3, 4]), [Rollout(np.array([n + 2, 7, 9]), 1.0)]) for n in range(3)]
    return [*candidates[:3], silent, *candidates[3:]], validation, references


def write_rows(folder: Path) -> None:
    """Candidates and validation rollouts as the command reads them."""
    for name, some in zip(("candidates", "validation"), groups(), strict=False):
        rows = [
            {
                "key": group.key, "prompt_ids": group.prompt_ids.tolist(), "reward": rollout.reward,
                "response_ids": rollout.response_ids.tolist(), "response_mask": rollout.mask.tolist(),
            }
            for group in some
            for rollout in group.rollouts
        ]  # fmt: skip
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def command(folder: Path, out: str, *more: str) -> list[str]:
    """``gradalign score`` over these."""
    files = [f"--{name}={folder / name}.jsonl" for name in ("candidates", "validation")]
    saved = f"--save-direction={folder / out}.safetensors"
    return ["score", "--model", str(folder / "llama"), *files, "--out", str(folder / f"{out}.parquet"), saved, *more]


def loaded(folder: Path, name: str, shard: bool, dtype: str = "float64", **options: Any) -> Policy:
    """A policy of `CASES`."""
    adapter = str(folder / "lora") if name == "lora" else None
    return load_policy(str(folder / ("llama" if adapter else name)), adapter, dtype, "cpu", shard=shard, **options)


def numbers_of(policy: Policy, options: dict[str, Any]) -> dict[str, Any]:
    """What is scored; whether the weights are what they were."""
    candidates, validation, references = groups()
    before = policy.fingerprint
    scorer = Scorer(policy, OBJECTIVE, **options)
    direction = scorer.direction(validation, references=references if "targets" in options else ())
    scored = scorer.measure(candidates, direction)
    names = ("dot", "norm", "cosine", "se", "t", "corr")
    del policy.fingerprint
    return {
        "fingerprint": before,
        "restored": policy.fingerprint == before,
        "direction": direction.facts(),
        "status": [alignment.status for alignment in scored.alignments],
        "numbers": {name: [getattr(alignment.numbers, name) for alignment in scored.alignments] for name in names},
    }


def everything(folder: Path, shard: bool) -> dict[str, Any]:
    """Every case's numbers, and `followed`."""
    found = {
        case: numbers_of(loaded(folder, name, shard, **loading), scoring)
        for case, (name, loading, scoring) in CASES.items()
    }
    return {"cases": found, "followed": followed(folder, shard)}


def followed(folder: Path, shard: bool) -> list[list[float | None]]:
    """Dots with a direction that was saved by one process and read again, and with a mean of it and another."""
    policy = loaded(folder, "llama-tied", shard)
    candidates, validation, _ = groups()
    scorer, path = Scorer(policy, OBJECTIVE), folder / "followed.safetensors"
    if not shard:
        save_direction(path, policy, OBJECTIVE, scorer.direction(validation))
    direction = load_direction(path, policy, OBJECTIVE)
    mixed = direction.averaged(scorer.direction(validation[:4]), 0.5)
    found = [scorer.measure(candidates, each).alignments for each in (direction, mixed)]
    return [[alignment.numbers.dot for alignment in each] for each in found]


class Watch:
    """How much of a policy, of its direction, and of a gradient this process holds whole; numbers of elements."""

    def __init__(self) -> None:
        from torch.distributed.fsdp._fully_shard._fsdp_param import FSDPParam

        from gradalign.alignment import cut
        from gradalign.policy import shards

        self.now: dict[int, int] = {}
        self.loading = self.weights = self.direction = self.gradient = 0
        self._after(shards, "_fill", self._loaded)
        self._after(FSDPParam, "to_unsharded", lambda given, _: self._uncut(given[0], True))
        self._after(FSDPParam, "to_sharded", lambda given, _: self._uncut(given[0], False))
        self._after(cut, "whole", lambda _, result: self._most("direction", result.numel()))
        self._after(cut.CutTotal, "_whole", self._summed)

    def _after(self, owner: Any, name: str, note: Callable[[Any, Any], None]) -> None:
        own = getattr(owner, name)

        def watched(*given: Any) -> Any:
            result = own(*given)
            note(given, result)
            return result

        setattr(owner, name, watched)

    def _most(self, name: str, size: int) -> None:
        setattr(self, name, max(getattr(self, name), size))

    def _loaded(self, given: Any, _: Any) -> None:
        self._most("loading", sum(p.numel() for p in given[1].parameters() if not hasattr(p, "to_local")))

    def _uncut(self, parameter: Any, whole: bool) -> None:
        self.now[id(parameter)] = parameter._orig_size.numel() if whole else 0
        self._most("weights", sum(self.now.values()))

    def _summed(self, given: Any, _: Any) -> None:
        total, index = given
        others = sum(tensor.numel() for other, tensor in total.made.items() if other != index)
        self._most("gradient", others + total.cut[index].numel())


def held(folder: Path) -> dict[str, int]:
    """The most that this process holds of a policy of many blocks while it loads and scores."""
    watch = Watch()
    policy = loaded(folder, "deep", True)
    numbers_of(policy, EXACT)
    candidates, validation, _ = groups()
    Scorer(policy, OBJECTIVE, **FORWARD).measure(candidates[:3], Scorer(policy, OBJECTIVE).direction(validation[:3]))
    own = sum(parameter.detach().to_local().numel() for parameter in policy.model.parameters())
    return {"own": own} | {name: getattr(watch, name) for name in ("loading", "weights", "direction", "gradient")}


def refused(folder: Path) -> list[str]:
    """What is said of what a policy that is cut does not allow."""
    policy = loaded(folder, "llama", True)
    messages = []
    others: list[dict[str, Any]] = [
        {"engine": "reference"}, {"engine": "sketch"}, {"offload": True}, {"processes": Processes.current()}
    ]  # fmt: skip
    for options in others:
        try:
            Scorer(policy, OBJECTIVE, **options)
        except GradAlignError as error:
            messages.append(str(error))
    return messages


def run(folder: Path) -> int:
    """Write what the processes found; then the command, which ends them."""
    torch.set_num_threads(1)
    found = everything(folder, True) | {"refused": refused(folder), "held": held(folder)}
    shares: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(shares, found)
    if torch.distributed.get_rank() == 0:
        (folder / "cut.json").write_text(json.dumps(shares))
    return main(command(folder, "cut", "--shard"))


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1])))
