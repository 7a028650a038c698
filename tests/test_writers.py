"""Chosen sets as trainers take them, and back through our readers; scores joined on all candidates."""

from __future__ import annotations

import datetime
import json
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradalign.alignment.record import Alignment, Numbers
from gradalign.curriculum.round import write_choice
from gradalign.errors import GradAlignError, GradAlignWarning
from gradalign.problems.fields import FieldMap
from gradalign.problems.read import read_problems
from gradalign.problems.schema import Problem, Prompt
from gradalign.problems.write import Target, write_chosen

NASTY = st.text(st.characters(codec="utf-8"), max_size=12)
FILLED = NASTY.filter(str.strip)
ANSWERS = FILLED.filter(lambda text: "####" not in text)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | FINITE | NASTY,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NASTY, inner, max_size=3),
    max_leaves=6,
)
ROLES = st.sampled_from(["system", "user", "assistant"])
CHATS = st.lists(st.fixed_dictionaries({"role": ROLES, "content": NASTY}), min_size=1, max_size=3)


@st.composite
def problem_sets(draw: st.DrawFn, metadata: st.SearchStrategy[dict[str, Any]]) -> list[Problem]:
    """Problems with keys and prompts of their own."""
    answers = draw(st.lists(st.tuples(ANSWERS, FILLED, metadata, st.none() | CHATS), min_size=1, max_size=4))
    made = []
    for i, (answer, source, extra, chat) in enumerate(answers):
        prompt: Prompt = f"{i} {source}" if chat is None else [{"role": "user", "content": f"{i}"}, *chat]
        made.append(Problem(f"{i}{source}", prompt, answer, source, extra))
    return made


@given(problem_sets(st.dictionaries(NASTY, VALUES, max_size=3)))
def test_verl_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, problems: list[Problem]) -> None:
    path = write_chosen(tmp_path_factory.mktemp("verl"), problems, "verl")
    assert list(read_problems(str(path))) == problems


@given(problem_sets(st.fixed_dictionaries({"n": st.integers(-9, 9), "l": st.lists(NASTY), "d": st.just({"a": 1.5})})))
def test_verl_with_like_metadata_comes_back_and_is_nested(
    tmp_path_factory: pytest.TempPathFactory, problems: list[Problem]
) -> None:
    path = write_chosen(tmp_path_factory.mktemp("verl"), problems, "verl")
    assert isinstance(pq.read_table(path).to_pylist()[0]["extra_info"]["metadata"], dict)
    assert list(read_problems(str(path))) == problems


@given(problem_sets(st.dictionaries(FILLED.map(lambda name: f"m {name}"), VALUES, max_size=3)))
def test_trl_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, problems: list[Problem]) -> None:
    path = write_chosen(tmp_path_factory.mktemp("trl"), problems, "trl")
    assert list(read_problems(str(path))) == problems


def chosen() -> list[Problem]:
    return [
        Problem("a", "1+1?", "2", "sums", {"numbers": [1, 1], "level": 1, "note": None}),
        Problem("b", "2+2?", "4", "sums", {"numbers": [2, 2], "level": 2}),
    ]


def test_verl_rows_are_what_verl_reads(tmp_path: Path) -> None:
    path = write_chosen(tmp_path, chosen(), "verl")
    loaded = datasets.load_dataset("parquet", data_files=str(path), cache_dir=str(tmp_path / "cache"))["train"]
    first, second = loaded
    assert first["prompt"] == [{"role": "user", "content": "1+1?"}]
    assert (first["data_source"], first["ability"]) == ("sums", "reasoning")
    assert second["reward_model"] == {"style": "rule", "ground_truth": "4"}
    assert [row["extra_info"]["index"] for row in loaded] == [0, 1]
    assert first["extra_info"]["split"] == "train"
    # The rows' fields differ, so that a struct would add nulls: JSON text.
    assert json.loads(second["extra_info"]["metadata"]) == {"numbers": [2, 2], "level": 2}


def test_foreign_verl_rows_keep_their_own_metadata(tmp_path: Path) -> None:
    row = {
        "data_source": "s", "prompt": [{"role": "user", "content": "q"}], "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "1"}, "extra_info": {"index": 3, "metadata": {"a": 1}},
    }  # fmt: skip
    (tmp_path / "p.jsonl").write_text(json.dumps(row))
    (problem,) = read_problems(str(tmp_path / "p.jsonl"))
    assert problem.prompt == row["prompt"]
    assert problem.metadata["extra_info"] == {"index": 3, "metadata": {"a": 1}}


def test_a_datasets_folder_is_read_by_the_library_and_by_us(tmp_path: Path) -> None:
    path = write_chosen(tmp_path, chosen(), "datasets")
    loaded = datasets.load_from_disk(str(path))
    assert loaded.column_names == ["prompt", "answer", "key", "source", "numbers", "level", "note"]
    assert loaded["numbers"][1] == [2, 2]
    pool = read_problems(f"hf:{path}")
    assert [(p.key, p.prompt, p.answer, p.source) for p in pool] == [
        (p.key, p.prompt, p.answer, p.source) for p in chosen()
    ]
    assert pool[1].metadata == {"numbers": [2, 2], "level": 2, "note": None}
    (arrow, state) = (path / name for name in ("data-00000-of-00001.arrow", "state.json"))
    before = arrow.read_bytes(), state.read_bytes()
    write_chosen(tmp_path, chosen(), "datasets")
    assert (arrow.read_bytes(), state.read_bytes()) == before  # the same problems, the same bytes
    again = write_chosen(tmp_path, chosen()[:1], "datasets")  # the older folder is replaced as one
    assert len(datasets.load_from_disk(str(again))) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["chosen.datasets"]


def test_a_datasets_folder_of_mixed_prompts_and_values(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    problems = [Problem("a", "p", "1", "s", {"m": "text"}), Problem("b", chat, "2", "s", {"m": {"x": 1}})]
    with pytest.warns(GradAlignWarning, match="column 'm': its values are of several kinds"):
        path = write_chosen(tmp_path, problems, "datasets")
    loaded = datasets.load_from_disk(str(path))
    assert loaded["prompt"][0] == [{"role": "user", "content": "p"}]
    assert loaded["prompt"][1] == chat
    assert list(map(json.loads, loaded["m"])) == ["text", {"x": 1}]


@pytest.mark.parametrize("target", ["trl", "verl", "datasets"])
def test_metadata_that_json_does_not_know(target: Any, tmp_path: Path) -> None:
    odd = {"price": Decimal("1.10"), "day": datetime.date(2026, 1, 2), "raw": b"\x00\xff", "pair": (1, 2), "n": 3}
    problems = [Problem("a", "p", "1", "s", odd), Problem("b", "q", "2", "s", odd)]
    with pytest.warns(GradAlignWarning, match=r"'raw' \(bytes in 2 rows\)") as warned:
        path = write_chosen(tmp_path, problems, target)
    assert len(warned) == 1
    (problem, _) = read_problems(str(path))
    assert problem.metadata == {"price": "1.10", "day": "2026-01-02", "pair": [1, 2], "n": 3}


@pytest.mark.parametrize("target", ["trl", "datasets"])
def test_metadata_named_like_a_rows_own_fields_is_kept(target: Any, tmp_path: Path) -> None:
    problems = [Problem("a", "p", "1", "s", {"prompt": "other", "source": "web", "level": 1})]
    (problem,) = read_problems(str(write_chosen(tmp_path, problems, target)))
    assert (problem.prompt, problem.source) == ("p", "s")
    assert problem.metadata == {"metadata.prompt": "other", "metadata.source": "web", "level": 1}


def test_an_empty_choice_has_the_columns_all_the_same(tmp_path: Path) -> None:
    table = pq.read_table(write_chosen(tmp_path, [], "verl"))
    assert table.num_rows == 0
    assert table.column_names == ["data_source", "prompt", "ability", "reward_model", "extra_info"]
    assert write_chosen(tmp_path, [], "trl").read_text() == ""


def test_what_cannot_be_written_leaves_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = write_chosen(tmp_path, chosen(), "verl").read_bytes()
    folder = write_chosen(tmp_path, chosen(), "datasets")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    monkeypatch.setattr(datasets.Dataset, "save_to_disk", full)
    targets: tuple[Target, ...] = ("verl", "datasets")
    for target in targets:
        with pytest.raises(GradAlignError, match="cannot be written"):
            write_chosen(tmp_path, chosen()[:1], target)
    assert (tmp_path / "chosen.verl.parquet").read_bytes() == before
    assert len(datasets.load_from_disk(str(folder))) == 2
    assert len(list(tmp_path.iterdir())) == 2


def test_scores_are_joined_on_all_candidates(tmp_path: Path) -> None:
    pool = [*chosen(), Problem("c", [{"role": "user", "content": "3?"}], "3", "other", {"rank": "mine"})]
    alignments = [
        Alignment("a", "sums", "scored", 0.5, 8, 40, Numbers(dot=0.25, cosine=0.5), score=0.5, rank=2, selected=False),
        Alignment("b", "sums", "scored", 0.25, 8, 40, Numbers(dot=1 / 3), score=math.pi, rank=1, selected=True),
        Alignment("c", "other", "zero_variance", 1.0, 8, 40, Numbers(), rank=3, selected=False, gate="variance"),
    ]
    trl, scored = write_choice(tmp_path, pool, alignments, ["trl", "scored"])
    assert [json.loads(line)["key"] for line in trl.read_text().splitlines()] == ["b"]
    rows = [json.loads(line) for line in scored.read_text().splitlines()]
    assert [row["key"] for row in rows] == ["b", "a", "c"]
    assert rows[0]["score"] == math.pi
    assert rows[0]["dot"] == 1 / 3
    assert [row["selected"] for row in rows] == [True, False, False]
    assert rows[1]["numbers"] == [1, 1]
    assert rows[2] == {
        "prompt": [{"role": "user", "content": "3?"}], "answer": "3", "key": "c", "source": "other",
        "status": "zero_variance", "pass_rate": 1.0, "n_rollouts": 8, "n_tokens": 40, "dot": None, "norm": None,
        "cosine": None, "se": None, "t": None, "corr": None, "learnalign": None, "score": None, "rank": 3,
        "selected": False, "gate": "variance", "metadata.rank": "mine",
    }  # fmt: skip
    assert len(read_problems(str(scored))) == 3


def test_rows_that_were_verls_keep_what_verl_and_its_rewards_see(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {
            "data_source": "countdown", "prompt": [{"role": "user", "content": f"reach {n}"}], "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": {"target": n, "numbers": [n, 1]}},
            "extra_info": {"split": "train", "index": n, "question": f"q{n}", "metadata": {"a": n}},
            "agent_name": "single_turn_agent",
        }
        for n in (7, 9)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pool.parquet")
    problems = list(read_problems(str(tmp_path / "pool.parquet"), FieldMap(answer="reward_model.ground_truth.target")))
    path = write_chosen(tmp_path, problems, "verl")
    for row, written in zip(rows, pq.read_table(path).to_pylist(), strict=True):
        theirs, info = dict(row), dict(written)
        extra, own = theirs.pop("extra_info"), info.pop("extra_info")
        assert info == theirs
        extra.pop("metadata")  # ours now, and the row's own inside it
        assert own.items() >= extra.items()
    assert list(read_problems(str(path))) == problems
