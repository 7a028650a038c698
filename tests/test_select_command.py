"""``rollout``, ``select`` and ``demo`` from the outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from gradalign.alignment.table import read_alignments
from gradalign.problems.embedded import make_pool
from gradalign.problems.read import read_problems
from gradalign.rewards.coin import Coin
from gradalign.rollouts.table import read_rollouts
from tests.conftest import Ran, spawn

Run = Callable[..., Ran]
pytestmark = pytest.mark.filterwarnings("ignore::gradalign.errors.GradAlignWarning")
BASE = ["--model", "embedded", "--reward", "countdown", "--max-new-tokens", "12"]


def write_pool(path: Path, size: int, seed: int, name: str = "arithmetic") -> Path:
    rows = [{"prompt": p.prompt, "answer": p.answer, "source": p.source} for p in make_pool(name, size, seed)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def select(tmp_path: Path) -> list[Any]:
    pool, validation = write_pool(tmp_path / "pool.jsonl", 40, 1), write_pool(tmp_path / "val.jsonl", 16, 2)
    return ["select", *BASE, "-n", "8", "--pool", pool, "--validation", validation, "--out", tmp_path / "run",
            "--allow-overlap"]  # fmt: skip


def choice(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "round-0000" / "chosen.jsonl").read_text().splitlines()]


def test_select_end_to_end(gradalign: Run, select: list[Any], tmp_path: Path) -> None:
    ran = gradalign(*select, "--fraction", "0.25", "--write", "trl", "verl", "datasets", "scored", "--contributions")
    assert ran.status == 0, ran.err
    folder = tmp_path / "run" / "round-0000"
    alignments = read_alignments(folder / "alignments.parquet")
    chosen = choice(tmp_path / "run")
    best = sorted((a for a in alignments if a.selected), key=lambda a: a.rank or 0)
    assert [row["key"] for row in chosen] == [a.key for a in best]
    assert len(chosen) == len(alignments) // 4
    assert len(pq.read_table(folder / "chosen.verl.parquet")) == len(chosen)
    assert [p.key for p in read_problems(f"hf:{folder / 'chosen.datasets'}")] == [row["key"] for row in chosen]
    scored = [json.loads(line) for line in (folder / "scored.jsonl").read_text().splitlines()]
    assert [row["rank"] for row in scored] == list(range(1, len(alignments) + 1))
    assert {row["key"]: row["score"] for row in scored} == {a.key: a.score for a in alignments}
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["rollouts"] == 8 * (len(alignments) + 16)
    assert metrics["selected"] == len(chosen)
    assert metrics["direction"]["problems"] + metrics["direction"]["zero_variance"] == 16
    assert {g.key for g in read_rollouts(folder / "candidates.parquet")} == {a.key for a in alignments}
    for words in ("strategy gradalign", "first and last", "chosen.jsonl"):
        assert words in ran.out


def test_the_same_command_again_samples_nothing_and_gives_the_same_bytes(
    gradalign: Run, select: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gradalign(*select, "--top", "5").status == 0
    folder = tmp_path / "run" / "round-0000"
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "metrics.json"}
    monkeypatch.setattr("gradalign.rollouts.sampler.sample_batch", None)
    assert gradalign(*select, "--top", "5").status == 0
    assert before == {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "metrics.json"}
    error = gradalign(*select, "--top", "6").error
    assert "run: holds another run (differs in top)" in error


def test_select_killed_in_the_middle_goes_on(select: list[Any], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gradalign", *map(str, select), "--top", "5", "--batch-rollouts", "32"]
    whole = [str(tmp_path / "whole") if part == str(tmp_path / "run") else part for part in command]
    assert subprocess.run(whole, capture_output=True, timeout=300, check=False).returncode == 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    part = tmp_path / "run" / "round-0000" / "candidates.parquet.part"
    until = time.monotonic() + 120
    while time.monotonic() < until and not (part.exists() and part.read_bytes().count(b"\n") > 2):
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "run" / "round-0000" / "alignments.parquet").exists()
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    for name in ("candidates.parquet", "validation.parquet", "alignments.parquet", "chosen.jsonl"):
        ends = [tmp_path / run / "round-0000" / name for run in ("run", "whole")]
        assert ends[0].read_bytes() == ends[1].read_bytes(), name


def test_strategies_sample_only_what_they_need(gradalign: Run, select: list[Any], tmp_path: Path) -> None:
    for strategy, files in [
        ("random", {"alignments.parquet", "chosen.jsonl", "metrics.json"}),
        ("accgreedy", {"alignments.parquet", "chosen.jsonl", "metrics.json", "candidates.parquet"}),
    ]:
        run = tmp_path / strategy
        assert gradalign(*select, "--out", run, "--strategy", strategy, "--top", "4", "--chunk", "20").status == 0
        assert {p.name for p in (run / "round-0000").iterdir()} == files
        assert len(choice(run)) == 4
        assert len(read_alignments(run / "round-0000" / "alignments.parquet")) == 20


def test_a_recipe_puts_a_strategy_together(gradalign: Run, select: list[Any], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "gates: [consistent, 'band(low=0.2, high=0.9)']\nrank: 'lcb(level=0.8)'\n"
        "pick: \"top(caps={'*': 0.34}, explore=0.2)\"\nengine: directional\ncorrupt: 0.5\ntop: 9\n"
    )
    ran = gradalign(*select, "--config", recipe)
    assert ran.status == 0, ran.err
    rows = read_alignments(tmp_path / "run" / "round-0000" / "alignments.parquet")
    coin = Coin(0.5)
    refused = [a for a in rows if a.gate == "consistent"]
    assert refused
    assert all(coin.corrupts(a.key) and not a.selected for a in refused)
    line = next(line for line in ran.out.splitlines() if "refused by gate consistent" in line)
    assert line.split("│")[2].strip() == str(len(refused))
    chosen = [a for a in rows if a.selected]
    assert all(a.gate is None and 0.2 <= (a.pass_rate or 0) <= 0.9 for a in chosen)
    assert max(Counter(a.source for a in chosen).values()) <= 3
    assert all(a.evidence is not None and len(a.evidence.rewards) == 8 for a in rows)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["options"]["gates"] == ["consistent", "band(low=0.2, high=0.9)"]
    worse = gradalign(*select, "--out", tmp_path / "other", "--rank", "lcd")
    assert (worse.status, worse.err.count("\n")) == (2, 1)
    assert "unknown rank 'lcd'; did you mean 'lcb'" in worse.err


def test_corruption_hits_candidates_and_never_the_validation_set(
    gradalign: Run, select: list[Any], tmp_path: Path
) -> None:
    assert gradalign(*select, "--top", "4", "--corrupt", "1", "--corrupt-seed", "3").status == 0
    folder = tmp_path / "run" / "round-0000"
    coin = Coin(1.0, 3)
    for group in read_rollouts(folder / "candidates.parquet"):
        assert group.rewards.tolist() == [coin.toss(group.key, k) for k in range(8)]
    answers = {p.key: p.answer for p in make_pool("arithmetic", 16, 2)}
    for group in read_rollouts(folder / "validation.parquet"):
        assert all(r.reward == float(r.response == answers[group.key]) for r in group.rollouts)


def test_rollout_then_score(gradalign: Run, tmp_path: Path) -> None:
    for name, seed in (("c", 1), ("v", 2)):
        spec = f"embedded:arithmetic?size=16&seed={seed}"
        ran = gradalign("rollout", *BASE, "-n", "8", "--problems", spec, "--out", tmp_path / f"{name}.parquet")
        assert ran.status == 0, ran.err
        assert "mean reward" in ran.out
    ran = gradalign("score", "--model", "embedded", "--candidates", tmp_path / "c.parquet", "--validation",
                    tmp_path / "v.parquet", "--out", tmp_path / "s.parquet")  # fmt: skip
    assert ran.status == 0, ran.err
    assert "another policy" not in ran.err
    out = tmp_path / "c.parquet"
    again = ["rollout", *BASE, "-n", "8", "--problems", "embedded:arithmetic?size=16&seed=1", "--out", out]
    assert gradalign(*again).status == 0
    assert "c.parquet: exists and is of another run" in gradalign(*again, "--seed", "9").error


BAD: dict[str, tuple[list[Any], str]] = {
    "no size": ([], "give --top, --fraction or --threshold"),
    "no pool": (["--top", "3", "--pool", "none.jsonl"], "none.jsonl: no such file"),
    "reward": (["--top", "3", "--reward", "cuontdown"], "unknown reward 'cuontdown'; did you mean 'countdown'"),
    "strategy": (["--top", "3", "--strategy", "radnom"], "unknown strategy 'radnom'; did you mean 'random'"),
    "contributions": (["--top", "3", "--strategy", "corr"], "or --contributions"),
    "unwritable": (["--top", "3", "--out", "/proc/none/run"], "/proc/none/run: cannot be written"),
    "number": (["--top", "3", "--reward", "python:json:dumps"], "reward 'python:json:dumps' on problem"),
    "threshold": (["--threshold", "7"], "none of the"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(gradalign: Run, select: list[Any], case: str) -> None:
    more, message = BAD[case]
    assert message in gradalign(*select, *more).error


def test_overlap_is_an_error_unless_allowed(gradalign: Run, select: list[Any], tmp_path: Path) -> None:
    with (tmp_path / "pool.jsonl").open("a") as file:
        file.write((tmp_path / "val.jsonl").read_text().splitlines()[0] + "\n")
    allowed = [part for part in select if part != "--allow-overlap"]
    error = gradalign(*allowed, "--top", "3").error
    assert "are also in the validation set" in error
    assert "--allow-overlap" in error
    assert not (tmp_path / "run").exists()
    assert gradalign(*select, "--top", "3", "--strategy", "accgreedy").status == 0
    assert len(read_alignments(tmp_path / "run" / "round-0000" / "alignments.parquet")) < 41


def test_a_folder_with_other_things_is_left_alone(gradalign: Run, select: list[Any], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    error = gradalign(*select, "--top", "3", "--out", tmp_path / "mine").error
    assert "mine: is not empty and holds no run" in error
    assert "is a file; name a folder" in gradalign(*select, "--top", "3", "--out", tmp_path / "pool.jsonl").error


def test_a_run_folder_refuses_problems_that_changed(gradalign: Run, select: list[Any], tmp_path: Path) -> None:
    assert gradalign(*select, "--top", "3").status == 0
    with (tmp_path / "pool.jsonl").open("a") as file:
        file.write('{"prompt": "1+1=", "answer": "2"}\n')
    assert "holds another run (differs in problems)" in gradalign(*select, "--top", "3").error


def test_rollout_notices_changed_problems_and_metadata(gradalign: Run, tmp_path: Path) -> None:
    pool = tmp_path / "p.jsonl"
    row = {"prompt": "3,5,7>22=", "answer": "22", "numbers": [3, 5, 7]}
    pool.write_text(json.dumps(row) + "\n")
    command = ["rollout", *BASE, "-n", "4", "--problems", pool, "--out", tmp_path / "r.parquet"]
    assert gradalign(*command).status == 0
    pool.write_text(json.dumps({**row, "numbers": [9, 9]}) + "\n")
    assert "r.parquet: exists and is of another run" in gradalign(*command).error
    (tmp_path / "r.parquet").unlink()
    assert gradalign(*command).status == 0


def test_configurations_are_not_overwritten_by_another_table(gradalign: Run, tmp_path: Path) -> None:
    spec = ["--problems", "embedded:arithmetic?size=8", "-n", "4"]
    assert gradalign("rollout", *BASE, *spec, "--out", tmp_path / "r.jsonl").status == 0
    assert "is not that of r.parquet" in gradalign("rollout", *BASE, *spec, "--out", tmp_path / "r.parquet").error
    assert gradalign("rollout", *BASE, *spec, "--out", tmp_path / "c.parquet").status == 0
    files = ["--candidates", tmp_path / "r.jsonl", "--validation", tmp_path / "r.jsonl", "--model", "embedded"]
    assert "is not that of r.parquet" in gradalign("score", *files, "--out", tmp_path / "r.parquet").error
    (tmp_path / "c.config.json").unlink()
    assert "is no alignment table" in gradalign("score", *files, "--out", tmp_path / "c.parquet").error
    (tmp_path / "notes.config.json").write_text("mine")
    assert "not JSON" in gradalign("score", *files, "--out", tmp_path / "notes.parquet").error
    assert (tmp_path / "notes.config.json").read_text() == "mine"


def test_mended_options_may_use_a_folder_where_nothing_was_finished(
    gradalign: Run, select: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "lower --max-new-tokens" in gradalign(*select, "--top", "3", "--max-new-tokens", "999").error
    assert "one rollout carries no gradient" in gradalign(*select, "--top", "3", "-n", "1").error
    half = ("--engine", "directional", "--dtype", "bfloat16", "--difference", "central")
    assert "add --dtype float32" in gradalign(*select, "--top", "3", *half).error
    assert not (tmp_path / "run").exists()
    (tmp_path / "flaky.py").write_text("def pay(**_): raise ValueError('down')\n")
    monkeypatch.chdir(tmp_path)
    assert "raised ValueError: down" in gradalign(*select, "--top", "3", "--reward", "python:flaky:pay").error
    assert gradalign(*select, "--top", "3").status == 0


def test_a_dead_validation_set_is_found_before_candidates_are_sampled(
    gradalign: Run, select: list[Any], tmp_path: Path
) -> None:
    (tmp_path / "val.jsonl").write_text('{"prompt": "2+2=", "answer": "never"}\n')
    assert "none of the 1 problems carries a gradient" in gradalign(*select, "--top", "3").error
    assert {p.name for p in (tmp_path / "run" / "round-0000").iterdir()} == {"validation.parquet"}


def test_overlap_sees_through_templates_and_chats(gradalign: Run, select: list[Any], tmp_path: Path) -> None:
    prompt = json.loads((tmp_path / "pool.jsonl").read_text().splitlines()[0])["prompt"]
    row = {"prompt": [{"role": "user", "content": prompt}], "answer": "1"}
    (tmp_path / "val.jsonl").write_text(json.dumps(row) + "\n")
    command = [part for part in select if part != "--allow-overlap"]
    error = gradalign(*command, "--top", "3", "--template", "1+{prompt}").error
    assert "1 problems are also in the validation set" in error


def test_the_readmes_reward_pays_texts_and_chats(tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "README.md").read_text()
    blocks = [block for block in text.split("```python\n")[1:] if "def " in block]
    names: dict[str, Any] = {}
    exec(blocks[0].split("```")[0], names)
    right, wrong = names["brief"](["it is 12", "no"], ["12", "12"])
    assert right > wrong
    chat = [[{"role": "assistant", "content": content}] for content in ("it is 12", "no")]
    assert names["brief"](chat, ["12", "12"]) == [right, wrong]


def test_a_terminal_without_the_characters_still_gets_the_tables(tmp_path: Path) -> None:
    small = ["--problems", "24", "--validation", "24", "-n", "8", "--validation-rollouts", "8", "--out", tmp_path / "d"]
    small += ["--rounds", "0"]
    done = spawn("demo", *small, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr
    assert "accgreedy" in done.stdout


def test_a_closed_pipe_and_a_full_device_are_no_traceback(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "gradalign", "--help"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert (
        done.stderr == "gradalign: error: output: No space left on device; check the name, the rights and the space\n"
    )
    pipe = f"{sys.executable} -m gradalign --help | true"
    done = subprocess.run(pipe, shell=True, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""


def test_demo(tmp_path: Path) -> None:
    small = ["--problems", "48", "--validation", "32", "-n", "8", "--validation-rollouts", "8", "--out", tmp_path / "d"]
    done = spawn("demo", *small, "--test", "16", "--rounds", "2", "--steps-per-round", "1")
    assert done.returncode == 0, done.stderr
    for words in ("paid by a fair coin", "share of corrupted problems", "gradalign", "tscore", "accgreedy", "random",
                  "chosen.jsonl", "round 1: step 2", "test after step 2", "rollouts to choose"):  # fmt: skip
        assert words in done.stdout, words
    assert len(choice(tmp_path / "d")) == 6
    for strategy in ("gradalign", "guarded", "random"):
        assert (tmp_path / "d" / f"train-{strategy}" / "model" / "model.safetensors").exists()


def test_a_tables_numbers_survive_reading(gradalign: Run, select: list[Any], tmp_path: Path) -> None:
    from gradalign.alignment.table import to_table

    assert gradalign(*select, "--top", "3").status == 0
    path = tmp_path / "run" / "round-0000" / "alignments.parquet"
    assert to_table(read_alignments(path)).equals(pq.read_table(path))
