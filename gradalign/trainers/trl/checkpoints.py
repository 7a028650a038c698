"""Which of a trainer's checkpoints can be gone on from: a kill may have left half of one, a disk a damaged one."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open
from transformers.trainer import TRAINER_STATE_NAME

from gradalign.curriculum.history import saved_history
from gradalign.curriculum.state import HISTORY, STATE
from gradalign.errors import GradAlignError, warn
from gradalign.files import read_json
from gradalign.trainers.trl.model import policy_of

if TYPE_CHECKING:
    from gradalign.trainers.trl.trainer import GradAlignTrainer


def is_complete(checkpoint: Path, chosen: bool = True) -> bool:
    """Whether everything was written and can be opened; the trainer's state comes last.

    Args:
        checkpoint: its folder.
        chosen: whether it is to carry a curriculum's state.
    """
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
        if chosen:
            rounds = read_json(checkpoint / STATE)["rounds"]
            if sum(1 for _ in saved_history(checkpoint / HISTORY)) != rounds:
                return False
        for path in checkpoint.glob("*.safetensors"):
            with safe_open(path, framework="pt"):  # reads the header, and holds the file's size against it
                pass
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, GradAlignError):
        return False
    return all(zipfile.is_zipfile(path) for pattern in ("*.pt", "*.pth") for path in checkpoint.glob(pattern))


def last_complete(folder: Path) -> Path | None:
    """The last complete checkpoint in a run's folder, by its step; later ones are passed over with a warning."""
    found = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    for path in sorted(found, key=lambda path: int(path.name.split("-")[1]), reverse=True):
        if is_complete(path):
            return path
        warn(f"{path}: is half-written or damaged, and passed over")
    return None


def require_complete(checkpoint: Path, chosen: bool) -> None:
    """Refuse a checkpoint that cannot be gone on from; see `is_complete`.

    Raises:
        GradAlignError: it is not there, half-written, or of a run that chose nothing.
    """
    if not checkpoint.is_dir():
        raise GradAlignError(f"{checkpoint}: no such checkpoint")
    if not is_complete(checkpoint, chosen):
        raise GradAlignError(
            f"{checkpoint}: is no complete checkpoint of this trainer (half-written, damaged, or without {STATE}); "
            "name an earlier one, or train anew in another folder"
        )


def restore(trainer: GradAlignTrainer, resume_from_checkpoint: str | bool | None) -> str | None:
    """Set a trainer's curriculum to a checkpoint's, or to its start; gives the checkpoint's name.

    Raises:
        GradAlignError: the checkpoint is another run's or incomplete, or there is none.
    """
    if resume_from_checkpoint is True:
        found = last_complete(Path(trainer.args.output_dir or "."))
        if found is None:
            raise GradAlignError(f"{trainer.args.output_dir}: holds no complete checkpoint; train without resuming")
        resume_from_checkpoint = str(found)
    if trainer.curriculum is not None:
        trainer.curriculum.restart()
    if resume_from_checkpoint:
        checkpoint = Path(resume_from_checkpoint)
        require_complete(checkpoint, trainer.curriculum is not None)
        if trainer.curriculum is not None:
            trainer.curriculum.load(checkpoint, policy_of(trainer))
        elif (checkpoint / STATE).exists():
            trainer.run_state.load(checkpoint)
    elif found := last_complete(Path(trainer.args.output_dir or ".")):
        warn(f"{found}: is of an earlier run; this one starts anew, and resuming later would take the last of both")
    return None if not resume_from_checkpoint else str(resume_from_checkpoint)
