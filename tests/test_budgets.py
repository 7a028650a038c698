"""Budgets: races over made-up candidates, and the statistics they rest on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from gradalign.alignment.record import Alignment, Evidence, Floats, Numbers
from gradalign.errors import GradAlignError
from gradalign.parts import parse
from gradalign.policy.group import Status
from gradalign.selection import BUDGETS, GATES, RANKS, STRATEGIES, Size, Strategy, choose, compose, find_budget
from gradalign.selection.budgets import prior
from gradalign.selection.budgets.fixed import Fixed
from gradalign.selection.budgets.race import Counts, Raced, Standing, race
from gradalign.selection.budgets.racing import DECIDED, Racing, openness
from gradalign.selection.parts import Unsure
from gradalign.selection.ranks.expected import Expected

DOT = STRATEGIES["dot"]


def row(
    key: str, dot: float | None = None, se: float | None = 1.0, status: Status = "scored", rate: float = 0.5, n: int = 8
) -> Alignment:
    if status != "scored":
        dot = se = None
    evidence = Evidence(np.full(n, rate), np.arange(n)) if status == "zero_variance" else None
    return Alignment(key, "web", status, rate, n, 80, Numbers(dot=dot, se=se, norm=2.0, cosine=dot), evidence)


def standing(rows: list[Alignment], size: Size, strategy: Strategy = DOT, most: int = 32) -> Standing:
    choose(rows, strategy, size)
    return Standing(np.array([a.n_rollouts for a in rows]), strategy, size, most, {}, rows, 1)


@dataclass
class Play:
    """Candidates with known scores, each rollout a normal draw around its score; notes what it is asked for.

    Attributes:
        scores: (candidates,) the truth.
        spread: standard deviation of one rollout's contribution.
        most: rollouts that exist of each.
        seed: of the rollouts.
        sampled: (candidates,) rollouts handed out so far; a rollout is never handed out again.
    """

    scores: Floats
    spread: float
    most: int
    seed: int
    sampled: Counts = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        self.rollouts = self.scores[:, None] + self.spread * rng.standard_normal((len(self.scores), self.most))
        self.sampled = np.zeros(len(self.scores), np.int64)

    def __call__(self, counts: Counts) -> list[Alignment]:
        assert (counts >= self.sampled).all()
        assert (counts <= self.most).all()
        self.sampled = counts.copy()
        made = []
        for index, (own, count) in enumerate(zip(self.rollouts, counts.tolist(), strict=True)):
            some = own[:count]
            se = float(some.std(ddof=1) / np.sqrt(count))
            made.append(row(f"k{index}", float(some.mean()), se, n=count))
        return made

    def race(self, budget: Racing | Fixed, size: Size, most: int | None = None) -> Raced:
        """A race over them."""
        return race(budget, DOT, size, len(self.scores), most or self.most, self, self.seed)


@pytest.mark.parametrize("spread", [2.0, 5.0])
def test_racing_finds_a_better_few_of_many_than_fixed_at_the_same_cost(spread: float) -> None:
    gains = []
    for seed in range(25):
        scores = np.random.default_rng(1000 + seed).standard_normal(400)
        means = []
        for budget, most in ((Fixed(), 12), (Racing(8, 12), 48)):
            raced = Play(scores, spread, 48, seed).race(budget, Size(fraction=0.05), most)
            assert int(raced.stages[-1].sum()) <= 12 * 400
            chosen = [bool(a.selected) for a in raced.alignments]
            assert sum(chosen) == 20
            means.append(float(scores[chosen].mean()))
        gains.append(means[1] - means[0])
    gain, error = float(np.mean(gains)), float(np.std(gains, ddof=1) / np.sqrt(len(gains)))
    assert gain > 3 * error


def test_openness_is_the_distance_from_the_cut_in_errors() -> None:
    rows = [row("a", 5.0, 0.5), row("b", 2.0, 1.0), row("c", 1.0, 2.0), row("d", -3.0, 0.1), row("e", status="failed")]
    found = openness(standing(rows, Size(top=2)), 16)  # the cut is midway between b and c
    assert found.tolist() == pytest.approx([7.0, 0.5, 0.25, 45.0, np.inf])
    found = openness(standing(rows, Size(threshold=1.5)), 16)
    assert found.tolist() == pytest.approx([7.0, 0.5, 0.25, 45.0, np.inf])
    assert np.isinf(openness(standing(rows, Size(top=9)), 16)).all()  # all that may be are in
    rows[0].numbers.se = rows[1].numbers.se = None  # the median of the others' stands in
    found = openness(standing(rows, Size(top=2)), 16)
    assert found.tolist() == pytest.approx([3.5 / 1.05, 0.5 / 1.05, 0.25, 45.0, np.inf])
    for each in rows:
        each.numbers.se = None  # distances in rank, in standard deviations of four ranks
    found = openness(standing(rows, Size(top=2)), 16)
    assert found.tolist() == pytest.approx([1.5 * 12**0.5 / 4, 0.5 * 12**0.5 / 4] * 1 + [0.5 * 12**0.5 / 4,
                                           1.5 * 12**0.5 / 4, np.inf])  # fmt: skip


def test_ranks_without_errors_race_by_rank() -> None:
    rows = [row(f"k{i}", float(i), rate=i / 20) for i in range(20)]
    for name in RANKS:
        knows = isinstance(parse(name, RANKS, "rank"), Unsure)
        unsure = ("norm", "learnability", "learnalign", "nearest", "cropi", "accgreedy", "dynamic", "random")
        assert knows == (name not in unsure), name
    found = openness(standing(rows, Size(top=5), STRATEGIES["accgreedy"]), 16)
    assert np.isfinite(found).all()
    assert found.argmax() == 0  # of all, the pass rate of nought is surest to stay where it is
    assert found[10] > found[12]


def test_what_a_gate_refused_for_good_gets_no_more() -> None:
    assert {name for name, gate in GATES.items() if gate.final} == {"consistent", "oracle"}
    tossed = Evidence(np.array([0.0, 1.0]), np.array([0, 0]))
    rows = [row("a", 3.0), row("b", 2.0), row("c", 1.0), row("d", 0.9), row("e", 2.5)]
    rows[1].evidence = tossed
    strategy = compose("dot", ["consistent", "band(low=0.4)"])
    rows[4].pass_rate, rows[3].pass_rate = 0.3, 0.3  # refused by the band, which more rollouts may mend
    found = openness(standing(rows, Size(top=1), strategy), 16)
    assert found.tolist() == pytest.approx([1.0, np.inf, 1.0, 1.1, 0.0])


def test_problems_whose_rewards_do_not_vary_are_open_by_their_chance_to_be_chosen() -> None:
    rows = [row(f"s{i}", float(i), rate=0.5) for i in range(10)]
    rows += [row("z0", status="zero_variance", rate=0.0), row("z1", status="zero_variance", rate=1.0, n=16)]
    found = openness(standing(rows, Size(top=2)), 24)
    for index, more in ((10, 16), (11, 8)):  # too few problems for a prior of their own: Beta(1/2, 1/2)
        count = 24 - more
        vary = 1 - stats.betabinom.pmf(more, more, 0.5 + count, 0.5)
        assert found[index] == pytest.approx(-stats.norm.ppf(vary * 0.2))
    many = rows + [row(f"d{i}", status="zero_variance", rate=0.0) for i in range(500)]
    found = openness(standing(many, Size(top=2)), 16)
    assert np.isinf(found[10:11]).all()  # among so many that are never solved, one that was not is taken for dead
    solved = {"web": [50_000.0, 15_000.0, 6_000.0, 6_250.0]}  # but for earlier rounds, which knew better
    known = Standing(np.array([a.n_rollouts for a in many]), DOT, Size(top=2), 32, solved, many, 1)
    beta = prior.beta_of(prior.together([solved, prior.seen(many)]), "web")
    vary = 1 - stats.betabinom.pmf(8, 8, beta[1] + 8, beta[0])
    assert vary > 0.5
    assert openness(known, 16)[10] == pytest.approx(-stats.norm.ppf(vary * 0.2))


def test_the_chance_to_vary_and_the_prior_are_those_of_the_beta_binomial() -> None:
    rng = np.random.default_rng(0)
    for rate, count, more, beta in ((0.0, 8, 8, (0.3, 2.0)), (1.0, 4, 28, (3.0, 0.5)), (0.0, 2, 1, (1.0, 1.0))):
        p = rng.beta(*beta, 400_000)
        held = p**count if rate else (1 - p) ** count
        stays = p ** (count + more) if rate else (1 - p) ** (count + more)
        assert prior.chance_to_vary(rate, count, more, beta) == pytest.approx(1 - stays.mean() / held.mean(), rel=0.02)
    assert prior.chance_to_vary(0.0, 8, 8, (1.0, 1.0)) == pytest.approx(8 / 17)  # Laplace's rule
    for a, b in ((0.4, 1.6), (5.0, 5.0), (0.2, 0.2)):
        rows = []
        for i in range(4000):
            n = (8, 16, 32)[i % 3]
            rate = float(rng.binomial(n, rng.beta(a, b))) / n
            rows.append(row(f"k{i}", 0.0, rate=rate, n=n))
        fitted = prior.beta_of(prior.seen(rows), "web")
        assert fitted == pytest.approx((a, b), rel=0.15), (a, b)
    few = {"web": [19.0, 10.0, 6.0, 2.0], "books": [40.0, 4.0, 2.0, 5.0]}
    assert prior.beta_of(few, "web") == prior.beta_of(few, "news") == prior.fit([59.0, 14.0, 8.0, 7.0])
    assert prior.beta_of(few, "books") == prior.fit(few["books"])
    assert prior.beta_of({}, "web") == prior.beta_of({"web": [30.0, 0.0, 0.0, 3.0]}, "web") == prior.UNKNOWN


def test_rewards_of_other_scales_count_in_part() -> None:
    rows = [row("a", 0.0, rate=0.5), row("b", 0.0, rate=-1.0), row("c", status="failed")]
    rows[0].evidence, rows[1].evidence = (
        Evidence(np.array([-1.0, 2.0]), np.arange(2)),
        Evidence(-np.ones(2), np.arange(2)),
    )
    rows[2].pass_rate = None
    assert prior.rates(rows) == [0.5, 0.0, None]


@given(
    st.integers(2, 9), st.floats(0, 20), st.integers(1, 60), st.integers(3, 80), st.integers(1, 40), st.integers(0, 3)
)
def test_no_race_costs_more_than_the_mean_or_takes_anything_back(
    screen: int, beyond: float, candidates: int, most: int, top: int, seed: int
) -> None:
    budget = Racing(screen, screen + beyond)
    if most <= budget.mean:
        return
    scores = np.random.default_rng(seed).standard_normal(candidates)
    play = Play(scores, 2.0, most, seed)
    raced = play.race(budget, Size(top=top))
    assert int(raced.stages[-1].sum()) <= budget.mean * candidates
    assert sum(raced.spent) == int(raced.stages[-1].sum()) == int(play.sampled.sum())
    assert raced.stages[0].tolist() == [screen] * candidates
    assert set(raced.reached) <= {screen, *budget.targets(most)}
    assert sum(raced.reached.values()) == candidates
    again = Play(scores, 2.0, most, seed).race(budget, Size(top=top))
    assert [s.tolist() for s in raced.stages] == [s.tolist() for s in again.stages]
    assert [a.rank for a in raced.alignments] == [a.rank for a in again.alignments]


def test_targets_double_and_share_what_the_screen_left() -> None:
    play = Play(np.random.default_rng(0).standard_normal(100), 8.0, 64, 0)  # all places are open
    raced = play.race(Racing(8, 14), Size(top=10))
    # 600 left: 200 bring 25 to 16, 200 bring 8 or more to 32, the rest as many to 64 as it can
    assert raced.spent[:2] == [800, 200]
    assert 176 < raced.spent[2] <= 200
    assert 600 - 56 < sum(raced.spent[1:]) <= 600
    assert Racing(8, 12).targets(48) == [16, 32, 48]
    assert Racing(8, 12).targets(13) == [13]


def test_a_race_ends_once_every_place_is_decided() -> None:
    sure = Play(np.arange(40.0), 0.05, 64, 0)
    raced = sure.race(Racing(8, 30), Size(top=5))
    assert len(raced.stages) == 1
    nearly = Play(np.array([10.0, 10.01, *[0.0] * 30]), 1.0, 64, 0)  # two contend for the only place
    raced = nearly.race(Racing(8, 30), Size(top=1))
    assert raced.stages[-1].tolist() == [64, 64, *[8] * 30]
    errors = [abs(a.numbers.dot or 0) / (a.numbers.se or 1) for a in raced.alignments]
    assert min(errors[:2]) > DECIDED


def test_racing_spends_on_problems_that_may_yet_be_solved() -> None:
    def measure(counts: Counts) -> list[Alignment]:
        made = []
        for index, count in enumerate(counts.tolist()):
            rate = 0.0 if index < 20 else 1.0
            if index < 10 or (index < 20 and count > 8):  # half of the good ones show themselves late
                made.append(row(f"k{index}", float(10 - index % 10), n=count))
            else:
                made.append(row(f"k{index}", status="zero_variance", rate=rate, n=count))
        return made

    known: prior.Prior = {"web": [500.0, 60.0, 20.0, 40.0]}
    raced = race(Racing(8, 20), DOT, Size(top=20), 30, 32, measure, prior=known)
    assert {a.key for a in raced.alignments if a.selected} == {f"k{i}" for i in range(20)}
    assert raced.stages[-1][:10].tolist() == [8] * 10  # all in: nothing to decide
    assert raced.stages[1].tolist() == [8] * 10 + [16] * 20
    dead: prior.Prior = {"web": [5e6, 5e4, 5e4, 6.25e5]}  # a problem of this source is always solved or never
    assert len(race(Racing(8, 20), DOT, Size(top=20), 30, 32, measure, prior=dead).stages) == 1


def test_fixed_gives_all_to_all_at_once() -> None:
    raced = Play(np.arange(5.0), 1.0, 6, 0).race(Fixed(), Size(top=1))
    assert [s.tolist() for s in raced.stages] == [[6] * 5]


def test_errors_of_ranks() -> None:
    rows = [row("a", 1.0, 0.5), row("b", 1.0, None), row("c", 1.0, 0.25)]
    rows[2].numbers.norm = None
    errors: dict[str, Callable[..., Unsure]] = {name: kind for name, kind in RANKS.items() if issubclass(kind, Unsure)}
    for name in ("dot", "shrunk", "lcb"):
        assert list(errors[name]().errors(rows)) == [0.5, None, 0.25]
    assert list(errors["cosine"]().errors(rows)) == [0.25, None, None]
    for name in ("tscore", "corr", "permutation"):
        assert list(errors[name]().errors(rows)) == [1.0] * 3


def expected_rows(seed: int, count: int = 300, rollouts: int = 16) -> list[Alignment]:
    """Half of the problems are sound: rewards that go with the movements; the other half's are tossed."""
    rng, truth = np.random.default_rng(seed), np.random.default_rng(7)
    made = []
    for index in range(count):
        strength = float(truth.uniform(0.5, 1.5)) if index % 2 else 0.0
        moves = rng.standard_normal(rollouts)
        rewards = (strength * moves + rng.standard_normal(rollouts) > 0).astype(float)
        x = (rewards - rewards.mean()) * moves
        numbers = Numbers(dot=float(x.mean()), se=float(x.std(ddof=1) / rollouts**0.5), moves=moves)
        evidence = Evidence(rewards, np.arange(rollouts), None, moves)
        made.append(Alignment(f"k{index}", "", "scored", float(rewards.mean()), rollouts, 80, numbers, evidence))
    return made


@pytest.mark.parametrize("worth", ["gain", "learnability", "one"])
def test_errors_of_expected_are_of_the_size_of_what_another_draw_gives(worth: str) -> None:
    rank = Expected(worth=worth)  # type: ignore[arg-type]
    draws = [rank.scores(expected_rows(seed), 0) for seed in range(12)]
    told = np.array([rank.errors(expected_rows(seed)) for seed in range(12)], np.float64).mean(0)
    spread = np.array(draws, np.float64).std(0, ddof=1)
    assert 0.4 < float(np.median(told[1::2] / spread[1::2])) < 2.5
    assert rank.errors([row("a", 1.0)]) == [None]


@pytest.mark.parametrize(
    ("text", "most", "strategy", "message"),
    [
        ("raicng", 16, "dot", "unknown budget 'raicng'; did you mean 'racing'"),
        ("racing(mean=6)", 16, "dot", "mean is 6, less than the screen of 8; raise mean, or lower screen"),
        ("racing(screen=1)", 16, "dot", "budget 'racing': screen: should be greater than or equal to 2"),
        ("racing(mean=nan)", 16, "dot", "budget 'racing': mean: should be a finite number"),
        ("racing(mean=1e999)", 16, "dot", "budget 'racing': mean: should be a finite number"),
        ("racing(screen=8.5)", 16, "dot", "budget 'racing': screen: should be a valid integer"),
        ("racing(most=8)", 16, "dot", "budget 'racing': unknown parameter 'most'"),
        ("racing(8)", 16, "dot", "write name or name"),
        ("racing(mean=8)", 8, "dot", "rollouts is 8, the most that any candidate gets, and screen is 8; raise"),
        ("racing", 12, "dot", "rollouts is 12, the most that any candidate gets, and mean is 12; raise rollouts"),
        ("racing", 16, "random", "strategy 'random' needs no rollouts; leave the budget out"),
    ],
)  # fmt: skip
def test_bad_budgets(text: str, most: int, strategy: str, message: str) -> None:
    with pytest.raises(GradAlignError, match=message):
        find_budget(text, most, STRATEGIES[strategy])
    assert find_budget("racing(screen=4, mean=6)", 16, DOT) == Racing(4, 6)
    assert find_budget("fixed", 1, STRATEGIES["random"]) == BUDGETS["fixed"]()
