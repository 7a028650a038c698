"""``gradalign report``: what it tells of runs, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from gradalign.alignment.record import Alignment, Numbers
from gradalign.alignment.table import write_alignments
from gradalign.errors import GradAlignWarning
from gradalign.files import write_json
from gradalign.report import problems
from gradalign.report.charts import MARKS, SIGNS
from gradalign.report.logs import Log, read_log
from gradalign.report.page import asset
from gradalign.report.pictures import MARKS as PNG_MARKS
from gradalign.report.problems import FIELDS, evenly, sample
from gradalign.report.runs import read_runs
from gradalign.report.series import COLOURS, mark, panels, spread
from gradalign.report.summary import costs, tell
from gradalign.rollouts.table import read_rollouts, write_rollouts
from tests.conftest import Ran, make_groups

Run = Callable[..., Ran]
ARMS = ("gradalign", "guarded", "random")
TRAIN = [
    "train", "--model", "embedded", "--reward", "countdown", "--pool", "embedded:mixed?size=48&seed=1",
    "--validation", "embedded:mixed?size=24&seed=2", "--test", "embedded:mixed?size=8&seed=3", "--allow-overlap",
    "--validation-rollouts", "8", "--per-device-train-batch-size", "64", "--num-generations", "8",
    "--max-completion-length", "12", "--gradient-checkpointing", "false", "--noise-patience", "0", "--use-cpu", "true",
    "--per-device-eval-batch-size", "64", "--steps-per-round", "2", "--max-steps", "4",
]  # fmt: skip


def data(page: Path) -> Any:
    """What a page holds for its scripts."""
    found = re.search(r'<script type="application/json" id=data>(.*?)</script>', page.read_text(encoding="utf-8"))
    assert found is not None
    return json.loads(found[1])


def markdown_table(text: str, title: str) -> list[dict[str, str]]:
    lines = [line for line in text.split(f"## {title}\n")[1].split("\n## ")[0].splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]


def test_tables_hold_what_the_folders_hold(gradalign: Run, demo: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.md"
    ran = gradalign("report", demo, "--format", "md", "--out", out)
    assert ran.status == 0, ran.err
    names = ["demo", *(f"demo/train-{arm}" for arm in ARMS)]
    text = out.read_text()
    short = {row[""]: row for row in markdown_table(text, "In short")}
    rounds = markdown_table(text, "Rounds")
    assert [(row["run"], row["round"]) for row in rounds] == [("demo", "0"), *((n, r) for n in names[1:] for r in "01")]
    for arm, name in zip(ARMS, names[1:], strict=True):
        folder = demo / f"train-{arm}"
        (checkpoint,) = folder.glob("checkpoint-*")
        log = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
        tests = [entry["eval_reward"] for entry in log if "eval_reward" in entry]
        assert short["test reward before training"][name] == f"{tests[0]:.3g}"
        assert short["test reward, last"][name] == f"{tests[-1]:.3g}"
        assert short["strategy"][name] == arm
        assert short["state"][name] == "finished"
        chosen = [json.loads(line)["key"] for p in folder.glob("round-*/chosen.jsonl") for line in p.open()]
        assert int(short["problems chosen"][name]) == len(set(chosen))
        sampled = sum(len(pq.read_table(path)) for path in folder.glob("round-*/candidates.parquet"))
        assert short["rollouts of candidates"][name] == f"{sampled:,}"
        for number in (0, 1):
            row = next(r for r in rounds if (r["run"], r["round"]) == (name, str(number)))
            rewards = [entry["reward"] for entry in log if entry["step"] == number + 1 and "reward" in entry]
            assert row["training reward"] == f"{rewards[0]:.3g}"
            assert row["test reward"] == f"{tests[number + 1]:.3g}"
            table = pq.read_table(folder / f"round-000{number}" / "alignments.parquet").to_pylist()
            rates = [one["pass_rate"] for one in table if one["selected"] and one["pass_rate"] is not None]
            assert row["of chosen"] == (f"{sum(rates) / len(rates):.3g}" if rates else "-")
            direction = json.loads((folder / f"round-000{number}" / "metrics.json").read_text())["direction"]
            assert row["reliability"] == (f"{direction['reliability']:.3g}" if direction else "-")
    both = {row["run"]: row for row in markdown_table(text, "Chosen by both")}
    sets = [{a["key"] for p in (demo / f"train-{arm}").glob("round-*/alignments.parquet")
             for a in pq.read_table(p).to_pylist() if a["selected"]} for arm in ARMS]  # fmt: skip
    assert both[names[1]][names[2]] == f"{len(sets[0] & sets[1]) / len(sets[0]):.3g}"
    assert "chosen" in text.split("## Problems of demo, round 0")[1]


def test_a_page_holds_problems_with_their_texts_and_comes_out_the_same(
    gradalign: Run, demo: Path, tmp_path: Path
) -> None:
    out = tmp_path / "r.html"
    ran = gradalign("report", "--out", out, demo, "--png", tmp_path / "png")
    assert ran.status == 0, ran.err
    held = data(out)
    assert [view["label"] for view in held["views"]][:3] == [
        "demo, round 0", "demo/train-gradalign, round 1", "demo/train-gradalign, round 0",
    ]  # fmt: skip
    rows = [dict(zip(FIELDS, row, strict=True)) for row in held["views"][0]["rows"]]
    groups = {group.key: group for group in read_rollouts(demo / "round-0000" / "candidates.parquet")}
    assert {row["key"] for row in rows} == groups.keys()
    answers = {row["key"]: row for row in map(json.loads, (demo / "round-0000" / "chosen.jsonl").open())}
    for row in rows:
        texts = [r.response for r in groups[row["key"]].rollouts]
        for text, count, reward in row["responses"]:
            mine = [r.reward for r in groups[row["key"]].rollouts if r.response == text]
            assert count == len(mine)
            assert reward == pytest.approx(sum(mine) / len(mine), rel=1e-3)
        assert row["distinct"] == len(set(texts))
        assert row["prompt"].endswith(("=", "?", ">")) or row["source"] == "countdown"
        assert (row["answer"], row["selected"]) == (
            (answers[row["key"]]["answer"], 1) if row["key"] in answers else (None, 0)
        )
        if row["key"] in answers:
            assert row["prompt"] == answers[row["key"]]["prompt"]
    assert {"test", "training", "reliability", "pass_rate", "rollouts", "cost", "sources_0"} <= held["figures"].keys()
    pictures = sorted((tmp_path / "png").iterdir())
    assert {"test.png", "cost.png", "sources_demo-train-guarded.png", "scores_demo.png"} <= {p.name for p in pictures}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)
    before = [path.read_bytes() for path in [out, *pictures]]
    assert gradalign("report", demo, "--out", out, "--png", tmp_path / "png").status == 0
    assert [path.read_bytes() for path in [out, *pictures]] == before
    assert gradalign("report", demo).status == 0  # the usual place
    assert (demo / "report.html").read_bytes() == before[0]
    (demo / "report.html").unlink()


def test_nothing_that_is_not_its_own_is_overwritten(gradalign: Run, demo: Path, tmp_path: Path) -> None:
    for name, more in (("x.html", []), ("x.md", ["--format", "md"])):
        (tmp_path / name).write_text("mine")
        error = gradalign("report", demo, "--out", tmp_path / name, *more).error
        assert f"{name}: would be overwritten, and is no report" in error
        assert (tmp_path / name).read_text() == "mine"
    (tmp_path / "png").mkdir()
    (tmp_path / "png" / "cost.png").write_bytes(b"\x89PNG mine")
    error = gradalign("report", demo, "--out", tmp_path / "y.html", "--png", tmp_path / "png").error
    assert "cost.png: would be overwritten, and is no report's" in error
    assert [path.name for path in (tmp_path / "png").iterdir()] == ["cost.png"]
    assert not (tmp_path / "y.html").exists()


def test_unfinished_runs_tell_what_is_there(gradalign: Run, demo: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(demo / "train-gradalign", run)
    shutil.rmtree(run / "model")
    state = next(run.glob("checkpoint-*/trainer_state.json"))
    held = json.loads(state.read_text())
    state.write_text(json.dumps(held | {"max_steps": 50}))
    ran = gradalign("report", run)
    assert "unfinished: training has not ended (2 of 50 steps at its last checkpoint)" in ran.out, ran.err
    assert "unfinished: training has not ended" in (run / "report.html").read_text()
    early = tmp_path / "early"
    shutil.copytree(run / "round-0000", early / "round-0000")
    ran = gradalign("report", early)
    assert "by cosine > top, 1 round, unfinished: training has not ended (no checkpoint yet)" in ran.out
    write_json(early / "config.json", {"command": "train", "options": {"strategy": "gradalign", "model": "embedded"}})
    assert "by gradalign, 1 round, unfinished" in gradalign("report", early).out
    (run / "round-0001" / "metrics.json").unlink()
    ran = gradalign("report", run)
    assert "1 round, unfinished: round 1 was begun and not finished" in ran.out
    state.write_text("{")
    ran = gradalign("report", run)
    assert ran.status == 0
    assert "is half-written or damaged, and passed over" in ran.err
    (run / "round-0000" / "alignments.parquet").write_bytes(b"PAR1 half")
    assert "alignments.parquet: cannot be read as Parquet" in gradalign("report", run).error
    (run / "round-0000" / "metrics.json").unlink()
    assert "has finished nothing yet" in gradalign("report", run).error


def _folder(tmp_path: Path, **files: str) -> Path:
    folder = tmp_path / "D"
    folder.mkdir()
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)
    return folder


def _begun(tmp_path: Path) -> Path:
    """A demo that was stopped when its first training began."""
    folder = _folder(tmp_path, config_json='{"command": "demo", "options": {}}')
    (folder / "train-random").mkdir()
    return folder


def _timed(demo: Path, tmp_path: Path, seconds: Any) -> Path:
    shutil.copytree(demo / "train-gradalign", tmp_path / "T")
    metrics = tmp_path / "T" / "round-0000" / "metrics.json"
    write_json(metrics, json.loads(metrics.read_text()) | {"seconds": seconds})
    return tmp_path / "T"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda t, demo: [t / "none"], "none: no such file"),
        (lambda t, demo: [_folder(t)], "D: is empty; name a folder of gradalign select, train, verl, demo"),
        (lambda t, demo: [_folder(t, a_txt="x")], "D: holds no run (no config.json, no round-0000)"),
        (lambda t, demo: [_folder(t, config_json="[]")], "config.json: is not what gradalign writes there"),
        (lambda t, demo: [_folder(t, config_json="{")], "config.json: not JSON"),
        (lambda t, demo: [_folder(t, config_json='{"command": "audit", "options": {}}')], "D: is of gradalign audit"),
        (lambda t, demo: [_folder(t, config_json='{"command": "select", "options": {}}')], "has finished nothing yet"),
        (lambda t, demo: [_folder(t, config_json='{"command": "train", "options": {"model": 5}}')], "is not a run's"),
        (lambda t, demo: [_begun(t)], "has finished nothing yet; report it when a round is done"),
        (lambda t, demo: [_timed(demo, t, [1])], "metrics.json: is not a round's"),
        (lambda t, demo: [demo / "config.json"], "name a table of gradalign score or a run's folder"),
        (lambda t, demo: [demo / "round-0000" / "candidates.parquet"], "no column 'status'; name an alignment table"),
        (lambda t, demo: [demo, demo], "is given twice"),
        (lambda t, demo: [], "RUN is missing"),
        (lambda t, demo: [demo, "--out", t / "x.md"], "a report in --format html is named .html"),
        (lambda t, demo: [demo, "--out", t / "x.html", "--png", demo / "config.json"], "--png: "),
        (lambda t, demo: [demo, "--formt", "md"], "unknown option --formt; did you mean '--format'?"),
    ],
)
def test_bad_input_is_one_line(gradalign: Run, demo: Path, tmp_path: Path, make: Any, message: str) -> None:
    assert message in gradalign("report", *make(tmp_path, demo)).error


@pytest.mark.parametrize("package", ["plotly", "matplotlib"])
def test_a_missing_extra_is_named(
    gradalign: Run, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    for name in [*sys.modules]:
        if name.split(".")[0] == package or name in ("gradalign.report.html", "gradalign.report.pictures"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("gradalign.report.charts", raising=False)
    monkeypatch.delitem(sys.modules, "gradalign.report.charts", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    error = gradalign("report", demo, "--out", tmp_path / "r.html", "--png", tmp_path / "png").error
    assert re.search(rf"the package '{package}[\w.]*' is not installed: pip install 'gradalign\[report\]'", error)
    assert gradalign("report", demo, "--out", tmp_path / "r.md", "--format", "md").status == 0


def test_every_batch_chosen_and_once_for_all(gradalign: Run, tmp_path: Path) -> None:
    ran = gradalign(*TRAIN, "--out", tmp_path / "batch", "--mode", "batch", "--engine", "directional")
    assert ran.status == 0, ran.err
    ran = gradalign(*TRAIN, "--out", tmp_path / "static", "--strategy", "static", "--rollouts", "8", "--top", "8")
    assert ran.status == 0, ran.err
    batch, static = read_runs([tmp_path / "batch", tmp_path / "static"])
    assert (batch.strategy, static.strategy) == ("dot", "static")
    assert [len(one.chosen) for one in batch.rounds] == [one.batches * 8 for one in batch.rounds]
    assert batch.log is not None
    assert {key for keys in batch.log.history for key in keys} == {a.key for o in batch.rounds for a in o.chosen}
    assert "choosing batches" in costs(batch)
    assert (len(static.rounds), static.unfinished, batch.unfinished) == (1, None, None)
    ran = gradalign("report", tmp_path / "batch", tmp_path / "static", "--out", tmp_path / "r.html")
    assert ran.status == 0, ran.err


def test_a_round_that_scores_earlier_rollouts_again(demo: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(demo / "train-gradalign", run)
    again = run / "round-0001"
    shutil.copy(run / "round-0000" / "alignments.parquet", again)
    (again / "candidates.parquet").unlink()
    write_json(again / "metrics.json", json.loads((again / "metrics.json").read_text()) | {"rollouts": 512})
    (found,) = read_runs([run])
    first, second = (tell(found, one) for one in found.rounds)
    assert (first.rollouts, first.validation_rollouts) == (512, 512)
    assert (second.rollouts, second.tokens, second.validation_rollouts) == (0, 0, 512)
    assert second.scored == first.scored
    made = [view.rows for view in problems.views([found])[0]]
    assert [row[FIELDS.index("responses")] for row in made[0]] == [row[FIELDS.index("responses")] for row in made[1]]
    assert all(row[FIELDS.index("responses")] for row in made[0])


def test_runs_of_one_name_are_told_apart(demo: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        shutil.copytree(demo / "train-random", tmp_path / name / "run")
    assert [run.name for run in read_runs([tmp_path / "a" / "run", tmp_path / "b" / "run"])] == ["a/run", "b/run"]
    tables = [folder / "round-0000" / "alignments.parquet" for folder in (demo, demo / "train-random")]
    with pytest.warns(GradAlignWarning, match=r"no alignments.config.json of gradalign score beside it"):
        names = [run.name for run in read_runs(tables)]
    assert names == ["demo/round-0000/alignments.parquet", "train-random/round-0000/alignments.parquet"]


def test_scored_tables_and_tokens_without_a_tokenizer(gradalign: Run, llama_folder: Path, tmp_path: Path) -> None:
    write_rollouts(tmp_path / "c.jsonl", make_groups(6, 1))
    write_rollouts(tmp_path / "v.parquet", make_groups(8, 2, prefix="v"))
    inputs = ["--candidates", tmp_path / "c.jsonl", "--validation", tmp_path / "v.parquet"]
    ran = gradalign("score", "--model", llama_folder, *inputs, "--out", tmp_path / "s.parquet", "--top", "2")
    assert ran.status == 0, ran.err
    ran = gradalign("report", tmp_path / "s.parquet")
    assert "token ids are shown where no text was kept" in ran.err
    (view,) = data(tmp_path / "s.report.html")["views"]
    rows = {row[0]: dict(zip(FIELDS, row, strict=True)) for row in view["rows"]}
    group = make_groups(6, 1)[0]
    assert rows["g0"]["prompt"] == "token ids " + " ".join(map(str, group.prompt_ids.tolist()))
    assert sum(row["selected"] for row in rows.values()) == 2
    (tmp_path / "c.jsonl").unlink()
    ran = gradalign("report", tmp_path / "s.parquet")
    assert "c.jsonl are not here: problems and responses are shown by their keys alone" in ran.err
    (tmp_path / "s.config.json").unlink()
    ran = gradalign("report", tmp_path / "s.parquet")
    assert (ran.status, "no s.config.json of gradalign score beside it" in ran.err) == (0, True)


def test_what_is_left_out_is_said(gradalign: Run, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problems, "PROBLEMS", 40)
    monkeypatch.setattr(problems, "FEWEST", 10)
    monkeypatch.setattr(problems, "ROUNDS", 4)
    out = tmp_path / "r.html"
    ran = gradalign("report", demo, "--out", out)
    held = data(out)
    assert [len(view["rows"]) for view in held["views"]] == [10] * 4
    assert [view["all"] for view in held["views"]] == [64, 32, 32, 32]
    for text in ("Problems are shown of 4 of 7 rounds", "At most 10 problems of a round are listed"):
        assert text in ran.out
        assert text in out.read_text()


def _alignments(count: int, chosen: int) -> list[Alignment]:
    return [
        Alignment(f"k{i}", f"s{i % 12}", "scored", 0.5, 4, 8, Numbers(), None, float(-i), None, i + 1, i < chosen)
        for i in range(count)
    ]


def test_a_sample_has_the_chosen_first_and_the_others_evenly() -> None:
    made = sample(_alignments(1000, 30), 100)
    assert [a.key for a in made[:30]] == [f"k{i}" for i in range(30)]
    assert (len(made), made[-1].key, made[30].key) == (100, "k999", "k30")
    made = sample(_alignments(1000, 800), 100)
    assert (len(made), sum(bool(a.selected) for a in made)) == (100, 50)
    assert sample(_alignments(40, 8), 100) == _alignments(40, 8)
    assert (evenly([1, 2, 3], 1), evenly([1, 2, 3], 0), evenly(range(9), 3)) == ([3], [], [0, 4, 8])


def test_scores_are_spread_by_source_and_the_smallest_sources_are_one() -> None:
    names = [f"s{i}" for i in range(7)]
    found = spread(_alignments(120, 12), [*names, "all others"])
    assert found is not None
    assert found.sources == [*names, "all others"]
    assert found.counts == [(1, 9)] * 7 + [(5, 45)]
    assert found.left[0] is not None
    assert found.left[0][2] == -60.0
    assert spread([Alignment("k", "s", "zero_variance", 0.0, 4, 8, Numbers())], ["s"]) is None


def test_the_trainers_log(tmp_path: Path) -> None:
    entries: list[dict[str, Any]] = [
        {"step": 0, "eval_reward": 0.1, "eval_runtime": 2.0},
        {"step": 2, "epoch": 2 / 3, "reward": 0.5, "gradalign/round": 0.0, "step_time": 3.0, "gradalign/seconds": 1.0},
        {"step": 4, "epoch": 4 / 3, "reward": float("nan"), "gradalign/round": 1.0, "step_time": 1.0},
    ]
    log = Log(entries, 5, 8, [], None, None)
    assert (log.span(0), log.span(1), log.span(2)) == ((0, 3), (3, 5), None)
    assert Log([{"step": 3, "reward": 0.5}], 5, 8, [], None, None).span(0) is None
    assert log.series("reward") == [(2, 0.5)]
    assert log.seconds(0) == {"training": 8.0, "evaluation": 2.0}
    assert log.seconds(3) == {"training": 5.0, "evaluation": 2.0, "choosing batches": 3.0}
    folder = tmp_path / "checkpoint-5"
    folder.mkdir()
    (folder / "trainer_state.json").write_text('{"log_history": [{}], "global_step": 5, "max_steps": 8}')
    with pytest.raises(Exception, match="is no trainer's state"):
        read_log(tmp_path)
    (tmp_path / "checkpoint-9").mkdir()
    (folder / "trainer_state.json").write_text('{"log_history": [], "global_step": 5, "max_steps": 8}')
    with pytest.warns(GradAlignWarning, match="checkpoint-9: is half-written"):
        assert read_log(tmp_path) == Log([], 5, 8, [], None, None)


def test_long_lines_are_averaged(demo: Path) -> None:
    runs = read_runs([demo / "train-gradalign"])
    assert runs[0].log is not None
    runs[0].log.entries[:] = [{"step": i, "reward": float(i % 2)} for i in range(1, 1001)]
    (line,) = next(panel for panel in panels(runs) if panel.name == "training").lines
    assert (len(line.x), line.x[0]) == (200, 3.0)
    assert line.y[0] == pytest.approx(0.6)


def test_every_colour_has_a_value_in_both_modes() -> None:
    style = asset("report.css")
    names = [f"{kind}-{i}" for kind in ("run", "source", "cost") for i in range(COLOURS)]
    for name in [*names, "chosen", "left"]:
        assert re.search(rf"--{name}: (light-dark\(#\w{{6}}, #\w{{6}}\)|var\(--source-\d\));", style), name
    assert len(SIGNS) == len(MARKS) == len(PNG_MARKS) == COLOURS
    looks = {(run % COLOURS, mark(run)) for run in range(COLOURS**2)}
    assert len(looks) == COLOURS**2


def test_a_run_of_verl_has_rounds(gradalign: Run, demo: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(demo / "train-gradalign" / "round-0000", run / "round-0000")
    options = {"strategy": "dot", "engine": "exact", "contributions": False, "gates": None, "rank": None, "pick": None}
    write_json(run / "config.json", {"command": "verl", "options": {**options, "model": "embedded", "rounds": 3}})
    assert "by dot, 1 round, unfinished: 1 of 3 rounds were begun" in gradalign("report", run).out


def test_a_name_with_a_dollar_is_drawn_as_it_stands(gradalign: Run, tmp_path: Path) -> None:
    name = r"$\foo$ <b>"
    rows = [Alignment(f"k{i}", name, "scored", 0.5, 4, 8, Numbers(), None, float(i), None, 1, i < 2) for i in range(6)]
    write_alignments(tmp_path / "s.parquet", rows)
    ran = gradalign("report", tmp_path / "s.parquet", "--out", tmp_path / "r.html", "--png", tmp_path / "png")
    assert ran.status == 0, ran.err
