"""Killed with signal 9 in every phase, a run goes on to the same choices and, bit for bit, the same weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import finish

ROUND = [
    ("sampling", 3, False), ("rollouts written", 2, True), ("scoring", 4, False), ("round's numbers written", 2, True),
    ("choice written", 2, False), ("training", 3, True), ("optimiser step", 4, True), ("model saved", 2, True),
    ("checkpoint saved", 2, True),
]  # fmt: skip
BATCH = [("direction", 2, True), ("forward-only scoring", 4, False), ("optimiser step", 3, True)]


@pytest.mark.parametrize(
    ("kills", "options"),
    [
        (ROUND, {"evaluate": True, "save_total_limit": 1, "direction_average": 0.3}),
        (BATCH, {"mode": "batch", "save_strategy": "steps", "save_steps": 1, "steps_per_round": 3}),
    ],
    ids=["round", "batch, checkpoints within rounds"],
)
def test_kills(tmp_path: Path, kills: list[tuple[str, int, bool]], options: dict[str, Any]) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.kill_run", str(tmp_path), json.dumps(kills)]
    done = finish([*command, json.dumps({"max_steps": 6, **options})], 400)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout)
    assert [(r["point"], r["call"]) for r in results] == [(point, call) for point, call, _ in kills]
    for result in results:
        assert result["killed"], result
        assert result["same"], result
        assert result["rounds_kept"], result
