"""What `gradalign plan` predicts against what runs take: seconds by stage, for the demo and for SmolLM2.

    python examples/smollm2_mawps/prepare.py MAWPS_FOLDER runs/plan/data 64
    python benchmarks/plan.py MODEL_FOLDER

MODEL_FOLDER is SmolLM2-135M-Instruct. Every case is planned just before it is run, in this process; response lengths
come from a pilot with another seed (the demo's on other problems), so nothing of a run enters its own prediction.
``--clock cpu`` measures the processor's time over all threads instead of the wall clock, in the probe and in the runs
alike: for a machine that other work shares. Writes benchmarks/plan.json and, from it, benchmarks/plan.md, in which
cases that are not asked for stay as they are; the runs are kept in runs/plan.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
HERE = Path(__file__).parent
RUNS = Path("runs/plan")
WITHIN = 1.5
TRAINING = ("training rollouts", "training passes", "optimiser")
DEMO = {
    "demo, small": {"problems": 64, "validation": 32, "test": 32, "rounds": 2, "steps_per_round": 4},
    "demo": {"problems": 256, "validation": 128, "test": 128, "rounds": 4, "steps_per_round": 8},
}
ENGINES = ("exact", "directional")
ARMS = {"gradalign": False, "guarded": True, "random": False}


def command(*arguments: object) -> str:
    """What a command prints."""
    from gradalign.cli.main import main

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        status = main([str(argument) for argument in arguments])
    assert status == 0, f"gradalign {' '.join(map(str, arguments))}: exit status {status}"
    return out.getvalue()


def pilot(name: str, *arguments: object) -> Path:
    """The run folder of rollouts that say how long responses are."""
    folder = RUNS / f"pilot-{name}"
    command("select", *arguments, "--strategy", "accgreedy", "--top", 1, "--seed", 17, "--out", folder)
    return folder


def predicted(*arguments: object) -> tuple[dict[str, float], dict[str, Any]]:
    """(stage -> seconds in all, the device's measured numbers)."""
    plan = json.loads(command("plan", *arguments, "--format", "json"))
    stages = {stage["name"]: stage["times"] * stage["seconds"] for stage in plan["plans"][0]["stages"]}
    if any(name in stages for name in TRAINING):
        stages["training"] = sum(stages.pop(name, 0.0) for name in TRAINING)
    return stages, plan["device"]["measured"]


def measured(folder: Path) -> dict[str, float]:
    """Stage -> seconds in all of a run on disk."""
    from gradalign.report.logs import read_log

    found: dict[str, float] = {}
    for path in sorted(folder.glob("round-*/metrics.json")):
        for name, seconds in json.loads(path.read_text())["seconds"].items():
            found[name] = found.get(name, 0.0) + seconds
    log = read_log(folder)
    return found | (log.seconds(0) if log else {})


def demo(name: str, sizes: dict[str, int]) -> dict[str, Any]:
    """The demo's parts, planned one by one as recipes of ``select`` and ``train``."""
    like = pilot("embedded", "--model", "embedded", "--pool", "embedded:mixed?size=128&seed=5", "--validation",
                 "embedded:mixed?size=8&seed=6", "--allow-overlap", "--reward", "countdown", "--corrupt", 0.5,
                 "--rollouts", 32, "--max-new-tokens", 16)  # fmt: skip
    both = ("--model", "embedded", "--reward", "countdown", "--like", like, "--pool", "embedded:mixed?size=256",
            "--pool-size", sizes["problems"], "--validation-size", sizes["validation"], "--rollouts")  # fmt: skip
    steps, rounds = sizes["steps_per_round"], sizes["rounds"]
    plans = {
        "choose once": predicted(*both, 32, "--max-new-tokens", 16, "--fraction", 0.125, "--contributions"),
    } | {
        f"train, {arm}": predicted(
            *both, 16, "--test-size", sizes["test"], "--strategy", arm, "--steps-per-round", steps, "--max-steps",
            steps * rounds, "--chunk", sizes["problems"] // 2, "--top", 32, "--validation-rollouts", 16,
            "--contributions", contributions, "--per-device-train-batch-size", 256,
            "--num-generations", 16, "--max-completion-length", 16, "--scale-rewards", "none",
            "--gradient-checkpointing", False, "--eval-strategy", "epoch", "--eval-on-start", True,
            "--per-device-eval-batch-size", 512, "--num-generations-eval", 8, "--use-cpu", True,
        ) for arm, contributions in ARMS.items()
    }  # fmt: skip
    folder = RUNS / name.replace(", ", "-")
    command(
        "demo", "--out", folder, *(x for key, value in sizes.items() for x in (f"--{key.replace('_', '-')}", value))
    )
    return {
        f"{name}: {part}": {
            "predicted": seconds, "device": device,
            "measured": measured(folder if part == "choose once" else folder / part.replace(", ", "-")),
        } for part, (seconds, device) in plans.items()
    }  # fmt: skip


def smollm2(model: Path, engine: str) -> dict[str, Any]:
    """A choice by SmolLM2 among word problems."""
    data, template = RUNS / "data", HERE.parent / "examples/smollm2_mawps/template.txt"
    both = ("--model", model, "--pool", data / "pool.jsonl", "--validation", data / "short.jsonl", "--template",
            f"@{template}", "--reward", "number", "--corrupt", 0.5, "--rollouts", 8, "--temperature", 0.7,
            "--max-new-tokens", 64, "--stop", r"\n", "--chunk", 16)  # fmt: skip
    lines = (data / "validation.jsonl").read_text().splitlines(keepends=True)
    (data / "short.jsonl").write_text("".join(lines[:16]))
    like = pilot("smollm2", *both)
    scoring = ("--fraction", 0.25, "--engine", engine)
    seconds, device = predicted(*both, *scoring, "--like", like)
    folder = RUNS / f"smollm2-{engine}"
    command("select", *both, *scoring, "--out", folder)
    return {f"SmolLM2: {engine}": {"predicted": seconds, "measured": measured(folder), "device": device}}


def table(data: dict[str, Any]) -> str:
    """The results in Markdown."""
    units = {"wall": "seconds", "cpu": "seconds of the processor, over all threads"}
    lines = ["# gradalign plan against runs", "", f"Made by `python benchmarks/plan.py`. {data['machine']}.", ""]
    for name, case in data["cases"].items():
        told = [stage for stage in case["predicted"] if stage in case["measured"]]
        rows = [(stage, case["predicted"][stage], case["measured"][stage]) for stage in told]
        rows.append(("in all", *(sum(row[i] for row in rows) for i in (1, 2))))
        lines += [f"## {name}", "", f"In {units[case['clock']]}; {case['load']}.", ""]
        lines += ["| stage | predicted | measured | ratio |", "| --- | ---: | ---: | ---: |"]
        for stage, ours, theirs in rows:
            ratio = ours / theirs if theirs else float("nan")
            mark = "" if 1 / WITHIN <= ratio <= WITHIN else f" (beyond {WITHIN:g})"
            lines.append(f"| {stage} | {ours:.3g} | {theirs:.3g} | {ratio:.2f}{mark} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of SmolLM2-135M-Instruct")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--cases", nargs="+", choices=(*DEMO, "smollm2"), default=(*DEMO, "smollm2"))
    options = parser.parse_args()
    if options.clock == "cpu":
        time.perf_counter = time.time = time.process_time  # what runs and libraries ask for durations
    import torch

    from gradalign.bench.machine import machine

    for path in RUNS.glob("*"):
        if path.name != "data":
            shutil.rmtree(path)
    known, file = machine(torch.device("cpu")), HERE / "plan.json"
    data: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"cases": {}}
    data["machine"] = f"{known['cpu']}, {known['cores']} cores, {known['threads']} threads"
    for name in options.cases:
        makes = [partial(smollm2, options.model, engine) for engine in ENGINES]
        for make in [partial(demo, name, DEMO[name])] if name in DEMO else makes:
            load = f"load {os.getloadavg()[0]:.1f} when it began"
            data["cases"] |= {part: {"clock": options.clock, "load": load, **case} for part, case in make().items()}
            file.write_text(json.dumps(data, indent=1) + "\n")
            file.with_suffix(".md").write_text(table(data))
    print(table(data))


if __name__ == "__main__":
    main()
