from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradalign.errors import GradAlignError, GradAlignWarning
from gradalign.problems.embedded import FAMILIES, POOLS, make_pool
from gradalign.problems.fields import FieldMap
from gradalign.problems.prompts import Asking
from gradalign.problems.read import overlap, read_problems
from gradalign.problems.schema import content_key, normalised, uniform_hash
from gradalign.problems.write import write_chosen
from gradalign.rewards.countdown import countdown


def pool(tmp_path: Path, *rows: dict[str, Any], name: str = "p.jsonl") -> str:
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("row", "prompt", "answer"),
    [
        ({"question": "q?", "answer": "so\n#### 1,234"}, "q?", "1,234"),
        ({"problem": "q?", "solution": "7"}, "q?", "7"),
        ({"input": "q?", "target": 43.0}, "q?", "43"),
        ({"prompt": "q?", "ground_truth": "x"}, "q?", "x"),
        ({"prompt": [{"role": "user", "content": "q?"}], "answer": 0.5}, [{"role": "user", "content": "q?"}], "0.5"),
    ],
)
def test_common_fields_are_recognised(tmp_path: Path, row: dict[str, Any], prompt: Any, answer: str) -> None:
    (problem,) = read_problems(pool(tmp_path, row))
    assert (problem.prompt, problem.answer, problem.source) == (prompt, answer, "p")
    assert problem.key == content_key("q?")


def test_fields_can_be_mapped_and_others_are_kept(tmp_path: Path) -> None:
    row = {"text": "q?", "gold": "1", "id": 5, "from": "web", "level": 3}
    fields = FieldMap(prompt="text", answer="gold", key="id", source="from")
    (problem,) = read_problems(pool(tmp_path, row), fields)
    assert (problem.prompt, problem.answer, problem.key, problem.source) == ("q?", "1", "5", "web")
    assert problem.metadata == {"level": 3}


def test_gsm8k_solutions_are_kept(tmp_path: Path) -> None:
    (problem,) = read_problems(pool(tmp_path, {"question": "q", "answer": "1+1=2\n#### 2"}))
    assert problem.metadata["solution"] == "1+1=2\n#### 2"


def test_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([{"prompt": "a", "answer": "1"}]), tmp_path / "p.parquet")
    assert read_problems(str(tmp_path / "p.parquet"))[0].answer == "1"
    decimals = [{"prompt": "a", "answer": Decimal("3.00")}, {"prompt": "b", "answer": Decimal("0.25")}]
    pq.write_table(pa.Table.from_pylist(decimals), tmp_path / "d.parquet")
    assert [p.answer for p in read_problems(str(tmp_path / "d.parquet"))] == ["3", "0.25"]


def test_duplicates_are_counted_with_conflicts(tmp_path: Path) -> None:
    rows = [{"prompt": p, "answer": a} for p, a in [("a b", "1"), ("a  b", "1"), ("c", "2"), ("a b ", "9")]]
    with pytest.warns(GradAlignWarning, match=r"2 of 4 rows.*first: row 2.*1 of them with another answer \(row 4"):
        problems = read_problems(pool(tmp_path, *rows))
    assert [p.answer for p in problems] == ["1", "2"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "holds no problem"),
        ([{"answer": "1"}], r"p\.jsonl:1: no field for the prompt .looked for prompt, question.*--prompt-field"),
        ([{"prompt": "q"}], r"p\.jsonl:1: no field for the answer"),
        ([{"prompt": "q", "answer": None}], r"p\.jsonl:1: field 'answer' is empty; fill it, or name another by"),
        ([{"prompt": "q", "answer": float("inf")}], r"field 'answer' is float inf"),
        ([{"prompt": "", "answer": "1"}], r"field 'prompt' is empty"),
        ([{"prompt": 5, "answer": "1"}], r"field 'prompt' is int 5; write a text, or chat messages"),
        ([{"prompt": [{"role": "user"}], "answer": "1"}], r"field 'prompt' is list"),
        ([{"prompt": "q", "answer": ["1"]}], r"field 'answer' is list"),
        ([{"prompt": "q", "answer": float("nan")}], r"field 'answer' is float nan"),
        (
            [{"key": "k", "prompt": p, "answer": "1"} for p in "ab"],
            r":2: key 'k' already names another prompt .*:1",
        ),
    ],
)
def test_bad_pools(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(GradAlignError, match=message):
        read_problems(pool(tmp_path, *rows))


def test_a_mapped_field_that_is_missing_offers_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(GradAlignError, match="field 'promt' is missing or empty; did you mean 'prompt'"):
        read_problems(pool(tmp_path, {"prompt": "q", "answer": "1"}), FieldMap(prompt="promt"))
    with pytest.raises(GradAlignError, match=r"field 'a\.golt' is missing or empty; did you mean 'gold'"):
        read_problems(pool(tmp_path, {"prompt": "q", "a": {"gold": "1"}}), FieldMap(answer="a.golt"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("embedded:mixd", "unknown embedded pool 'mixd'; did you mean 'mixed'"),
        ("embedded:mixed?sise=3", "unknown setting 'sise'; did you mean 'size'"),
        ("embedded:mixed?size=many", "size is 'many': should be a valid integer"),
        ("embedded:mixed?size=0", "size is '0': should be greater"),
        ("embedded:countdown?size=99999999", "fewer|only about"),
    ],
)
def test_bad_embedded_specs(spec: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "9999" in spec:
        monkeypatch.setattr("gradalign.problems.embedded.FAMILIES", {"countdown": lambda rng: ("1>1=", "1", "1", [1])})
        spec = "embedded:countdown?size=3"
    with pytest.raises(GradAlignError, match=message):
        read_problems(spec)


def test_embedded_pools_are_seeded_distinct_and_solvable() -> None:
    for name in POOLS:
        problems = make_pool(name, 80, 3)
        assert problems == make_pool(name, 80, 3)
        assert problems != make_pool(name, 80, 4)
        assert len({p.key for p in problems}) == 80
        assert {p.source for p in problems} <= set(FAMILIES)


def test_the_makers_solutions_are_paid() -> None:
    import random

    rng = random.Random(0)
    for make in FAMILIES.values():
        for _ in range(200):
            _, solution, answer, numbers = make(rng)
            assert countdown([solution], [answer], [numbers]) == [1.0]


def test_overlap_is_by_normalised_text(tmp_path: Path) -> None:
    left = read_problems(pool(tmp_path, *({"prompt": p, "answer": "1"} for p in ("One  two", "three"))))
    right = read_problems(pool(tmp_path, {"prompt": "one TWO", "answer": "2"}, name="v.jsonl"))
    assert overlap(left, right) == [left[0].key]
    assert overlap(right, left[1:]) == []


@given(st.text(min_size=1))
def test_keys_ignore_space_and_hash_uniformly(text: str) -> None:
    assert normalised(f"  {text}\n") == normalised(text)
    assert 0 <= uniform_hash(1, text) < 1
    assert content_key(text) == content_key(text + " ")


def test_uniform_hash_is_pinned() -> None:
    """Ties, coins and chunks of published runs hang on it."""
    assert uniform_hash("toss", 0, "key", 3) == pytest.approx(PINNED, abs=1e-12)


PINNED = 0.9682330217517955


def test_templates_touch_plain_prompts_only(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "q"}]
    plain, talk = read_problems(pool(tmp_path, {"prompt": "p {x}", "answer": "1"}, {"prompt": chat, "answer": "1"}))
    assert Asking("Q: {prompt}\nA:")(plain).prompt == "Q: p {x}\nA:"
    assert Asking(chat=True)(plain).prompt == [{"role": "user", "content": "p {x}"}]
    assert Asking("Q: {prompt}")(talk).prompt == chat
    assert Asking("Q: {prompt}")(plain).key == plain.key


def test_chosen_sets_for_trl_and_verl(tmp_path: Path) -> None:
    problems = make_pool("countdown", 3, 0)
    rows = [json.loads(line) for line in write_chosen(tmp_path, problems, "trl").read_text().splitlines()]
    assert [r["prompt"] for r in rows] == [p.prompt for p in problems]
    assert rows[0].keys() == {"prompt", "answer", "key", "source", "numbers"}
    verl = pq.read_table(write_chosen(tmp_path, problems, "verl")).to_pylist()
    assert verl[1]["prompt"] == [{"role": "user", "content": problems[1].prompt}]
    assert verl[1]["reward_model"] == {"style": "rule", "ground_truth": problems[1].answer}
    assert verl[1]["extra_info"]["index"] == 1
    assert verl[1]["extra_info"]["metadata"] == problems[1].metadata
    assert verl[1].keys() == {"data_source", "prompt", "ability", "reward_model", "extra_info"}
