"""Engine sketch from the outside: the command line, the feature store, curricula."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from gradalign.alignment.align import Scorer
from gradalign.alignment.sketch import Sketch, Sketching
from gradalign.errors import GradAlignError
from gradalign.files import read_json
from gradalign.policy.group import Group
from gradalign.policy.objective import Objective
from gradalign.rollouts.table import write_rollouts
from tests.conftest import Ran, make_groups, make_policy
from tests.test_learnalign import written_out
from tests.test_select_command import write_pool
from tests.trl_run import trainer

Run = Callable[..., Ran]
pytestmark = pytest.mark.filterwarnings("ignore::gradalign.errors.GradAlignWarning", "ignore::FutureWarning")
SKETCH = ("--engine", "sketch", "--projection", "two-sided:6")


@pytest.fixture
def command(llama_folder: Path, tmp_path: Path) -> list[Any]:
    """``gradalign score`` of seven problems."""
    write_rollouts(tmp_path / "c.parquet", make_groups(7, 1))
    write_rollouts(tmp_path / "v.parquet", make_groups(12, 2, prefix="v"))
    return [
        "score", "--model", llama_folder, "--candidates", tmp_path / "c.parquet", "--validation",
        tmp_path / "v.parquet", "--out", tmp_path / "s.parquet",
    ]  # fmt: skip


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys of the groups whose features were computed."""
    keys: list[str] = []
    plain = Sketch._computed

    def counting(self: Sketch, groups: Iterable[Group]) -> Iterator[Any]:
        some = list(groups)
        keys.extend(group.key for group in some)
        return plain(self, some)

    monkeypatch.setattr(Sketch, "_computed", counting)
    return keys


def rows(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist()


def test_features_are_kept_and_compared(
    gradalign: Run, command: list[Any], tmp_path: Path, computed: list[str]
) -> None:
    store, options = tmp_path / "store", [*SKETCH, "--store", tmp_path / "store", "--gram", "--strategy", "learnalign"]
    ran = gradalign(*command, *options, "--top", 2)
    assert ran.status == 0, ran.err
    found = rows(tmp_path / "s.parquet")
    assert computed == [row["key"] for row in found]
    dimension = 2 * (7 * 36 + 2 * 32) + 2 * 36 + 32  # vectors of 32 numbers are shorter than 36
    features = np.fromfile(store / "features.f32", "<f4").reshape(7, dimension)
    assert f"sketch: of 100.0% of the trainable parameters, {dimension:,} numbers a problem" in ran.out
    np.testing.assert_allclose(np.load(store / "gram.npy"), features.astype(float) @ features.astype(float).T)
    np.testing.assert_allclose([row["norm"] for row in found], np.linalg.norm(features, axis=1), rtol=1e-6)
    rates = np.array([row["pass_rate"] for row in found])
    np.testing.assert_allclose([row["score"] for row in found], written_out(features, rates), rtol=1e-6)
    config = read_json(tmp_path / "s.config.json")
    assert config["sketch"]["dimension"] == dimension
    assert config["options"]["projection"] == "two-sided:6"

    files = {path: path.read_bytes() for path in store.iterdir()}
    computed.clear()
    assert gradalign(*command, *options, "--top", 2).status == 0
    assert computed == []
    assert {path: path.read_bytes() for path in store.iterdir()} == files
    assert rows(tmp_path / "s.parquet") == found

    computed.clear()  # without a store: the same but for rounding
    assert gradalign(*command, *SKETCH).status == 0
    assert len(computed) == 7
    again = rows(tmp_path / "s.parquet")
    assert [row["cosine"] for row in again] == pytest.approx([row["cosine"] for row in found], abs=1e-6)


def test_what_is_there_is_not_computed_again(
    gradalign: Run, command: list[Any], tmp_path: Path, computed: list[str]
) -> None:
    groups = make_groups(7, 1)
    write_rollouts(tmp_path / "c.parquet", groups[1:4])
    options = [*SKETCH, "--store", tmp_path / "store"]
    assert gradalign(*command, *options).status == 0
    write_rollouts(tmp_path / "c.parquet", groups)
    computed.clear()
    assert gradalign(*command, *options).status == 0
    assert computed == ["g0", "g4", "g5", "g6"]
    listed = [json.loads(line)["key"] for line in (tmp_path / "store" / "rows.jsonl").read_text().splitlines()]
    assert listed == ["g1", "g2", "g3", "g0", "g4", "g5", "g6"]
    found = rows(tmp_path / "s.parquet")
    assert gradalign(*command, *SKETCH).status == 0
    assert [r["dot"] for r in found] == pytest.approx([r["dot"] for r in rows(tmp_path / "s.parquet")], rel=1e-4)

    for other in (("--seed", 1), ("--layers", "last:1"), ("--temperature", 0.5), ("--parameters", "*layers*")):
        assert "holds other features (made with another" in gradalign(*command, *options, *other).error


def test_lines_of_mistakes(gradalign: Run, command: list[Any], tmp_path: Path) -> None:
    mistakes: list[tuple[list[Any], str]] = [
        (["--layers", "lm-head"], "option --layers is of --engine sketch"),
        (["--engine", "sketch", "--layers", "lm_head"], "did you mean 'lm-head'?"),
        (["--engine", "sketch", "--projection", "two-sided:0"], "R must be a whole number of at least 1"),
        (["--engine", "sketch", "--projection", "none", "--store", tmp_path / "f"], "cannot hold unprojected"),
        (["--engine", "sketch", "--gram"], "name one by --store"),
        (["--engine", "sketch", "--strategy", "tscore"], "strategy 'tscore' needs t, which engine 'sketch' does not"),
        (["--strategy", "learnalign"], "engine 'exact' does not give; take --engine sketch"),
        (
            ["--engine", "sketch", "--strategy", "learnalign", "--projection", "none"],
            "LearnAlign compares the features",
        ),
        (["--engine", "sketch", "--layers", "last:3"], "the model has 2 blocks"),
    ]
    for options, said in mistakes:
        assert said in gradalign(*command, *options).error
    groups = make_groups(7, 1)
    groups[2].rollouts[0].reward = 30.0
    write_rollouts(tmp_path / "c.parquet", groups)
    ran = gradalign(*command, *SKETCH, "--strategy", "learnalign")
    assert "the mean reward of problem 3 is 6" in ran.error
    assert gradalign(*command, *SKETCH).status == 0  # any rewards do for other strategies


def test_it_tells_how_far_it_agrees(gradalign: Run, command: list[Any], tmp_path: Path) -> None:
    write_rollouts(tmp_path / "c.parquet", make_groups(20, 1))
    ran = gradalign(*command, "--engine", "sketch", "--layers", "lm-head")
    assert "rank correlation of 16 cosines " in ran.out
    assert " with itself under another seed" in ran.out
    found = read_json(tmp_path / "s.config.json")["sketch"]
    assert found["checked"] == 16
    assert -1 <= found["exact"] <= found["itself"] <= 1 or found["itself"] < 1
    assert f"{found['exact']:.3f} with engine exact" in ran.out


PARTS = ("--contributions", "--gates", "consistent", "--rank", "dot")


def test_near_duplicates_are_passed_over_for_what_differs(gradalign: Run, command: list[Any], tmp_path: Path) -> None:
    groups = make_groups(16, 1)
    write_rollouts(tmp_path / "c.parquet", groups)
    assert gradalign(*command, "--strategy", "dot").status == 0
    best = min(rows(tmp_path / "s.parquet"), key=lambda row: row["rank"])["key"]
    original = next(group for group in groups if group.key == best)
    for number in range(6):  # the same problem but for one token of one response
        copy = dataclasses.replace(original, key=f"copy{number}", rollouts=[*original.rollouts])
        changed = copy.rollouts[number % 5]
        ids = np.append(changed.response_ids, number)
        copy.rollouts = [dataclasses.replace(r, response_ids=ids) if r is changed else r for r in copy.rollouts]
        groups.append(copy)
    tossed = dataclasses.replace(original, key="tossed", rollouts=[*original.rollouts])
    tossed.rollouts = [*tossed.rollouts, dataclasses.replace(tossed.rollouts[0], reward=1.0)]
    write_rollouts(tmp_path / "c.parquet", [*groups, tossed])
    copies = {}
    for pick in ("top", "diverse"):
        ran = gradalign(*command, *SKETCH, *PARTS, "--pick", pick, "--top", 7)
        assert ran.status == 0, ran.err
        found = {row["key"]: row for row in rows(tmp_path / "s.parquet")}
        assert found["tossed"]["gate"] == "consistent"
        chosen = [key for key, row in found.items() if row["selected"]]
        assert len(chosen) == 7
        assert sorted(found[key]["rank"] for key in chosen) == list(range(1, 8))
        copies[pick] = sum(key.startswith("copy") or key == best for key in chosen)
    assert copies["diverse"] < copies["top"], copies


def test_select_picks_a_diverse_set(gradalign: Run, tmp_path: Path) -> None:
    pool, trusted = write_pool(tmp_path / "pool.jsonl", 30, 1), write_pool(tmp_path / "val.jsonl", 24, 2)
    base = ["select", "--model", "embedded", "--reward", "countdown", "--max-new-tokens", 6, "-n", 8, "--pool", pool,
            "--validation", trusted, "--allow-overlap", "--top", 6, *SKETCH, *PARTS]  # fmt: skip
    worth = {}
    for pick in ("top", "diverse"):
        run, store = tmp_path / pick, tmp_path / f"{pick}-features"
        ran = gradalign(*base, "--pick", pick, "--store", store, "--out", run)
        assert ran.status == 0, ran.err
        table = {row["key"]: row for row in rows(run / "round-0000" / "alignments.parquet")}
        keys = [json.loads(line)["key"] for line in (store / "rows.jsonl").read_text().splitlines()]
        features = dict(zip(keys, np.fromfile(store / "features.f32", "<f4").reshape(len(keys), -1), strict=True))
        chosen = [key for key, row in table.items() if row["selected"]]
        assert len(chosen) == 6
        total = np.linalg.norm(sum(features[key].astype(float) for key in chosen))
        worth[pick] = sum(table[key]["score"] for key in chosen) / total
    assert worth["diverse"] > worth["top"]


def test_learnalign_needs_features() -> None:
    policy = make_policy("llama")
    for options in ({"engine": "exact"}, {"engine": "sketch", "sketching": Sketching(projection="none")}):
        with pytest.raises(GradAlignError, match="LearnAlign compares the features of all problems"):
            Scorer(policy, Objective(), wanted=frozenset({"learnalign"}), **options)


@pytest.mark.parametrize("mode", ["round", "batch"])
def test_training_on_what_a_sketch_chooses(tmp_path: Path, mode: str) -> None:
    sizes: dict[str, Any] = {"top": None, "chunk": None, "rollouts": None} if mode == "batch" else {}
    made = trainer(
        tmp_path, max_steps=2, mode=mode, engine="sketch", rank="learnalign", projection="two-sided:4",
        strategy="gradalign", **sizes,
    )  # fmt: skip
    made.train()
    tables = sorted(tmp_path.glob("**/*alignments.parquet"))
    assert tables
    assert any(row["learnalign"] is not None for row in rows(tables[0]))
    facts = read_json(min(tmp_path.glob("**/metrics.json")))["sketch"]
    assert facts["dimension"] > 0
