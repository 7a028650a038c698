"""A direction in a file: safetensors, one tensor a covered parameter, with its numbers and what it is the direction of.

It fits a model with the same covered parameters (names and shapes, as the file's own header has them) under the same
objective. The weights it was taken at are noted too: following a direction while the policy moves is the caller's
choice.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open

from gradalign.alignment.direction import Direction
from gradalign.alignment.sums import inner
from gradalign.errors import GradAlignError
from gradalign.files import replacing
from gradalign.policy.load import Policy
from gradalign.policy.objective import Objective
from gradalign.policy.shards import cut_like, rows, whole

NOTES = "gradalign.direction"
TYPES = {torch.float32: "F32", torch.float64: "F64"}
PARTS = ("n_references", "parts")
FACTS = [field.name for field in dataclasses.fields(Direction) if field.name not in ("unit", "sources", "each", *PARTS)]


def save_direction(
    path: Path, policy: Policy, objective: Objective, direction: Direction, origin: str | None = None
) -> None:
    """Keep a direction in a file; of one that is cut every process has to, and the first writes.

    Args:
        path: of the file.
        policy: whose covered parameters it moves.
        objective: whose gradient it is.
        direction: the direction.
        origin: fingerprint of the weights it was taken at; None for those that ``policy`` has now.

    Raises:
        GradAlignError: the place cannot be written to.
    """
    notes = {
        "facts": {name: getattr(direction, name) for name in FACTS},
        "objective": dataclasses.asdict(objective),
        "origin": policy.fingerprint if origin is None else origin,
    }
    if direction.parts:
        notes["together"] = {name: getattr(direction, name) for name in PARTS}
    if policy.shards is not None and policy.shards.rank:
        for _, tensor in _in_order(policy, direction):
            whole(tensor)
        return
    with replacing(path) as part, part.open("wb") as file:
        header: dict[str, Any] = {"__metadata__": {NOTES: json.dumps(notes)}}
        end = 0
        for name, tensor in _in_order(policy, direction):
            start, end = end, end + tensor.numel() * tensor.element_size()
            header[name] = {"dtype": TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        file.write(len(text).to_bytes(8, "little") + text)
        for _, tensor in _in_order(policy, direction):  # one after the other: all of them may be more than fits here
            file.write(whole(tensor).cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _in_order(policy: Policy, direction: Direction) -> list[tuple[str, torch.Tensor]]:
    """A direction's tensors by name, in the order of the file."""
    return sorted(zip(policy.names, direction.unit, strict=True))


def load_direction(path: Path, policy: Policy, objective: Objective) -> Direction:
    """The direction that `save_direction` kept, in the policy's reduction dtype.

    Raises:
        GradAlignError: there is none in the file, it is damaged, or of other parameters or another objective.
    """
    notes = _notes(path)
    with safe_open(path, framework="pt", device=str(policy.device)) as file:
        theirs = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        _same_parameters(path, policy, theirs)
        _same_objective(path, objective, notes["objective"])
        # Copied: sums over memory that is aligned as the file is round in another way.
        parts = [_own_rows(file, name, p) for name, p in zip(policy.names, policy.parameters, strict=True)]
        unit = [
            cut_like(p, part.to(policy.reduction_dtype, copy=True))
            for p, part in zip(policy.parameters, parts, strict=True)
        ]
    norm = math.sqrt(inner(unit, unit))
    if not abs(norm - 1) < 1e-3:
        raise GradAlignError(f"{path}: the direction's length is {norm:g}, not 1: it is damaged; take it again")
    return Direction(unit=unit, **notes["facts"], **notes.get("together", {}))


def _own_rows(file: Any, name: str, parameter: torch.Tensor) -> torch.Tensor:
    """The rows of a tensor in a file that this process has of a parameter."""
    return file.get_slice(name)[rows(parameter)] if parameter.ndim else file.get_tensor(name)


def origin_of(path: Path) -> str:
    """Fingerprint of the weights at which the direction in a file was taken.

    Raises:
        GradAlignError: there is none in the file.
    """
    return cast(str, _notes(path)["origin"])


def is_direction(path: Path) -> bool:
    """Whether the file holds what `save_direction` keeps."""
    try:
        return bool(_notes(path))
    except GradAlignError:
        return False


def _notes(path: Path) -> dict[str, Any]:
    """What is noted beside the tensors: facts, objective, origin."""
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(NOTES, "{}")
    except (OSError, SafetensorError) as error:
        raise GradAlignError(f"{path}: cannot be read as a direction ({error}); name one, or take it again") from error
    try:
        notes = json.loads(text)
        known = isinstance(notes["objective"], dict) and isinstance(notes["origin"], str)
        if known and _complete(notes["facts"]) and _consistent(notes.get("together")):
            return notes
    except (KeyError, TypeError, ValueError, RecursionError, OverflowError):
        pass
    raise GradAlignError(f"{path}: holds no direction that this program saved; name one, or take it again")


def _complete(facts: Any) -> bool:
    """Whether they are a direction's numbers, all of them, and finite."""
    if not isinstance(facts, dict) or facts.keys() != set(FACTS):
        return False
    known = {name: value for name, value in facts.items() if value is not None or not name.startswith("reliability")}
    return all(isinstance(value, int | float) and math.isfinite(value) for value in known.values())


def _consistent(together: Any) -> bool:
    """Whether they are the parts of a direction that is put together, or None."""
    if together is None:
        return True
    if not isinstance(together, dict) or together.keys() != set(PARTS) or not isinstance(together["parts"], dict):
        return False
    values = [together["n_references"], *together["parts"].values()]
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values)


def _same_parameters(path: Path, policy: Policy, theirs: Mapping[str, tuple[int, ...]]) -> None:
    ours = {name: tuple(p.shape) for name, p in zip(policy.names, policy.parameters, strict=True)}
    lacking, more = sorted(ours.keys() - theirs.keys()), sorted(theirs.keys() - ours.keys())
    differ = [name for name in ours if name in theirs and ours[name] != theirs[name]]
    if lacking or more:
        parts = [f"lacks {len(lacking)} of this run's (first: {lacking[0]})"] if lacking else []
        parts += [f"has {len(more)} more (first: {more[0]})"] if more else []
        what = f"is over other parameters: it {' and '.join(parts)}"
    elif differ:
        what = f"is another model's: {differ[0]} is {theirs[differ[0]]} in it, and {ours[differ[0]]} here"
    else:
        return
    raise GradAlignError(f"{path}: the direction {what}; give the model and the parameters that it was taken with")


def _same_objective(path: Path, objective: Objective, theirs: Mapping[str, Any]) -> None:
    ours = dataclasses.asdict(objective)
    differ = [name for name in ours if theirs.get(name) != ours[name]]
    if differ:
        values = ", ".join(f"{name} {theirs.get(name)}, here {ours[name]}" for name in differ)
        raise GradAlignError(
            f"{path}: the direction is of another objective ({values}); give the one that it was taken with, or take "
            "it again"
        )
