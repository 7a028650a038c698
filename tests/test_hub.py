"""``hf:``: data sets of the Hub (one on this machine stands in), of the caches, of folders."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gradalign.errors import GradAlignError, GradAlignWarning
from gradalign.problems.read import read_problems
from gradalign.problems.readers import open_reader
from gradalign.problems.readers.files import File
from gradalign.problems.readers.hub import Hub
from tests.hub_server import hub

CARD = """---
configs:
- config_name: main
  data_files:
  - {split: train, path: main/train-*}
  - {split: test, path: main/test-*}
- config_name: other
  data_files:
  - {split: train, path: other/train-*}
---
"""
READ = """
import json, sys
from gradalign.errors import GradAlignError
from gradalign.problems.read import read_problems
said = []
for spec in sys.argv[1:]:
    try:
        pool = read_problems(spec)
        said.append([len(pool), pool[0].prompt, pool[0].source])
    except GradAlignError as error:
        said.append(str(error))
print(json.dumps(said))
"""


def rows(count: int, name: str = "q") -> list[dict[str, Any]]:
    return [{"question": f"{name}{i}", "answer": str(i)} for i in range(count)]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files as a repository of the Hub holds them: main has train (3 rows) and test (2), other has train (1)."""
    root = tmp_path_factory.mktemp("repository")
    (root / "README.md").write_text(CARD)
    for name, count in (("main/train", 3), ("main/test", 2), ("other/train", 1)):
        path = root / f"{name}-00000-of-00001.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows(count, name)), path)
    return root


def run(code: str, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_streams_from_the_hub_and_then_reads_its_caches_without_it(repository: Path, tmp_path: Path) -> None:
    places = {"HF_HOME": str(tmp_path / "home")}
    with hub(repository) as address:
        online = {**places, "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0"}
        specs = [
            "hf:own/set?config=main", "own/set?config=main&split=test", "hf:own/set?config=other&revision=main",
            "hf:own/set", "hf:own/set?config=mian", "hf:own/set?config=main&split=tset", "hf:own/none",
            "hf:own/set?config=main&revision=v9",
        ]  # fmt: skip
        told = json.loads(run(READ, *specs, **online))
        assert not list((tmp_path / "home").rglob("*.parquet")), "it was downloaded, not streamed"
        # Streaming leaves the card in the cache, which is not the data set.
        (said,) = json.loads(run(READ, "hf:own/set?config=main", **{**online, "HF_HUB_OFFLINE": "1"}))
        assert "hf download own/set" in said
        run('import huggingface_hub as h; h.snapshot_download("own/set", repo_type="dataset")', **online)
        other = {**online, "HF_HUB_CACHE": str(tmp_path / "hub-2")}
        run('import datasets; datasets.load_dataset("own/set", "main")', **other)
    assert told[:3] == [[3, "main/train0", "set"], [2, "main/test0", "set"], [1, "other/train0", "set"]]
    assert "['main', 'other']" in told[3]
    assert "'mian' not found" in told[4]
    assert "['main', 'other']" in told[4]
    assert told[5] == "hf:own/set: no split 'tset'; did you mean 'test'? (known: train, test); set ?split="
    assert "doesn't exist on the Hub" in told[6]
    assert "v9" in told[7]
    assert all("\n" not in said for said in told[3:])

    offline = {**places, "HF_HUB_OFFLINE": "1"}
    assert json.loads(run(READ, "hf:own/set?config=main", **offline)) == [[3, "main/train0", "set"]]
    # The Hub is gone, and what load_dataset left is all there is: without HF_HUB_OFFLINE that is found out.
    gone = {**places, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": address, "HF_HUB_CACHE": str(tmp_path / "hub-3")}
    start = time.perf_counter()
    told = json.loads(run(READ, "hf:own/set?config=main&split=test", "hf:own/set?config=main&revision=main", **gone))
    assert time.perf_counter() - start < 60
    assert told[0] == [2, "main/test0", "set"]
    assert "hf download own/set --repo-type dataset --revision main --local-dir set" in told[1]


def test_what_is_not_there_offline_says_what_to_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(GradAlignError) as raised:
        read_problems("openai/gsm8k?config=main")
    assert "hf download openai/gsm8k --repo-type dataset --local-dir gsm8k" in str(raised.value)
    assert "hf:gsm8k" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_folder_that_hf_download_makes(repository: Path) -> None:
    assert len(read_problems(f"hf:{repository}?config=main&split=test")) == 2
    assert len(read_problems(f"{repository}?config=other")) == 1  # a folder needs no scheme


def test_folders_by_save_to_disk(tmp_path: Path) -> None:
    train, test = datasets.Dataset.from_list(rows(4)), datasets.Dataset.from_list(rows(2, "t"))
    train.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=train, test=test, none=test.select([])).save_to_disk(tmp_path / "many")
    assert [p.prompt for p in read_problems(f"hf:{tmp_path / 'one'}")] == ["q0", "q1", "q2", "q3"]
    assert len(read_problems(str(tmp_path / "many"))) == 4
    assert read_problems(f"hf:{tmp_path / 'many'}?split=test")[0].source == "many"
    for spec, said in (
        (f"hf:{tmp_path / 'many'}?split=none", "split 'none' holds no row"),
        (f"hf:{tmp_path / 'many'}?split=tests", "did you mean 'test'"),
        (f"hf:{tmp_path / 'many'}?config=main", "leave ?config= out"),
        (f"hf:{tmp_path / 'one'}?split=test", "leave ?split= out"),
        (f"hf:{tmp_path / 'one'}?revision=v1", "leave ?revision= out"),
        (f"hf:{tmp_path / 'none'}", "no such folder"),
    ):
        with pytest.raises(GradAlignError, match=r"^hf:") as raised:
            read_problems(spec)
        assert said in str(raised.value), raised.value


def test_damaged_and_empty_folders_are_one_line(tmp_path: Path) -> None:
    datasets.Dataset.from_list(rows(4)).save_to_disk(tmp_path / "cut")
    (arrow,) = (tmp_path / "cut").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:100])
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "train.jsonl").write_text('{"question": "q", "answer": "1"}\n{"question": ')
    for name in ("cut", "empty", "broken"):
        with pytest.raises(GradAlignError, match=f"^hf:{tmp_path / name}: cannot be read") as raised:
            read_problems(f"hf:{tmp_path / name}")
        assert "\n" not in str(raised.value)


def test_values_stay_plain_and_what_cannot_is_named_once(tmp_path: Path) -> None:
    features = datasets.Features({
        "question": datasets.Value("string"), "answer": datasets.Value("string"),
        "label": datasets.ClassLabel(names=["easy", "hard"]), "when": datasets.Value("timestamp[s]"),
        "price": datasets.Value("decimal128(5, 2)"), "nested": {"a": datasets.List(datasets.Value("int64"))},
        "picture": datasets.Image(), "raw": datasets.Value("binary"),
    })  # fmt: skip
    some: dict[str, Any] = {
        "label": 1, "when": datetime.datetime(2026, 1, 2), "price": Decimal("1.50"), "nested": {"a": [1, 2]},
        "picture": {"bytes": b"not an image", "path": None}, "raw": b"\xff",
    }  # fmt: skip
    none: dict[str, Any] = {"label": 0, "when": None, "price": None, "nested": {"a": []}, "picture": None, "raw": None}
    made = [row | more for row, more in zip(rows(3), (some, none, some), strict=True)]
    datasets.Dataset.from_list(made, features=features).save_to_disk(tmp_path / "d")
    with pytest.warns(GradAlignWarning) as warned:
        first, second, _ = read_problems(f"hf:{tmp_path / 'd'}")
    assert len(warned) == 1
    assert "'picture' (bytes in 2 rows), 'raw' (bytes in 2 rows)" in str(warned[0].message)
    assert first.metadata == {"label": 1, "when": "2026-01-02T00:00:00", "price": "1.50", "nested": {"a": [1, 2]}}
    assert second.metadata == {
        "label": 0, "when": None, "price": None, "nested": {"a": []}, "picture": None, "raw": None
    }  # fmt: skip
    json.dumps(first.metadata)


def test_columns_of_several_kinds_of_values_are_read_as_they_were_written(tmp_path: Path) -> None:
    made: list[dict[str, Any]] = [
        {"question": "a?", "answer": 7, "more": [{"x": 1}, {"x": "word"}], "level": "3"},
        {"question": "b?", "answer": "x = 7", "more": [], "level": None},
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    found = list(read_problems(f"hf:{tmp_path}"))
    assert [p.answer for p in found] == ["7", "x = 7"]
    assert [p.metadata for p in found] == [{"more": row["more"], "level": row["level"]} for row in made]


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        ("openai/gsm8k", Hub), ("openai/gsm8k?config=main", Hub), ("Some-One/data-v1.5", Hub), ("data/p.jsonl", File),
        ("data/p.json", File), ("p.jsonl", File), ("gsm8k", File), ("a/b/c", File), ("../a", File),
    ],
)  # fmt: skip
def test_what_a_spec_without_a_scheme_names(spec: str, kind: type) -> None:
    assert type(open_reader(spec)) is kind


def test_a_file_that_exists_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "set").write_text("")
    assert type(open_reader("own/set")) is File


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(GradAlignError, match=r"pip install 'gradalign\[train\]'"):
        read_problems("hf:openai/gsm8k")


def test_rows_are_read_one_at_a_time(tmp_path: Path) -> None:
    datasets.Dataset.from_list(rows(1000)).save_to_disk(tmp_path / "d")
    reader = open_reader(f"hf:{tmp_path / 'd'}")
    assert next(iter(reader.rows(lambda error: None)))[0] == 1
