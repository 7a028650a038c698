"""What outlives a crash of a curriculum: its state with each checkpoint."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradalign.curriculum.history import History, saved_history
from gradalign.errors import GradAlignError
from gradalign.files import read_json, write_json

STATE = "gradalign.json"
HISTORY = "gradalign.history.jsonl"
"""File of what the rounds chose, beside the state."""
DIRECTION = "gradalign.direction.safetensors"
"""File of the direction that is followed, beside the state or in a round's folder."""


@dataclass
class State:
    """What a checkpoint carries of a curriculum.

    Attributes:
        identity: of the run: what may not differ when it goes on.
        round: the last round begun; -1 before the first.
        history: of every round so far, the keys chosen, best first.
        agreements: of every round so far, the direction's reliability and its standard error.
        sampled: rollouts sampled for choosing, in all.
        reused: of these, rollouts that were trained on, in all.
        step: the finite-difference step of the round, where forward passes are differenced in every batch.
        sketch: what the round's sketch agrees with, where batches are sketched.
        rates: of every round so far, what its pass rates leave for a budget that asks (`Prior`); empty for others.
    """

    identity: dict[str, Any]
    round: int = -1
    history: History = field(default_factory=History)
    agreements: list[tuple[float | None, float | None]] = field(default_factory=list)
    sampled: int = 0
    reused: int = 0
    step: tuple[float, float] | None = None
    sketch: dict[str, Any] | None = None
    rates: list[dict[str, list[float]]] = field(default_factory=list)

    def save(self, checkpoint: Path) -> None:
        """Write it into a checkpoint's folder."""
        self.history.save(checkpoint / HISTORY)
        kept = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "history"}
        write_json(checkpoint / STATE, kept | {"rounds": len(self.history)})

    def load(self, checkpoint: Path) -> State:
        """The state that a checkpoint of this run carries.

        Raises:
            GradAlignError: it carries none, or another run's, or not all of it.
        """
        path = checkpoint / STATE
        if not path.exists():
            raise GradAlignError(
                f"{checkpoint}: is not a checkpoint of a curriculum (no {STATE}); name one, or train anew in another "
                "folder"
            )
        try:
            saved = read_json(path)
            rounds = saved.pop("rounds")
            found = State(**saved)
        except (TypeError, KeyError, AttributeError) as error:
            raise GradAlignError(f"{path}: is of another version of this program ({error}); train anew") from error
        names = self.identity.keys() | found.identity.keys()
        differ = sorted(name for name in names if self.identity.get(name) != found.identity.get(name))
        if differ:
            raise GradAlignError(
                f"{checkpoint}: is of another run (differs in {', '.join(differ)}); give what that run was given, or "
                "train anew in another folder"
            )
        for keys in saved_history(checkpoint / HISTORY):
            found.history.append(keys)
        if len(found.history) != rounds:
            raise GradAlignError(
                f"{checkpoint / HISTORY}: has {len(found.history)} of {rounds} rounds; name an earlier checkpoint"
            )
        return found
