"""Files of problems: CSV, verl's Parquet, nested fields; whatever is in them, one line or a problem."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradalign.errors import GradAlignError, GradAlignWarning
from gradalign.problems.fields import LONGEST, FieldMap
from gradalign.problems.read import read_problems
from gradalign.problems.readers import open_reader


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_bytes(b'\xef\xbb\xbfquestion,answer,note\r\n"a, ""b""\nc",007,\r\n\r\nd,2,x\r\n')
    one, two = read_problems(str(path))
    assert (one.prompt, one.answer, one.source, one.metadata) == ('a, "b"\nc', "007", "p", {})
    assert (two.prompt, two.answer, two.metadata) == ("d", "2", {"note": "x"})


def test_tsv_and_chat_messages(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": 'tell\tme, "now"'}]
    with (tmp_path / "p.tsv").open("w", newline="") as file:
        csv.writer(file, delimiter="\t").writerows([["prompt", "answer"], [json.dumps(chat), "[1, 2]"]])
    (problem,) = read_problems(str(tmp_path / "p.tsv"))
    assert (problem.prompt, problem.answer) == (chat, "[1, 2]")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"prompt,answer\na,1\nb\n", r"p\.csv:3: has 1 cells, and the header 2; quote cells"),
        (b"prompt,answer\na,1,2\n", r"p\.csv:2: has 3 cells"),
        (b"prompt,prompt\na,1\n", r"p\.csv:1: the header names 'prompt' twice"),
        (b"prompt;answer\na;1\n", r"p\.csv:1: the header is one cell, 'prompt;answer'; write commas"),
        (b"prompt,\na,1\n", r"p\.csv:1: the header has a cell without a name"),
        (b'prompt,answer\n"a,1\n', r"p\.csv:2: not CSV .unexpected end of data"),
        (b'prompt,answer\n"a"b,1\n', r"p\.csv:2: not CSV"),
        (b"prompt,answer\na\xff,1\n", r"p\.csv:2: not UTF-8 text .invalid start byte at byte 2 of the line"),
        (b"prompt,answer\na,\n", r"p\.csv:2: no field for the answer"),
        (b"", r"p\.csv: holds no problem"),
        (b"prompt,answer\n", r"p\.csv: holds no problem"),
        ("prompt,answer\na,1\n".encode("utf-16"), r"p\.csv: is UTF-16 text; convert it"),
        (b"prompt,answer\n" + b"a" * (LONGEST + 1) + b",1\n", r"p\.csv:2: field 'prompt' has 1,000,001 characters"),
        (b"prompt,answer\n" + b"a" * 5_000_000 + b",1\n", r"p\.csv:2: not CSV .field larger than"),
        (b'prompt,answer\n"' + b"a\n" * 3_000_000, r"p\.csv:\d+: not CSV .field larger than"),
        (b"prompt,answer\na\0b,1\nc,2\n", None),
        (b'prompt,answer\n"' + b'[{""a"":' * 50_000 + b'",1\nc,2\n', None),
    ],
    ids=range(17),
)
def test_bad_csv(tmp_path: Path, text: bytes, message: str | None) -> None:
    path = tmp_path / "p.csv"
    path.write_bytes(text)
    if message is None:
        assert len(read_problems(str(path))) == 2
        return
    with pytest.raises(GradAlignError, match=message):
        read_problems(str(path))


def outcome(path: Path, skip: bool) -> str:
    """What reading a file ends with: nothing, an error's line, or a warning's; anything else fails."""
    try:
        for problem in read_problems(str(path), skip=skip):
            assert problem.prompt
            assert problem.answer
            assert isinstance(problem.key, str)
    except (GradAlignError, GradAlignWarning) as said:
        return str(said)
    return ""


@given(st.binary(max_size=200))
@settings(max_examples=60)
def test_no_bytes_crash_a_reader(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    for name in ("p.csv", "p.tsv", "p.jsonl", "p.parquet"):
        for head in (b"", b"prompt,answer\n", b'{"prompt": "a", "answer": "'):
            (folder / name).write_bytes(head + data)
            for skip in (False, True):
                assert "\n" not in outcome(folder / name, skip)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(["prompt", "question", "answer", "target", "key", "source", "reward_model", "extra_info", "x"])


@given(st.lists(st.dictionaries(names, json_values, max_size=5), min_size=1, max_size=5))
@settings(max_examples=150)
def test_no_row_crashes_the_reader(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> None:
    path = tmp_path_factory.mktemp("rows") / "p.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "\n" not in outcome(path, skip=False)


VERL = {
    "data_source": "openai/gsm8k",
    "prompt": [{"role": "user", "content": "1+1?"}],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "2"},
    "extra_info": {"split": "train", "index": 0},
}


def test_verl_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([VERL]), tmp_path / "p.parquet")
    (problem,) = read_problems(str(tmp_path / "p.parquet"))
    assert (problem.prompt, problem.answer, problem.source) == (VERL["prompt"], "2", "openai/gsm8k")
    assert problem.metadata == {n: VERL[n] for n in ("ability", "reward_model", "extra_info")}


def test_nested_fields(tmp_path: Path) -> None:
    row = {"q": {"text": "1+1?"}, "reward_model": {"ground_truth": {"target": 7, "numbers": [3, 4]}}, "m": {"id": 3}}
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(
        GradAlignError, match=r"'reward_model.ground_truth' is dict .*name the field inside it by --ans"
    ):
        read_problems(str(path), FieldMap(prompt="q.text"))
    names = FieldMap("q.text", "reward_model.ground_truth.target", "m.id")
    (problem,) = read_problems(str(path), names)
    assert (problem.prompt, problem.answer, problem.key) == ("1+1?", "7", "3")
    assert problem.metadata == row
    with pytest.raises(GradAlignError, match=r"field 'q\.txt' is missing"):
        read_problems(str(path), FieldMap(prompt="q.txt"))
    path.write_text(json.dumps({"a.b": "q", "answer": "1"}) + "\n")
    assert read_problems(str(path), FieldMap(prompt="a.b"))[0].prompt == "q"


def test_an_answer_may_not_be_missing_after_its_mark(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"question": "q", "answer": "so ####  "}) + "\n")
    with pytest.raises(GradAlignError, match="has nothing after ####"):
        read_problems(str(path))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nope.jsonl", "nope.jsonl: no such file"),
        ("embeded:mixed", "unknown kind of pool 'embeded'; did you mean 'embedded'"),
        ("file:nope.csv", "nope.csv: no such file"),
        ("embedded:mixed?size=3&sise=2", "unknown setting 'sise'; did you mean 'size'"),
        ("embedded:mixed?size=3&size=2", "names setting 'size' twice"),
        ("hf:", "names no data set; write hf:OWNER/NAME"),
    ],
)
def test_bad_specs(spec: str, message: str) -> None:
    with pytest.raises(GradAlignError, match=message):
        read_problems(spec)


def test_a_path_may_have_a_colon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a:b.jsonl").write_text(json.dumps({"prompt": "q", "answer": "1"}) + "\n")
    assert open_reader("a:b.jsonl").label == "a:b.jsonl"
    assert len(read_problems("a:b.jsonl")) == 1


def test_real_files(shared: Path) -> None:
    for name, count, answer in (("gsm8k/test", 1319, "18"), ("amc23/test", 40, "27"), ("mawps/addsub", None, None)):
        problems = read_problems(str(shared / "data" / f"{name}.jsonl"))
        assert count in (None, len(problems))
        assert answer in (None, problems[0].answer)
