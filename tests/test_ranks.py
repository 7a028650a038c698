"""Ranks, gates and compositions on hand-made alignments."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from gradalign.alignment.record import Alignment, Evidence, Numbers, from_contributions
from gradalign.errors import GradAlignError, GradAlignWarning
from gradalign.policy.group import Group, Rollout
from gradalign.policy.objective import Objective
from gradalign.selection import RANKS, STRATEGIES, Size, check_rollouts, choose, compose, find_strategy


def scored(
    key: str, rewards: Sequence[float], moves: Sequence[float], logprobs: Sequence[float] | None = None
) -> Alignment:
    """The alignment of a group with these rewards and movements, one token a response."""
    rollouts = [Rollout(np.array([number]), reward) for number, reward in enumerate(rewards)]
    group = Group(key, np.zeros(1, np.int64), rollouts, "s")
    alignment = Alignment.of(group, from_contributions(group, Objective(), np.array(moves, np.float64)))
    assert alignment.evidence is not None
    alignment.evidence.logprobs = None if logprobs is None else np.array(logprobs)
    return alignment


def simulated(count: int, rollouts: int, effect: float, seed: int, scale: float = 1.0) -> list[Alignment]:
    """Problems whose movements, of spread ``scale``, differ by ``effect`` between responses paid 1 and 0."""
    random = np.random.default_rng(seed)
    made = []
    for number in range(count):
        rewards = random.permutation(np.arange(rollouts) % 2).astype(float)
        moves = scale * random.normal(size=rollouts) + effect * rewards
        made.append(scored(f"{effect}-{number}", rewards.tolist(), moves.tolist()))
    return made


def order(rows: list[Alignment]) -> list[str]:
    return [a.key for a in sorted(rows, key=lambda a: a.rank or 0)]


def test_tscore_and_corr_put_few_and_many_rollouts_on_one_scale() -> None:
    random = np.random.default_rng(0)
    few = scored("few", [0, 0, 1, 1], [0.1, 0.0, 0.9, 1.0])
    many = scored("many", [0, 1] * 32, (random.normal(size=64) + 1.2 * np.tile([0, 1], 32)).tolist())
    assert (few.numbers.corr or 0) > 0.95 > 0.7 > (many.numbers.corr or 0)
    for name in ("corr", "tscore"):
        choose([few, many], STRATEGIES[name], Size())
        assert order([few, many]) == ["many", "few"], name
    r = few.numbers.corr or 0.0
    tail = stats.t.sf(r * np.sqrt(2 / (1 - r**2)), 2)
    choose([few], STRATEGIES["corr"], Size())
    assert few.score == pytest.approx(stats.norm.isf(tail))
    choose([few], STRATEGIES["tscore"], Size())
    assert few.score == pytest.approx(stats.norm.isf(stats.t.sf(few.numbers.t or 0.0, 3)))


def test_lcb_is_the_one_sided_bound_and_level_a_half_is_dot() -> None:
    row = scored("a", [0, 1, 1, 0, 1], [0.1, 0.5, 0.2, -0.3, 0.4])
    dot, se = row.numbers.dot or 0.0, row.numbers.se or 0.0
    choose([row], compose("lcb", rank="lcb(level=0.95)"), Size())
    assert row.score == pytest.approx(dot - 2.131846786 * se)  # Student's t, 4 degrees of freedom
    choose([row], compose("lcb", rank="lcb(level=0.5)"), Size())
    assert row.score == pytest.approx(dot)


def test_permutation_gives_one_rewarded_response_its_due() -> None:
    single = scored("single", [1] + [0] * 7, [9.0, 0.1, -0.1, 0.0, 0.2, -0.2, 0.1, -0.1])
    half = scored("half", [1] * 4 + [0] * 4, [1.0, 0.9, 1.1, 0.8, 0.0, 0.1, -0.1, 0.2])
    assert (single.numbers.corr or 0) > (half.numbers.corr or 0)
    choose([single, half], STRATEGIES["permutation"], Size())
    assert order([single, half]) == ["half", "single"]
    assert single.score == pytest.approx(stats.norm.isf(1 / 16), abs=0.15)  # 1 dealing in 8 is as good: mid-p 1/16
    choose([single, half], STRATEGIES["corr"], Size())
    assert order([single, half]) == ["single", "half"]


def test_permutation_is_finite_however_strongly_rewards_are_reversed() -> None:
    moves = [*np.linspace(1, 2, 64), *np.linspace(-2, -1, 64)]
    rows = [
        scored(key, rewards, moves) for key, rewards in (("good", [1] * 64 + [0] * 64), ("bad", [0] * 64 + [1] * 64))
    ]
    choose(rows, STRATEGIES["permutation"], Size())
    assert all(np.isfinite(row.score or np.nan) for row in rows)
    assert rows[0].score == pytest.approx(-(rows[1].score or 0))


def test_expected_neither_takes_sure_and_tiny_nor_large_and_dubious() -> None:
    bad = simulated(100, 16, 0.0, 1, scale=3.0)
    good = simulated(100, 16, 1.5, 2)
    for number, row in enumerate(good):  # every other sound problem moves the policy by a hundredth
        if number % 2 and row.evidence is not None and row.evidence.moves is not None:
            row.evidence.moves *= 0.01
            row.numbers.dot, row.numbers.se = (row.numbers.dot or 0) / 100, (row.numbers.se or 0) / 100
            row.numbers.moves = row.evidence.moves
            row.key = f"tiny-{number}"
    rows = [*bad, *good]

    def share(name: str, prefix: str) -> float:
        choose(rows, STRATEGIES[name], Size(top=40))
        chosen = [a.key for a in rows if a.selected]
        return sum(key.startswith(prefix) for key in chosen) / len(chosen)

    assert share("corr", "tiny") > 0.3
    assert share("dot", "0.0") > share("expected", "0.0")
    assert share("expected", "tiny") == 0
    assert share("expected", "1.5") > share("dot", "1.5")
    assert share("expected", "1.5") > share("corr", "1.5")


def test_expected_listens_to_the_policy_where_it_is_known_what_it_thinks() -> None:
    rows = simulated(60, 8, 0.4, 3)
    told = [
        scored(a.key, a.evidence.rewards.tolist(), a.evidence.moves.tolist(), (2 * a.evidence.rewards).tolist())
        for a in rows
        if a.evidence is not None and a.evidence.moves is not None
    ]
    both = [*rows, *told]
    choose(both, compose("expected", rank="expected(worth=one)"), Size(top=60))
    assert sum(bool(a.selected) for a in told) > sum(bool(a.selected) for a in rows)
    choose(both, compose("expected", rank="expected(worth=one, agreement=0)"), Size())
    assert [a.score for a in rows] == [a.score for a in told]


def test_where_nothing_is_worth_anything_the_evidence_orders() -> None:
    rows = simulated(30, 16, -1.0, 4)
    choose(rows, STRATEGIES["expected"], Size())
    ranked = sorted(rows, key=lambda a: a.rank or 0)
    corrs = [stats.spearmanr([a.score for a in ranked], [a.numbers.corr for a in ranked]).statistic]
    assert corrs[0] > 0.9


def test_learnability_and_worth_by_it() -> None:
    rows = [scored("half", [0, 1, 0, 1], [0, 1, 0, 1]), scored("rare", [0, 0, 0, 1], [0, 0, 0, 1])]
    choose(rows, STRATEGIES["learnability"], Size())
    assert [a.score for a in rows] == [0.25, 0.1875]


def test_gates_refuse_by_name_one_after_the_other_and_the_refused_rank_behind() -> None:
    torn = scored("torn", [0, 1, 1, 1], [0.0, 1.0, 1.1, 1.2])
    assert torn.evidence is not None
    torn.evidence.responses = np.array([0, 0, 1, 2])
    rare = scored("rare", [0, 0, 0, 1], [0.0, 0.0, 0.1, 5.0])
    fine = scored("fine", [0, 1, 0, 1], [0.0, 0.1, 0.0, 0.1])
    silent = Alignment("silent", "", "zero_variance", 0.0, 4, 4, Numbers())
    rows = [torn, rare, fine, silent]
    strategy = compose("dot", ["consistent", "band(low=0.3)"])
    choose(rows, strategy, Size(top=3))
    assert [a.gate for a in rows] == ["consistent", "band(low=0.3)", None, None]
    assert [a.selected for a in rows] == [False, False, True, False]
    assert order(rows) == ["fine", "rare", "torn", "silent"]
    assert strategy.name == "consistent > band(low=0.3) > dot > top"
    assert compose("guarded", ["none"]).gates == ()
    assert compose("guarded").gates != ()


def test_a_ready_made_strategy_is_what_its_parts_make() -> None:
    rows = simulated(40, 8, 0.7, 5)
    choose(rows, STRATEGIES["guarded"], Size(top=10), 3)
    first = [(a.rank, a.selected, a.score) for a in rows]
    choose(rows, compose("dot", ["consistent"], "expected"), Size(top=10), 3)
    assert [(a.rank, a.selected, a.score) for a in rows] == first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gates": ["sounds"]}, "unknown gate 'sounds'; did you mean 'sound'"),
        ({"gates": ["sound(fdr=2)"]}, "gate 'sound': fdr: .*less than 1"),
        ({"gates": ["sound(rate=0.1)"]}, "gate 'sound': unknown parameter 'rate'"),
        ({"gates": ["band(low=0.9, high=0.1)"]}, "gate 'band': low is 0.9 and high is 0.1"),
        ({"rank": "lcb(0.9)"}, "write name or name.parameter=value"),
        ({"rank": "__import__('os')"}, "write name or name.parameter=value"),
        ({"rank": "expected(worth=luck)"}, "rank 'expected': worth: .*'gain', 'learnability' or 'one'"),
        ({"pick": "sample(temperature=-1)"}, "pick 'sample': temperature: .*greater than or equal to 0"),
        ({"pick": "top(floors={'a': 0.7, 'b': 0.6})"}, "pick 'top': floors add up to 1.3"),
        ({"pick": "top(caps={'a': 0.1}, floors={'a': 0.2})"}, "source 'a' has a floor of 0.2 above its cap of 0.1"),
        ({"rank": "lcb"}, "needs se, .*engine 'exact' does not give; take --engine directional or reference .or --con"),
        ({"pick": "diverse"}, "needs features, .*take --engine sketch, or"),
    ],
)
def test_mistakes_in_a_composition_are_told_in_one_line(arguments: dict, message: str) -> None:
    with pytest.raises(GradAlignError, match=message) as error:
        find_strategy(None, "exact", **arguments)
    assert "\n" not in str(error.value)


def test_every_rank_scores_what_it_can_and_says_none_of_the_rest() -> None:
    rows = [*simulated(5, 8, 1.0, 6), Alignment("bare", "", "scored", None, 0, 0, Numbers())]
    for name, kind in RANKS.items():
        scores = kind().scores(rows, 0)
        assert len(scores) == len(rows)
        if name not in ("random", "dynamic"):
            assert scores[-1] is None, name
        assert kind().scores([], 0) == []


def test_evidence_is_of_the_rollouts_and_nothing_else() -> None:
    ids = [np.array([1, 2]), np.array([3]), np.array([1, 2])]
    rollouts = [Rollout(own, float(n), logprobs=np.array([-0.5] * len(own), np.float32)) for n, own in enumerate(ids)]
    found = Evidence.of(Group("k", np.zeros(1, np.int64), rollouts))
    assert found.responses.tolist() == [0, 1, 0]
    assert found.logprobs is not None
    assert found.logprobs.tolist() == [-1.0, -0.5, -1.0]
    rollouts[1].logprobs = None
    assert Evidence.of(Group("k", np.zeros(1, np.int64), rollouts)).logprobs is None


def test_too_few_rollouts_are_told_of() -> None:
    for name in ("dot", "guarded"):
        with pytest.raises(GradAlignError, match="one rollout, which carries no gradient and no standard error"):
            check_rollouts(STRATEGIES[name], 1)
    with pytest.warns(GradAlignWarning, match="'guarded' goes by standard errors, and 2 rollouts a problem give none"):
        check_rollouts(STRATEGIES["guarded"], 2)
    check_rollouts(STRATEGIES["dot"], 2)
    check_rollouts(STRATEGIES["guarded"], 4)
    check_rollouts(STRATEGIES["accgreedy"], 1)
