from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from gradalign.cli.audit import AuditOptions
from gradalign.cli.bench.audit import AuditBenchOptions
from gradalign.cli.bench.fidelity import FidelityOptions
from gradalign.cli.bench.speed import SpeedOptions
from gradalign.cli.demo import DemoOptions
from gradalign.cli.main import COMMANDS, main
from gradalign.cli.plan import PlanSelectOptions
from gradalign.cli.pool import PoolOptions
from gradalign.cli.report import ReportOptions
from gradalign.cli.reward import CheckOptions
from gradalign.cli.rollout import RolloutOptions
from gradalign.cli.score import ScoreOptions
from gradalign.cli.select import SelectOptions
from gradalign.cli.train import TrainOptions
from gradalign.cli.verl import VerlOptions
from gradalign.config import Options, parse, resolved
from gradalign.errors import GradAlignError

KINDS: dict[str, type[Options]] = {
    "demo": DemoOptions, "rollout": RolloutOptions, "score": ScoreOptions, "select": SelectOptions,
    "train": TrainOptions, "audit": AuditOptions, "bench speed": SpeedOptions, "bench fidelity": FidelityOptions,
    "bench audit": AuditBenchOptions, "reward": CheckOptions, "pool": PoolOptions, "report": ReportOptions,
    "verl": VerlOptions,
    "plan": PlanSelectOptions,
}  # fmt: skip
SCORE = ["--model", "m", "--candidates", "c.jsonl", "--validation", "v.jsonl", "--out", "s.parquet"]


def test_command_line_over_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("model: a\nbatch-tokens: 77\nadvantage: std\ncandidates: c\nvalidation: v\nout: o.parquet\n")
    options = parse(ScoreOptions, "score", ["--config", str(file), "--advantage", "loo", "--batch_tokens=99"])
    assert (options.model, options.batch_tokens, options.advantage, options.aggregation) == (
        "a", 99, "loo", "token_mean"
    )  # fmt: skip


def test_booleans_lists_and_short_options() -> None:
    options = parse(
        RolloutOptions, "rollout",
        ["--model", "m", "--problems", "p", "--reward", "exact", "--out", "o", "-n", "3", "--stop", "a", "b", "--chat"],
    )  # fmt: skip
    assert (options.rollouts, options.stop, options.chat) == (3, ("a", "b"), True)
    assert parse(ScoreOptions, "score", [*SCORE, "--no-contributions"]).contributions is False
    report = parse(ReportOptions, "report", ["--out", "o.md", "a", "--format", "md", "b"])
    assert (report.runs, report.out) == ((Path("a"), Path("b")), Path("o.md"))


@pytest.mark.parametrize("command", KINDS)
def test_help_is_complete(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for name, field in KINDS[command].model_fields.items():
        positional = name == KINDS[command].positional
        assert ("RUN" if positional else f"--{name.replace('_', '-')}") in text
        assert field.description, f"{command}: {name} has no docstring"


def test_every_command_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert {command.split()[0] for command in KINDS} == COMMANDS.keys()
    assert main([]) == main(["--help"]) == main(["--version"]) == 0
    text = capsys.readouterr().out
    assert all(command in text for command in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engin", "exact"], "unknown option --engin; did you mean '--engine'"),
        (["--colour=red"], "unknown option --colour"),
        (["exact"], "'exact' is not an option"),
        (["--engine", "exakt"], "option --engine: unknown engine 'exakt'; did you mean 'exact'"),
        (["--advantage", "x"], r"option --advantage: unknown advantage 'x' \(known: mean, std, loo\)"),
        (["--batch-tokens", "many"], "option --batch-tokens: 'many': should be a valid integer"),
        (["--batch-tokens", "0"], "option --batch-tokens: '0': should be greater than or equal to 1"),
        (["--temperature", "0"], "option --temperature: '0': should be greater than 0"),
        (["--threshold", "nan"], "option --threshold: 'nan': should be a finite number"),
        (["--temperature", "inf"], "option --temperature: 'inf': should be a finite number"),
        (["--fraction", "2"], "option --fraction: '2': should be less than or equal to 1"),
        (["--top", "3", "--fraction", "0.5"], "--top and --fraction exclude each other"),
        (["--engine"], "expected one argument"),
        (["--config", "none.yaml"], r"none\.yaml: cannot be read"),
    ],
)
def test_bad_options(arguments: list[str], message: str) -> None:
    with pytest.raises(GradAlignError, match=message):
        parse(ScoreOptions, "score", [*SCORE, *arguments])


def test_a_missing_option_says_what_it_is() -> None:
    with pytest.raises(GradAlignError, match=r"option --model is missing: The policy: hub id") as raised:
        parse(ScoreOptions, "score", SCORE[2:])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modle: a", r"r\.yaml: unknown field 'modle'; did you mean 'model'"),
        ("batch_tokens: x", r"r\.yaml: field 'batch_tokens': 'x': should be a valid integer"),
        ("engine: exat", r"r\.yaml: field 'engine': unknown engine 'exat'; did you mean 'exact'"),
        ("- a\n- b", r"r\.yaml: not a mapping"),
        ("seed: true", r"r\.yaml: field 'seed': True is true or false"),
        ("seed: 2001-99-99", r"r\.yaml: not YAML"),
        ("model: " + "[" * 9999, r"r\.yaml: not YAML"),
        ("a: [", r"r\.yaml: not YAML"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(GradAlignError, match=message):
        parse(ScoreOptions, "score", [*SCORE, "--config", str(tmp_path / "r.yaml")])


def test_a_saved_configuration_can_be_run_again(tmp_path: Path) -> None:
    options = parse(ScoreOptions, "score", [*SCORE, "--parameters", "*mlp*", "--top", "3"])
    saved: dict[str, Any] = resolved("score", options, policy="f")
    assert saved["versions"].keys() >= {"gradalign", "python", "torch", "transformers"}
    (tmp_path / "config.json").write_text(yaml.safe_dump(saved))
    assert parse(ScoreOptions, "score", ["--config", str(tmp_path / "config.json")]) == options


def test_negative_numbers_and_lone_texts(tmp_path: Path) -> None:
    assert parse(ScoreOptions, "score", [*SCORE, "--threshold", "-1e-3"]).threshold == -1e-3
    (tmp_path / "r.yaml").write_text("parameters: '*mlp*'")
    assert parse(ScoreOptions, "score", [*SCORE, "--config", str(tmp_path / "r.yaml")]).parameters == ("*mlp*",)


def test_choices_within_lists_are_told() -> None:
    base = ["--model", "m", "--pool", "p", "--validation", "v", "--reward", "exact", "--out", "o"]
    with pytest.raises(GradAlignError, match=r"unknown write 'tlr'; did you mean 'trl'\? \(known: trl, verl, datasets"):
        parse(SelectOptions, "select", [*base, "--write", "tlr"])


def test_templates(tmp_path: Path) -> None:
    base = ["--model", "m", "--problems", "p", "--reward", "exact", "--out", "o", "--template"]
    (tmp_path / "t.txt").write_text("Q: {prompt}")
    assert parse(RolloutOptions, "rollout", [*base, f"@{tmp_path}/t.txt"]).template == "Q: {prompt}"
    for value, message in {"Q:": "has no {prompt} in it", "@none.txt": "cannot be read"}.items():
        with pytest.raises(GradAlignError, match=message):
            parse(RolloutOptions, "rollout", [*base, value])
