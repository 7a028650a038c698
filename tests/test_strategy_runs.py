"""Strategies that take an engine, or a curriculum, end to end on the embedded policy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from gradalign.alignment.align import Scorer, score
from gradalign.alignment.sketch import Sketching
from gradalign.alignment.table import read_alignments
from gradalign.curriculum.files import read_groups
from gradalign.errors import GradAlignError, GradAlignWarning
from gradalign.policy.objective import Objective
from gradalign.problems.schema import uniform_hash
from gradalign.rollouts.table import read_rollouts, write_rollouts
from tests.conftest import Ran, make_groups, make_policy
from tests.test_select_command import BASE, write_pool
from tests.trl_run import datasets, logged, trainer

Run = Callable[..., Ran]
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*some repeat", "ignore:.*within noise", "ignore:source", "ignore:this sketch", "ignore::FutureWarning"
)
SKETCH = ("--engine", "sketch", "--projection", "two-sided:6")


@pytest.fixture
def select(tmp_path: Path) -> list[Any]:
    pool, validation = write_pool(tmp_path / "pool.jsonl", 30, 1), tmp_path / "val.jsonl"
    write_pool(validation, 32, 2)
    rows = [json.loads(line) for line in validation.read_text().splitlines()]
    for index, line in enumerate(rows):
        line["source"] = "odd" if index % 2 else "even"
    validation.write_text("".join(json.dumps(line) + "\n" for line in rows))
    return ["select", *BASE, "-n", 8, "--pool", pool, "--validation", validation, "--out", tmp_path / "run",
            "--allow-overlap", "--top", 6]  # fmt: skip


def table(tmp_path: Path) -> list[Any]:
    return read_alignments(tmp_path / "run" / "round-0000" / "alignments.parquet")


def test_sources_are_what_each_gives_alone() -> None:
    policy, objective, sketching = make_policy("llama"), Objective(), Sketching(projection="two-sided:6")
    candidates, validation = make_groups(9, 1), make_groups(8, 2, prefix="v")
    for index, group in enumerate(validation):
        group.source = "odd" if index % 2 else "even"
    for reward in validation[7].rollouts:
        reward.reward = 1.0  # carries no gradient
    wanted = frozenset({"sources"})
    found = score(policy, candidates, validation, objective, "sketch", sketching=sketching, wanted=wanted)
    for source in ("even", "odd"):
        own = [group for group in validation if group.source == source]
        alone = score(policy, candidates, own, objective, "sketch", sketching=sketching)
        for a, other in zip(found.alignments, alone.alignments, strict=True):
            assert (a.numbers.sources or {})[source] == pytest.approx(other.numbers.cosine, rel=1e-3, abs=1e-5)
    plain = score(policy, candidates, validation, objective, "sketch", sketching=sketching)
    assert [a.numbers.cosine for a in plain.alignments] == [a.numbers.cosine for a in found.alignments]
    assert all(a.numbers.sources is None for a in plain.alignments)


def test_a_source_without_a_gradient_or_weight_is_left_out() -> None:
    policy, sketching = make_policy("llama"), Sketching(projection="two-sided:4")
    validation = make_groups(9, 2, prefix="v")
    for index, group in enumerate(validation):
        group.source = "abc"[index % 3]
    for group in validation[2::3]:
        for rollout in group.rollouts:
            rollout.reward = 0.0
    scorer = Scorer(
        policy, Objective(), "sketch", sketching=sketching, wanted=frozenset({"sources"}),
        targets={"a": 0.0, "b": 1.0, "c": 1.0},
    )  # fmt: skip
    with pytest.warns(GradAlignWarning, match="source 'c': none of its 3 problems carries a gradient"):
        direction = scorer.direction(validation)
    assert list(direction.sources) == ["b"]


def test_cosines_with_single_validation_problems_are_those_with_a_validation_set_of_one() -> None:
    policy, objective, sketching = make_policy("llama"), Objective(), Sketching(projection="two-sided:6")
    candidates, validation = make_groups(6, 1), make_groups(5, 2, prefix="v")
    for reward in validation[3].rollouts:
        reward.reward = 1.0  # carries no gradient
    found = score(policy, candidates, validation, objective, "sketch", sketching=sketching, wanted=frozenset({"near"}))
    near = np.array([a.numbers.near for a in found.alignments if a.numbers.near is not None])
    assert near.shape == (sum(a.status == "scored" for a in found.alignments), 4)
    for place, own in enumerate([v for v in validation if v.status == "scored"]):
        alone = score(policy, candidates, [own], objective, "sketch", sketching=sketching)
        cosines = [a.numbers.cosine for a in alone.alignments if a.status == "scored"]
        assert near[:, place] == pytest.approx(cosines, rel=1e-3, abs=1e-5)
    dropped = score(
        policy, candidates, validation, objective, "sketch", sketching=sketching, wanted=frozenset({"near"}),
        targets={validation[0].source: 1.0},
    )  # fmt: skip
    assert all(a.numbers.near is None or len(a.numbers.near) == 4 for a in dropped.alignments)


def test_nearest_selects_with_a_sketch_alone(gradalign: Run, select: list[Any], tmp_path: Path) -> None:
    ran = gradalign(*select, *SKETCH, "--strategy", "nearest")
    assert ran.status == 0, ran.err
    chosen = [a for a in table(tmp_path) if a.selected]
    assert len(chosen) == 6
    assert all(-1 <= (a.score or 9) <= 1 and a.gate is None for a in chosen)
    assert (
        "needs near, which engine 'exact' does not give; take --engine sketch"
        in gradalign(*select, "--strategy", "nearest").error
    )


def test_cropi_selects_by_rank_fusion(gradalign: Run, select: list[Any], tmp_path: Path) -> None:
    ran = gradalign(*select, *SKETCH, "--strategy", "cropi")
    assert ran.status == 0, ran.err
    rows = table(tmp_path)
    scores = [a.score for a in rows if a.status == "scored"]
    places = len(scores)
    assert all(2 / (60 + places) <= s <= 2 / 61 for s in scores)
    assert sum(scores) == pytest.approx(2 * sum(1 / (60 + r) for r in range(1, places + 1)), rel=1e-3)
    chosen = [a for a in rows if a.selected]
    assert len(chosen) == 6
    assert min(a.score or 0 for a in chosen) >= max(a.score or 0 for a in rows if a.score and not a.selected)


def test_cropi_scores_stale_rollouts_and_says_so(gradalign: Run, llama_folder: Path, tmp_path: Path) -> None:
    candidates, validation = make_groups(12, 1), make_groups(12, 2, prefix="v")
    for group in candidates:
        group.policy = "another"
    for index, group in enumerate(validation):
        group.source = "abc"[index % 3]
    write_rollouts(tmp_path / "c.parquet", candidates)
    write_rollouts(tmp_path / "v.parquet", validation)
    command = [
        "score", "--model", llama_folder, "--candidates", tmp_path / "c.parquet", "--out", tmp_path / "s.parquet",
        "--strategy", "cropi", *SKETCH,
    ]  # fmt: skip
    ran = gradalign(*command, "--validation", tmp_path / "v.parquet", "--save-direction", tmp_path / "v.safetensors")
    assert ran.status == 0, ran.err
    assert "scores of stale rollouts are biased" in ran.err
    rows = pq.read_table(tmp_path / "s.parquet").to_pylist()
    assert sum(row["score"] for row in rows) == pytest.approx(3 * sum(1 / (60 + r) for r in range(1, 13)), rel=1e-3)
    known = gradalign(*command, "--direction", tmp_path / "v.safetensors")
    assert "of which a saved direction does not know; give the validation set's rollouts" in known.error
    plain = gradalign(*command, "--validation", tmp_path / "v.parquet", "--projection", "none")
    assert "only engine sketch with a projection keeps" in plain.error


def test_dtv_drops_by_features(gradalign: Run, select: list[Any], tmp_path: Path) -> None:
    ran = gradalign(*select, *SKETCH, "--strategy", "dtv", "--store", tmp_path / "store")
    assert ran.status == 0, ran.err
    rows = {a.key: a for a in table(tmp_path)}
    keys = [json.loads(line)["key"] for line in (tmp_path / "store" / "rows.jsonl").read_text().splitlines()]
    features = np.fromfile(tmp_path / "store" / "features.f32", "<f4").reshape(len(keys), -1).astype(float)
    for index, key in enumerate(keys):
        others = np.delete(features, index, 0).mean(0)
        assert rows[key].gate == (None if features[index] @ others > 0 else "dtv"), key
    assert {a.gate for a in rows.values()} == {None, "dtv"}
    assert all(a.gate is None for a in rows.values() if a.selected)


@pytest.mark.parametrize("name", ["norm", "negative", "simacc", "accband", "dynamic"])
def test_strategies_select(gradalign: Run, select: list[Any], tmp_path: Path, name: str) -> None:
    ran = gradalign(*select, "--strategy", name, "--engine", "exact")
    assert ran.status == 0, ran.err
    rows = table(tmp_path)
    chosen = [a for a in rows if a.selected]
    assert 0 < len(chosen) <= 6
    assert all(a.status == "scored" for a in chosen)
    assert (tmp_path / "run" / "round-0000" / "validation.parquet").exists() == (name not in ("accband", "dynamic"))
    for a in rows:
        n, p = a.numbers, a.pass_rate or 0.0
        if name in ("norm", "negative", "simacc") and a.status == "scored":
            assert n.norm is not None
            assert n.cosine is not None
            value = {"norm": n.norm, "negative": -n.cosine, "simacc": 4 * p * (1 - p) * n.cosine}[name]
            assert a.score == pytest.approx(value)
        if name == "accband" and a.status == "scored":
            assert (a.gate is None) == (0.2 <= p <= 0.8)


def test_the_oracle_selects_without_a_rollout(
    gradalign: Run, select: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "gate oracle: clean.txt: No such file" in gradalign(*select, "--strategy", "oracle").error
    assert gradalign(*select, "--strategy", "random").status == 0
    clean = {a.key for a in table(tmp_path)[::3]}
    (tmp_path / "clean.txt").write_text("\n".join(clean))
    assert gradalign(*select, "--strategy", "oracle", "--out", tmp_path / "known").status == 0
    folder = tmp_path / "known" / "round-0000"
    assert {json.loads(line)["key"] for line in (folder / "chosen.jsonl").read_text().splitlines()} <= clean
    assert not (folder / "candidates.parquet").exists()


@pytest.mark.parametrize("mode", ["round", "batch"])
def test_learnalign_warms_up_on_random_problems(tmp_path: Path, mode: str) -> None:
    sizes: dict[str, Any] = {"top": None, "chunk": None, "rollouts": None} if mode == "batch" else {"top": 8}
    made = trainer(tmp_path, max_steps=6, mode=mode, engine="sketch", strategy="learnalign",
                   projection="two-sided:4", **sizes)  # fmt: skip
    made.train()
    assert made.curriculum is not None
    tables = [sorted((tmp_path / f"round-{n:04d}").glob("*alignments.parquet")) for n in range(2)]
    warm, asked = ([a for path in paths for a in read_alignments(path)] for paths in tables)
    assert all(a.numbers.learnalign is None for a in warm)
    assert any(a.numbers.learnalign is not None for a in asked)
    assert [(tmp_path / f"round-{n:04d}" / "validation.parquet").exists() for n in range(2)] == [False, True]
    if mode == "round":
        draws = sorted(warm, key=lambda a: -uniform_hash("random", 0, a.key))
        assert made.curriculum.state.history[0] == [a.key for a in draws[:8]]
        assert logged(made, "rollouts")[0] == 0


def test_a_warm_up_with_a_threshold_draws_from_the_whole_chunk(tmp_path: Path) -> None:
    made = trainer(
        tmp_path, max_steps=4, engine="sketch", strategy="learnalign", projection="two-sided:4", threshold=1e-9
    )
    made.train()
    assert made.curriculum is not None
    history = made.curriculum.state.history
    assert len(history[0]) == 16 > len(history[1]) > 0


def test_cropi_trains_on_the_first_rounds_rollouts_scored_again(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {
        "engine": "sketch", "strategy": "cropi", "projection": "two-sided:4", "top": 8, "learning_rate": 1e-3,
    }  # fmt: skip
    made = trainer(tmp_path, max_steps=4, save_total_limit=None, **arguments)
    made.train()
    assert made.curriculum is not None
    pool = {row["key"] for row in datasets()[0]}
    first, second = (read_alignments(tmp_path / f"round-{n:04d}" / "alignments.parquet") for n in range(2))
    assert {a.key for a in first} == {a.key for a in second} == pool
    assert [a.pass_rate for a in first] == [a.pass_rate for a in second]  # the same rollouts
    norms = [[a.numbers.norm for a in table if a.status == "scored"] for table in (first, second)]
    assert norms[0] != pytest.approx(norms[1], rel=0.01)  # by the policy as it is now
    assert not (tmp_path / "round-0001" / "candidates.parquet").exists()
    trusted = sum(len(group.rollouts) for group in read_rollouts(tmp_path / "round-0001" / "validation.parquet"))
    assert logged(made, "rollouts") == [48 * 8 + trusted, trusted]
    assert made.curriculum.groups == {}  # off-policy ones are not trained on
    again = trainer(tmp_path, max_steps=6, **arguments)
    again.train(resume_from_checkpoint=True)
    assert again.curriculum is not None
    assert again.curriculum.state.history[:2] == made.curriculum.state.history
    assert len(read_alignments(tmp_path / "round-0002" / "alignments.parquet")) == 48
    with pytest.raises(GradAlignError, match="holds rollouts of other problems than the pool's"):
        read_groups(tmp_path / "round-0000", ["other"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"mode": "batch"}, "strategy cropi scores rollouts that it samples once, and belongs to mode round"),
        ({"budget": "racing(screen=2, mean=3)"}, "strategy cropi keeps to those of its first round; take budget fixed"),
    ],
)
def test_what_stale_rollouts_do_not_go_with(tmp_path: Path, arguments: dict[str, Any], said: str) -> None:
    sizes: dict[str, Any] = {"top": None, "chunk": None, "rollouts": None} if "mode" in arguments else {}
    with pytest.raises(ValueError, match=said):
        trainer(tmp_path, strategy="cropi", engine="sketch", **arguments, **sizes)
