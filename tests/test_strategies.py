"""The strategies that people ask about, on hand-made alignments and against their formulas written out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from gradalign.alignment.record import Alignment, Numbers, unscored
from gradalign.errors import GradAlignError, GradAlignWarning
from gradalign.problems.schema import uniform_hash
from gradalign.rewards.coin import Coin
from gradalign.selection import STRATEGIES, Size, Strategy, choose, compose, find_strategy
from gradalign.selection.gates.dtv import leave_one_out
from tests.conftest import make_groups
from tests.test_selection import order, row


def ranked(rows: list[Alignment], strategy: str | Strategy, seed: int = 0) -> list[str]:
    choose(rows, STRATEGIES[strategy] if isinstance(strategy, str) else strategy, Size(top=1), seed)
    return order(rows)


def featured(features: NDArray[Any]) -> list[Alignment]:
    return [row(f"k{i}", features=own.astype(np.float32)) for i, own in enumerate(features)]


def silent(key: str) -> Alignment:
    return row(key, "zero_variance", 1.0)


def test_norm_and_negative_read_one_number_each() -> None:
    rows = [
        silent("d"),
        row("a", norm=1.0, cosine=0.9),
        row("b", norm=3.0, cosine=-0.5),
        row("c", norm=2.0, cosine=0.0),
    ]
    assert ranked(rows, "norm") == ["b", "c", "a", "d"]
    assert ranked(rows, "negative") == ["b", "c", "a", "d"]
    assert [a.score for a in rows] == [None, -0.9, 0.5, 0.0]
    rows.append(row("unseen"))
    assert ranked(rows, "norm") == ranked(rows, "negative") == ["b", "c", "a", "unseen", "d"]


def test_negative_turns_the_cosine_around_and_knows_its_error() -> None:
    rows = [row(f"k{i}", cosine=c, se=0.3, norm=2.0) for i, c in enumerate([0.4, -0.1, 0.2])]
    assert ranked(rows, "negative") == ranked(rows, "gradalign")[::-1]
    rank: Any = STRATEGIES["negative"].rank
    assert rank.errors(rows) == pytest.approx([0.15] * 3)


def test_dynamic_draws_among_those_whose_rewards_vary() -> None:
    rows = [row(f"k{i}", "scored" if i % 3 else "zero_variance", (i % 3) / 2) for i in range(60)]
    keys = ranked(rows, "dynamic", 4)
    assert set(keys[:40]) == {a.key for a in rows if a.status == "scored"}
    assert keys[:40] == [key for key in ranked(rows, "random", 4) if key in set(keys[:40])]
    assert keys != ranked(rows, "dynamic", 5)
    assert STRATEGIES["dynamic"].needs == {"pass_rate"}
    assert not STRATEGIES["dynamic"].needs_engine


def test_accband_draws_within_the_band_ends_included() -> None:
    rates = [0.1, 0.2, 0.3, 0.5, 0.8, 0.81, None]
    rows = [row(f"k{i}", rate=rate) for i, rate in enumerate(rates)]
    choose(rows, STRATEGIES["accband"], Size(top=9), 1)
    assert [bool(a.selected) for a in rows] == [False, True, True, True, True, False, False]
    draws = {f"k{i}": uniform_hash("random", 1, f"k{i}") for i in range(1, 5)}
    assert order(rows)[:4] == sorted(draws, key=draws.__getitem__, reverse=True)
    near = compose("accband", rank="accgreedy")
    choose(rows, near, Size(top=3))
    assert order(rows)[:4] == ["k3", "k2", *sorted(["k1", "k4"], key=lambda k: k != order(rows)[2])]


def test_simacc_is_the_cosine_times_the_rewards_variance() -> None:
    rows = [
        row("rare", rate=1 / 8, cosine=0.5), row("half", rate=0.5, cosine=0.3), row("all", rate=1.0, cosine=0.9),
        row("against", rate=0.5, cosine=-0.1), row("unknown", rate=None, cosine=0.9), silent("silent"),
    ]  # fmt: skip
    assert ranked(rows, "simacc") == ["half", "rare", "all", "against", "unknown", "silent"]
    assert [a.score for a in rows[:4]] == pytest.approx([0.5 * 7 / 16, 0.3, 0.0, -0.1])
    rank: Any = STRATEGIES["simacc"].rank
    assert rank.errors([row("r", rate=1 / 8, se=0.4, norm=2.0, cosine=0.1)]) == pytest.approx([0.2 * 7 / 16])
    rows[1].pass_rate = 1.5
    with pytest.raises(
        GradAlignError, match=r"simacc: the mean reward of problem 'half' is 1.5, which is no pass rate"
    ):
        ranked(rows, "simacc")


def test_cropi_fuses_ranks() -> None:
    rows = [
        row("both", sources={"a": 0.2, "b": 0.2}), row("first", sources={"a": 0.9, "b": -0.9}),
        row("second", sources={"a": -0.1, "b": 0.3}), row("none", sources={"a": -0.5, "b": -0.95}), silent("silent"),
    ]  # fmt: skip
    keys = ranked(rows, "cropi")  # much for one set is more than a little for both; equals by seeded hash
    assert (set(keys[:2]), keys[2:]) == ({"first", "second"}, ["both", "none", "silent"])
    expected = [2 / 62, 1 / 61 + 1 / 63, 1 / 63 + 1 / 61, 2 / 64]
    assert [a.score for a in rows[:4]] == pytest.approx(expected)
    choose(rows, compose("cropi", rank="cropi(k=0)"), Size())
    assert [a.score for a in rows[:4]] == pytest.approx([1.0, 1 + 1 / 3, 1 + 1 / 3, 0.5])
    tied = [row(k, sources={"a": 0.5}) for k in "xyz"] + [row("w", sources={"a": 0.1})]
    ranked(tied, "cropi")
    assert [a.score for a in tied] == pytest.approx([1 / 62, 1 / 62, 1 / 62, 1 / 64])


@given(st.integers(1, 30), st.integers(1, 4), st.floats(0, 100), st.integers(0, 99))
def test_cropi_is_the_sum_over_sources(count: int, sources: int, k: float, seed: int) -> None:
    cosines = np.random.default_rng(seed).integers(-4, 5, (count, sources)) / 4
    rows = [row(f"k{i}", sources=dict(zip("abcd", own.tolist(), strict=False))) for i, own in enumerate(cosines)]
    choose(rows, compose("cropi", rank=f"cropi(k={k!r})"), Size(top=1))
    places = np.stack([stats.rankdata(-column, "average") for column in cosines.T])
    np.testing.assert_allclose(np.array([a.score for a in rows], np.float64), (1 / (k + places)).sum(0), rtol=1e-12)
    if sources == 1:
        best = max(cosines[:, 0])
        assert cosines[int(order(rows)[0][1:]), 0] == best


@given(st.integers(2, 12), st.integers(1, 9), st.integers(0, 99))
def test_leave_one_out_is_the_double_loop(count: int, dimension: int, seed: int) -> None:
    features = np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)
    wide = features.astype(np.float64)
    others = [np.mean([wide[j] for j in range(count) if j != i], 0) for i in range(count)]
    expected = [float(own @ other) for own, other in zip(wide, others, strict=True)]
    np.testing.assert_allclose(leave_one_out(list(features)), expected, atol=1e-12)


def test_dtv_drops_what_goes_against_the_others_however_long_it_is() -> None:
    features = np.array([[1.0, 0.1], [1.0, -0.1], [0.5, 0.0], [-90.0, 0.0], [0.0, 0.0]])
    rows = [*featured(features), silent("silent")]
    choose(rows, STRATEGIES["dtv"], Size(top=9))
    # the long one turns the mean of the others against them: each of these goes against it, and is dropped
    assert [a.gate for a in rows] == ["dtv"] * 5 + [None]
    rows = featured(np.array([[1.0, 0.1], [1.0, -0.1], [0.5, 0.0], [-0.9, 0.0], [0.0, 0.0]]))
    choose(rows, STRATEGIES["dtv"], Size(top=9), 2)
    assert [a.gate for a in rows] == [None, None, None, "dtv", "dtv"]
    kept = [a.key for a in rows[:3]]
    assert order(rows)[:3] == sorted(kept, key=lambda key: -uniform_hash("random", 2, key))
    alone = featured(np.array([[-1.0]]))
    choose(alone, STRATEGIES["dtv"], Size(top=1))
    assert alone[0].selected


def test_dtv_asks_only_of_those_that_are_still_in() -> None:
    rows = featured(np.array([[1.0], [1.0], [-9.0]]))
    rows[2].pass_rate = 0.95
    choose(rows, compose("random", ["band(low=0.2, high=0.8)", "dtv"]), Size(top=3))
    assert [a.gate for a in rows] == [None, None, "band"]


def test_the_oracle_knows_a_list_or_the_coin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [unscored(f"k{i}", "") for i in range(40)]
    clean = {f"k{i}" for i in range(0, 40, 3)}
    (tmp_path / "clean.txt").write_text("\n".join([*sorted(clean), "", " elsewhere "]))
    monkeypatch.chdir(tmp_path)
    choose(rows, find_strategy("oracle", "exact"), Size(top=40), 7)
    assert {a.key for a in rows if a.selected} == clean
    drawn = sorted(clean, key=lambda key: -uniform_hash("random", 7, key))
    assert order(rows)[: len(clean)] == drawn  # as random, but for what it knows
    by_coin = find_strategy("oracle", "exact", gates=["oracle(corrupt=0.3, seed=5)"])
    choose(rows, by_coin, Size(top=40))
    coin = Coin(0.3, 5)
    assert {a.key for a in rows if a.selected} == {a.key for a in rows if not coin.corrupts(a.key)}
    assert not by_coin.needs
    with pytest.warns(
        GradAlignWarning, match=r"clean.txt lists none of the 1 problems .first there: 'elsewhere'; first"
    ):
        choose([unscored("other", "")], STRATEGIES["oracle"], Size(top=1))


def test_an_oracle_that_knows_nothing_says_so_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        GradAlignError, match=r"gate oracle: clean.txt: No such file or directory; write the keys of the"
    ):
        find_strategy("oracle", "exact")
    (tmp_path / "empty").write_text("\n \n")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    for name, said in (("empty", "lists no key"), ("bytes", "is not UTF-8"), (".", "Is a directory")):
        with pytest.raises(GradAlignError, match=f"gate oracle: {name}: {said}"):
            find_strategy("dot", "exact", gates=[f"oracle(keys='{name}')"])
    with pytest.raises(GradAlignError, match=r"gate 'oracle': corrupt"):
        find_strategy("oracle", "exact", gates=["oracle(corrupt=2)"])


@pytest.mark.parametrize(
    ("name", "engine", "said"),
    [
        ("cropi", "exact", "'cropi' needs sources, which engine 'exact' does not give; take --engine sketch"),
        ("dtv", "directional", "'dtv' needs features, which engine 'directional' does not give; take --engine sketch"),
        ("norm", "directional", "'norm' needs norm, which engine 'directional' does not give"),
        ("negative", "directional", "'negative' needs cosine"),
        ("simacc", "directional", "'simacc' needs cosine"),
        ("magnitude", "exact", "unknown strategy 'magnitude'"),
    ],
)
def test_engines_that_cannot_serve_are_refused(name: str, engine: str, said: str) -> None:
    with pytest.raises(GradAlignError, match=said):
        find_strategy(name, engine)


def test_what_a_source_gives_must_be_finite() -> None:
    with pytest.raises(GradAlignError, match="problem 'g0': its alignment is not finite"):
        Numbers(dot=1.0, sources={"a": float("nan")}).require_finite(make_groups(1, 1)[0])


@given(st.integers(1, 12), st.integers(1, 9), st.integers(1, 12), st.integers(0, 9))
def test_nearest_is_the_mean_of_the_largest_cosines(count: int, problems: int, k: int, seed: int) -> None:
    cosines = np.random.default_rng(seed).uniform(-1, 1, (count, problems))
    rows = [row(f"k{i}", near=own) for i, own in enumerate(cosines)] + [row("unseen"), silent("d")]
    choose(rows, compose(None, ["none"], f"nearest(k={k})"), Size(top=1))
    expected = [sum(sorted(own)[::-1][:k]) / min(k, problems) for own in cosines.tolist()]
    assert [a.score for a in rows[:count]] == pytest.approx(expected)
    assert [a.score for a in rows[count:]] == [None, None]
    assert next(a for a in rows if a.selected).score == max(a.score for a in rows if a.score is not None)
