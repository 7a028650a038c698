"""Two processes under torchrun choose what one process chooses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gradalign.alignment.table import read_alignments
from gradalign.files import read_json
from tests.conftest import finish
from tests.trl_run import datasets, trainer


def torchrun(options: dict[str, Any], module: str = "tests.trl_run") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return finish([*command, "-m", module, json.dumps(options)], env=environment)


@pytest.mark.parametrize(
    "options",
    [
        {
            "steps_per_round": 1,
            "chunk": 13,
            "strategy": "tscore",
            "contributions": True,
            "direction_average": 0.5,
            "budget": "racing(screen=4, mean=6)",
        },
        {"mode": "batch", "steps_per_round": 2},
    ],
    ids=["round", "batch"],
)
def test_two_processes_choose_what_one_does(tmp_path: Path, options: dict[str, Any]) -> None:
    options = {"max_steps": 4} | options
    one = trainer(tmp_path / "one", **options)
    one.train()
    done = torchrun({"out": str(tmp_path / "two"), "per_device_train_batch_size": 8, **options})
    assert done.returncode == 0, done.stderr[-3000:]
    two = json.loads((tmp_path / "two" / "end.json").read_text())
    assert one.curriculum is not None
    assert two["choices"] == one.curriculum.state.history
    saved = [load_file(tmp_path / name / "checkpoint-4" / "model.safetensors") for name in ("one", "two")]
    start = load_file(Path("gradalign/policy/embedded/model.safetensors"))
    for name, tensor in saved[0].items():
        moved = (tensor - start[name]).norm() if name in start else torch.tensor(1.0)
        assert (tensor - saved[1][name]).norm() <= 0.05 * moved + 1e-6, name


@pytest.mark.filterwarnings("ignore:.*the others are followed")
@pytest.mark.parametrize("rank", ["learnalign", "cropi"])
def test_two_processes_compare_the_features_of_both(tmp_path: Path, rank: str) -> None:
    options: dict[str, Any] = {
        "max_steps": 2,
        "engine": "sketch",
        "strategy": "gradalign",
        "rank": rank,
        "projection": "two-sided:32",
    }
    trainer(tmp_path / "one", **options).train()
    done = torchrun({"out": str(tmp_path / "two"), "per_device_train_batch_size": 8, **options})
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (read_alignments(tmp_path / n / "round-0000" / "alignments.parquet") for n in ("one", "two"))
    scores = [a.score for a in one]
    assert sum(score is not None for score in scores) > 3
    for score, other in zip(scores, two, strict=True):
        assert other.score == (None if score is None else pytest.approx(score, rel=1e-4))


@pytest.mark.filterwarnings("ignore:.*the others are followed")
def test_two_processes_put_the_same_direction_together(tmp_path: Path) -> None:
    sources = sorted(set(datasets()[1]["source"]))
    options: dict[str, Any] = {
        "max_steps": 2, "reference_field": "answer", "targets": [f"{s}={w}" for w, s in enumerate(sources)]
    }  # fmt: skip
    trainer(tmp_path / "one", **options).train()
    done = torchrun({"out": str(tmp_path / "two"), "per_device_train_batch_size": 8, **options})
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (read_json(tmp_path / n / "round-0000" / "metrics.json")["direction"] for n in ("one", "two"))
    assert one.pop("parts") == two.pop("parts")
    assert [value is None for value in one.values()] == [value is None for value in two.values()]
    values = [[value for value in facts.values() if value is not None] for facts in (one, two)]
    assert values[0] == pytest.approx(values[1], rel=1e-3)
    tables = (read_alignments(tmp_path / n / "round-0000" / "alignments.parquet") for n in ("one", "two"))
    dots = [[a.numbers.dot for a in table if a.numbers.dot is not None] for table in tables]
    assert dots[0] == pytest.approx(dots[1], rel=1e-3, abs=1e-6)


def test_what_fails_in_one_process_ends_all_of_them(tmp_path: Path) -> None:
    done = torchrun({"out": str(tmp_path)}, module="tests.trl_run_failing")
    assert done.returncode != 0
    assert "process 1: reward 'mortal': raised RuntimeError: the judge of process 1 is down" in done.stderr
