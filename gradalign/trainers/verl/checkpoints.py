"""verl's checkpoints: how far training is, whose they are, a round's fresh start, and export to Hugging Face's form.

A folder of verl's: ``global_step_N/{actor/, data.pt}`` and ``latest_checkpointed_iteration.txt``, which holds N and is
written last. Ours beside them: ``gradalign.json``, the curriculum's state with the run's identity.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import zipfile
from pathlib import Path

from gradalign.curriculum.state import STATE, State
from gradalign.errors import GradAlignError, warn
from gradalign.files import replacing, replacing_folder, writing

TRACKER = "latest_checkpointed_iteration.txt"


def step_folder(folder: Path, step: int) -> Path:
    """Of the checkpoint after ``step`` optimiser steps."""
    return folder / f"global_step_{step}"


def last_step(folder: Path) -> int:
    """Step of the checkpoint that verl would go on from; 0 where there is none.

    A tracker that a kill left empty is written again, of the last whole checkpoint.

    Raises:
        GradAlignError: the tracker holds no number, or names a checkpoint that is not there.
    """
    tracker = folder / TRACKER
    if not tracker.exists():
        return 0
    text = tracker.read_text(encoding="utf-8", errors="replace").strip()
    if not text:
        text = str(_last_whole(folder))
        warn(f"{tracker}: is empty, as a kill leaves it; {text} is written there")
        with replacing(tracker) as part:
            part.write_text(text, encoding="utf-8")
    if not text.isdecimal():
        raise GradAlignError(f"{tracker}: holds {text[:20]!r}; write the number of the last whole global_step there")
    if int(text) and not step_folder(folder, int(text)).is_dir():
        raise GradAlignError(
            f"{tracker}: names {step_folder(folder, int(text)).name}, which is not there, and verl would train from "
            "the start; put it back, or write the number of one that is there"
        )
    return int(text)


def _last_whole(folder: Path) -> int:
    """``data.pt`` is what verl writes last but the tracker."""
    found = [path for path in folder.glob("global_step_*") if re.fullmatch(r"global_step_\d+", path.name)]
    return max((int(p.name.rsplit("_", 1)[1]) for p in found if zipfile.is_zipfile(p / "data.pt")), default=0)


def recall(folder: Path, state: State) -> State:
    """The state beside the checkpoints; ``state`` itself where there is neither.

    Raises:
        GradAlignError: the checkpoints, or the state, are another run's.
    """
    if (folder / STATE).exists():
        return state.load(folder)
    theirs = sorted(path.name for path in folder.glob("global_step_*"))
    if theirs or (folder / TRACKER).exists():
        raise GradAlignError(
            f"{folder}: holds verl checkpoints of another run ({', '.join([*theirs[:1], *[TRACKER] * (not theirs)])}, "
            f"and no {STATE}); name another folder by --checkpoints"
        )
    return state


def start_afresh(folder: Path, step: int) -> None:
    """Let verl's data loader begin the next round at its first problem: its place in the last one's is put aside."""
    data = step_folder(folder, step) / "data.pt"
    if data.exists():
        with writing(data):
            data.replace(data.with_name("data.of-last-round.pt"))


def export(python: str, folder: Path, step: int, out: Path) -> None:
    """Write the policy after ``step`` to ``out``, a Hugging Face folder, by verl's own merger; nothing if it is there.

    Raises:
        GradAlignError: the merger fails.
    """
    if out.exists():
        return
    for left in out.parent.glob(f".{out.name}.*.part"):  # of a killed export; as large as the policy
        shutil.rmtree(left)
    with replacing_folder(out) as part:
        command = merge_command(python, folder, step, part)
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, check=False
        )
        if done.returncode != 0 or not (part / "config.json").is_file():
            said = (done.stderr.strip() or done.stdout.strip() or "it wrote no config.json").splitlines()[-1]
            raise GradAlignError(
                f"{step_folder(folder, step)}: verl's model_merger ended with status {done.returncode} ({said}); "
                "mend the cause, then run the same command again"
            )


def merge_command(python: str, folder: Path, step: int, out: Path) -> list[str]:
    """verl's own export of a checkpoint."""
    return [
        python, "-m", "verl.model_merger", "merge", "--backend", "fsdp", "--local_dir",
        str(step_folder(folder, step) / "actor"), "--target_dir", str(out),
    ]  # fmt: skip
