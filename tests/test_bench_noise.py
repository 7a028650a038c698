"""The noise study: corruptions, the numbers strategies choose from, tests over seeds, the command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from gradalign.alignment.align import Scorer, silent
from gradalign.bench import corruptions, noise_data
from gradalign.bench.noise import BASELINES, CHOICES, DEFAULT, NoisePlan, choices
from gradalign.bench.noise_data import ARMS, OBJECTIVE, Seed, Setting
from gradalign.bench.significance import flipped, holm
from gradalign.cli.main import main
from gradalign.policy.group import Group, Rollout
from gradalign.policy.load import load_policy

SETTING = Setting(problems=24, validation=12, validation_rollouts=8, rollouts=(4, 8), truth=16)


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    """The policy of stale rollouts moves in fewer steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(noise_data, "MOVES", 2)
        yield


@pytest.fixture(scope="module")
def seed(tmp_path_factory: pytest.TempPathFactory) -> Seed:
    return Seed(load_policy("embedded", device="cpu"), 5, SETTING, tmp_path_factory.mktemp("noise"), silent)


def group(key: str, texts: list[str], gold: str) -> Group:
    rollouts = [Rollout(np.array([i]), float(text == gold), response=text) for i, text in enumerate(texts)]
    return Group(key, np.zeros(1, np.int64), rollouts)


def test_exactly_the_share_is_corrupted_and_by_key() -> None:
    keys = [f"k{i}" for i in range(101)]
    bad = corruptions.corrupted(keys, 0.5, 3)
    assert bad.sum() == 50
    again = corruptions.corrupted(keys[::-1], 0.5, 3)[::-1]
    assert (bad == again).all()
    assert (bad != corruptions.corrupted(keys, 0.5, 4)).any()


def test_coins_ignore_the_response_and_matched_ones_take_a_clean_chance() -> None:
    many = group("a", ["x"] * 4000, "x")
    assert corruptions.coins(many, 1).mean() == pytest.approx(0.5, abs=0.03)
    rates = [0.1, 0.3, 0.9]
    means = [corruptions.matched_coins(group(f"p{i}", ["x"] * 4000, "x"), 1, rates).mean() for i in range(30)]
    nearest = [min(rates, key=lambda rate: abs(rate - mean)) for mean in means]
    assert all(abs(a - b) < 0.03 for a, b in zip(nearest, means, strict=True))
    assert set(nearest) == set(rates)


def test_wrong_gold_is_the_commonest_wrong_answer_or_one_that_none_gives() -> None:
    texts = ["4", "5", "5", "6", "4", "4"]
    assert corruptions.reached_wrong_gold(group("a", texts, "4")).tolist() == [0, 1, 1, 0, 0, 0]
    assert corruptions.reached_wrong_gold(group("a", ["4", "4"], "4")).tolist() == [0, 0]
    sums = [corruptions.wrong_gold(group(f"k{i}", texts, "4"), 0).sum() for i in range(40)]
    assert {float(s) for s in sums} == {0.0, 2.0}


def test_the_numbers_are_those_that_scoring_gives(seed: Seed) -> None:
    policy = seed.policy
    trusted = seed._sampled(policy, seed.trusted, SETTING.validation_rollouts, "validation")
    direction = Scorer(policy, OBJECTIVE, "exact", seed=seed.seed).direction(trusted)
    fresh = seed._sampled(policy, seed.pool, SETTING.truth, "candidates")
    for arm in ("coins", "wrong_gold"):
        paid = [Group(g.key, g.prompt_ids, g.rollouts[:8], g.source) for g in seed._paid(arm, fresh)]
        scorer = Scorer(policy, OBJECTIVE, "exact", contributions=True)
        known = scorer.measure(paid, direction).alignments
        found = seed.arm(arm).alignments(np.full(SETTING.problems, 8))
        assert [a.status for a in found] == [a.status for a in known]
        assert [(a.key, a.pass_rate, a.n_tokens) for a in found] == [(a.key, a.pass_rate, a.n_tokens) for a in known]
        for mine, theirs in zip(found, known, strict=True):
            for name, apart in {"dot": 0.03, "norm": 1e-6, "cosine": 0.03, "se": 0.1, "corr": 0.1}.items():
                own, other = getattr(mine.numbers, name), getattr(theirs.numbers, name)
                assert (own is None) == (other is None), name
                if own is not None:  # finite differences by two calibrations; norms are exact
                    assert own == pytest.approx(other, rel=apart, abs=apart), name


def test_stale_moves_are_the_later_policys_and_rewards_the_earlier_ones(seed: Seed) -> None:
    fresh, stale = seed.arm("coins"), seed.arm("stale")
    assert (fresh.rewards == stale.rewards).all()
    assert np.abs(fresh.moves - stale.moves).max() > 0.1
    assert (fresh.gain[fresh.corrupted] == 0).all()
    assert seed.arm("wrong_gold").rewards[~fresh.corrupted].tolist() == fresh.rewards[~fresh.corrupted].tolist()


def test_a_seed_is_measured_once(seed: Seed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Seed(seed.policy, 5, SETTING, tmp_path, silent)
    for name, value in seed._arrays.items():
        assert (made._arrays[name] == value).all(), name
    monkeypatch.setattr(Seed, "_measured", lambda self: pytest.fail("measured again"))
    Seed(seed.policy, 5, SETTING, tmp_path, silent)


def test_choices_count_every_rollout(seed: Seed) -> None:
    rows = choices(seed.arm("coins"), NoisePlan([5], 6, SETTING), 5)
    trusted = SETTING.validation * SETTING.validation_rollouts
    for row in rows:
        assert row["chosen"] <= 6
        assert 0 <= row["corrupted_share"] <= 1 and 0 <= row["oracle_overlap"] <= 1  # noqa: PT018
        if row["budget"] == "fixed":
            assert row["rollouts_spent"] == row["rollouts"] * SETTING.problems + trusted
        else:
            assert (
                4 * SETTING.problems + trusted <= row["rollouts_spent"] < row["rollouts"] * SETTING.problems + trusted
            )
    assert {row["strategy"] for row in rows} >= {DEFAULT, *BASELINES, "oracle_dot", "oracle_cosine"}
    assert {row["strategy"] for row in rows if row["budget"] == "fixed" and row["rollouts"] == 4} == set(CHOICES)


def test_the_paired_test_goes_through_every_dealing_of_signs() -> None:
    random = np.random.default_rng(0)
    for _ in range(5):
        differences = random.normal(-0.3, 1, 8)
        result = stats.permutation_test(
            (differences,), np.mean, permutation_type="samples", alternative="less", n_resamples=np.inf
        )
        assert flipped(differences) == pytest.approx(result.pvalue)
    assert flipped(np.full(12, -1.0)) == 2**-12
    many = np.random.default_rng(0).normal(-0.2, 1, 40)
    assert flipped(many) == pytest.approx(
        stats.permutation_test(
            (many,), np.sum, permutation_type="samples", alternative="less", n_resamples=100_000, rng=1
        ).pvalue,
        abs=0.01,
    )


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_command_writes_rows_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "noise.json"
    arguments = ["bench", "noise", "--problems", "24", "--validation-problems", "12", "--validation-rollouts", "8"]
    arguments += ["--rollouts", "4", "32", "--truth", "32", "--choose", "6", "--seeds", "5", "6", "--out", str(out)]
    assert main(arguments) == 0
    data = json.loads(out.read_text())
    assert data["default"] == DEFAULT
    names = {"arm", "strategy", "budget", "rollouts", "seed", "corrupted_share", "oracle_overlap", "rollouts_spent"}
    assert all(names <= row.keys() for row in data["rows"])
    assert {row["arm"] for row in data["rows"]} == set(ARMS)
    assert {row["budget"] for row in data["rows"]} == {"fixed", "racing"}
    assert data["tests"][0]["seeds"] == 2
    assert "| `guarded` (default) |" in out.with_suffix(".md").read_text()
    half = [row for row in data["rows"] if row["seed"] == 5]
    out.write_text(json.dumps({**data, "rows": half}))
    assert main(arguments) == 0
    assert json.loads(out.read_text())["rows"] == data["rows"]
    capsys.readouterr()
    assert main([*arguments[:-2], "--truth", "16", "--out", str(tmp_path / "x.json")]) == 2
    assert "--rollouts 32 is more than --truth" in capsys.readouterr().err
