"""Pools on disk: a sequence like any other, in memory that does not grow with it."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradalign.errors import GradAlignError
from gradalign.problems.keys import Keys, RepeatedKeyError
from gradalign.problems.pool import BLOCK, Pool
from gradalign.problems.read import read_problems
from gradalign.problems.schema import Problem, fingerprint


def problem(number: int, source: str = "s") -> Problem:
    return Problem(f"k{number}", f"prompt {number}", str(number), source, {"level": number % 3})


def filled(count: int) -> Pool:
    pool = Pool()
    for number in range(count):
        assert pool.add(problem(number, f"s{number % 2}"), f"p:{number + 1}") is None
    return pool


def test_a_pool_is_a_sequence() -> None:
    count = 2 * BLOCK + 3
    pool, same = filled(count), [problem(n, f"s{n % 2}") for n in range(count)]
    assert list(pool) == same
    assert (pool[0], pool[-1], pool[BLOCK], len(pool)) == (same[0], same[-1], same[BLOCK], count)
    assert pool[5:1200:7] == same[5:1200:7]
    assert list(pool.keys) == [p.key for p in same]
    assert pool.sources == {"s0": 514, "s1": 513}
    assert same[3] in pool
    with pytest.raises(IndexError):
        pool[count]
    assert list(Pool()) == []


def test_what_was_there_already_is_told() -> None:
    pool = filled(3)
    repeat = pool.add(Problem("new", " prompt  1", "other"), "p:9")
    assert repeat is not None
    assert (repeat.place, repeat.answer, repeat.same_prompt) == ("p:2", "1", True)
    clash = pool.add(Problem("k1", "prompt 2", "2"), "p:10")
    assert clash is not None
    assert (clash.place, clash.same_prompt) == ("p:2", False)
    assert len(pool) == 3


def test_views_share_the_pool_and_leave_it_as_it_is() -> None:
    pool = filled(1500)
    left = pool.without({"k3", "k1400"})
    assert len(left) == 1498
    assert [p.key for p in left[2:4]] == ["k2", "k4"]
    assert list(left.places)[-1] == 1499
    shouted = left.mapped(lambda p: Problem(p.key, str(p.prompt).upper(), p.answer, p.source))
    assert shouted[3].prompt == "PROMPT 4"
    assert [p.prompt for p in shouted][3] == "PROMPT 4"
    assert list(shouted.keys) == list(left.keys)
    assert len(pool) == 1500
    assert pool.without(()) is pool


def test_views_of_views_stay_apart() -> None:
    pool = filled(40)
    few = pool.drawn([(range(40), 20)], 0, {})
    fewer = few.without([few[0].key, few[19].key])
    others = pool.without({"k0"})
    assert list(fewer) == few[1:19]
    assert list(others) == pool[1:]
    assert list(fewer.keys) == [p.key for p in few][1:19]
    assert (fewer.keys[2], fewer.keys[-1], fewer.keys[1:3]) == (few[3].key, few[18].key, [p.key for p in few[2:4]])
    assert fewer.keys.index(few[5].key) == 4


def test_a_full_disk_is_told_in_one_line() -> None:
    pool = filled(5)
    pool._database.execute("PRAGMA max_page_count = 10")
    large = Problem("new", "a" * 100_000, "1")
    with pytest.raises(GradAlignError, match=r"^p:6: cannot be held in a temporary file \(database or disk is full\)"):
        pool.add(large, "p:6")


def test_keys_know_their_places() -> None:
    keys = Keys(f"k{n}" for n in range(3000))
    assert list(keys) == [f"k{n}" for n in range(3000)]
    assert (keys[7], keys[-1], keys[5:8], len(keys)) == ("k7", "k2999", ["k5", "k6", "k7"], 3000)
    assert [keys.index(key) for key in ("k0", "k1234", "k2999")] == [0, 1234, 2999]
    assert "k5" in keys
    assert 5 not in keys
    for missing, start in (("k3000", 0), ("k7", 8)):
        with pytest.raises(ValueError, match="is not among these keys"):
            keys.index(missing, start)
    with pytest.raises(IndexError):
        keys[3000]
    with pytest.raises(RepeatedKeyError, match="places 1 and 4 have one key, 'b'"):
        Keys(["a", "b", "c", "c", "b"])


@given(st.integers(0, 40), st.integers(0, 30), st.integers(0, 30), st.integers(0, 30))
def test_draws_keep_to_counts_and_limits(size: int, one: int, two: int, limit: int) -> None:
    pool = filled(size)
    half = size // 2
    drawn = pool.drawn([(range(half), one), (range(half, size), two)], 3, {"s0": limit})
    places = list(drawn.places)
    assert all(a < b for a, b in pairwise(places))
    assert sum(p < half for p in places) <= one
    assert sum(p >= half for p in places) <= two
    assert drawn.sources["s0"] <= limit
    if limit >= size:
        assert len(places) == min(one, half) + min(two, size - half)


def test_a_larger_draw_holds_the_smaller_one() -> None:
    pool = filled(200)
    some, more = (set(pool.drawn([(range(200), n)], 1, {}).keys) for n in (20, 50))
    assert some < more
    assert some != set(pool.drawn([(range(200), 20)], 2, {}).keys)


def test_the_fingerprint_is_that_of_a_list() -> None:
    assert fingerprint(filled(600)) == fingerprint([problem(n, f"s{n % 2}") for n in range(600)])
    assert fingerprint(filled(3)) == "ae322084b9f252e8"


MEASURE = """
import resource, sys
import gradalign.problems.pool as pool
pool.CACHE = 4096
from gradalign.curriculum.chunks import Chunks
from gradalign.problems.prompts import Asking
from gradalign.problems.read import overlap, read_problems
from gradalign.problems.schema import fingerprint
read = read_problems(sys.argv[1])
fingerprint(read)
left = read.without(overlap(read, read[:3]))
assert len(left) == len(read) - 3
left = left.drawn([(range(len(read)), len(read) - 9)], 0, {}).mapped(Asking("Q: {prompt}"))
chunks = Chunks(left.keys, 256, 0)
last = (len(left) - 1) // 256  # the pass ends in it
chosen = [left[place] for place in chunks[0] + chunks[last] + chunks[last + 1]]
assert len(chosen) == 768
print(len(read), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def test_memory_does_not_grow_with_the_pool(tmp_path: Path) -> None:
    """180,000 problems more are 120 MB or so as a list of Python objects, their keys alone 12."""
    peaks = []
    for count in (20_000, 200_000):
        path = tmp_path / f"{count}.jsonl"
        with path.open("w") as file:
            for n in range(count):
                file.write(json.dumps({"prompt": f"{n} and {n}? {'words ' * 20}", "answer": n, "level": n % 5}) + "\n")
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True, timeout=300
        )
        read, megabytes = done.stdout.split()
        assert int(read) == count
        peaks.append(float(megabytes))
    assert peaks[1] - peaks[0] < 10


def test_rows_that_cannot_be_used_are_counted_and_named(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    lines = [
        '{"prompt": "a", "answer": "1"}',
        '{"prompt": "b"}',
        "{",
        '{"prompt": " ", "answer": "1"}',
        "[]",
        "",
        '{"prompt": "c", "answer": []}',
    ]
    path.write_bytes("\n".join(lines).encode() + b'\n{"prompt": "\xff", "answer": "1"}\n')
    with pytest.raises(GradAlignError, match=r"p\.jsonl:2: no field for the answer"):
        read_problems(str(path))
    with pytest.warns(UserWarning, match=r"6 of 7 rows.*left out: row 2: no field.*; row 3: not JSON.*; and 3 more"):
        assert list(read_problems(str(path), skip=True).keys) == [read_problems(str(path), skip=True)[0].key]
