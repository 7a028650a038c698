"""Writing a chosen set for the trainer that is to learn from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from gradalign.files import replacing
from gradalign.problems.schema import Problem

Target = Literal["trl", "verl"]
FILES: dict[Target, str] = {"trl": "chosen.jsonl", "verl": "chosen.verl.parquet"}
"""Target -> file name in a round's folder."""


def write_chosen(folder: Path, problems: Sequence[Problem], target: Target) -> Path:
    """Write problems, in the order given, for TRL or verl; gives the file's path.

    TRL: JSONL rows ``{prompt, answer, key, source, ...metadata}`` for ``load_dataset("json", data_files=...)``.
    verl: Parquet rows ``{data_source, prompt, ability, reward_model{style, ground_truth}, extra_info{split, index,
    key, metadata}}``, metadata as JSON; a plain-text prompt becomes one user message.

    Raises:
        GradAlignError: the place cannot be written to.
    """
    path = folder / FILES[target]
    with replacing(path) as part:
        if target == "verl":
            pq.write_table(pa.Table.from_pylist([_verl(p, i) for i, p in enumerate(problems)]), part)
        else:
            with part.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(trl_row(p), ensure_ascii=False, default=str) + "\n" for p in problems)
    return path


def trl_row(problem: Problem) -> dict[str, Any]:
    """A problem as a row for TRL: prompt, answer, key, source, and every metadata field."""
    own = {"prompt": problem.prompt, "answer": problem.answer, "key": problem.key, "source": problem.source}
    return own | {name: value for name, value in problem.metadata.items() if name not in own}


def _verl(problem: Problem, index: int) -> dict[str, Any]:
    prompt = problem.prompt
    metadata = json.dumps(dict(problem.metadata), ensure_ascii=False, default=str)
    return {
        "data_source": problem.source,
        "prompt": [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt,
        "ability": "reasoning",
        "reward_model": {"style": "rule", "ground_truth": problem.answer},
        "extra_info": {"split": "train", "index": index, "key": problem.key, "metadata": metadata},
    }
