"""``reasoning-gym:``: the library's problems, scored alike after JSON, kept on disk whole or not at all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import reasoning_gym
from reasoning_gym.factory import DATASETS, get_score_answer_fn

from gradalign.errors import GradAlignError, GradAlignWarning
from gradalign.problems.read import read_problems
from gradalign.problems.readers import open_reader
from gradalign.problems.readers.gym import LARGEST, Gym


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRADALIGN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "reasoning-gym"


@pytest.mark.parametrize("name", ["countdown", "leg_counting", "graph_color", "knights_knaves", "propositional_logic"])
def test_problems_are_the_librarys_and_score_alike_after_json(name: str) -> None:
    pool = read_problems(f"reasoning-gym:{name}?size=6&seed=3")
    own = reasoning_gym.create_dataset(name, size=6, seed=3)
    assert [problem.prompt for problem in pool] == [entry["question"] for entry in own]
    score = get_score_answer_fn(name)
    for problem, entry in zip(pool, own, strict=True):
        kept = json.loads(problem.metadata["entry"])
        assert problem.source == problem.metadata["reasoning_gym"] == name
        assert score(problem.answer, kept) == own.score_answer(problem.answer, entry) == 1.0
        for wrong in ("", "no", problem.answer + "1", "{}"):
            assert score(wrong, kept) == own.score_answer(wrong, entry)
        assert entry["answer"] is None or problem.answer == entry["answer"]


def test_every_generator_is_read_or_says_why_not() -> None:
    refused = {"boxnet", "rush_hour"}
    for name in refused:
        with pytest.raises(GradAlignError, match="has no answer"):
            read_problems(f"reasoning-gym:{name}?size=1")
    for name in DATASETS.keys() - refused - {"composite"}:
        (problem,) = read_problems(f"reasoning-gym:{name}?size=1&seed=5")
        assert problem.prompt == json.loads(problem.metadata["entry"])["question"]


def test_settings_are_the_generators(cache: Path) -> None:
    settings = "min_numbers=3&max_numbers=3&shuffle=false&operators=[%22%2B%22]"
    pool = read_problems(f"reasoning-gym:countdown?size=5&{settings}")
    entries = [json.loads(problem.metadata["entry"]) for problem in pool]
    assert {len(entry["metadata"]["numbers"]) for entry in entries} == {3}
    assert not any(set(entry["answer"]) & set("*/") for entry in entries)
    assert len(list(cache.iterdir())) == 1


def test_a_composite_is_scored_by_its_parts() -> None:
    parts = '[{"name": "leg_counting", "weight": 1, "config": {}}, {"name": "gcd", "weight": 1, "config": {}}]'
    pool = read_problems(f"reasoning-gym:composite?size=12&datasets={parts}")
    assert {problem.metadata["reasoning_gym"] for problem in pool} == {"leg_counting", "gcd"}
    for problem in pool:
        score = get_score_answer_fn(problem.metadata["reasoning_gym"])
        assert score(problem.answer, json.loads(problem.metadata["entry"])) == 1.0


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("countdwn", "did you mean 'countdown'"),
        ("countdown?max_number=4", "unknown setting 'max_number'; did you mean 'max_numbers'"),
        ("countdown?max_numbers=four", "max_numbers is 'four': should be a valid integer"),
        ("countdown?min_numbers=5&max_numbers=3", "refuses its settings"),
        ("countdown?operators=[1", "operators is '[1'"),
        ("countdown?size=0", "size is '0'"),
        ("countdown?size=1000000000000", f"should be less than or equal to {LARGEST}"),
        ("countdown?seed=-1", "seed is '-1'"),
        ("rush_hour?size=2", "has no answer"),
    ],
)
def test_wrong_settings_are_one_line_and_leave_no_file(spec: str, said: str, cache: Path) -> None:
    with pytest.raises(GradAlignError) as raised:
        read_problems(f"reasoning-gym:{spec}")
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not cache.exists() or not list(cache.iterdir())


def test_the_cache_is_used_and_is_of_all_that_problems_depend_on(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = list(read_problems("reasoning-gym:gcd?size=5"))
    with monkeypatch.context() as patched:
        patched.setattr(reasoning_gym, "create_dataset", lambda *_, **__: pytest.fail("it was made again"))
        assert list(read_problems("reasoning-gym:gcd?size=5")) == first
        patched.setattr("gradalign.problems.readers.gym.version", lambda package: "999")
        with pytest.raises(BaseException, match="made again"):
            read_problems("reasoning-gym:gcd?size=5")
    kinds = ("gcd?size=5", "gcd?size=6", "gcd?size=5&seed=1", "gcd?size=5&max_numbers=3", "lcm?size=5")
    paths = [reader.cached for kind in kinds if isinstance(reader := open_reader(f"reasoning-gym:{kind}"), Gym)]
    assert len(set(paths)) == 5
    assert all(path.parent == cache for path in paths)


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "text"])
def test_a_damaged_cache_file_is_made_again(damage: str, cache: Path) -> None:
    first = list(read_problems("reasoning-gym:gcd?size=5"))
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    path.write_bytes({
        "cut": whole[: len(whole) // 2], "changed": whole.replace(b'"answer": "', b'"answer": "9', 1), "empty": b"",
        "text": b"\xff\n[1]\n",
    }[damage])  # fmt: skip
    with pytest.warns(GradAlignWarning, match="is damaged"):
        assert list(read_problems("reasoning-gym:gcd?size=5")) == first
    assert path.read_bytes() == whole


def test_a_kill_leaves_no_half_file(cache: Path) -> None:
    code = "from gradalign.problems.read import read_problems; read_problems('reasoning-gym:countdown?size=100000')"
    process = subprocess.Popen([sys.executable, "-c", code], env=dict(os.environ))
    parts: list[Path] = []
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not any(path.stat().st_size for path in parts):
        time.sleep(0.1)
        parts = list(cache.glob("*")) if cache.exists() else []
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert parts, "nothing was begun"
    assert not list(cache.glob("*.jsonl"))


def test_repeats_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    entry: dict[str, Any] = {"question": "1?", "answer": "1", "metadata": {"source_dataset": "gcd"}}
    monkeypatch.setattr(reasoning_gym, "create_dataset", lambda *_, **__: [entry] * 4)
    with pytest.warns(GradAlignWarning, match="3 of 4 rows repeat"):
        assert len(read_problems("reasoning-gym:gcd?size=4")) == 1


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(GradAlignError, match=r"pip install 'gradalign\[rewards\]'"):
        read_problems("reasoning-gym:gcd")
