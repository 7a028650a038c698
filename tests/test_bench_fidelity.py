from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from gradalign.alignment.align import Scorer
from gradalign.alignment.record import Numbers
from gradalign.bench import fidelity
from gradalign.bench.fidelity_arms import ARMS, Arm, Setup
from gradalign.policy.group import Group
from gradalign.policy.load import Policy
from gradalign.policy.objective import Objective
from gradalign.problems.embedded import POOLS
from gradalign.rollouts.table import read_rollouts, write_rollouts
from tests.conftest import Ran, make_groups

SMALL = (
    "bench", "fidelity", "--device", "cpu", "--problems", "8", "--validation-problems", "8", "--samples", "16",
    "--rollouts", "4", "8",
)  # fmt: skip


def _read(out: Path) -> dict[str, Any]:
    return json.loads(out.read_text())


def _half(groups: Sequence[Group], start: int, end: int) -> list[Group]:
    return [Group(g.key, g.prompt_ids, g.rollouts[start:end], g.source) for g in groups]


def test_engines_against_many_rollouts(gradalign: Callable[..., Ran], embedded: Policy, tmp_path: Path) -> None:
    out = tmp_path / "f.json"
    ran = gradalign(*SMALL, "--out", out)
    assert ran.status == 0, ran.err
    found = _read(out)["measured"]
    assert found["arms"].keys() == ARMS.keys()
    assert found["truth_rollouts"] == [8, 8]
    assert found["cross_check"] == pytest.approx(1, abs=1e-5)
    for arm in ("directional", "bfloat16"):
        for n in ("4", "8"):
            same = found["arms"][arm][n]["same_rollouts"]
            assert max(error for error in same["error"] if error is not None) < 0.05
            assert f"| {arm} | {n} |" in ran.out
    assert found["arms"]["exact"]["4"]["draws"] == 2
    assert found["arms"]["directional"]["8"]["truth"].keys() == {"dot", "t", "corr"}
    assert found["arms"]["exact"]["4"]["same_rollouts"] is None

    # the truth and the one draw of eight are what scoring gives of the two halves
    candidates = read_rollouts(tmp_path / "f.candidates.parquet")
    validation = read_rollouts(tmp_path / "f.validation.parquet")
    direction = Scorer(embedded, Objective()).direction(validation)
    rows = pq.read_table(tmp_path / "f.numbers.parquet").to_pylist()
    for arm, start, end in (("exact", 0, 8), ("truth", 8, 16)):
        own = {row["key"]: row["dot"] for row in rows if (row["arm"], row["rollouts"]) == (arm, 8)}
        again = Scorer(embedded, Objective()).measure(_half(candidates, start, end), direction).alignments
        assert any(alignment.numbers.dot for alignment in again)
        assert own == {a.key: a.numbers.dot and pytest.approx(a.numbers.dot, rel=1e-5) for a in again}


def test_a_killed_run_goes_on(gradalign: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "f.json"

    def dies(setup: Setup, groups: Sequence[Group], seed: int) -> list[Numbers]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(ARMS, "directional", Arm("", dies))
        assert gradalign(*SMALL, "--out", out).status == 130
    assert _read(out)["measured"]["arms"].keys() == {"exact"}
    with monkeypatch.context() as patch:
        patch.setitem(ARMS, "exact", Arm("", dies))
        assert gradalign(*SMALL, "--out", out).status == 0
    resumed = _read(out)["measured"]
    assert gradalign(*SMALL, "--out", tmp_path / "whole.json").status == 0
    whole = _read(tmp_path / "whole.json")["measured"]
    assert resumed["arms"].keys() == ARMS.keys()
    for arm in ARMS:
        own, other = resumed["arms"][arm]["4"]["truth"]["dot"], whole["arms"][arm]["4"]["truth"]["dot"]
        assert own["dot"]["spearman"] == pytest.approx(other["dot"]["spearman"])
    assert "differs in fraction" in gradalign(*SMALL, "--fraction", "0.5", "--out", out).error
    out.unlink()
    ran = gradalign(*SMALL, "--fraction", "0.5", "--out", out)
    assert "f.numbers.parquet: holds numbers of another run" in ran.error


def test_an_arm_that_draws_is_compared_with_itself(
    gradalign: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def noisy(setup: Setup, groups: Sequence[Group], seed: int) -> list[Numbers]:
        noise = np.random.default_rng(seed).normal(0, 1, len(groups))
        return [Numbers(dot=float(value)) for value in noise]

    monkeypatch.setitem(ARMS, "noise", Arm("nothing but noise", noisy, seeded=True))
    out = tmp_path / "f.json"
    ran = gradalign(*SMALL, "--arms", "noise", "--out", out)
    assert ran.status == 0, ran.err
    found = _read(out)["measured"]["arms"]
    assert found.keys() == {"exact", "noise"}
    other = found["noise"]["4"]["other_seed"]
    assert all(-1 <= value < 0.999 for value in other["spearman"] if value is not None)
    assert "## Against itself under another seed" in ran.out


def test_tables_of_any_model(gradalign: Callable[..., Ran], llama_folder: Path, tmp_path: Path) -> None:
    tables = ["--candidates", tmp_path / "c.parquet", "--validation", tmp_path / "v.parquet"]
    for name, seed in (("c", 0), ("v", 1)):
        write_rollouts(tmp_path / f"{name}.parquet", make_groups(5, seed, rollouts=9))
    base = ["bench", "fidelity", "--model", llama_folder, *tables, "--device", "cpu", "--out", tmp_path / "f.json"]
    ran = gradalign(*base, "--rollouts", "2", "4")
    assert ran.status == 0, ran.err
    found = _read(tmp_path / "f.json")
    assert found["measured"]["truth_rollouts"] == [5, 5]
    assert {n: own["draws"] for n, own in found["measured"]["arms"]["exact"].items()} == {"2": 2, "4": 1}
    assert not (tmp_path / "f.candidates.parquet").exists()
    write_rollouts(tmp_path / "c.parquet", make_groups(5, 2, rollouts=9))
    assert "differs in tables" in gradalign(*base, "--rollouts", "2", "4").error
    ran = gradalign(*base[:-1], tmp_path / "g.json", "--rollouts", "5")
    assert "option --rollouts: 5: problem 'g0' has 9 rollouts" in ran.error


def test_cross_check_without_varied_rewards(embedded: Policy) -> None:
    groups = make_groups(2, 0)
    for group in groups:
        for rollout in group.rollouts:
            rollout.reward = 1.0
    assert fidelity.cross_check(Scorer(embedded, Objective()), groups) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arms", "direktional"], "option --arms: unknown arm 'direktional'; did you mean 'directional'?"),
        (["--rollouts", "4", "4"], "option --rollouts: a number is there twice"),
        (["--rollouts", "1"], "should be greater than or equal to 2"),
        (["--candidates", "c.parquet"], "--candidates and --validation go together"),
        (["--model", "other"], "--candidates and --validation are needed with a --model that is not embedded"),
        (["--candidates", "no.parquet", "--validation", "no.parquet"], "no.parquet: cannot be read"),
        (["--out", "f.csv"], "results are JSON"),
    ],
)
def test_bad_options(gradalign: Callable[..., Ran], tmp_path: Path, arguments: list[str], message: str) -> None:
    assert message in gradalign(*SMALL, "--out", tmp_path / "f.json", *arguments).error


def test_a_pool_that_is_too_small(
    gradalign: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(POOLS, "countdown", {"mul1": 1})
    ran = gradalign(*SMALL, "--problems", "99", "--out", tmp_path / "f.json")
    assert "option --problems: pool 'countdown' has only about 64 distinct problems" in ran.error
