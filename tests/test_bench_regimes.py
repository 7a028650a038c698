"""The regimes' benchmark: what its beds hold, what its rows and tables say, a small run, bad settings."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from gradalign.bench import regime_tables
from gradalign.bench.regime_arms import ARMS, BASELINES, DEFAULT, HEADLINE, ORACLE
from gradalign.bench.regime_beds import BEDS, REWARD, SHARES, Bed, Sizes
from gradalign.bench.regime_rows import Rows
from gradalign.bench.regime_tables import finish_regimes, reached, summary
from gradalign.bench.regimes import EMBEDDED, RegimesPlan, Setting, run
from gradalign.errors import GradAlignError
from gradalign.rollouts.sample import Sampling
from gradalign.rollouts.sampler import PolicySampler, sampled
from tests.conftest import Ran

Run = Callable[..., Ran]
SIZES = Sizes(pool=200, validation=16, test=32, share=0.1)


def bed(name: str, seed: int = 3, sizes: Sizes = SIZES) -> Bed:
    return BEDS[name][1](sizes, seed, lambda problems: [0.25, 0.75])


@pytest.mark.parametrize("name", BEDS)
def test_beds_follow_from_the_seed_and_their_sets_are_disjoint(name: str) -> None:
    made, again, other = bed(name), bed(name), bed(name, 4)
    assert (made.pool, made.validation, made.test, made.good) == (again.pool, again.validation, again.test, again.good)
    assert made.pool != other.pool
    assert (len(made.pool), len(made.validation), len(made.test)) == (200, 16, 32)
    assert len({p.key for p in [*made.pool, *made.validation, *made.test]}) == 248
    assert made.good < {p.key for p in made.pool}


@pytest.mark.parametrize("name", ["coins", "matched_coins"])
def test_coins_pay_whatever_the_response(name: str) -> None:
    made = bed(name, sizes=Sizes(400, 8, 8, 0.5))
    assert len(made.good) == pytest.approx(200, abs=40)
    bad = next(p for p in made.pool if p.key not in made.good)
    good = next(p for p in made.pool if p.key in made.good)
    assert made.reward(good, [good.answer if not good.metadata else "x", "nonsense"], [[], []])[1] == 0
    tossed = [made.reward(p, ["nonsense"] * 400, [[]] * 400) for p in made.pool if p.key not in made.good]
    rates = sorted(sum(own) / 400 for own in tossed)
    if name == "coins":
        assert rates[0] > 0.38
        assert rates[-1] < 0.62
    else:
        assert {round(rate * 4) / 4 for rate in rates} == {0.25, 0.75}
    assert bad.key not in made.good


def test_wrong_gold_is_wrong() -> None:
    made, clean = bed("wrong_gold", sizes=Sizes(200, 8, 8, 0.5)), bed("coins", sizes=Sizes(200, 8, 8, 0.5))
    for own, other in zip(made.pool, clean.pool, strict=True):
        assert (own.answer == other.answer) == (own.key in made.good)
    assert made.reward.coin is None


def test_the_target_is_a_tenth_of_the_imbalanced_pool() -> None:
    made = bed("imbalance")
    counts = Counter(p.source for p in made.pool)
    assert counts["countdown"] == len(made.good) == 20
    assert {p.source for p in [*made.validation, *made.test]} == {"countdown"}


def test_low_utility_has_no_problem_of_the_targets_form() -> None:
    made = bed("low_utility")
    counts = Counter(p.source for p in made.pool)
    assert counts == {"add2": 20, "trivial": 36, "impossible": 36, "guessable": 36, "format": 36, "duplicate": 36}
    assert {p.source for p in [*made.validation, *made.test]} == {"add3"}
    form = next(p for p in made.pool if p.source == "format")
    assert REWARD(form, ["12", "1+2", "", " 7 "], [[]] * 4) == [1, 0, 0, 1]
    assert len({p.prompt for p in made.pool if p.source == "duplicate"}) == 4
    guess = [p.answer for p in bed("low_utility", sizes=Sizes(2000, 8, 8, 0.1)).pool if p.source == "guessable"]
    assert 0.4 < sum(map(int, guess)) / len(guess) < 0.6


def row(arm: str, seed: int, final: float, **more: Any) -> dict[str, Any]:
    return {
        "regime": "imbalance", "bed": "imbalance", "arm": arm, "seed": seed, "final_accuracy": final,
        "best_accuracy": final, "area": final, "chosen_share": [0.1, 0.2], "steps": 24, "rollouts": 100,
        "accuracy": [0.3, 0.32, final], "steps_at": [0, 12, 24], "rollouts_at": [0, 50, 100], "collapsed": False,
        "seconds": 1.0, "from": {"commit": "x"}, **more,
    }  # fmt: skip


def test_tables_and_tests() -> None:
    rows = [row("random", s, 0.40 + s / 100) for s in range(5)]
    rows += [row(DEFAULT, s, 0.45 + s / 100) for s in range(5)] + [row(ORACLE, s, 0.50 + s / 100) for s in range(5)]
    rows += [row("gradalign", s, 0.44 + 0.02 * s) for s in range(2)]
    runs = {arm: {r["seed"]: r for r in rows if r["arm"] == arm} for arm in ("random", DEFAULT, ORACLE, "gradalign")}
    made = summary(runs)
    assert made[DEFAULT]["gap_closed"] == pytest.approx(0.5)
    first, second = regime_tables.tests(runs)
    assert first["arm"] == DEFAULT
    assert (first["against"], first["seeds"], first["wins"], first["p"]) == ("random", 5, 5, 1 / 32)
    assert (second["against"], second["seeds"], second["p_holm"]) == ("gradalign", 2, 0.5)
    assert first["p_holm"] == 2 / 32
    assert reached(rows[5], 0.4) == 2
    assert reached(rows[0], 0.45) is None
    data = {"regime": "imbalance", "bed": "imbalance", "setting": {"sizes": {"pool": 3}, "rounds": 2}, "rows": rows}
    assert "| `random`, trained on |" not in finish_regimes(data)
    for longer in rows[:5]:
        longer |= {"accuracy": [*longer["accuracy"], 0.9], "rollouts_at": [0, 25, 50, 150]}
    text = finish_regimes(data)
    assert f"| `{DEFAULT}` | 5 | 0.470 (0.450-0.490) |" in text
    assert "target share" in text
    assert "| `random`, trained on | 5 | 0.370 (0.360-0.380) |" in text


def test_every_arm_has_its_place() -> None:
    assert {*HEADLINE, *BASELINES} == ARMS.keys()
    plan = RegimesPlan("coins", list(ARMS), range(3), 1, Setting(SIZES))
    assert Counter(arm for arm, _ in plan.runs) == {arm: 3 if arm in HEADLINE else 1 for arm in ARMS}
    assert Setting(SIZES).rounds_of("random") > Setting(SIZES).rounds_of(DEFAULT)
    assert {regime for regime, _ in BEDS.values()} == SHARES.keys()


def test_rows_of_other_settings_or_versions_are_refused(tmp_path: Path) -> None:
    facts = {"regime": "imbalance", "bed": "imbalance", "setting": {"rounds": 2}}
    Rows(tmp_path / "r.json", facts, {"commit": "x"}, finish_regimes).keep(row("random", 0, 0.4))
    assert Rows(tmp_path / "r.json", facts, {"commit": "y"}, finish_regimes).has("random", 0)
    with pytest.raises(GradAlignError, match=r'holds results of another setting .\{"rounds": 2\}, not \{"rounds": 3\}'):
        Rows(tmp_path / "r.json", {**facts, "setting": {"rounds": 3}}, {}, finish_regimes)
    saved = json.loads((tmp_path / "r.json").read_text())
    (tmp_path / "r.json").write_text(json.dumps({**saved, "version": 0}))
    with pytest.raises(GradAlignError, match="of another version"):
        Rows(tmp_path / "r.json", facts, {}, finish_regimes)
    (tmp_path / "r.json").write_text("[]")
    with pytest.raises(GradAlignError, match="is not of this benchmark"):
        Rows(tmp_path / "r.json", facts, {}, finish_regimes)


def test_a_row_is_safe_whatever_the_tables_make_of_it(tmp_path: Path) -> None:
    facts = {"regime": "imbalance", "bed": "imbalance", "setting": {"sizes": {}, "rounds": 2}}
    rows = Rows(tmp_path / "r.json", facts, {}, finish_regimes)
    for arm, final in (("random", 0.45), (ORACLE, 0.44), (DEFAULT, 0.46)):
        rows.keep(row(arm, 0, final))
    assert "gap_closed" not in json.loads((tmp_path / "r.json").read_text())["summary"][DEFAULT]

    def fails(data: dict[str, Any]) -> str:
        raise ValueError("no table")

    with pytest.raises(ValueError, match="no table"):
        Rows(tmp_path / "r.json", facts, {}, fails).keep(row("dot", 0, 0.5))
    assert Rows(tmp_path / "r.json", facts, {}, finish_regimes).has("dot", 0)
    (tmp_path / "notes.md").write_text("mine\n")
    with pytest.raises(GradAlignError, match=r"notes\.md would be overwritten"):
        Rows(tmp_path / "notes.json", facts, {}, finish_regimes)


SMALL = (
    "--pool", 48, "--validation", 8, "--test", 8, "--rounds", 2, "--steps-per-round", 2, "--chunk", 16, "--top", 8,
    "--rollouts", 4, "--validation-rollouts", 4, "--test-rollouts", 2, "--batch", 32, "--share", 0.5, "--threads", 1,
)  # fmt: skip


def test_a_small_run_goes_on_where_it_stopped(gradalign: Run, tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    first = gradalign("bench", "regimes", "--bed", "coins", "--arms", "oracle", "--seeds", 0, "--out", out, *SMALL)
    assert first.status == 0, first.err
    both = "random", "batch", "racing", "oracle"
    done = gradalign("bench", "regimes", "--bed", "coins", "--arms", *both, "--seeds", 0, "--out", out, *SMALL)
    assert done.status == 0, done.err
    assert "4 runs, 3 of them to do" in done.out
    rows = {r["arm"]: r for r in json.loads(out.read_text())["rows"]}
    assert rows.keys() == set(both)
    assert rows["oracle"]["chosen_share"] == [0, 0]
    assert len(rows["oracle"]["accuracy"]) == 3
    assert rows["oracle"]["rollouts"] == 4 * 32
    assert rows["racing"]["rollouts"] > 4 * 32
    assert rows["random"]["steps"] == rows["racing"]["steps"] == 4
    assert rows["random"]["rollouts_at"][-1] > rows["random"]["rollouts"]
    assert rows["batch"]["rollouts_at"] == sorted(rows["batch"]["rollouts_at"])


def test_the_test_set_is_answered_by_the_packages_own_sampler_where_asked() -> None:
    setting = Setting(Sizes(48, 8, 8, 0.5), 2, 2, 16, 4, 4, 4, 16, 16, 1e-4)
    subject = replace(EMBEDDED, equal_rollouts=False, own_tests=True)
    rows = {arm: run("coins", arm, 0, setting, subject) for arm in ("random", ORACLE)}
    for arm, row in rows.items():
        assert row["steps_at"] == [0, 2, 4], arm
        assert len(row["rollouts_at"]) == 3
    assert rows["random"]["accuracy"][0] == rows[ORACLE]["accuracy"][0]
    stock = run("coins", ORACLE, 0, setting)
    assert stock["accuracy"][0] == pytest.approx(rows[ORACLE]["accuracy"][0], abs=0.2)
    assert stock["rollouts_at"] == rows[ORACLE]["rollouts_at"]
    groups = sampled(
        PolicySampler(EMBEDDED.load(), REWARD, Sampling(16, 16, seed=0)), bed("coins", 0, setting.sizes).test
    )
    assert rows[ORACLE]["accuracy"][0] == pytest.approx(mean(float(g.rewards.mean()) for g in groups))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--share", 1.5), "--share is 1.5; some problems, and not all, must be good"),
        (("--share", 0.001), "option --share: 0.001 of 48 problems leaves 0 good ones"),
        (("--top", 20), "--top 20 of --chunk 16 of --pool 48: each at most the next"),
        (("--batch", 30), "--batch 30 is no multiple of --rollouts 4"),
        (("--arms", "gradalin"), "unknown arm 'gradalin'; did you mean 'gradalign'"),
        (("--seeds", 1, 1), "option --seeds: a number is there twice"),
    ],
)
def test_bad_settings(gradalign: Run, tmp_path: Path, options: tuple[Any, ...], message: str) -> None:
    given = {SMALL[i]: SMALL[i + 1] for i in range(0, len(SMALL), 2)}
    given.pop(options[0], None)
    flat = [part for pair in given.items() for part in pair]
    out = "--out", tmp_path / "r.json"
    assert message in gradalign("bench", "regimes", "--bed", "imbalance", *out, *flat, *options).error
