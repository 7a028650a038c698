"""The rollout table: one row a rollout, as Parquet or JSONL; read with every row checked, written atomically."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gradalign.errors import GradAlignError
from gradalign.files import replacing
from gradalign.policy.group import Group, Rollout, Status
from gradalign.policy.load import Policy
from gradalign.rows import Row, read_rows

OnBadRow = Literal["stop", "mark"]

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("source", pa.string()),
        pa.field("prompt_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("response_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("response_mask", pa.list_(pa.bool_())),
        pa.field("logprobs", pa.list_(pa.float32())),
        pa.field("reward", pa.float64(), nullable=False),
        pa.field("rewards", pa.list_(pa.float64())),
        pa.field("finish_reason", pa.string()),
        pa.field("policy", pa.string()),
        pa.field("response", pa.string()),
    ]
)
"""Columns of a written table; ``source`` and those after ``response_ids`` but ``reward`` may be null."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the policy takes: rows beyond it are bad. None means not known.

    Attributes:
        vocabulary: token ids are in [0, vocabulary).
        max_length: longest prompt and response together, in tokens.
    """

    vocabulary: int | None = None
    max_length: int | None = None

    @classmethod
    def of(cls, policy: Policy) -> Limits:
        """The limits of a policy."""
        return cls(policy.model.get_input_embeddings().weight.shape[0], policy.max_length)


@dataclass(frozen=True, slots=True)
class _Bad(Exception):
    """A row that is well-formed but cannot be scored."""

    status: Status
    message: str


def read_rollouts(path: Path, limits: Limits = Limits(), on_bad_row: OnBadRow = "stop") -> list[Group]:
    """Read a rollout table, ``.parquet`` or ``.jsonl``; see `gather`."""
    return gather(read_rows(path), path, limits, on_bad_row)


def gather(
    rows: Iterable[tuple[int, Row]], path: Path, limits: Limits = Limits(), on_bad_row: OnBadRow = "stop"
) -> list[Group]:
    """Gather numbered rows into groups, in order of first appearance.

    Args:
        rows: (number, row) pairs.
        path: what error messages call the file.
        limits: of the policy that will score.
        on_bad_row: ``stop`` at a row that cannot be scored (no response token, every token masked, NaN or infinite
            reward, token outside the vocabulary, too long), or ``mark`` its whole group ``no_tokens`` or ``failed``.

    Raises:
        GradAlignError: missing or unreadable file, missing or mis-typed field, one key with two prompts, no row; with
            ``stop``, a row that cannot be scored. The message names file, row, field and the mend.
    """
    groups: dict[str, Group] = {}
    for number, row in rows:
        where = f"{path}:{number}"
        key = _key(row, where)
        prompt = _numbers(row, "prompt_ids", where, np.int64, required=True)
        assert prompt is not None
        group = groups.get(key)
        if group is None:
            source = row.get("source")
            group = groups[key] = Group(
                key, prompt, [], "" if source is None else str(source), _optional_text(row, "policy", where)
            )
        elif not np.array_equal(group.prompt_ids, prompt):
            raise GradAlignError(
                f"{where}: field 'prompt_ids': key {key!r} has another prompt in an earlier row; one key names one "
                "prompt: give the second problem a key of its own"
            )
        if _optional_text(row, "policy", where) != group.policy:
            group.policy = "several policies"
        rollout = _rollout(row, where)
        assert isinstance(group.rollouts, list)
        group.rollouts.append(rollout)
        try:
            _check(prompt, rollout, limits)
        except _Bad as bad:
            if on_bad_row == "stop":
                raise GradAlignError(f"{where}: {bad.message}; or go on without it: --on-bad-row mark") from bad
            group.invalid = group.invalid or bad.status
    if not groups:
        raise GradAlignError(f"{path}: holds no rollout; sample some with `gradalign rollout`")
    return list(groups.values())


def write_rollouts(path: Path, groups: Iterable[Group]) -> None:
    """Write a rollout table, ``.parquet`` or ``.jsonl`` by its name.

    Raises:
        GradAlignError: another suffix; the place cannot be written to.
    """
    rows = [row for group in groups for row in to_rows(group)]
    with replacing(path) as part:
        if writer_of(path) == "parquet":
            pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), part)
        else:
            with part.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps({n: v for n, v in row.items() if v is not None}) + "\n" for row in rows)


def writer_of(path: Path) -> Literal["parquet", "jsonl"]:
    """Which kind of file a path's name asks for.

    Raises:
        GradAlignError: neither ``.parquet`` nor ``.jsonl``.
    """
    if path.suffix not in (".parquet", ".jsonl"):
        raise GradAlignError(f"{path}: unknown kind of file {path.suffix!r}; name it .parquet or .jsonl")
    return "parquet" if path.suffix == ".parquet" else "jsonl"


def to_rows(group: Group) -> Iterator[Row]:
    """The group's rows, plain Python values under the names of `SCHEMA`."""
    for rollout in group.rollouts:
        yield {
            "key": group.key,
            "source": group.source,
            "prompt_ids": group.prompt_ids.tolist(),
            "response_ids": rollout.response_ids.tolist(),
            "response_mask": None if rollout.response_mask is None else rollout.response_mask.tolist(),
            "logprobs": None if rollout.logprobs is None else rollout.logprobs.tolist(),
            "reward": rollout.reward,
            "rewards": None if rollout.rewards is None else list(rollout.rewards),
            "finish_reason": rollout.finish_reason,
            "policy": group.policy,
            "response": rollout.response,
        }


def _key(row: Row, where: str) -> str:
    key = row.get("key")
    if isinstance(key, str) and key:
        return key
    if isinstance(key, int) and not isinstance(key, bool):
        return str(key)
    pool = "; these look like problems: sample them first with `gradalign rollout`" if "prompt_ids" not in row else ""
    raise GradAlignError(f"{where}: field 'key' is {_kind(row, 'key')}; write the problem's key as text{pool}")


def _rollout(row: Row, where: str) -> Rollout:
    response = _numbers(row, "response_ids", where, np.int64, required=True)
    assert response is not None
    reward = row.get("reward")
    if not isinstance(reward, int | float) or (abs(reward) > 1e308 and isinstance(reward, int)):
        raise GradAlignError(f"{where}: field 'reward' is {_kind(row, 'reward')}; write a number")
    mask = _numbers(row, "response_mask", where, np.bool_, length=len(response))
    logprobs = _numbers(row, "logprobs", where, np.float32, length=len(response))
    finish, text = _optional_text(row, "finish_reason", where), _optional_text(row, "response", where)
    rewards = _numbers(row, "rewards", where, np.float64)
    parts = None if rewards is None else tuple(rewards.tolist())
    return Rollout(response, float(reward), mask, logprobs, finish, text, parts)


def _check(prompt: np.ndarray, rollout: Rollout, limits: Limits) -> None:
    length = len(prompt) + len(rollout.response_ids)
    if not math.isfinite(rollout.reward):
        raise _Bad("failed", f"field 'reward' is {rollout.reward}; write a finite number")
    if len(rollout.response_ids) == 0:
        raise _Bad("no_tokens", "field 'response_ids': the response has no token; leave the row out")
    if rollout.n_tokens == 0:
        raise _Bad("no_tokens", "field 'response_mask': hides every token of the response; leave the row out")
    if len(prompt) == 0:
        raise _Bad("failed", "field 'prompt_ids': the prompt has no token; start it with the policy's first token")
    for name, ids in (("prompt_ids", prompt), ("response_ids", rollout.response_ids)):
        wrong = ids[(ids < 0) | (ids >= (limits.vocabulary or np.inf))]
        if len(wrong):
            raise _Bad(
                "failed",
                f"field {name!r}: token id {wrong[0]} is outside the policy's vocabulary of {limits.vocabulary}; take "
                "the model that sampled these rollouts",
            )
    if limits.max_length is not None and length > limits.max_length:
        raise _Bad(
            "failed",
            f"field 'response_ids': prompt and response have {length} tokens, the policy takes {limits.max_length}; "
            "cut the response",
        )


def _numbers(
    row: Row, name: str, where: str, dtype: type, required: bool = False, length: int | None = None
) -> np.ndarray | None:
    value = row.get(name)
    if value is None and not required:
        return None
    fits: Callable[[Any], bool] = _WELL_TYPED[dtype]
    if not isinstance(value, list):
        raise GradAlignError(f"{where}: field {name!r} is {_kind(row, name)}; write {_WANTED[dtype]}")
    odd = [item for item in value if not fits(item)]
    if odd:
        raise GradAlignError(f"{where}: field {name!r} holds {odd[0]!r:.40}; write {_WANTED[dtype]}")
    if length is not None and len(value) != length:
        raise GradAlignError(
            f"{where}: field {name!r} has {len(value)} items for {length} response tokens; write one for each"
        )
    try:
        return np.array(value, dtype)
    except OverflowError as error:
        raise GradAlignError(f"{where}: field {name!r} holds a number too large for a token id") from error


def _is_int(item: Any) -> bool:
    return isinstance(item, int) and not isinstance(item, bool)


_WELL_TYPED: dict[type, Callable[[Any], bool]] = {
    np.int64: _is_int,
    np.bool_: lambda item: isinstance(item, bool) or (_is_int(item) and item in (0, 1)),
    np.float32: lambda item: isinstance(item, float) or _is_int(item),
    np.float64: lambda item: isinstance(item, float) or _is_int(item),
}
_WANTED: dict[type, str] = {
    np.int64: "a list of token ids",
    np.bool_: "a list of true and false",
    np.float32: "a list of numbers",
    np.float64: "a list of numbers",
}


def _optional_text(row: Row, name: str, where: str) -> str | None:
    value = row.get(name)
    if value is None or isinstance(value, str):
        return value
    raise GradAlignError(f"{where}: field {name!r} is {_kind(row, name)}; write a text or leave it out")


def _kind(row: Row, name: str) -> str:
    if row.get(name) is None:
        return "missing"
    return f"{type(row[name]).__name__} {row[name]!r:.40}"
