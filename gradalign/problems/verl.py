"""Problems as rows of verl's Parquet.

A row that was verl's when it was read keeps what verl and its rewards saw in it: ability, reward_model, the fields of
extra_info, further columns. Ours are added: ``extra_info.key``, ``plain``, ``metadata``, and ``gradalign_answer`` where
the ground truth is not the answer as it was read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from gradalign.errors import warn
from gradalign.problems.arrow import alike, held
from gradalign.problems.fields import ANSWER, ANSWER_FIELDS, KEY_FIELDS, PROMPT_FIELDS, SOURCE_FIELDS
from gradalign.problems.schema import Message, Problem

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
REWARD_MODEL = pa.struct([("style", pa.string()), ("ground_truth", pa.string())])
ABILITY = "reasoning"
_READ = {*PROMPT_FIELDS, *ANSWER_FIELDS, *KEY_FIELDS, *SOURCE_FIELDS, "ability", "reward_model", "extra_info"}
"""Columns that are ours to write, and those that a reader would take for a prompt, an answer, a key, a source."""


def verl_table(problems: Sequence[Problem], where: str) -> pa.Table:
    """One row a problem: see the module's text, and `gradalign.problems.write.write_chosen`.

    Args:
        problems: with plain metadata.
        where: the file, for warnings.
    """
    theirs = [_theirs(problem) for problem in problems]
    columns = {
        "data_source": pa.array([problem.source for problem in problems], pa.string()),
        "prompt": pa.array([messages(problem) for problem in problems], MESSAGES),
        "ability": pa.array([_text(one.get("ability"), ABILITY) for one in theirs], pa.string()),
        "reward_model": _reward_models(problems, theirs, where),
        "extra_info": _extra_info(problems, theirs),
    }
    for name in dict.fromkeys(name for one in theirs for name in one if name not in _READ):
        values = _given([one.get(name) for one in theirs])
        if values is not None:
            columns[name] = values
    return pa.table(columns)


def messages(problem: Problem) -> list[Message]:
    """The problem's prompt as chat messages."""
    return [{"role": "user", "content": problem.prompt}] if isinstance(problem.prompt, str) else problem.prompt


def _theirs(problem: Problem) -> Mapping[str, Any]:
    """The fields of a row that was verl's; nothing for any other."""
    model = problem.metadata.get("reward_model")
    return problem.metadata if isinstance(model, Mapping) and "ground_truth" in model else {}


def _reward_models(problems: Sequence[Problem], theirs: Sequence[Mapping[str, Any]], where: str) -> pa.Array:
    own = [{"style": "rule", "ground_truth": problem.answer} for problem in problems]
    if not any(theirs):
        return pa.array(own, REWARD_MODEL)
    found = alike([one.get("reward_model", mine) for one, mine in zip(theirs, own, strict=True)])
    if found is None:
        warn(f"{where}: column 'reward_model': its values are of several kinds; ground truths are the answers as read")
        return pa.array(own, REWARD_MODEL)
    return found


def _extra_info(problems: Sequence[Problem], theirs: Sequence[Mapping[str, Any]]) -> pa.Array:
    infos = [info if isinstance(info := one.get("extra_info"), Mapping) else {} for one in theirs]
    fields: dict[str, pa.Array] = {
        "split": pa.array(["train"] * len(problems), pa.string()),
        "index": pa.array(range(len(problems)), pa.int64()),
    }
    defaults: dict[str, Sequence[Any]] = {name: array.to_pylist() for name, array in fields.items()}
    nothing = [None] * len(problems)
    for name in dict.fromkeys(name for info in infos for name in info):
        default = defaults.get(name, nothing)
        values = _given([info.get(name, mine) for info, mine in zip(infos, default, strict=True)])
        if values is not None:
            fields[name] = values
    metadata = [dict(problem.metadata) for problem in problems]
    structs = held(metadata)
    if structs is None:
        structs = pa.array([json.dumps(one, ensure_ascii=False) for one in metadata], pa.string())
    fields |= {
        "key": pa.array([problem.key for problem in problems], pa.string()),
        "plain": pa.array([isinstance(problem.prompt, str) for problem in problems], pa.bool_()),
        "metadata": structs,
    }
    if any(theirs):
        fields[ANSWER] = pa.array([p.answer if one else None for p, one in zip(problems, theirs, strict=True)])
    return pa.StructArray.from_arrays(list(fields.values()), list(fields))


def _given(values: Sequence[Any]) -> pa.Array | None:
    """The values as a column that gives them back; None where there is none, or nothing to give back."""
    return None if all(value is None for value in values) else alike(values)


def _text(value: Any, default: str) -> str:
    return value if isinstance(value, str) else default
