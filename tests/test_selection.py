from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradalign.alignment.record import Alignment, Numbers
from gradalign.errors import GradAlignError
from gradalign.policy.group import Status
from gradalign.selection import STRATEGIES, Size, choose, find_strategy


def row(key: str, status: Status = "scored", rate: float | None = 0.5, **numbers: Any) -> Alignment:
    scored = Numbers(**numbers) if status == "scored" else Numbers()
    return Alignment(key, "", status, rate, 8, 80, scored)


def order(rows: list[Alignment]) -> list[str]:
    return [a.key for a in sorted(rows, key=lambda a: a.rank or 0)]


def test_each_strategy_ranks_by_its_own_number() -> None:
    rows = [
        row("a", rate=0.9, dot=3.0, cosine=0.1, t=1.0, corr=0.5),
        row("b", rate=0.5, dot=2.0, cosine=0.3, t=2.0, corr=0.1),
        row("c", rate=0.3, dot=1.0, cosine=0.2, t=3.0, corr=0.9),
    ]
    expected = {"gradalign": "bca", "dot": "abc", "tscore": "cba", "corr": "cab", "accgreedy": "bca"}
    for name, keys in expected.items():
        choose(rows, STRATEGIES[name], Size(top=1))
        assert order(rows) == list(keys), name
        assert [a.key for a in rows if a.selected] == [keys[0]]


def test_random_differs_by_seed_and_nothing_else() -> None:
    rows = [row(f"k{i}", cosine=0.0) for i in range(50)]
    choose(rows, STRATEGIES["random"], Size(), 1)
    first = order(rows)
    choose(rows[::-1], STRATEGIES["random"], Size(), 1)
    assert order(rows) == first
    choose(rows, STRATEGIES["random"], Size(), 2)
    assert order(rows) != first


def test_ties_break_by_seed_and_key() -> None:
    rows = [row(f"k{i}", cosine=0.0) for i in range(50)]
    orders = []
    for seed in (1, 1, 2):
        choose(rows, STRATEGIES["gradalign"], Size(), seed)
        orders.append(order(rows))
    assert orders[0] == orders[1] != orders[2]
    assert orders[0] != sorted(orders[0])


statuses = st.sampled_from(["scored", "zero_variance", "no_tokens", "failed"])


@given(st.lists(st.tuples(statuses, st.sampled_from([-1.0, 0.0, 0.0, 0.5])), min_size=1, max_size=30), st.data())
def test_ranks_are_whole_and_nothing_unscored_goes_before_anything_scored(rows: list, data: st.DataObject) -> None:
    table = [row(f"k{i}", status, cosine=value) for i, (status, value) in enumerate(rows)]
    strategy = STRATEGIES[data.draw(st.sampled_from(["gradalign", "random", "accgreedy", "tscore"]))]
    choose(table, strategy, Size(fraction=0.5), 3)
    assert sorted(a.rank or 0 for a in table) == list(range(1, len(table) + 1))
    scored = sum(a.status == "scored" for a in table)
    assert all((a.status == "scored") == ((a.rank or 0) <= scored) for a in table)
    assert all(a.score is None and not a.selected for a in table if a.status != "scored")
    ranked = sorted((a for a in table if a.score is not None), key=lambda a: a.rank or 0)
    assert all((x.score or 0) >= (y.score or 0) for x, y in itertools.pairwise(ranked))
    assert sum(bool(a.selected) for a in table) <= max(1, len(table) // 2)
    shuffled = data.draw(st.permutations(table))
    before = order(table)
    choose(shuffled, strategy, Size(fraction=0.5), 3)
    assert order(table) == before


def test_sizes() -> None:
    rows = [row(f"k{i}", cosine=i / 10) for i in range(10)] + [row("z", "zero_variance")]
    for size, count in [
        (Size(top=3), 3), (Size(top=99), 10), (Size(fraction=0.3), 3), (Size(fraction=0.01), 1),
        (Size(threshold=0.75), 2), (Size(threshold=2.0), 0),
    ]:  # fmt: skip
        choose(rows, STRATEGIES["gradalign"], size)
        assert sum(bool(a.selected) for a in rows) == count, size
    choose(rows, STRATEGIES["gradalign"], Size())
    assert {a.selected for a in rows} == {None}


def test_a_scored_row_whose_number_cannot_be_told_ranks_behind_the_others() -> None:
    rows = [row("a", corr=-0.9), row("b"), row("c", "zero_variance")]
    choose(rows, STRATEGIES["corr"], Size(top=3))
    assert order(rows) == ["a", "b", "c"]
    assert [a.key for a in rows if a.selected] == ["a"]


@pytest.mark.parametrize(
    ("name", "engine", "contributions", "message"),
    [
        ("gradalign", "directional", False, "'gradalign' needs cosine, which engine 'directional' does not give; take "
         "--engine exact or sketch or reference"),
        ("tscore", "exact", False, "'tscore' needs t, .*--engine directional or reference .or --contributions"),
        ("gradaling", "exact", False, "unknown strategy 'gradaling'; did you mean 'gradalign'"),
        ("dot", "exactly", False, "unknown engine 'exactly'; did you mean 'exact'"),
    ],
)  # fmt: skip
def test_strategies_that_an_engine_cannot_serve(name: str, engine: str, contributions: bool, message: str) -> None:
    with pytest.raises(GradAlignError, match=message):
        find_strategy(name, engine, contributions)


def test_defaults_and_what_contributions_allow() -> None:
    assert find_strategy(None, "exact").name == "gradalign"
    assert find_strategy(None, "directional").name == "dot"
    assert find_strategy("corr", "exact", contributions=True).name == "corr"
    assert find_strategy("random", "directional").name == "random"
