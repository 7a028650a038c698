"""Chunks, the curriculum's state, and processes of one."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from gradalign.alignment.direction import Direction
from gradalign.alignment.saved import origin_of
from gradalign.curriculum.chunks import Chunks
from gradalign.curriculum.curriculum import Curriculum
from gradalign.curriculum.history import History, saved_history
from gradalign.curriculum.round import RoundPlan
from gradalign.curriculum.state import DIRECTION, HISTORY, State
from gradalign.errors import GradAlignError
from gradalign.problems.embedded import make_pool
from gradalign.processes import ALONE, Processes
from gradalign.selection import STRATEGIES, Size
from tests.conftest import make_policy


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 5))
def test_chunks_leave_nothing_out_and_repeat_nothing_early(total: int, size: int, seed: int) -> None:
    chunks = Chunks([f"k{i}" for i in range(total)], size, seed)
    stream = [chunks[number] for number in range(3 * total // min(size, total) + 3)]
    seen = [0] * total
    for chunk in stream:
        assert len(chunk) == len(set(chunk)) == min(size, total)
        for index in chunk:
            seen[index] += 1
        assert max(seen) - min(seen) <= 2  # at most the pass that fills a chunk is ahead
    for passes in range(1, 4):  # whole passes are whole
        chunk_count, rest = divmod(passes * total, min(size, total))
        if rest == 0:
            counts = [sum(chunk.count(i) for chunk in stream[:chunk_count]) for i in range(total)]
            assert counts == [passes] * total
    again = Chunks([f"k{i}" for i in range(total)], size, seed)
    assert [again[n] for n in reversed(range(len(stream)))] == stream[::-1]  # a chunk depends on its number alone


def test_chunks_are_those_of_earlier_versions() -> None:
    """Recorded when orders were sorted in memory: results in benchmarks/ depend on them."""
    small = Chunks([f"k{i}" for i in range(10)], 4, 3)
    recorded = [[0, 3, 4, 9], [1, 6, 7, 8], [2, 5, 6, 7], [1, 3, 4, 5], [0, 2, 8, 9], [3, 4, 8, 9]]
    assert [small[n] for n in range(6)] == recorded
    larger = Chunks([f"k{i}" for i in range(1000)], 96, 1)
    digest = hashlib.sha256(json.dumps([larger[n] for n in range(40)]).encode()).hexdigest()
    assert digest[:16] == "abac898984acbc2e"


def test_a_late_chunk_takes_the_orders_of_two_passes_at_most() -> None:
    class Counted(list[str]):
        read = 0

        def __iter__(self) -> Iterator[str]:
            Counted.read += 1
            return super().__iter__()

    keys = Counted(f"k{i}" for i in range(50))
    early = Chunks(list(keys), 7, 0)
    Counted.read = 0
    assert Chunks(keys, 7, 0)[160] == [early[n] for n in range(161)][-1]  # of pass 22
    assert Counted.read == 2


def test_chunks_come_in_another_order_each_pass_and_seed() -> None:
    keys = [f"k{i}" for i in range(64)]
    orders = [tuple(map(tuple, (Chunks(keys, 8, seed)[n] for n in range(8 * p, 8 * p + 8)))) for seed, p in
              itertools.product((0, 1), (0, 1))]  # fmt: skip
    assert len(set(orders)) == 4


def curriculum(folder: Path, patience: int = 3, strategy: str = "gradalign") -> Curriculum:
    pool = make_pool("mixed", 8, 0)
    plan = RoundPlan(STRATEGIES[strategy], Size(top=3))
    return Curriculum(pool, [p.key for p in pool], pool[:2], plan, 4, folder, {"run": 1}, patience=patience)


def facts(agreement: float | None, se: float | None) -> dict[str, object]:
    return {"direction": {"reliability": agreement, "reliability_se": se}, "rollouts": 5}


def test_noise_is_judged_over_rounds_together(tmp_path: Path) -> None:
    made = curriculum(tmp_path)
    for number in range(8):  # each within noise, together far beyond it
        made.note(number, ["a"], facts(0.06, 0.04))
        assert made.ended is None
    made.note(8, ["a"], facts(-0.2, 0.04))
    assert made.ended is not None
    assert "over the last 3 rounds" in made.ended
    unknown = curriculum(tmp_path)
    for number in range(3):
        unknown.note(number, ["a"], facts(None, None))
    assert unknown.ended is not None
    patient, blind = curriculum(tmp_path, patience=0), curriculum(tmp_path, strategy="random")
    for number in range(9):
        patient.note(number, ["a"], facts(-1.0, 0.01))
        blind.note(number, ["a"], facts(None, None))
    assert patient.ended is None
    assert blind.ended is None


def test_rounds_of_a_warm_up_say_nothing_of_noise(tmp_path: Path) -> None:
    made = curriculum(tmp_path, patience=1, strategy="learnalign")
    made.note(0, ["a"], {"direction": None, "rollouts": 0})
    assert made.ended is None
    made.note(1, ["a"], facts(-1.0, 0.01))
    assert made.ended is not None


def test_places_turn_through_the_choice(tmp_path: Path) -> None:
    made = curriculum(tmp_path)
    keys = [p.key for p in make_pool("mixed", 8, 0)]
    made.note(0, keys[2:5], facts(0.5, 0.1))
    places = made.slots(8)
    assert sorted(places[:3]) == sorted(places[3:6]) == [2, 3, 4]
    assert len(places) == 8
    assert made.slots(8) == places
    made.note(1, keys[2:5], facts(0.5, 0.1))
    assert made.slots(8) != places


def test_a_round_said_again_replaces_what_came_after_it(tmp_path: Path) -> None:
    made = curriculum(tmp_path)
    for number in range(4):
        made.note(number, [f"k{number}"], facts(0.5, 0.1))
    made.note(1, ["other"], facts(0.4, 0.1))
    assert made.state.history == [["k0"], ["other"]]
    assert made.state.agreements == [(0.5, 0.1), (0.4, 0.1)]


def test_a_history_is_a_sequence_on_disk(tmp_path: Path) -> None:
    rounds = [["a", "é"], ["a", "é"], [], ["b"], ["b"]]
    history = History(rounds)
    assert history == rounds
    assert (history[1], history[-1], history[2:4], len(history)) == (rounds[1], ["b"], [[], ["b"]], 5)
    history.save(tmp_path / "h.jsonl")
    assert (tmp_path / "h.jsonl").read_text().split("\n")[1:] == ["null", "[]", '["b"]', "null", ""]
    assert list(saved_history(tmp_path / "h.jsonl")) == rounds
    history.cut(2)
    history.append(["c"])
    assert history == [*rounds[:2], ["c"]]
    history.cut(0)
    assert (list(history), history.last) == ([], [])
    with pytest.raises(IndexError):
        history[0]


@pytest.mark.parametrize(("text", "message"), [("null\n", ":1: is no list of keys"), ("[1]\n", ":1: is no list"),
                                               ('["a"', "not JSON"), (None, "cannot be read")])  # fmt: skip
def test_a_history_that_is_none_is_told(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "h.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(GradAlignError, match=rf"h\.jsonl:? ?.*{message}"):
        list(saved_history(path))


def test_state_survives_its_file_and_refuses_another_run(tmp_path: Path) -> None:
    state = State({"seed": 1}, 2, History([["a"], ["b"], ["c"]]), [(0.1, None)], 7, 3, (0.01, 0.002))
    state.save(tmp_path)
    found = State({"seed": 1}).load(tmp_path)
    assert (found.round, found.history, found.sampled, found.reused) == (2, state.history, 7, 3)
    with pytest.raises(GradAlignError, match=r"is of another run \(differs in mode, seed\)"):
        State({"seed": 2, "mode": "batch"}).load(tmp_path)
    (tmp_path / HISTORY).write_text('["a"]\n')
    with pytest.raises(GradAlignError, match=r"gradalign\.history\.jsonl: has 1 of 3 rounds; name an earlier"):
        State({"seed": 1}).load(tmp_path)
    with pytest.raises(GradAlignError, match="is not a checkpoint of a curriculum"):
        state.load(tmp_path / "nothing")


def test_a_direction_is_kept_with_the_weights_it_was_taken_at(tmp_path: Path) -> None:
    taken, moved = make_policy("llama"), make_policy("llama", scale=5.0)
    unit = [torch.zeros_like(p) for p in taken.parameters]
    unit[0][0, 0] = 1.0
    first = curriculum(tmp_path / "run")
    first.follow(Direction(unit, 2.0, 5, 1, 0, 0.3, None), taken, tmp_path / "run" / "round-0000")
    first.save(tmp_path / "checkpoint-1", moved)
    later = curriculum(tmp_path / "run")
    later.load(tmp_path / "checkpoint-1", moved)
    later.save(tmp_path / "checkpoint-2", moved)
    files = [p / DIRECTION for p in (tmp_path / "run" / "round-0000", *sorted(tmp_path.glob("checkpoint-*")))]
    assert {origin_of(path) for path in files} == {taken.fingerprint} != {moved.fingerprint}
    assert len({path.read_bytes() for path in files}) == 1


def test_directions_are_averaged_with_their_lengths() -> None:
    new = Direction([torch.tensor([1.0, 0.0])], 2.0, 1, 0, 0, 0.9, 0.1)
    old = Direction([torch.tensor([0.0, 1.0])], 6.0, 1, 0, 0, 0.1, 0.1)
    mixed = new.averaged(old, 0.25)
    torch.testing.assert_close(mixed.unit[0] * mixed.norm, torch.tensor([1.5, 1.5]))
    assert mixed.reliability == 0.9


def test_a_single_process_does_everything() -> None:
    assert ALONE.mine([1, 2, 3]) == [1, 2, 3]
    assert ALONE.together(lambda: 5) == [5]
    with pytest.raises(ZeroDivisionError):
        ALONE.together(lambda: 1 // 0)


def test_shares_are_joined_in_order() -> None:
    items = list(range(7))
    three = [Processes(rank, 3) for rank in range(3)]
    assert three[0].joined([p.mine(items) for p in three]) == items
