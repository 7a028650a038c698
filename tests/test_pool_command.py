"""The pool command: rows in and out agree, what is left out is named, what is written reads back the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from gradalign.problems.read import read_problems
from tests.conftest import Ran

Run = Callable[..., Ran]


def test_totals_agree_and_every_row_left_out_is_named(gradalign: Run, tmp_path: Path) -> None:
    path, held, out = tmp_path / "p.jsonl", tmp_path / "v.jsonl", tmp_path / "out.jsonl"
    rows = [{"prompt": f"q{n}", "answer": n, "level": n} for n in range(10)]
    rows += [{"prompt": "q1", "answer": 1}, {"prompt": "", "answer": 1}, {"prompt": "x"}, {"prompt": "y", "answer": []}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{\n")
    held.write_text(json.dumps({"prompt": "Q3", "answer": 3}) + "\n")
    done = gradalign("pool", "--pool", path, "--validation", held, "--on-bad-problem", "skip", "--out", out)
    assert done.status == 0, done.err
    counts = next(line for line in done.out.splitlines() if "15 " in line)
    assert [cell.strip() for cell in counts.split("│")[2:-1]] == ["15", "10", "1", "0", "4"]
    assert [f"left out: row {n}:" in done.out for n in range(11, 16)] == [False, True, True, True, True]
    assert "1 of 10 problems are also in" in done.out
    written = read_problems(str(out))
    assert [p.prompt for p in written] == [f"q{n}" for n in range(10) if n != 3]
    assert [p.metadata["level"] for p in written] == [n for n in range(10) if n != 3]
    assert gradalign("pool", "--pool", path).error.endswith(": field 'prompt' is empty; write a text, or chat messages "
                                                            '[{"role": "user", "content": "..."}]')  # fmt: skip


def test_mixtures_tell_their_parts(gradalign: Run, tmp_path: Path) -> None:
    (tmp_path / "mix.yaml").write_text(
        "size: 6\nparts:\n"
        "- {pool: 'embedded:arithmetic?size=9', weight: 2}\n- {pool: 'embedded:countdown?size=9', weight: 1}\n"
    )
    done = gradalign("pool", "--pool", tmp_path / "mix.yaml", "--examples", 0)
    assert done.status == 0, done.err
    assert "taken by 2 parts' weights and limits │   18 │        6" in done.out


def test_bad_options(gradalign: Run, tmp_path: Path) -> None:
    assert "name a .jsonl file" in gradalign("pool", "--pool", "embedded:mixed", "--out", tmp_path / "x.csv").error
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "q", "answer": 1}\n')
    assert "is also an input" in gradalign("pool", "--pool", path, "--out", path).error
    assert path.read_text() == '{"prompt": "q", "answer": 1}\n'
