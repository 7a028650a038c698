"""Picks against brute force, and how configurations name parts."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradalign.alignment.record import Alignment, Numbers
from gradalign.errors import GradAlignError
from gradalign.parts import parse, spec
from gradalign.selection import GATES, PICKS, RANKS, STRATEGIES, Size, choose, compose
from gradalign.selection.picks.diverse import Diverse
from gradalign.selection.picks.sample import Sample
from gradalign.selection.picks.top import Top


def rows(scores: Sequence[float], sources: str = "", features: Any = None) -> list[Alignment]:
    """Alignments as a pick is given them: best first."""
    made = []
    for number, score in enumerate(scores):
        own = None if features is None else np.asarray(features[number], np.float32)
        source = sources[number] if sources else ""
        made.append(Alignment(f"k{number}", source, "scored", 0.5, 8, 80, Numbers(features=own), score=score))
    return sorted(made, key=lambda a: -(a.score or 0.0))


def taken(pick: Any, table: Sequence[Alignment], count: int, seed: int = 0) -> list[Alignment]:
    return [table[i] for i in pick.picks(table, count, seed)]


def worth(table: Sequence[Alignment], chosen: Sequence[int]) -> float:
    """F(S) of the module's text."""
    total = sum(np.asarray(table[i].numbers.features, np.float64) for i in chosen)
    return sum(table[i].score or 0.0 for i in chosen) / float(np.linalg.norm(total))


@pytest.mark.parametrize("seed", range(8))
def test_every_step_of_diverse_makes_the_set_worth_most(seed: int) -> None:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(7, 4)) + np.array([1.0, 0, 0, 0])
    table = rows(features[:, 0].tolist(), features=features)
    order = Diverse().picks(table, 7, 0)
    assert sorted(order) == list(range(7))
    for step in range(7):
        before, left = order[:step], set(range(7)) - set(order[:step])
        best = max(worth(table, [*before, i]) for i in left)
        assert worth(table, order[: step + 1]) == pytest.approx(best)


def test_of_two_equals_the_second_waits_for_one_that_differs() -> None:
    features = [[1.0, 0.5, 0.0], [1.0, 0.5, 0.0], [1.0, 0.0, 0.5]]
    for order in itertools.permutations(range(3)):
        table = rows([1.0] * 3, features=[features[i] for i in order])
        first, second, _ = Diverse().picks(table, 3, 0)
        assert order[first] != 2 or order[second] != 2
        assert {order[first], order[second]} in ({0, 2}, {1, 2})
    many = rows([1.0] * 21, features=[[1.0, 0.5, 0.0]] * 20 + [[1.0, 0.0, 0.5]])
    assert "k20" in {a.key for a in taken(Diverse(), many, 2)}


def test_diverse_takes_problems_without_a_gradient_last() -> None:
    table = rows([0.0, 0.0, 0.5, -0.5], features=[[0, 0], [0, 0], [0.5, 0], [-0.5, 1.0]])
    assert [a.key for a in taken(Diverse(), table, 4)][:1] == ["k2"]
    assert {a.key for a in taken(Diverse(), table, 4)} == {"k0", "k1", "k2", "k3"}


@pytest.mark.parametrize("explore", [0.0, 0.5, 0.7])
def test_floors_hold_beside_what_is_explored(explore: float) -> None:
    """Three floors of one place each; the places chosen by score alone would all go to a fourth source."""
    table = rows(list(range(20, 0, -1)), "d" * 14 + "aabbcc")
    floors = dict.fromkeys("abc", 1 / 3)
    for seed in range(10):
        assert Counter(a.source for a in taken(Top(floors=floors, explore=explore), table, 3, seed)) == dict.fromkeys(
            "abc", 1
        )


SHARES = st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.5, 1.0])


@settings(max_examples=300)
@given(
    st.sampled_from([Top, Sample, Diverse]), st.text("abc", max_size=30), st.integers(1, 30), SHARES,
    st.dictionaries(st.sampled_from("abc*"), SHARES), st.dictionaries(st.sampled_from("abc"), SHARES, max_size=2),
    st.integers(0, 3),
)  # fmt: skip
def test_limits_hold_by_count(
    kind: Any, sources: str, count: int, explore: float, caps: dict[str, float], floors: dict[str, float], seed: int
) -> None:
    limits: dict[str, Any] = {"caps": caps, "floors": floors, "explore": explore}
    impossible = sum(floors.values()) > 1 or any(f > caps.get(s, caps.get("*", 1.0)) for s, f in floors.items())
    if impossible:
        with pytest.raises(ValueError, match="floor"):
            kind(**limits)
        return
    rng = np.random.default_rng(seed)
    table = rows(rng.normal(size=len(sources)).tolist(), sources, rng.normal(size=(len(sources), 3)))
    pick = kind(**limits)
    if not table:
        return
    found = pick.picks(table, count, seed)
    assert found == pick.picks(table, count, seed)
    assert len(set(found)) == len(found) <= count
    assert all(0 <= index < len(table) for index in found)
    held, there = Counter(table[i].source for i in found), Counter(sources)
    room = 0
    for source, problems in there.items():
        cap = math.floor(caps.get(source, caps.get("*", 1.0)) * count + 1e-9)
        floor = math.floor(floors.get(source, 0.0) * count + 1e-9)
        assert min(floor, problems) <= held[source] <= cap, (source, held, count)
        room += min(cap, problems)
    assert len(found) == min(count, room)  # no place is left empty that a problem may have


def test_floors_and_caps_by_hand() -> None:
    table = rows(list(range(20, 0, -1)), "a" * 15 + "b" * 5)
    found = taken(Top(floors={"b": 0.2}), table, 10)
    assert [a.key for a in found] == [f"k{i}" for i in (0, 1, 2, 3, 4, 5, 6, 7, 15, 16)]  # still by score
    found = taken(Top(caps={"a": 0.35}), table, 10)
    assert [a.key for a in found] == [f"k{i}" for i in (0, 1, 2, 15, 16, 17, 18, 19)]  # too few of b: 8 of 10
    found = taken(Top(caps={"*": 0.5}, floors={"b": 0.5}), table, 10)
    assert Counter(a.source for a in found) == {"a": 5, "b": 5}


def test_explored_places_are_drawn_uniformly_and_their_number_is_exact() -> None:
    table = rows(list(range(40, 0, -1)))
    drawn: Counter[str] = Counter()
    for seed in range(600):
        found = taken(Top(explore=0.3), table, 10, seed)
        assert [a.key for a in found[:7]] == [f"k{i}" for i in range(7)]
        assert len(found) == 10
        drawn.update(a.key for a in found[7:])
    assert set(drawn) == {f"k{i}" for i in range(7, 40)}
    expected = 600 * 3 / 33
    statistic = sum((drawn[f"k{i}"] - expected) ** 2 / expected for i in range(7, 40))
    assert statistic < 33 + 4 * (2 * 33) ** 0.5


def test_sample_draws_from_softmax() -> None:
    scores = np.array([1.0, 0.5, 0.0, -1.0])
    table, temperature, count = rows(scores.tolist()), 0.8, 4000
    weights = np.exp(scores / (temperature * scores.std()))
    first: Counter[int] = Counter()
    pairs: Counter[tuple[int, int]] = Counter()
    for seed in range(count):
        one, two = Sample(temperature=temperature).picks(table, 2, seed)
        first[one] += 1
        pairs[one, two] += 1
    for i in range(4):
        p = weights[i] / weights.sum()
        assert first[i] / count == pytest.approx(p, abs=4 * (p * (1 - p) / count) ** 0.5)
        for j in set(range(4)) - {i}:  # the second from those that are left
            q = p * weights[j] / (weights.sum() - weights[i])
            assert pairs[i, j] / count == pytest.approx(q, abs=4 * (q * (1 - q) / count) ** 0.5)


def test_without_temperature_the_highest_scores_are_taken() -> None:
    table = rows(np.random.default_rng(0).normal(size=30).tolist(), "ab" * 15)
    for limits in ({}, {"caps": {"a": 0.3}, "explore": 0.2}):
        assert Sample(temperature=0, **limits).picks(table, 10, 3) == Top(**limits).picks(table, 10, 3)  # type: ignore[arg-type]
    equal = rows([0.5] * 10)
    assert len(set(Sample().picks(equal, 5, 1))) == 5


def test_a_choice_is_ranked_as_it_was_picked() -> None:
    table = rows([3.0, 2.0, 1.0, 0.5], "aaab")
    for a in table:
        a.numbers.dot = a.score
    strategy = compose("dot", pick="top(floors={'b': 0.5})")
    choose(table, strategy, Size(top=2))
    assert [(a.key, a.rank, a.selected) for a in table] == [
        ("k0", 1, True), ("k1", 3, False), ("k2", 4, False), ("k3", 2, True)
    ]  # fmt: skip


def test_limits_of_a_threshold_are_shares_of_what_reaches_it() -> None:
    table = rows(list(range(20, 0, -1)), "a" * 8 + "b" * 12)
    for a in table:
        a.numbers.dot = a.score
    choose(table, compose("dot", pick="top(caps={'a': 0.5})"), Size(threshold=10.5))
    assert Counter(a.source for a in table if a.selected) == {"a": 5, "b": 2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("top(caps={'a': 0.2}, floors={'a': 0.3})", "source 'a' has a floor of 0.3 above its cap of 0.2; change one"),
        ("top(caps={'*': 0.2}, floors={'a': 0.3})", "source 'a' has a floor of 0.3 above its cap of 0.2"),
        ("top(floors={'a': 0.6, 'b': 0.6})", "floors add up to 1.2 of the choice; lower them to 1 at most"),
        ("top(explore=1.5)", "explore: should be less than or equal to 1"),
        ("top(caps={'a': -1})", "caps: should be greater than or equal to 0"),
        ("sample(temperature=-1)", "temperature: should be greater than or equal to 0"),
        ("sample(temprature=1)", "unknown parameter 'temprature'; did you mean 'temperature'"),
        ("topp", "unknown pick 'topp'; did you mean 'top'"),
        ("top(", "write name or name.parameter=value, ...."),
        ("top(0.5)", "write name or name.parameter=value, ...."),
        ("top(explore=__import__('os'))", "write name or name.parameter=value, ...."),
        ("sample(temperature=inf)", "temperature: is inf; write a finite number"),
        ("sample(temperature=1e999)", "temperature: is inf; write a finite number"),
        ("sample(**{'temperature': 1})", "pick .sample.*"),
        ("top(explore=0.1, explore=0.2)", "write name or name.parameter=value, ...."),
        ("", "write name or name.parameter=value, ...."),
    ],
)
def test_contradictions_are_one_line(text: str, message: str) -> None:
    with pytest.raises(GradAlignError, match=message) as caught:
        parse(text, PICKS, "pick")
    assert "\n" not in str(caught.value)


shares = st.floats(0, 1).map(lambda x: round(x, 3))
shared = st.dictionaries(st.text(max_size=5), shares, max_size=1)
PARTS: dict[str, tuple[Any, str, dict[str, st.SearchStrategy]]] = {
    "top": (PICKS, "pick", {"explore": shares, "caps": st.dictionaries(st.text(max_size=5), shares)}),
    "sample": (PICKS, "pick", {"temperature": st.floats(0, 1e6), "floors": shared}),
    "sound": (GATES, "gate", {"fdr": st.floats(1e-6, 0.999), "draws": st.integers(99, 10**6)}),
    "band": (GATES, "gate", {"low": st.floats(-1e3, 0.2), "high": st.floats(0.8, 1e3)}),
    "lcb": (RANKS, "rank", {"level": st.floats(0.5, 0.999)}),
    "expected": (RANKS, "rank", {"worth": st.sampled_from(["gain", "learnability"]), "purity": st.floats(0, 9)}),
}


@given(st.sampled_from(sorted(PARTS)), st.data())
def test_a_part_is_what_its_own_name_says(name: str, data: st.DataObject) -> None:
    registry, kind, parameters = PARTS[name]
    part = registry[name](**data.draw(st.fixed_dictionaries({}, optional=parameters)))
    text = spec(part, registry)
    assert parse(text, registry, kind) == part
    assert spec(parse(text, registry, kind), registry) == text


def test_the_recipe_of_every_strategy_makes_it_again() -> None:
    for name, strategy in STRATEGIES.items():
        *gates, rank, pick = strategy.recipe.split(" > ")
        again = compose(name, gates or ["none"], rank, pick)
        assert (again.gates, again.rank, again.pick) == (strategy.gates, strategy.rank, strategy.pick)
        assert again.recipe == strategy.recipe
