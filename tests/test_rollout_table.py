from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gradalign.errors import GradAlignError
from gradalign.rollouts.table import Limits, read_rollouts, to_rows, write_rollouts
from tests.conftest import make_groups

GOOD = {"key": "a", "prompt_ids": [1, 2], "response_ids": [3, 4], "reward": 1.0}
LIMITS = Limits(vocabulary=61, max_length=8)


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_what_is_written_is_read(tmp_path: Path, suffix: str) -> None:
    groups = make_groups(4, 0, masks=True)
    groups[0].rollouts[0].logprobs = np.linspace(-1, 0, len(groups[0].rollouts[0].response_ids), dtype=np.float32)
    groups[1].rollouts[2].finish_reason, groups[1].source, groups[1].policy = "stop", "s", "f" * 16
    write_rollouts(tmp_path / f"r.{suffix}", groups)
    read = read_rollouts(tmp_path / f"r.{suffix}")
    assert [list(to_rows(g)) for g in read] == [list(to_rows(g)) for g in groups]


def test_rows_of_a_key_need_not_be_neighbours(tmp_path: Path) -> None:
    other = {**GOOD, "key": "b", "prompt_ids": [9]}
    groups = read_rollouts(lines(tmp_path / "r.jsonl", GOOD, other, {**GOOD, "reward": 0}, {**other, "key": 7}))
    assert [(g.key, len(g.rollouts)) for g in groups] == [("a", 2), ("b", 1), ("7", 1)]
    assert groups[0].rewards.tolist() == [1.0, 0.0]


STRUCTURE = {
    "truncated": ('{"key": "a", "prompt_ids": [1', r"r\.jsonl:2: not JSON.*cut short"),
    "not an object": ("[1, 2]", r"r\.jsonl:2: not a JSON object"),
    "no key": ({**GOOD, "key": None}, r"r\.jsonl:2: field 'key' is missing"),
    "key a list": ({**GOOD, "key": [1]}, r"r\.jsonl:2: field 'key' is list"),
    "no prompt": (
        {**GOOD, "prompt_ids": None},
        r":2: field 'prompt_ids' is missing; write a list of token ids",
    ),
    "prompt text": ({**GOOD, "prompt_ids": "1 2"}, r"field 'prompt_ids' is str '1 2'"),
    "prompt of floats": ({**GOOD, "prompt_ids": [1.5]}, r"field 'prompt_ids'.*list of token ids"),
    "prompt of booleans": ({**GOOD, "prompt_ids": [True]}, r"field 'prompt_ids'"),
    "no response": ({**GOOD, "response_ids": None}, r"field 'response_ids' is missing"),
    "response of texts": ({**GOOD, "response_ids": ["x"]}, r"field 'response_ids' holds 'x'; write a list"),
    "huge token": ({**GOOD, "response_ids": [10**30]}, r"too large"),
    "no reward": ({**GOOD, "reward": None}, r"field 'reward' is missing"),
    "reward text": ({**GOOD, "reward": "good"}, r"field 'reward' is str 'good'; write a number"),
    "half a character": ({**GOOD, "response": "\ud800"}, r"r\.jsonl:2: holds half a character"),
    "deep": ('{"key": ' + "[" * 99999, r"r\.jsonl:2: not JSON"),
    "reward huge": ({**GOOD, "reward": 10**400}, r"field 'reward' is int"),
    "a problem": ({"prompt": "1+1=", "answer": "2"}, r"look like problems: sample them first with .gradalign rollout"),
    "short mask": ({**GOOD, "response_mask": [True]}, r"field 'response_mask' has 1 items for 2 response tokens"),
    "odd mask": ({**GOOD, "response_mask": [0, 2]}, r"field 'response_mask'.*true and false"),
    "short logprobs": ({**GOOD, "logprobs": [0.1, 0.2, 0.3]}, r"field 'logprobs' has 3 items for 2"),
    "finish a number": ({**GOOD, "finish_reason": 3}, r"field 'finish_reason' is int 3"),
    "two prompts": ({**GOOD, "prompt_ids": [1, 3]}, r"key 'a' has another prompt in an earlier row"),
}


@pytest.mark.parametrize("case", STRUCTURE)
@pytest.mark.parametrize("on_bad_row", ["stop", "mark"])
def test_malformed_rows_are_named(tmp_path: Path, case: str, on_bad_row: Any) -> None:
    row, message = STRUCTURE[case]
    path = lines(tmp_path / "r.jsonl", GOOD, row)
    with pytest.raises(GradAlignError, match=message):
        read_rollouts(path, LIMITS, on_bad_row)


BAD = {
    "no token": ({**GOOD, "response_ids": []}, "no_tokens", "the response has no token"),
    "all masked": ({**GOOD, "response_mask": [0, 0]}, "no_tokens", "hides every token"),
    "nan": ({**GOOD, "reward": float("nan")}, "failed", "field 'reward' is nan; write a finite number"),
    "infinite": ({**GOOD, "reward": float("inf")}, "failed", "field 'reward' is inf"),
    "outside": ({**GOOD, "response_ids": [3, 61]}, "failed", "token id 61 is outside the policy's vocabulary of 61"),
    "negative": ({**GOOD, "response_ids": [-1]}, "failed", "token id -1 is outside"),
    "too long": ({**GOOD, "response_ids": [5] * 7}, "failed", "have 9 tokens, the policy takes 8"),
}


@pytest.mark.parametrize("case", BAD)
def test_rows_that_cannot_be_scored_stop_or_mark(tmp_path: Path, case: str) -> None:
    row, status, message = BAD[case]
    path = lines(tmp_path / "r.jsonl", GOOD, {**GOOD, "reward": 0}, row, {**GOOD, "key": "b"})
    with pytest.raises(GradAlignError, match=message) as caught:
        read_rollouts(path, LIMITS, "stop")
    assert f"{path}:3: " in str(caught.value)
    assert "--on-bad-row mark" in str(caught.value)
    marked, other = read_rollouts(path, LIMITS, "mark")
    assert (marked.status, other.status) == (status, "zero_variance")


def test_a_prompt_without_tokens_fails(tmp_path: Path) -> None:
    path = lines(tmp_path / "r.jsonl", {**GOOD, "prompt_ids": []})
    with pytest.raises(GradAlignError, match="the prompt has no token"):
        read_rollouts(path, LIMITS)


def test_files_that_are_none(tmp_path: Path) -> None:
    for path, message in [
        (tmp_path / "none.jsonl", "no such file"),
        (tmp_path, "is a folder"),
        (lines(tmp_path / "x.csv"), "unknown kind of file '.csv'"),
        (lines(tmp_path / "e.jsonl"), "holds no rollout"),
        (lines(tmp_path / "p.parquet", "not parquet"), "cannot be read as Parquet"),
    ]:
        with pytest.raises(GradAlignError, match=message):
            read_rollouts(path)
    (tmp_path / "latin.jsonl").write_bytes(b'{"key": "\xe9"}\n')
    with pytest.raises(GradAlignError, match="not UTF-8"):
        read_rollouts(tmp_path / "latin.jsonl")


def test_byte_order_marks_and_foreign_columns_are_read(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text(json.dumps(GOOD) + "\n", encoding="utf-8-sig")
    assert len(read_rollouts(tmp_path / "r.jsonl")) == 1
    times = pa.array([1, 2**62], pa.timestamp("ns"))
    table = pa.Table.from_pylist([GOOD, GOOD]).append_column("when", times)
    ids = pa.array([[3, 4], [3, 4]], pa.large_list(pa.int64()))
    table = table.set_column(table.schema.get_field_index("response_ids"), "response_ids", ids)
    pq.write_table(table, tmp_path / "r.parquet")
    assert len(read_rollouts(tmp_path / "r.parquet")[0].rollouts) == 2


def test_every_rows_policy_counts(tmp_path: Path) -> None:
    path = lines(tmp_path / "r.jsonl", {**GOOD, "policy": "a"}, {**GOOD, "policy": "b"})
    assert read_rollouts(path)[0].policy == "several policies"


def test_a_truncated_parquet_file_is_named(tmp_path: Path) -> None:
    write_rollouts(tmp_path / "r.parquet", make_groups(3, 0))
    whole = (tmp_path / "r.parquet").read_bytes()
    (tmp_path / "r.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(GradAlignError, match=r"r\.parquet: cannot be read as Parquet"):
        read_rollouts(tmp_path / "r.parquet")


def test_parquet_rows_are_checked_like_json_lines(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([GOOD, {**GOOD, "reward": float("nan")}]), tmp_path / "r.parquet")
    with pytest.raises(GradAlignError, match=r"r\.parquet:2: field 'reward' is nan"):
        read_rollouts(tmp_path / "r.parquet", LIMITS)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.parquet"
    write_rollouts(path, make_groups(1, 0))
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(GradAlignError, match=r"r\.parquet: cannot be written \(No space left on device\); free space"):
        write_rollouts(path, make_groups(2, 1))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
