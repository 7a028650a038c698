"""Which of a trainer's checkpoints can be gone on from: a kill may have left half of one."""

from __future__ import annotations

import json
import re
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME

from gradalign.curriculum.state import STATE
from gradalign.errors import GradAlignError


def is_complete(checkpoint: Path, chosen: bool = True) -> bool:
    """Whether everything was written; the trainer's state comes last.

    Args:
        checkpoint: its folder.
        chosen: whether it is to carry a curriculum's state.
    """
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return not chosen or (checkpoint / STATE).exists()


def last_complete(folder: Path) -> Path | None:
    """The last complete checkpoint in a run's folder, by its step."""
    found = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    complete = [path for path in found if is_complete(path)]
    return max(complete, key=lambda path: int(path.name.split("-")[1]), default=None)


def require_complete(checkpoint: Path, chosen: bool) -> None:
    """Refuse a checkpoint that cannot be gone on from; see `is_complete`.

    Raises:
        GradAlignError: it is not there, half-written, or of a run that chose nothing.
    """
    if not checkpoint.is_dir():
        raise GradAlignError(f"{checkpoint}: no such checkpoint")
    if not is_complete(checkpoint, chosen):
        raise GradAlignError(
            f"{checkpoint}: is no complete checkpoint of this trainer (it lacks {TRAINER_STATE_NAME} or {STATE}); name "
            "an earlier one, or train anew in another folder"
        )
