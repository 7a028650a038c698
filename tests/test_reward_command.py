"""Rewards from the outside: ``gradalign reward``, several rewards with weights, verl's functions, plug-ins."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from gradalign.cli.rollout import RolloutOptions
from gradalign.config import parse
from gradalign.errors import GradAlignError
from gradalign.parts import Registry
from gradalign.problems.schema import Problem
from gradalign.rewards import find
from gradalign.rewards.base import Reward
from gradalign.rewards.coin import Coin
from gradalign.rewards.find import REWARDS, find_reward
from gradalign.rewards.several import WeightedSum, together
from gradalign.rewards.text import exact, number
from gradalign.rollouts.table import read_rollouts
from tests.conftest import Ran

Run = Callable[..., Ran]
PROBLEM = Problem("k", "q", "18", "s", {"level": 2})
SAMPLED = ["--model", "embedded", "--max-new-tokens", 8, "-n", 4]


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    rows = [{"key": f"p{i}", "prompt": f"Half of {2 * i}?", "answer": str(i)} for i in range(3, 6)]
    return write(tmp_path / "pool.jsonl", *rows)


def row_of(ran: Ran, kind: str) -> list[str]:
    line = next(line for line in ran.out.splitlines() if line.startswith(f"│ {kind} "))
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_a_reward_is_held_against_gold_answers_and_junk(gradalign: Run, pool: Path) -> None:
    ran = gradalign("reward", "--reward", "exact", "--problems", pool, "--examples", "2")
    assert ran.status == 0, ran.err
    assert row_of(ran, "gold answer")[:6] == ["gold answer", "3", "3", "0", "0", "1"]
    for kind in ("gold answer, boxed", "nothing", "the prompt", "another answer"):
        assert row_of(ran, kind)[:6] == [kind, "3", "0", "3", "0", "0"]
    assert row_of(ran, "all")[:5] == ["all", "15", "3", "12", "0"]
    assert "accepted (3)" in ran.out
    assert "rejected (12)" in ran.out
    assert ran.out.count("Half of 6?") == 1
    assert "error (" not in ran.out
    assert row_of(gradalign("reward", "--reward", "exact", "--problems", pool, "--limit", 1), "all")[1] == "5"
    ran = gradalign("reward", "--reward", "reasoning-gym", "--problems", pool, "--examples", "2")
    assert row_of(ran, "all")[4] == "15"
    assert len(re.findall(r"│ gold answer +│", ran.out)) == 3  # what is wrong with one is said once


def test_a_reward_is_held_against_responses(gradalign: Run, pool: Path, tmp_path: Path) -> None:
    talk = [{"role": "assistant", "content": "it is 4"}]
    rows: list[dict[str, Any]] = [
        {"key": "p3", "response": "3"}, {"key": "p4", "completion": talk}, {"key": "p5", "completion": "6"}
    ]  # fmt: skip
    responses = write(tmp_path / "r.jsonl", *rows)
    ran = gradalign("reward", "--reward", "math", "--problems", pool, "--check", responses)
    assert row_of(ran, "response")[:6] == ["response", "3", "2", "1", "0", "0.667"]
    (tmp_path / "odd.jsonl").write_text((pool.read_text()).replace('"5"', '"five {"'))
    ran = gradalign("reward", "--reward", "math", "--problems", tmp_path / "odd.jsonl", "--check", responses)
    assert row_of(ran, "response")[:5] == ["response", "3", "2", "0", "1"]
    assert "error (1)" in ran.out
    bad: list[tuple[list[dict[str, Any]], str]] = [
        ([{"key": "p3"}], "r.jsonl:1: no text in response or completion .the row has key.; write the response's text"),
        (
            [{"key": "p9", "response": "1"}],
            "r.jsonl:1: field 'key' is 'p9', which no problem of --problems has; did",
        ),
        ([{"response": "1"}], "r.jsonl:1: field 'key' is missing; give the pool"),
        ([], "r.jsonl: holds no response; write one a row"),
    ]
    for rows, message in bad:
        write(responses, *rows)
        error = gradalign("reward", "--reward", "exact", "--problems", pool, "--check", responses).error
        assert re.search(message, error), error


def test_rewards_add_up_by_their_weights() -> None:
    both = together([Reward("exact", exact), Reward("number", number)], [1.0, 0.25])
    assert both(PROBLEM, ["18", "it is 18", "x"], [[1]] * 3) == [1.25, 0.25, 0.0]
    assert (both.name, both.identity) == ("1 exact + 0.25 number", "1.0 exact + 0.25 number")
    alone = Reward("exact", exact)
    assert together([alone], []) is together([alone], [1.0]) is alone
    assert together([alone], [0.5])(PROBLEM, ["18"], [[1]]) == [0.5]
    assert together([alone, Reward("number", number)], [])(PROBLEM, ["18"], [[1]]) == [2.0]
    coin = Coin(1.0, 3)
    tossed = together([Reward("exact", exact, coin=coin), Reward("number", number, coin=coin)], [1.0, 0.5])
    assert tossed.coin == coin
    assert set(tossed(PROBLEM, ["18"] * 64, [[1]] * 64)) == {0.0, 1.5}
    assert tossed(PROBLEM, ["x"] * 4, [[1]] * 4) == tossed(PROBLEM, ["18"] * 4, [[1]] * 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["exact", "number", "--reward-weights", "1"],
         r"has 1 weights for 2 rewards \(exact, number\); give one for each"),
        (["exact", "--reward-weights", "1", "2"], "has 2 weights for 1 rewards"),
        (["exact", "exact"], "names 'exact' twice; name it once, with its weight"),
        (["exact", "nmber"], "unknown reward 'nmber'; did you mean 'number'"),
        (["exact", "--reward-weights", "inf"], "option --reward-weights: .*finite number"),
        (["exact", "--reward-weights", "much"], "option --reward-weights: .*valid number"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit(arguments: list[str], message: str) -> None:
    base = ["--model", "m", "--problems", "p", "--out", "o", "--reward"]
    with pytest.raises(GradAlignError, match=message):
        parse(RolloutOptions, "rollout", [*base, *arguments]).rewards()


def test_rollouts_keep_the_rewards_of_several(gradalign: Run, tmp_path: Path) -> None:
    config = tmp_path / "r.yaml"
    config.write_text("reward: [countdown, number]\nreward_weights: [1.0, 0.5]\nproblems: embedded:arithmetic?size=6\n")
    out = tmp_path / "r.parquet"
    assert gradalign("rollout", "--config", config, *SAMPLED, "--out", out).status == 0
    rows = pq.read_table(out).to_pylist()
    assert len(rows) == 24
    assert all(row["reward"] == row["rewards"][0] + 0.5 * row["rewards"][1] for row in rows)
    assert {0.0, 1.5} <= {row["reward"] for row in rows}
    saved = json.loads((tmp_path / "r.config.json").read_text())
    assert saved["rewards"] == "1.0 countdown + 0.5 number"
    assert saved["options"]["reward"] == ["countdown", "number"]
    weighed = [*SAMPLED, "--out", out, "--reward-weights", 1, 2]
    assert "is of another run" in gradalign("rollout", "--config", config, *weighed).error


FLAKY = '''
class Flaky:
    """Cannot judge the first response of every other problem."""

    marks_failures = True

    def __call__(self, completions, key, **_):
        first = float("nan") if int(key[0][1:]) % 2 else 0.0
        return [first] + [float(i % 2) for i in range(1, len(completions))]

pay = Flaky()
'''


def test_a_response_that_was_not_judged_fails_its_problem(
    gradalign: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flaky_judge.py").write_text(FLAKY)
    rows = [{"key": f"p{i}", "prompt": f"{i}+1=", "answer": str(i + 1)} for i in range(8)]
    pool, out = write(tmp_path / "pool.jsonl", *rows), tmp_path / "r.parquet"
    trusted = write(tmp_path / "v.jsonl", *[row | {"prompt": f"1{row['prompt']}"} for row in rows])
    reward = ["--reward", "python:flaky_judge:pay"]
    ran = gradalign("rollout", *SAMPLED, *reward, "--problems", pool, "--out", out)
    assert ran.status == 0, ran.err
    assert row_of(ran, "problems that could not be judged")[1] == "4"
    assert row_of(ran, "mean reward")[1] == "0.5"
    statuses = [group.status for group in read_rollouts(out, on_bad_row="mark")]
    assert statuses == ["scored", "failed"] * 4
    with pytest.raises(GradAlignError, match=r"field 'reward' is nan; write a finite number; or .*--on-bad-row mark"):
        read_rollouts(out)
    select = ["--pool", pool, "--validation", trusted, "--top", 2, "--out", tmp_path / "run"]
    ran = gradalign("select", *SAMPLED, *reward, *select)
    assert ran.status == 0, ran.err
    table = pq.read_table(tmp_path / "run" / "round-0000" / "alignments.parquet").to_pylist()
    assert {row["key"]: row["status"] for row in table} == {
        f"p{i}": "failed" if i % 2 else "scored" for i in range(8)
    }  # fmt: skip
    assert not any(row["selected"] for row in table if row["status"] == "failed")


def test_trl_pays_by_the_same_functions_and_weights(
    gradalign: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flaky_judge.py").write_text(FLAKY)
    base = ["train", "--model", "embedded", "--pool", "embedded:arithmetic?size=16", "--strategy", "random",
            "--chunk", 16, "--steps-per-round", 1, "--max-steps", 1, "--per-device-train-batch-size", 8,
            "--num-generations", 4, "--max-completion-length", 6, "--use-cpu", "--save-strategy", "no"]  # fmt: skip
    ran = gradalign(*base, "--out", tmp_path / "a", "--reward", "countdown", "number", "--reward-weights", 1, 0.5)
    assert ran.status == 0, ran.err
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["rewards"] == "1.0 countdown + 0.5 number"
    assert config["options"]["reward_weights"] == [1.0, 0.5]
    wrong = [*base, "--out", tmp_path / "b", "--reward", "countdown", "--reward-weights", 1, 2]
    assert "has 2 weights for 1 rewards" in gradalign(*wrong).error


def test_weights_and_failures_reach_the_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gradalign.policy.load import load_policy
    from gradalign.problems.embedded import make_pool
    from gradalign.trainers.trl.config import GradAlignConfig
    from gradalign.trainers.trl.rewards import RewardFunction
    from gradalign.trainers.trl.run import TrainJob

    args = GradAlignConfig(
        str(tmp_path / "run"), strategy="random", per_device_train_batch_size=8, num_generations=4, use_cpu=True,
        report_to="none", max_steps=1, steps_per_round=1, max_completion_length=6,
    )  # fmt: skip
    both = together([Reward("countdown", find_reward("countdown")), Reward("number", number)], [1.0, 0.5])
    trainer = TrainJob(load_policy("embedded", device="cpu"), both, args, make_pool("arithmetic", 16, 0), [], []).make()
    assert trainer.reward_weights.tolist() == [1.0, 0.5]
    assert trainer.reward_func_names == ["countdown", "number"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flaky_judge.py").write_text(FLAKY)
    function = RewardFunction(Reward("python:flaky_judge:pay", find_reward("python:flaky_judge:pay")))
    columns = {"key": ["p1"] * 2, "answer": ["1"] * 2, "source": [""] * 2}
    with pytest.raises(GradAlignError, match="on problem 'p1': a response could not be judged, and training cannot"):
        function(prompts=["q"] * 2, completions=["a", "b"], completion_ids=[[1], [1]], **columns)


VERL = """
def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    assert not kwargs and data_source == "s"
    return {"score": float(solution_str == ground_truth) + extra_info["level"], "acc": 1}

async def slow(data_source, solution_str, ground_truth, extra_info=None):
    return float(solution_str == ground_truth)

def scoreless(data_source, solution_str, ground_truth, extra_info=None):
    return {"acc": 1}
"""


def test_verls_functions(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(VERL)
    chat = Problem("k", [{"role": "user", "content": "q"}], "18", "s", {"extra_info": {"level": 5}, "level": 2})
    reward = Reward(f"verl:{path}:compute_score", find_reward(f"verl:{path}:compute_score"))
    assert reward(PROBLEM, ["18", "x"], [[1], [1]]) == [3.0, 2.0]
    assert reward(chat, ["18", "x"], [[1], [1]]) == [6.0, 5.0]
    assert Reward("slow", find_reward(f"verl:{path}:slow"))(PROBLEM, ["18", "x"], [[1], [1]]) == [1.0, 0.0]
    before = reward.identity
    path.write_text(VERL + "\n# changed")
    assert Reward("v", find_reward(f"verl:{path}:compute_score")).identity != before
    with pytest.raises(GradAlignError, match=r"on problem 'k': returned a dictionary without 'score' .it has acc"):
        Reward("v", find_reward(f"verl:{path}:scoreless"))(PROBLEM, ["18"], [[1]])
    (tmp_path / "broken.py").write_text("import nothing_like_it")
    for spec, message in {
        f"verl:{path}": "write verl:path.py:compute_score", "verl:": "write verl:path.py:compute_score",
        f"verl:{path}:compute": "has no function 'compute'; did you mean 'compute_score'",
        f"verl:{tmp_path}/no.py:f": "no.py: no such file", f"verl:{pq.__file__}c:f": "no such file",
        f"verl:{tmp_path / 'broken.py'}:f": "cannot be imported .No module named 'nothing_like_it'",
    }.items():  # fmt: skip
        with pytest.raises(GradAlignError, match=message):
            find_reward(spec)
    (tmp_path / "text.txt").write_text("x")
    with pytest.raises(GradAlignError, match=r"text\.txt: is not Python; name a \.py file"):
        find_reward(f"verl:{tmp_path / 'text.txt'}:f")


PLUGIN = """
from dataclasses import dataclass

def length(completions, **_):
    return [float(len(text)) for text in completions]

@dataclass(frozen=True)
class Shorter:
    than: int = 3

    def __call__(self, completions, **_):
        return [float(len(text) < self.than) for text in completions]

class Plain:
    def __call__(self, completions, **_):
        return [0.0]
"""


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package with four rewards, one of which cannot be imported."""
    (tmp_path / "their_rewards.py").write_text(PLUGIN)
    (tmp_path / "their_broken.py").write_text("import nothing_like_it")
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[gradalign.rewards]\nlength = their_rewards:length\nshorter = their_rewards:Shorter\n"
        "plain = their_rewards:Plain\nbroken = their_broken:pay\nabsent = their_rewards:nothing\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(find, "REWARDS", Registry(REWARDS.group, REWARDS.own, REWARDS.wants))


@pytest.mark.usefixtures("plugins")
def test_plugins_are_rewards_like_any_other() -> None:
    assert Reward("length", find_reward("length"))(PROBLEM, ["abc"], [[1]]) == [3.0]
    assert [find_reward(spec)(["abc"]) for spec in ("shorter", "shorter(than=9)")] == [[0.0], [1.0]]
    assert len(Reward("shorter", find_reward("shorter")).identity.split()) == 2  # with a hash of its source
    for spec, message in {
        "broken": r"plug-in 'broken' of gradalign.rewards \(their_broken:pay\): cannot be imported \(No module named "
        r"'nothing_like_it'\); mend or uninstall its package",
        "absent": "plug-in 'absent' .* cannot be imported",
        "plain": "reward 'plain': is a class and no dataclass; make it one",
        "shorter(then=2)": "reward 'shorter': unknown parameter 'then'; did you mean 'than'",
        "length(x=1)": "reward 'length': has no parameters; write length",
        "lenght": "unknown reward 'lenght'; did you mean 'length'",
    }.items():
        with pytest.raises(GradAlignError, match=message):
            find_reward(spec)
    assert find_reward("exact") is exact  # a broken plug-in stops nobody who does not name it


def test_packages_that_are_not_installed_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for spec, extra in (
        ("math", "rewards"),
        ("reasoning-gym", "rewards"),
        ("judge(url='http://a', model='m')", "rewards"),
    ):
        with pytest.raises(GradAlignError, match=rf"is not installed: pip install 'gradalign\[{extra}\]'"):
            find_reward(spec)


def test_nan_is_refused_from_rewards_that_do_not_mark_failures() -> None:
    with pytest.raises(GradAlignError, match="returned nan"):
        Reward("f", lambda completions, **_: [math.nan])(PROBLEM, ["a"], [[1]])
    assert WeightedSum((Reward("exact", exact),), (2.0,)).terms[0].title == "exact"
