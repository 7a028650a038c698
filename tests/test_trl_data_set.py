"""Problems as TRL's data set: every field of every problem reaches the reward."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from datasets import Dataset
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gradalign.errors import GradAlignError
from gradalign.policy.load import load_policy
from gradalign.problems import arrow
from gradalign.problems.schema import Problem, content_key, fingerprint
from gradalign.rewards.base import Reward
from gradalign.trainers.trl.config import GradAlignConfig
from gradalign.trainers.trl.dataset import Problems
from gradalign.trainers.trl.run import TrainJob, data_set


def test_fields_that_the_first_problem_lacks_reach_the_reward(tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def pay(completions: list[str], key: list[str], numbers: list[Any], **_: Any) -> list[float]:
        seen.update(zip(key, numbers, strict=True))
        return [float(len(text) % 2) for text in completions]

    pool = [Problem("a", "1+1=", "2"), Problem("b", "1,2>3=", "3", "s", {"numbers": [1, 2]})]
    args = GradAlignConfig(
        str(tmp_path), strategy="random", max_steps=1, steps_per_round=1, per_device_train_batch_size=8,
        num_generations=4, max_completion_length=4, save_strategy="no", report_to="none", use_cpu=True,
        gradient_checkpointing=False, disable_tqdm=True,
    )  # fmt: skip
    TrainJob(load_policy("embedded", device="cpu"), Reward("pay", pay), args, pool, [], []).run()
    assert seen == {"a": None, "b": [1, 2]}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "a"}, {"prompt": [{"role": "user", "content": "a"}]}], "'prompt'.*ask all as messages .--chat."),
        ([{"prompt": "a", "x": 1}, {"prompt": "b", "x": "1"}], "'x' has values of several kinds; give it one kind"),
        ([{"prompt": "a", "x": {"y": 1}}, {"prompt": "b", "x": {"z": 1}}], "'x' has values of several kinds"),
        ([{"prompt": "a", "x": {}}], "'x' has values of several kinds"),
    ],
)
def test_fields_that_one_column_cannot_hold_are_refused(rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(GradAlignError, match=message):
        data_set(lambda: rows)


def test_whole_numbers_among_decimals() -> None:
    assert data_set(lambda: [{"x": 1}, {"x": 1.5}, {}])["x"] == [1.0, 1.5, None]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-2, 2) | st.text("ab", max_size=2),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("xy"), inner, max_size=2),
    max_leaves=3,
)


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@example([{}, {"b": {"x": False, "y": None}}, {"b": {"x": 0.0, "y": None}}])
@given(st.lists(st.dictionaries(st.sampled_from("abc"), VALUES, max_size=2), min_size=1, max_size=6))
def test_blocks_give_the_columns_that_all_rows_at_once_would(rows: list[dict[str, Any]]) -> None:
    names = dict.fromkeys(name for row in rows for name in row)
    whole = {name: arrow.alike([row.get(name) for row in rows]) for name in names}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrow, "BLOCK", 2)
        if None in whole.values():
            with pytest.raises(arrow.SeveralKindsError):
                arrow.stored(lambda: rows)
        else:
            assert arrow.stored(lambda: rows).combine_chunks() == pa.table(whole).combine_chunks()


def test_a_data_set_on_disk_is_the_problems_again() -> None:
    problems = [Problem(f"k{n}", f"{n}+1=", str(n + 1), f"s{n % 2}", {"level": n}) for n in range(2500)]
    rows = [{"prompt": p.prompt, "answer": p.answer, "key": p.key, "source": p.source, "level": n}
            for n, p in enumerate(problems)]  # fmt: skip
    found = Problems(data_set(lambda: rows), "train_dataset")
    assert list(found) == problems
    assert (found[1777], found[-1], found[999:1002]) == (problems[1777], problems[-1], problems[999:1002])
    assert found.row("k1234") == rows[1234]
    assert fingerprint(found) == fingerprint(problems)
    shuffled = Dataset.from_list(rows).shuffle(seed=0).with_format("numpy")
    again = Problems(shuffled, "train_dataset")
    assert sorted(again, key=lambda p: int(p.key[1:])) == problems
    assert again.row("k7") == rows[7]


def test_rows_without_a_key_get_one() -> None:
    rows = [{"prompt": f"{n}+1=", "answer": str(n + 1)} for n in range(30)]
    found = Problems(Dataset.from_list(rows).select(range(20, 5, -1)), "train_dataset")
    assert list(found.keys) == [content_key(rows[n]["prompt"]) for n in range(20, 5, -1)]
    assert found.row(content_key("9+1=")) == rows[9] | {"key": content_key("9+1=")}
    numbered = Problems(Dataset.from_list([row | {"key": n} for n, row in enumerate(rows)]), "train_dataset")
    assert [p.key for p in numbered] == [str(n) for n in range(30)]
    missing = Problems(Dataset.from_list([{"prompt": "a", "key": None}, {"prompt": "b", "key": "k"}]), "train_dataset")
    assert missing[0].key == "None"


MEASURE = """
import json, sys, threading, time
from gradalign.problems import keys
keys.CACHE = 1024
from gradalign.problems.schema import fingerprint
from gradalign.trainers.trl.dataset import Problems
from gradalign.trainers.trl.run import data_set
from gradalign.trainers.trl.setup import warn_of_contamination

def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon:"))

def watch():
    while True:
        peak[0] = max(peak[0], anonymous())
        time.sleep(0.005)

count, peak = int(sys.argv[1]), [0.0]
threading.Thread(target=watch, daemon=True).start()
made = data_set(lambda: ({"prompt": f"{n}? {'words ' * 20}", "answer": str(n), "key": f"k{n}"} for n in range(count)))
found = Problems(made, "train_dataset")
fingerprint(found)
warn_of_contamination(found, made.select(range(3)))
assert found.row(f"k{count - 1}")["answer"] == str(count - 1)
print(json.dumps(peak[0]))
"""


def test_memory_does_not_grow_with_the_data_set() -> None:
    """Mapped pages of its file are the system's, to take back; 80,000 rows of Python objects are 60 MB or so."""
    peaks = []
    for count in (20_000, 100_000):
        command = [sys.executable, "-W", "ignore", "-c", MEASURE, str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
        peaks.append(float(json.loads(done.stdout)))
    assert peaks[1] - peaks[0] < 15
