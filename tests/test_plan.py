"""`gradalign plan`: work against numbers counted by hand, what it depends on, what it says of mistakes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradalign.alignment.sketch import USUAL
from gradalign.bench.counts import Lengths, Shape, completed
from gradalign.bench.workloads import MODELS
from gradalign.cli.main import main
from gradalign.errors import GradAlignWarning
from gradalign.plan.anatomy import anatomy
from gradalign.plan.memory import memory
from gradalign.plan.recipe import Recipe, Training, alternatives
from gradalign.plan.responses import Responses, earlier
from gradalign.plan.speeds import SHARES, Speeds, Steps, of_card
from gradalign.plan.work import Setting, alone, stages
from gradalign.policy.where import EMBEDDED
from gradalign.selection import STRATEGIES

SPEED = Path(__file__).parents[1] / "benchmarks" / "speed"
SHAPE = Shape(layers=2, layer_weights=100, head_weights=50, attention_width=4)
ONE = Speeds("one", "", dict.fromkeys(SHARES, 1.0), 1.0, None, False, host=0.0)
"""A device of one operation and one byte a second."""
SELECT = ["--model", "embedded", "--pool", "embedded:mixed?size=48", "--validation-size", "16", "--fraction", "0.25",
          "--max-new-tokens", "8", "--rollouts", "16", "--device", "h100"]  # fmt: skip
TRAIN = ["--model", "embedded", "--pool", "embedded:mixed?size=48", "--validation-size", "16", "--max-steps", "8",
         "--steps-per-round", "2", "--per-device-train-batch-size", "32", "--num-generations", "8", "--chunk", "24",
         "--max-completion-length", "8", "--device", "a100"]  # fmt: skip


def recipe(**changes: Any) -> Recipe:
    """A small recipe of ``select``."""
    made = Recipe(
        STRATEGIES["gradalign"], "exact", False, None, USUAL, "fixed", "round", 4, 2, 3, 3, 5, (), 512, 4096, 1, False,
        4, False, None, 4, 4,
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def training(**changes: Any) -> Training:
    """Two steps of two passes of two rollouts; two generation batches."""
    return dataclasses.replace(Training(2, 2, 2, 2, 2, 2, True, 0, False, False), **changes)


def setting(speeds: Speeds = ONE, mean: float = 5.0, devices: int = 1) -> Setting:
    """Prompts of 10 tokens, responses of at most 5, on the embedded policy made small."""
    model = dataclasses.replace(
        anatomy("embedded"), shape=SHAPE, parameters=250, covered=250, hidden=4, inner=8, keys=4, vocabulary=10
    )
    responses = Responses.assumed(mean, 5)
    return Setting(model, speeds, devices, 10.0, 10, responses, responses)


def planned(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What the command gives as JSON."""
    assert main(["plan", *arguments, "--format", "json"]) == 0
    return dict(json.loads(capsys.readouterr().out))


def test_scoring_costs_what_is_counted_by_hand() -> None:
    found = {stage.name: stage for stage in stages(recipe(), setting())}
    passed, places = 10 + 3 * 4, 1 + 3 * 4  # the prompt once, responses without their last token
    pairs = 10 * 11 // 2 + 12 * 10 + 3 * (4 * 5 // 2)
    group = 3 * 2 * (passed * 2 * 100 + places * 50) + 3 * 2 * 2 * pairs * 2 * 4
    singles = 2 * (8 * 15 * 2 * 100 + 8 * 6 * 50) + 2 * 2 * 8 * (15 * 16 // 2) * 2 * 4
    tried = singles + 2 * group // 3
    assert found["candidates"].operations == 4 * group + tried
    assert found["direction"].operations == 2 * group + tried
    assert found["candidates"].seconds == pytest.approx(4 * group + tried)  # one operation a second
    assert (found["candidate rollouts"].rollouts, found["candidate rollouts"].tokens) == (12, 60)
    assert list(found) == ["validation rollouts", "direction", "candidate rollouts", "candidates"]


def test_a_trainers_pass_is_counted_by_hand() -> None:
    assert completed(3)(SHAPE, Lengths(10, 2, 5)).weights == 3 * 2 * (2 * 15 * 2 * 100 + 2 * 6 * 50)
    found = {stage.name: stage for stage in stages(recipe(training=training()), setting())}
    passes = 4 * completed(3)(SHAPE, Lengths(10, 2, 5)).total
    assert found["training passes"].operations == passes
    assert found["training rollouts"].times == 1  # the first of two batches is recycled
    assert {s.name: s.times for s in alone(recipe(training=training()), setting())}["training rollouts"] == 2
    again = training(checkpointing=True, references=1)
    more = {stage.name: stage for stage in stages(recipe(training=again), setting())}
    assert more["training passes"].operations == pytest.approx(passes * 5 / 3)


def test_sampling_reads_weights_keys_and_values_in_every_step() -> None:
    own = setting(dataclasses.replace(ONE, rates=dict.fromkeys(SHARES, 1e30)))  # bound by memory alone
    found = {stage.name: stage for stage in stages(recipe(), own)}
    step = 4 * (2 * 100 + 50 + 12 * (10 + 2.5) * 2 * 4 * 2)
    assert found["candidate rollouts"].seconds == pytest.approx(4 * step)  # the prompt's pass gives the first token


def test_responses_that_end_leave_the_batch_by_halves() -> None:
    running = np.array([1, 0.9, 0.5, 0.5, 0.2, 0.0])
    assert Responses(running).decoding(10, leaving=True) == [(10, 1), (5, 2), (2, 1)]
    assert Responses(running).decoding(10, leaving=False) == [(10, 4)]
    assert Responses.assumed(3.0, 8).mean == pytest.approx(3.0)
    assert Responses.assumed(None, 8).decoding(4, leaving=True) == [(4, 7)]


@pytest.mark.parametrize("name", ["candidates", "rollouts", "validation", "validation_rollouts"])
def test_more_of_anything_costs_more(name: str) -> None:
    def seconds(one: Recipe) -> float:
        return sum(stage.times * stage.seconds for stage in stages(one, setting()))

    small, large = recipe(pool=100), recipe(pool=100, **{name: 2 * getattr(recipe(), name)})
    assert seconds(large) > 1.05 * seconds(small)


def test_devices_share_the_work_and_cards_differ() -> None:
    def seconds(speeds: Speeds, devices: int) -> float:
        own = setting(dataclasses.replace(speeds, host=0.0), devices=devices)
        return sum(stage.times * stage.seconds for stage in stages(recipe(candidates=4096, pool=4096), own))

    assert seconds(of_card("h100", True), 8) < seconds(of_card("h100", True), 1) / 4
    assert seconds(of_card("a100", True), 1) > 1.5 * seconds(of_card("H100", True), 1)
    assert seconds(of_card("a100", False), 1) > seconds(of_card("a100", True), 1)


def test_measured_steps_go_on_in_a_line() -> None:
    steps = Steps((1, 8, 16), (1.0, 1.0, 2.0))
    assert [steps(rows) for rows in (1, 4, 12, 16, 32)] == [1.0, 1.0, 1.5, 2.0, 4.0]


def test_a_race_spends_its_mean_and_no_more() -> None:
    raced = recipe(budget="racing(screen=8, mean=12)", rollouts=32, candidates=100, pool=100)
    spent = sum(count * (after - before) for stage in raced.stages() for count, before, after in stage)
    assert 1150 <= spent <= 1200
    assert [after for stage in raced.stages() for _, _, after in stage] == [8, 16, 32]


def test_alternatives_change_one_thing_each() -> None:
    labels = [one.label for one in alternatives(recipe(rollouts=16, training=training()))]
    assert ("exact + contributions", "fixed", "round") in labels
    assert ("sketch", "fixed", "round") in labels
    assert ("exact", "racing", "round") in labels
    assert ("directional", "fixed", "batch") in labels
    assert not list(alternatives(recipe(strategy=STRATEGIES["random"])))


def test_memory_is_weights_optimiser_and_direction() -> None:
    parts = memory(recipe(training=training()), setting())
    assert parts["scoring"]["weights"] == 1000
    assert parts["scoring"]["optimiser"] == 2000
    assert parts["scoring"]["direction"] == 1000
    assert parts["direction"]["direction"] == 3000
    assert parts["training"]["gradients"] == 1000
    assert memory(recipe(offload=True), setting())["scoring"]["direction"] == 0


@pytest.mark.parametrize("name", ["short", "few-shot", "long"])
def test_memory_fits_what_the_speed_benchmark_measured(name: str, tmp_path: Path) -> None:
    config = MODELS["smollm2"]
    assert config is not None
    config().save_pretrained(tmp_path)
    data = json.loads((SPEED / f"smollm2-{name}.json").read_text())
    found = data["measured"][name]
    responses = Responses.assumed(None, found["response"])
    own = Setting(anatomy(str(tmp_path)), ONE, 1, float(found["prompt"]), found["prompt"], responses, responses)
    groups, tokens = found["groups"], data["options"]["batch_tokens"]
    small = recipe(rollouts=found["rollouts"], candidates=groups, pool=groups, batch_tokens=tokens)
    scoring = memory(dataclasses.replace(small, contributions=True), own)
    measured = {arm: max(found["arms"][arm]["peak_bytes"]) for arm in ("exact", "directional")}
    assert 1 / 1.5 < scoring["scoring"]["activations"] / measured["exact"] < 1.5
    moved = scoring["forward-only scores"]
    assert 1 / 1.5 < (moved["weights moved"] + moved["activations"]) / measured["directional"] < 1.5


def test_an_earlier_run_tells_what_responses_are_like(tmp_path: Path) -> None:
    from gradalign.policy.group import Group, Rollout
    from gradalign.rollouts.table import write_rollouts

    def rollout(length: int, reward: float) -> Rollout:
        return Rollout(np.full(length, 3, np.int64), reward)

    groups = [
        Group("a", np.array([4, 5]), [rollout(2, 1.0), rollout(2, 0.0), rollout(4, 0.0), rollout(4, 0.0)]),
        Group("b", np.array([4, 6]), [rollout(1, 1.0), rollout(1, 1.0), rollout(1, 1.0), rollout(1, 1.0)]),
    ]
    (tmp_path / "round-0000").mkdir()
    write_rollouts(tmp_path / "round-0000" / "candidates.parquet", groups)
    found = earlier(tmp_path, 8)
    assert found is not None
    assert found[0].mean == 2.0
    assert found[0].varying(4) == 0.5
    assert found[0].varying(2) == pytest.approx(0.25)  # of six pairs of a's rollouts, three differ
    assert found[0].distinct(4) == 1.5
    assert found[1] == found[0] or found[1].mean == 2.0
    assert earlier(tmp_path / "nowhere", 8) is None


def test_the_command_tells_a_choice_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    plan = planned(SELECT, capsys)
    assert plan["model"] == {"name": "embedded", "parameters": 741120, "covered": 741120, "layers": 4}
    assert plan["assumed"]["response_tokens"] == 8.0
    assert 6 < plan["assumed"]["prompt_tokens"] < 9
    first = plan["plans"][0]
    assert (first["engine"], first["budget"], first["mode"]) == ("exact", "fixed", "round")
    assert first["rollouts"] == (48 + 16) * 16
    assert first["seconds"] == pytest.approx(sum(s["times"] * s["seconds"] for s in first["stages"]))
    assert first["hours"] == pytest.approx(first["seconds"] / 3600)
    assert first["overhead"] is None
    assert first["suffices"]
    assert {(p["engine"], p["budget"]) for p in plan["plans"]} >= {("directional", "fixed"), ("exact", "racing")}


def test_the_command_tells_training_and_takes_overrides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "recipe.yaml"
    pairs = zip(TRAIN[::2], TRAIN[1::2], strict=True)
    file.write_text("".join(f"{name[2:]}: {value!r}\n" for name, value in pairs).replace("'", ""))
    plan = planned(["--config", str(file)], capsys)
    stages_ = {stage["name"]: stage for stage in plan["plans"][0]["stages"]}
    assert plan["plans"][0]["rounds"] == 4
    assert stages_["candidate rollouts"]["rollouts"] == 24 * 8
    assert stages_["optimiser"]["times"] == 8
    assert plan["plans"][0]["overhead"] > 0
    wider = planned(["--config", str(file), "--chunk", "48", "--devices", "2"], capsys)
    more = {stage["name"]: stage for stage in wider["plans"][0]["stages"]}
    assert more["candidate rollouts"]["rollouts"] == 48 * 8
    assert wider["device"]["devices"] == 2
    off = planned(["--config", str(file), "--strategy", "off"], capsys)
    assert [stage["name"] for stage in off["plans"][0]["stages"]] == [
        "training rollouts",
        "training passes",
        "optimiser",
    ]
    assert off["plans"][0]["overhead"] == 0


def test_the_machine_itself_is_measured(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradalign.plan.probe.LEAST", 0.0)  # everything once
    small = ["--pool-size", "4", "--prompt-tokens", "6", "--device", "cpu"]
    plan = planned([*SELECT, *small], capsys)
    assert plan["device"]["measured"]["rates"].keys() == {"forward", "direction", "exact", "sketch"}
    assert plan["device"]["measured"]["sampling"].keys() == {"1", "16", "64"}
    assert 0 < plan["plans"][0]["seconds"] < 600
    rough = planned([*SELECT, *small, "--no-measure"], capsys)
    assert rough["device"]["measured"].keys() == {"product", "bandwidth"}


def test_a_model_needs_its_configuration_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text((EMBEDDED / "config.json").read_text())
    sizes = ["--pool", "", "--pool-size", "8", "--prompt-tokens", "7"]
    assert planned([*SELECT, "--model", str(tmp_path), *sizes], capsys)["model"]["parameters"] == 741120


def test_tables_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *SELECT]) == 0
    text = capsys.readouterr().out
    for part in ("this recipe: engine exact", "memory of a device", "this recipe, and others", "GPU-hours", "in all"):
        assert part in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "h1000"], "option --device: unknown card 'h1000'; did you mean 'h100'"),
        (["--device", "cuda"], "option --device: cuda: there is none here"),
        (["--model", "nowhere/at/all"], "model nowhere/at/all: no configuration can be read"),
        (["--pool", ""], "option --pool-size is missing"),
        (["--pool", "", "--pool-size", "9"], "option --prompt-tokens is missing"),
        (["--response-tokens", "9"], "option --response-tokens: 9 is not between 1 and the 8"),
        (["--like", "nowhere"], "option --like: nowhere: holds no round's rollouts"),
        (["--pool", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--engin", "exact"], "unknown option --engin"),
    ],
)
def test_mistakes_are_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *SELECT, *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


def test_a_recipe_without_a_validation_set_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    place = SELECT.index("--validation-size")
    assert main(["plan", *SELECT[:place], *SELECT[place + 2 :]]) == 2
    assert "option --validation-size is missing" in capsys.readouterr().err


def test_rows_that_are_skipped_stop_no_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pool = tmp_path / "pool.jsonl"
    pool.write_text('{"prompt": "1+1=", "answer": "2"}\n{"prompt": "1+2=", \n{"prompt": "1+3=", "answer": "4"}\n')
    assert main(["plan", *SELECT, "--pool", str(pool)]) == 2
    assert "pool.jsonl:2" in capsys.readouterr().err
    planned([*SELECT, "--pool", str(pool), "--on-bad-problem", "skip"], capsys)


def test_a_row_of_several_lines_is_one_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pool = tmp_path / "pool.csv"
    pool.write_text('prompt,answer\n"What is\n1+1?",2\n"What is\n\n1+2?",3\n')
    plan = planned([*SELECT, "--pool", str(pool)], capsys)
    assert plan["plans"][0]["rollouts"] == (2 + 16) * 16


def test_memory_that_does_not_suffice_names_what_to_change(tmp_path: Path) -> None:
    config = json.loads((EMBEDDED / "config.json").read_text())
    config |= {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 40, "num_attention_heads": 64,
               "num_key_value_heads": 8, "head_dim": 128}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    sizes = ["--pool", "", "--pool-size", "8", "--prompt-tokens", "7", "--device", "l4"]
    with pytest.warns(GradAlignWarning, match=r"l4 has 24\.0 GB; change one of: .*--dtype bfloat16.*--offload"):
        _run([*SELECT, "--model", str(tmp_path), *sizes])


def _run(arguments: list[str]) -> None:
    from gradalign.cli.plan import run

    run(arguments)
