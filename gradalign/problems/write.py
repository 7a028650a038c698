"""Writing a chosen set for the trainer that is to learn from it, and scores joined back on all candidates."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from gradalign.errors import missing_extra
from gradalign.files import replacing, replacing_folder
from gradalign.problems.arrow import column
from gradalign.problems.plain import PlainFields
from gradalign.problems.schema import Problem
from gradalign.problems.verl import messages, verl_table

Target = Literal["trl", "verl", "datasets", "scored"]
FILES: dict[Target, str] = {
    "trl": "chosen.jsonl",
    "verl": "chosen.verl.parquet",
    "datasets": "chosen.datasets",
    "scored": "scored.jsonl",
}
"""Target -> name of the file, or folder, in a round's folder."""


def check_target(target: Target) -> None:
    """Find out before the work that a target's library is not installed.

    Raises:
        GradAlignError: it is not.
    """
    if target == "datasets" and importlib.util.find_spec("datasets") is None:
        raise missing_extra("datasets", "train")


def write_chosen(folder: Path, problems: Sequence[Problem], target: Target) -> Path:
    """Write problems, in the order given, for ``trl``, ``verl`` or ``datasets``; gives the path.

    - trl: JSONL rows ``{prompt, answer, key, source, ...metadata}`` for ``load_dataset("json", data_files=...)`` and
      whatever else reads JSONL.
    - verl: Parquet rows ``{data_source, prompt, ability, reward_model{style, ground_truth}, extra_info{split, index,
      key, plain, metadata}}``. A plain-text prompt becomes one user message (``plain`` is true then). ``metadata`` is a
      struct where Arrow gives every row's back exactly, else JSON text; our own reader takes both. Rows that were
      verl's keep their own fields (`gradalign.problems.verl`).
    - datasets: a folder for ``load_from_disk`` (and ``hf:FOLDER``) with the columns of trl's rows. Where some prompts
      are chats, the others become one user message. A metadata column whose values Arrow cannot hold as they are (texts
      and numbers in one, mappings with different fields) is JSON text, which a warning says.

    Metadata that neither holds (bytes, images) are left out with a warning; times and decimals become texts. A metadata
    field that has the name of one of the row's own is written as ``metadata.NAME``.

    Raises:
        GradAlignError: the place cannot be written to.
    """
    path = folder / FILES[target]
    problems = _plain(problems, path)
    if target == "datasets":
        _datasets(path, problems)
        return path
    with replacing(path) as part:
        if target == "verl":
            pq.write_table(verl_table(problems, str(path)), part)
        else:
            _jsonl(part, [trl_row(problem) for problem in problems])
    return path


def write_pool(path: Path, problems: Iterable[Problem]) -> None:
    """Write problems as trl's rows, one at a time, however many there are.

    Raises:
        GradAlignError: the place cannot be written to.
    """
    kept = PlainFields(str(path), "which JSON cannot write; left out there")
    with replacing(path) as part, part.open("w", encoding="utf-8") as file:
        for p in problems:
            row = trl_row(Problem(p.key, p.prompt, p.answer, p.source, kept(p.metadata)))
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    kept.say()


def write_scored(folder: Path, problems: Sequence[Problem], scores: Mapping[str, Mapping[str, Any]]) -> Path:
    """Write problems, in the order given, as trl's rows with their scores joined: ``scored.jsonl``; gives the path.

    Args:
        folder: to write to.
        problems: all candidates.
        scores: key -> columns of the alignment table.

    Raises:
        GradAlignError: the place cannot be written to.
    """
    path = folder / FILES["scored"]
    problems = _plain(problems, path)
    with replacing(path) as part:
        _jsonl(part, [_row(problem, scores[problem.key]) for problem in problems])
    return path


def trl_row(problem: Problem) -> dict[str, Any]:
    """A problem as a row for TRL: prompt, answer, key, source, and every metadata field."""
    return _row(problem, {})


def _row(problem: Problem, scores: Mapping[str, Any]) -> dict[str, Any]:
    own = {"prompt": problem.prompt, "answer": problem.answer, "key": problem.key, "source": problem.source, **scores}
    return own | {f"metadata.{name}" if name in own else name: value for name, value in problem.metadata.items()}


def _plain(problems: Sequence[Problem], path: Path) -> list[Problem]:
    """The problems with metadata that JSON can write."""
    kept = PlainFields(str(path), "which JSON cannot write; left out there")
    plain = [Problem(p.key, p.prompt, p.answer, p.source, kept(p.metadata)) for p in problems]
    kept.say()
    return plain


def _jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _datasets(path: Path, problems: Sequence[Problem]) -> None:
    import datasets

    chats = any(not isinstance(problem.prompt, str) for problem in problems)
    rows = [trl_row(problem) | ({"prompt": messages(problem)} if chats else {}) for problem in problems]
    names = dict.fromkeys(name for row in rows for name in row)
    table = pa.table({name: column([row.get(name) for row in rows], f"{path}: column {name!r}") for name in names})
    silent = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        with replacing_folder(path) as part:
            datasets.Dataset(table).save_to_disk(str(part))
    finally:
        if not silent:
            datasets.enable_progress_bars()
