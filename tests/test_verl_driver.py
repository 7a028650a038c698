"""Rounds with verl, whose Python a stub stands for (`tests.verl_stub`); with verl itself: make verl-check."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from gradalign.cli.main import main
from gradalign.errors import GradAlignError, GradAlignWarning
from gradalign.policy.load import load_policy
from gradalign.policy.where import EMBEDDED
from gradalign.problems.read import read_problems
from gradalign.problems.schema import Problem
from gradalign.rewards.base import Reward
from gradalign.rewards.find import find_reward
from gradalign.trainers.verl.checkpoints import TRACKER, last_step
from gradalign.trainers.verl.chosen import Selection, is_training, read_chosen
from gradalign.trainers.verl.settings import ask, check_overrides, quoted
from tests.conftest import Ran, spawn

OURS = [
    "--model", "embedded", "--pool", "embedded:mixed?size=24&seed=1", "--allow-overlap", "--reward", "exact", "-n", "4",
    "--validation", "embedded:arithmetic?size=16&seed=2", "--noise-patience", "0", "--rounds", "2",
    "--steps-per-round", "2",
]  # fmt: skip
THEIRS = [
    "algorithm.adv_estimator=grpo", "data.train_batch_size=4", "data.max_response_length=12",
    "actor_rollout_ref.model.custom_chat_template='{{ messages[0].content }}'",
]  # fmt: skip


class Verl:
    """A stub and its log, and `gradalign verl` with it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, gradalign: Callable[..., Ran]) -> None:
        self.python, self.log, self.out = folder / "verl-python", folder / "stub.log", folder / "out"
        self.python.write_text(f"#!{sys.executable}\n{Path(__file__).with_name('verl_stub.py').read_text()}")
        self.python.chmod(0o755)
        self.environment, self.gradalign = monkeypatch, gradalign
        monkeypatch.setenv("STUB_LOG", str(self.log))

    def arguments(self, *more: Any, overrides: tuple[str, ...] = ()) -> list[Any]:
        return [
            "verl", *OURS, "--verl-python", self.python, "--out", self.out, *more, "--overrides", *THEIRS, *overrides
        ]  # fmt: skip

    def __call__(self, *more: Any, overrides: tuple[str, ...] = (), die: str = "") -> Ran:
        self.environment.setenv("STUB_DIE", die)
        return self.gradalign(*self.arguments(*more, overrides=overrides))

    @property
    def calls(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def launched(self, module: str) -> int:
        return sum(call.get("module") == module for call in self.calls)

    def choices(self) -> list[list[str]]:
        return [read_chosen(self.out / f"round-000{n}" / "chosen.verl.parquet") for n in range(2)]

    def weights(self) -> dict[str, torch.Tensor]:
        return load_policy(str(self.out / "model"), device="cpu").model.state_dict()


@pytest.fixture
def verl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gradalign: Callable[..., Ran]) -> Verl:
    return Verl(tmp_path, monkeypatch, gradalign)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(run folder, stub's log) of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("straight")
    with pytest.MonkeyPatch.context() as patch:
        verl = Verl(folder, patch, lambda *arguments: Ran(1, "", ""))
        assert main([str(argument) for argument in verl.arguments()]) == 0
    return verl.out, verl.log


def same(left: Verl, out: Path) -> bool:
    """Whether a run ended as the one in ``out`` did."""
    theirs = load_policy(str(out / "model"), device="cpu").model.state_dict()
    mine = left.weights()
    chosen = [read_chosen(out / f"round-000{n}" / "chosen.verl.parquet") for n in range(2)]
    return left.choices() == chosen and all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_rounds_choose_with_the_policy_that_verl_has_trained(straight: tuple[Path, Path]) -> None:
    out, log = straight
    calls = [json.loads(line) for line in log.read_text().splitlines()]
    assert [call["module"] for call in calls if "module" in call] == [
        "gradalign.trainers.verl.probe", "verl.trainer.main_ppo", "verl.model_merger", "verl.trainer.main_ppo",
        "verl.model_merger",
    ]  # fmt: skip
    # The second round's data loader begins afresh: its place in the first one's problems is put aside.
    assert [call for call in calls if "start" in call] == [
        {"start": 0, "data.pt": False}, {"start": 2, "data.pt": False}
    ]  # fmt: skip
    policies = [json.loads((out / f"round-000{n}" / "round.json").read_text())["policy"] for n in range(2)]
    assert policies[0] == load_policy("embedded", device="cpu").fingerprint
    assert policies[1] == load_policy(str(out / "checkpoints/global_step_2/actor/huggingface")).fingerprint
    assert load_policy(str(out / "model")).fingerprint not in policies
    assert not list(out.glob("*policy-*"))  # what has chosen is as large as the policy, and gone
    config = json.loads((out / "config.json").read_text())
    asked = {name: config["options"][name] for name in ("advantage", "aggregation", "top", "max_new_tokens", "chat")}
    assert asked == {"advantage": "std", "aggregation": "sum", "top": 8, "max_new_tokens": 12, "chat": True}
    assert config["versions"]["verl"] == "0.9.1"


def test_what_verl_is_launched_with(straight: tuple[Path, Path]) -> None:
    out, log = straight
    launches = [json.loads(line) for line in log.read_text().splitlines()]
    second = [call["arguments"] for call in launches if call.get("module") == "verl.trainer.main_ppo"][1]
    chosen = out.resolve() / "round-0001" / "chosen.verl.parquet"
    assert second[: len(THEIRS)] == THEIRS
    assert second[len(THEIRS) :] == [
        "trainer.save_freq=2", "trainer.val_before_train=False", f"hydra.run.dir={out.resolve()}/verl/round-0001",
        f"actor_rollout_ref.model.path={EMBEDDED}", f"data.train_files=[{chosen}]",
        "data.custom_cls.path=pkg://gradalign.trainers.verl.dataset", "data.custom_cls.name=SelectedDataset",
        f"+data.gradalign.selection={chosen}", "+data.gradalign.places=8",
        f"trainer.default_local_dir={out.resolve()}/checkpoints", "trainer.resume_mode=auto", "trainer.total_epochs=2",
        "trainer.total_training_steps=4",
    ]  # fmt: skip
    rows = pq.read_table(chosen).to_pylist()
    assert len(rows) == 8
    assert all(row["prompt"][0]["role"] == "user" for row in rows)


def test_a_finished_run_does_nothing_again(straight: tuple[Path, Path], verl: Verl) -> None:
    shutil.copytree(straight[0], verl.out)

    def written() -> dict[Path, int]:
        return {
            path: path.stat().st_mtime_ns for path in verl.out.rglob("*") if path.suffix and path.parent != verl.out
        }

    before = written()
    assert verl().status == 0
    assert [call["module"] for call in verl.calls] == ["gradalign.trainers.verl.probe"]
    assert written() == before


def test_a_failure_of_verls_is_told_and_gone_on_from(straight: tuple[Path, Path], verl: Verl) -> None:
    steps = (("train:1", "after step 0 of 2"), ("train:2", "after step 1 of 2"), ("merge", "model_merger ended"))
    every = ("trainer.save_freq=1",)
    for at, message in steps:
        error = verl(overrides=every, die=f"{at}:exit").error
        assert message in error
        assert "the cause" in error
        assert "the same command" in error
    chosen_at = (verl.out / "round-0000" / "metrics.json").stat().st_mtime_ns
    assert "differs in top, verl" in verl(overrides=("data.train_batch_size=2", *every), die="").error
    assert verl(overrides=(*every, "actor_rollout_ref.rollout.gpu_memory_utilization=0.4")).status == 0
    assert (verl.out / "round-0000" / "metrics.json").stat().st_mtime_ns == chosen_at  # not chosen again
    starts = [(call["start"], call["data.pt"]) for call in verl.calls if "start" in call]
    assert starts == [(0, False), (0, False), (1, True), (2, False)]  # mid-round the loader's place is kept
    assert same(verl, straight[0])


@pytest.mark.parametrize("at", ["train:4", "merge"])
def test_a_run_killed_at_any_moment_goes_on_to_the_same_end(at: str, straight: tuple[Path, Path], verl: Verl) -> None:
    verl.environment.setenv("STUB_DIE", f"{at}:kill")
    assert spawn(*verl.arguments()).returncode == -signal.SIGKILL
    while (ran := verl()).status:  # verl outlives the killed run, and holds its folder until it has ended
        assert "another process, or verl launched by one, works in it" in ran.error
    assert same(verl, straight[0])
    assert not list(verl.out.glob("*policy-*"))
    assert not list(verl.out.glob(".*.part"))


def test_checkpoints_of_another_run_are_refused_by_name(straight: tuple[Path, Path], verl: Verl) -> None:
    theirs = verl.out.parent / "theirs"
    shutil.copytree(straight[0] / "checkpoints", theirs)
    error = verl("--checkpoints", theirs, "--seed", "5").error
    assert f"{theirs}: is of another run (differs in seed)" in error
    (theirs / "gradalign.json").unlink()
    shutil.rmtree(verl.out)
    error = verl("--checkpoints", theirs).error
    assert f"{theirs}: holds verl checkpoints of another run (global_step_2, and no gradalign.json)" in error
    assert verl.launched("verl.trainer.main_ppo") == 0


def test_checkpoints_that_do_not_fit_are_refused(straight: tuple[Path, Path], verl: Verl) -> None:
    shutil.copytree(straight[0], verl.out)
    folder = verl.out / "checkpoints"
    for text, message in {
        "7": "names global_step_7, which is not there, and verl would train from the start",
        "x": "holds 'x'; write the number",
    }.items():
        (folder / TRACKER).write_text(text)
        assert message in verl().error
    (folder / "global_step_6").mkdir()
    (folder / TRACKER).write_text("6")
    assert "global_step_6: is of another run: this one has chosen for 2 rounds of 2 steps" in verl().error


def test_a_tracker_that_a_kill_left_empty_is_mended(straight: tuple[Path, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(straight[0] / "checkpoints", tmp_path / "checkpoints")
    (folder / "global_step_5").mkdir()  # half-written: no data.pt
    (folder / TRACKER).write_text("")
    with pytest.warns(GradAlignWarning, match="is empty, as a kill leaves it; 4 is written there"):
        assert last_step(folder) == 4
    assert (folder / TRACKER).read_text() == "4"


@pytest.mark.parametrize(
    ("overrides", "objective"),
    [
        (("algorithm.norm_adv_by_std_in_grpo=False",), ("mean", "sum")),
        (("actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-mean",), ("std", "sequence_mean")),
        (("algorithm.adv_estimator=rloo", "actor_rollout_ref.actor.policy_loss.loss_mode=cispo"), ("loo", "sum")),
    ],
)
def test_the_objective_follows_from_verls_settings(
    overrides: tuple[str, ...], objective: tuple[str, str], verl: Verl
) -> None:
    agreeing = ["--dry-run", "--advantage", objective[0], "--aggregation", objective[1]]
    assert verl(*agreeing, overrides=overrides).status == 0
    other = "loo" if objective[0] == "mean" else "mean"
    error = verl("--dry-run", "--advantage", other, overrides=overrides).error
    assert f"option --advantage {other}: contradicts verl's (algorithm.adv_estimator=" in error


@pytest.mark.parametrize(
    ("more", "overrides", "message"),
    [
        ((), ("trainer.total_epochs=3",), "verl override 'trainer.total_epochs': is said by the rounds; leave it out"),
        ((), ("+data.gradalign.places=3",), "verl override 'data.gradalign.places': is said by the rounds"),
        ((), ("--config-name=x",), "unknown option --config-name"),
        ((), ("trainer.nonsense=1",), "verl refuses its configuration: Could not override 'trainer.nonsense'"),
        ((), ("trainer.save_freq=3",), "trainer.save_freq: is 3; it must divide --steps-per-round 2"),
        ((), ("trainer.v1.trainer_mode=separate_async",), "separate_async carries prompts of one round into the next"),
        ((), ("actor_rollout_ref.actor.strategy=megatron",), "checkpoints of megatron are not exported"),
        ((), ("actor_rollout_ref.model.lora_rank=8",), "lora_rank: rounds train all weights"),
        (
            (),
            ("algorithm.adv_estimator=gae",),
            "adv_estimator=gae, algorithm.norm_adv_by_std_in_grpo=True: sc",
        ),
        ((), ("actor_rollout_ref.actor.policy_loss.loss_mode=dro",), "say by --aggregation what they come nearest to"),
        (("--temperature", "0.5"), (), "option --temperature 0.5: contradicts verl's (actor_rollout_ref.rollout.temp"),
        (("--no-chat",), (), "option --chat False: contradicts verl's (verl asks every problem"),
        (("--corrupt", "0.5"), (), "option --corrupt: verl would pay no coins"),
        (("--adapter", "a"), (), "option --adapter: verl trains all weights"),
        (("--verl-python", "/no/python"), (), "option --verl-python: /no/python: cannot be run (No such file"),
        (
            (),
            ("actor_rollout_ref.model.custom_chat_template=null",),
            "has none; give one by the override",
        ),
    ],
)
def test_what_does_not_go_together_is_one_line(
    more: tuple[str, ...], overrides: tuple[str, ...], message: str, verl: Verl
) -> None:
    assert message in verl(*more, overrides=overrides).error
    assert verl.launched("verl.trainer.main_ppo") == 0
    assert not verl.out.exists()


def test_a_python_without_this_package_is_told_what_to_install(verl: Verl) -> None:
    error = verl(die="probe").error
    assert "No module named 'gradalign'); install this package beside verl:" in error
    assert f"{verl.python} -m pip install gradalign" in error


def test_a_dry_run_prints_what_would_be_launched_and_writes_nothing(verl: Verl) -> None:
    ran = verl("--dry-run")
    assert (ran.status, verl.out.exists(), verl.launched("verl.trainer.main_ppo")) == (0, False, 0)
    commands = [shlex.split(line) for line in ran.out.splitlines() if not line.startswith("#")]
    assert [command[2] for command in commands] == [
        "verl.trainer.main_ppo", "verl.model_merger", "verl.trainer.main_ppo"
    ]  # fmt: skip
    assert commands[1][3:] == [
        "merge", "--backend", "fsdp", "--local_dir", f"{verl.out}/checkpoints/global_step_2/actor", "--target_dir",
        f"{verl.out}/policy-0001",
    ]  # fmt: skip


def test_verls_reward_is_verls_too(verl: Verl, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "def pay(data_source, solution_str, ground_truth, extra_info=None):\n    return float(ground_truth['n'])\n"
    )
    ran = verl("--dry-run", "--reward", f"verl:{path}:pay")
    assert f"reward.custom_reward_function.path={path} reward.custom_reward_function.name=pay" in ran.out
    both = ("reward.custom_reward_function.path=other.py",)
    error = verl("--dry-run", "--reward", f"verl:{path}:pay", overrides=both).error
    assert "verl override 'reward.custom_reward_function.path': is said by --reward" in error
    model = {"style": "rule", "ground_truth": {"n": 3}}
    problem = Problem("k", "q", "as read", "s", {"reward_model": model})
    assert Reward("pay", find_reward(f"verl:{path}:pay"))(problem, ["x"], [[1]]) == [3.0]


def test_selections_are_read_from_every_file_that_select_writes(gradalign: Callable[..., Ran], tmp_path: Path) -> None:
    more = ["--out", tmp_path / "s", "--top", 5, "--write", "trl", "verl", "scored", "--max-new-tokens", "12"]
    problems = OURS[: OURS.index("--noise-patience")]
    assert gradalign("select", *problems, *more).status == 0
    folder = tmp_path / "s" / "round-0000"
    files = ("chosen.jsonl", "chosen.verl.parquet", "scored.jsonl", "alignments.parquet")
    chosen = [read_chosen(folder / name) for name in files]
    assert len(chosen[0]) == 5
    assert all(one == chosen[0] for one in chosen)
    pool = list(read_problems("embedded:mixed?size=24&seed=1"))
    rows: list[dict[str, Any]] = [{"prompt": problem.prompt} for problem in pool]  # no key: its prompt's hash
    found = Selection(folder / "chosen.jsonl").rows(rows, "prompt", "pool.parquet")
    assert [pool[i].key for i in found] == chosen[0]


def test_a_selection_keeps_order_and_repeats_and_fills_its_places(tmp_path: Path) -> None:
    (tmp_path / "chosen.jsonl").write_text("".join(json.dumps({"key": key}) + "\n" for key in "cac"))
    rows: list[dict[str, Any]] = [{"id": key, "prompt": "p"} for key in "abcc"]
    values = {"selection": str(tmp_path / "chosen.jsonl"), "places": 5, "key_field": "id"}
    selection = Selection.read(values)
    assert selection.rows(rows, "prompt", "pool") == [2, 0, 2]
    assert selection.placed(3) == [0, 1, 2, 0, 1]
    assert Selection.read({**values, "places": None}).placed(3) == [0, 1, 2]


def test_selections_that_do_not_fit_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "chosen.jsonl"
    path.write_text('{"key": "a"}\n{"key": "z"}\n')
    with pytest.raises(GradAlignError, match=r"chosen\.jsonl: 1 of its 2 problems are not in pool .first: key 'z'"):
        Selection(path).rows([{"key": "a"}], "prompt", "pool")
    with pytest.raises(GradAlignError, match=r"data\.gradalign: unknown field 'place'; did you mean 'places'"):
        Selection.read({"selection": "s", "place": 1})
    with pytest.raises(GradAlignError, match=r"data\.gradalign\.selection is missing"):
        Selection.read(None)
    with pytest.raises(GradAlignError, match=r"data\.gradalign\.places: is 0"):
        Selection.read({"selection": "s", "places": 0})
    path.write_text("")
    with pytest.raises(GradAlignError, match="nothing is chosen in it"):
        read_chosen(path)
    pq.write_table(pa.table({"prompt": ["p"]}), tmp_path / "p.parquet")
    with pytest.raises(GradAlignError, match=r"p\.parquet:1: no field 'key'"):
        read_chosen(tmp_path / "p.parquet")
    with pytest.raises(GradAlignError, match=r"data\.val_files is data\.train_files"):
        is_training(["a"], ["a"], ["a"])
    assert [is_training([name], ["a"], ["b"]) for name in "ab"] == [True, False]


def test_overrides_are_named_and_quoted_as_hydra_takes_them() -> None:
    assert check_overrides(["a.b=1", "+c=2", "++d/e=x", "~f"]) == ["a.b", "c", "d/e", "f"]
    with pytest.raises(GradAlignError, match="verl override 'a b': write name=value"):
        check_overrides(["a b"])
    assert quoted("/plain/path-1.0") == "/plain/path-1.0"
    assert quoted("/with space, and 'quotes'") == r"'/with space, and \'quotes\''"


@pytest.mark.skipif(find_spec("verl") is not None, reason="verl is here")
def test_a_python_without_verl_is_told_what_it_lacks() -> None:
    with pytest.raises(GradAlignError, match=r"^option --verl-python: .*: No module named '\w+'; install verl and its"):
        ask(sys.executable, [])
