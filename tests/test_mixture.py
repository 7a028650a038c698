"""Mixtures of pools: shares, limits, repeats across parts; near-duplicates; prompts with examples before them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gradalign.errors import GradAlignError, GradAlignWarning
from gradalign.problems.fields import FieldMap
from gradalign.problems.near import NearIndex, shingles, similarity
from gradalign.problems.prompts import Asking, worked
from gradalign.problems.read import overlap, read_problems
from gradalign.problems.schema import Problem
from tests.conftest import Ran


def write(folder: Path, name: str, count: int, **more: str) -> str:
    rows = [{"prompt": f"{name} {n}", "answer": str(n), **more} for n in range(count)]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"{name}.jsonl"


def mixture(folder: Path, **content: object) -> str:
    (folder / "mix.yaml").write_text(yaml.safe_dump(content))
    return str(folder / "mix.yaml")


def test_without_weights_every_part_gives_all(tmp_path: Path) -> None:
    parts = [{"pool": write(tmp_path, "a", 5)}, {"pool": write(tmp_path, "b", 7), "limit": 3, "source": "web"}]
    pool = read_problems(mixture(tmp_path, parts=parts))
    assert pool.sources == {"a": 5, "web": 3}
    assert [p.prompt for p in pool[:5]] == [f"a {n}" for n in range(5)]


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 5), st.integers(1, 5))
def test_weights_are_shares(tmp_path_factory: pytest.TempPathFactory, a: int, b: int, first: int, second: int) -> None:
    folder = tmp_path_factory.mktemp("mix")
    parts = [{"pool": write(folder, n, c), "weight": w} for n, c, w in (("a", a, first), ("b", b, second))]
    most = int(min(a / first, b / second) * (first + second) + 1e-9)
    spec = mixture(folder, parts=parts)
    if most == 0:
        return
    found = read_problems(spec).sources
    assert abs(found["a"] - most * first / (first + second)) <= 1
    assert most - 1 <= found.total() <= most


def test_size_and_limits(tmp_path: Path) -> None:
    names = write(tmp_path, "a", 100, source="x"), write(tmp_path, "b", 100, source="y")
    parts = [{"pool": names[0], "weight": 3}, {"pool": names[1], "weight": 1, "limit": 15}]
    assert read_problems(mixture(tmp_path, parts=parts, size=40)).sources == {"x": 30, "y": 10}
    assert read_problems(mixture(tmp_path, parts=parts)).sources == {"x": 45, "y": 15}
    assert read_problems(mixture(tmp_path, parts=parts, limits={"x": 9})).sources == {"x": 9, "y": 3}
    one, other = (set(read_problems(mixture(tmp_path, parts=parts, size=40, seed=s)).keys) for s in (0, 1))
    assert one != other
    with pytest.raises(GradAlignError, match=r"part 2 .b\.jsonl. can give 15 problems, and its share of size 80 is 20"):
        read_problems(mixture(tmp_path, parts=parts, size=80))


def test_a_prompt_of_two_parts_is_the_firsts(tmp_path: Path) -> None:
    parts = [
        {"pool": write(tmp_path, "a", 4)},
        {"pool": "a.jsonl", "source": "again"},
        {"pool": write(tmp_path, "b", 1)},
    ]
    with pytest.warns(UserWarning, match="4 of 4 rows repeat an earlier prompt"):
        assert read_problems(mixture(tmp_path, parts=parts)).sources == {"a": 4, "b": 1}


def test_fields_of_a_part_and_other_kinds_of_pool(tmp_path: Path) -> None:
    (tmp_path / "w.csv").write_text("text,gold\nq,1\n")
    parts = [
        {"pool": "w.csv", "prompt_field": "text", "answer_field": "gold"},
        {"pool": "embedded:mixed?size=5", "source": "sums"},
    ]
    assert read_problems(mixture(tmp_path, parts=parts)).sources == {"w": 1, "sums": 5}
    (tmp_path / "v.csv").write_text("text,gold,right\nz,1,2\n")
    parts = [{"pool": "w.csv"}, {"pool": "v.csv", "answer_field": "right"}]
    pool = read_problems(mixture(tmp_path, parts=parts), FieldMap(prompt="text", answer="gold"))
    assert [(p.prompt, p.answer) for p in pool] == [("q", "1"), ("z", "2")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], r"mix\.yaml: is no mapping; list a mixture's pools under parts: \[{pool: FILE}"),
        ({}, r"mix\.yaml: has nothing; list"),
        ({"parts": []}, r"mix\.yaml: has parts; list"),
        ({"sources": [{"pool": "a.jsonl"}]}, r"mix\.yaml: has sources; list"),
        ({"parts": [{"pool": "a.jsonl"}], "limits": {"b": 2}}, r"limits: no problem has source 'b'.*known: a"),
        ({"parts": [{"pool": "a.jsonl"}], "sise": 3}, "unknown field 'sise'; did you mean 'size'"),
        ({"parts": [{"pol": "a.jsonl"}]}, "unknown field 'parts.1.pol'; did you mean 'pool'|field 'parts.1.pool'"),
        ({"parts": [{"pool": "a.jsonl", "weight": -1}]}, "field 'parts.1.weight': should be greater than 0"),
        ({"parts": [{"pool": "a.jsonl", "weight": float("inf")}]}, "field 'parts.1.weight': should be a finite number"),
        ({"parts": [{"pool": "a.jsonl", "limit": "many"}]}, "field 'parts.1.limit': should be a valid integer"),
        ({"parts": [{"pool": "a.jsonl", "weight": 1}, {"pool": "a.jsonl"}]}, "part 2 has no weight, others have"),
        ({"parts": [{"pool": "a.jsonl"}], "size": 3}, "size needs weights"),
        ({"parts": [{"pool": "b.yaml"}]}, "part 1: b.yaml is a mixture itself"),
        ({"parts": [{"pool": "nope.jsonl"}]}, "nope.jsonl: no such file"),
    ],
)
def test_bad_mixtures(tmp_path: Path, content: object, message: str) -> None:
    write(tmp_path, "a", 3)
    (tmp_path / "mix.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(GradAlignError, match=message):
        read_problems(str(tmp_path / "mix.yaml"))


def test_a_file_that_is_no_yaml_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "mix.yaml").write_text("parts: [")
    with pytest.raises(GradAlignError, match=r"mix\.yaml: not YAML"):
        read_problems(str(tmp_path / "mix.yaml"))
    with pytest.raises(GradAlignError, match=r"none\.yaml: no such file"):
        read_problems(str(tmp_path / "none.yaml"))


words = st.lists(st.sampled_from(["one", "two", "three", "four", "five", "six", "seven"]), min_size=1, max_size=12).map(
    " ".join
)


@given(words, words)
def test_similarity_is_jaccards_of_runs_of_three(one: str, other: str) -> None:
    def runs(text: str) -> set[str]:
        w = text.split()
        return {" ".join(w[i : i + 3]) for i in range(max(1, len(w) - 2))}

    a, b = runs(one), runs(other)
    assert similarity(shingles(one), shingles(other)) == pytest.approx(len(a & b) / len(a | b))


def test_near_duplicates_are_found_and_others_are_not() -> None:
    base = "Natalia sold clips to 48 of her friends in April , and then she sold half as many clips in May"
    texts = [f"{base} number {n} {'x' * (n % 5)} extra {n * 7} words to tell them apart {n * n}" for n in range(200)]
    index = NearIndex(0.8)
    for n, text in enumerate(texts):
        index.add(str(n), text)
    found = sum(index.find(text.replace("Natalia", "Maria")) is not None for text in texts)
    assert found >= 195
    assert index.find("A train leaves the station at noon and another one an hour later ; when do they meet ?") is None
    assert NearIndex(0.5).find("nothing was added") is None


def test_near_duplicates_of_a_pool_are_left_out_and_counted(tmp_path: Path) -> None:
    base = "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May."
    other = "A train leaves the station at noon and another one leaves an hour later; when do they meet?"
    rows = [{"prompt": p, "answer": "1"} for p in (base, other, base + " How many?", base)]
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.warns(GradAlignWarning) as said:
        pool = read_problems(str(path), near=0.8)
    messages = [str(w.message) for w in said]
    assert [p.prompt for p in pool] == [base, other]
    assert any("1 of 4 rows repeat" in m for m in messages)
    assert any("1 of 4 rows nearly repeat" in m and "first: row 3, like" in m and "p.jsonl:1" in m for m in messages)
    held = [Problem("v", base.upper().replace("CLIPS IN", "hairpins in"), "1")]
    assert overlap(pool, held) == []
    assert overlap(pool, held, 0.6) == [pool[0].key]


PROBLEM, SHOT = Problem("k", "2+2?", "4"), Problem("s", "1+1?", "2", metadata={"solution": "1+1=2 #### 2"})


def test_plain_prompts_with_examples() -> None:
    shots = worked([SHOT], None)
    assert shots == ((SHOT, "1+1=2 #### 2"),)
    asked = Asking(
        "Q: {prompt}\nA:", system="Be brief.", shots=worked([SHOT], "answer"), shot="{prompt} {response}\n\n"
    )
    assert asked(PROBLEM).prompt == "Be brief.\n\nQ: 1+1?\nA: 2\n\nQ: 2+2?\nA:"
    assert asked(PROBLEM).key == "k"
    code = Problem("c", "Say {response}", "4")
    assert Asking(shots=((code, "yes"),), shot="{prompt}: {response}. ")(PROBLEM).prompt == "Say {response}: yes. 2+2?"


def test_chats_with_examples() -> None:
    asked = Asking("Q: {prompt}", chat=True, system="Be brief.", shots=worked([SHOT], "answer"))
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Q: 1+1?"},
        {"role": "assistant", "content": "2"},
    ]
    assert asked(PROBLEM).prompt == [*turns, {"role": "user", "content": "Q: 2+2?"}]
    own = [{"role": "system", "content": "Mine."}, {"role": "user", "content": "2+2?"}]
    assert asked(Problem("k", own, "4")).prompt == [own[0], *turns[1:], own[1]]
    assert Asking()(Problem("k", own, "4")).prompt == own


def test_examples_need_a_response() -> None:
    with pytest.raises(
        GradAlignError, match=r"'s' has no text in field 'steps' .fields: solution, answer.; .*--shot-field"
    ):
        worked([SHOT], "steps")


def test_examples_may_not_be_asked(gradalign: Callable[..., Ran], tmp_path: Path) -> None:
    write(tmp_path, "a", 3)
    path = tmp_path / "a.jsonl"
    options = "--problems", path, "--few-shot", path, "--reward", "exact", "--out", tmp_path / "r.parquet"
    done = gradalign("rollout", "--model", "embedded", *options)
    assert done.status == 2
    assert "holds 3 of the problems that are to be asked" in done.err
