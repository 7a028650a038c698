"""Reading pools: JSONL and Parquet files, and the embedded problems, with common fields recognised or mapped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from gradalign.errors import GradAlignError, nearest, warn
from gradalign.problems.embedded import POOLS, make_pool
from gradalign.problems.schema import Problem, Prompt, content_key, identity, normalised
from gradalign.rows import Row, read_rows

PROMPT_FIELDS = ("prompt", "question", "problem", "input")
ANSWER_FIELDS = ("answer", "ground_truth", "target", "solution")


@dataclass(frozen=True, slots=True)
class FieldMap:
    """Names of the fields to read; None means to recognise a common name (`PROMPT_FIELDS`, `ANSWER_FIELDS`)."""

    prompt: str | None = None
    answer: str | None = None
    key: str | None = None
    source: str | None = None


def read_problems(spec: str, fields: FieldMap = FieldMap()) -> list[Problem]:
    """Read a pool.

    An answer that holds ``####`` (GSM8K) is what follows it; the whole text is kept as metadata ``solution``. Rows with
    the same prompt up to white space are one problem: the first stands, the others are counted in a warning.

    Args:
        spec: a ``.jsonl`` or ``.parquet`` file, or ``embedded:NAME?size=256&seed=0``.
        fields: which fields to read where names are not common ones.

    Raises:
        GradAlignError: missing or unreadable file, missing or mis-typed field, one key with two prompts, no problem.
    """
    if spec.startswith("embedded:"):
        return _embedded(spec)
    path = Path(spec).expanduser()
    by_key: dict[str, tuple[Problem, int]] = {}
    by_text: dict[str, tuple[Problem, int]] = {}
    repeats, conflicts = [], []
    for number, row in read_rows(path):
        problem = _problem(row, fields, f"{path}:{number}", path.stem)
        text = identity(problem.prompt)
        if problem.key in by_key and identity(by_key[problem.key][0].prompt) != text:
            raise GradAlignError(
                f"{path}:{number}: key {problem.key!r} already names another prompt (row {by_key[problem.key][1]}); "
                "give each problem a key of its own, or leave the field out"
            )
        if text in by_text:
            repeats.append(number)
            if by_text[text][0].answer != problem.answer:
                conflicts.append(number)
            continue
        by_key[problem.key] = by_text[text] = (problem, number)
    if not by_key:
        raise GradAlignError(f"{path}: holds no problem; write one problem a row")
    if repeats:
        differ = f", {len(conflicts)} of them with another answer (row {conflicts[0]})" if conflicts else ""
        warn(
            f"{path}: {len(repeats)} of {len(by_text) + len(repeats)} rows repeat an earlier prompt and are left out "
            f"(first: row {repeats[0]}){differ}"
        )
    return [problem for problem, _ in by_key.values()]


def overlap(pool: Sequence[Problem], validation: Sequence[Problem]) -> list[str]:
    """Keys of the pool's problems whose normalised prompt is also in the validation set, in pool order."""
    held = {normalised(problem.prompt) for problem in validation}
    return [problem.key for problem in pool if normalised(problem.prompt) in held]


def _embedded(spec: str) -> list[Problem]:
    name, _, query = spec.removeprefix("embedded:").partition("?")
    if name not in POOLS:
        raise GradAlignError(f"{spec}: unknown embedded pool {name!r}{nearest(name, POOLS)}")
    settings = {"size": "256", "seed": "0"}
    for option, value in parse_qsl(query, keep_blank_values=True):
        if option not in settings:
            raise GradAlignError(f"{spec}: unknown setting {option!r}{nearest(option, settings)}")
        if not (value.isascii() and value.isdigit()):
            raise GradAlignError(f"{spec}: {option} is {value!r}; write a whole number")
        settings[option] = value
    if int(settings["size"]) == 0:
        raise GradAlignError(f"{spec}: a pool of size 0; ask for at least one problem")
    try:
        return make_pool(name, int(settings["size"]), int(settings["seed"]))
    except ValueError as error:
        raise GradAlignError(f"{spec}: {error}") from error


def _problem(row: Row, fields: FieldMap, where: str, stem: str) -> Problem:
    prompt_field = _field(row, fields.prompt, PROMPT_FIELDS, "prompt", where)
    prompt = _prompt(row[prompt_field], f"{where}: field {prompt_field!r}")
    answer_field = _field(row, fields.answer, ANSWER_FIELDS, "answer", where)
    answer = _text(row[answer_field], f"{where}: field {answer_field!r}")
    metadata = {n: None if v != v else v for n, v in row.items() if n not in (prompt_field, answer_field)}
    if "####" in answer:
        metadata["solution"], answer = answer, answer.rsplit("####", 1)[1].strip()
    key_field = fields.key or ("key" if row.get("key") is not None else None)
    key = content_key(prompt)
    if key_field is not None:
        _field(row, key_field, (), "key", where)
        key = _text(row[key_field], f"{where}: field {key_field!r}")
        metadata.pop(key_field, None)
    source = row.get(fields.source or "source")
    if fields.source is not None:
        _field(row, fields.source, (), "source", where)
    metadata.pop(fields.source or "source", None)
    return Problem(key, prompt, answer, stem if source is None else str(source), metadata)


def _field(row: Row, named: str | None, common: Sequence[str], what: str, where: str) -> str:
    if named is not None:
        if named not in row:
            raise GradAlignError(f"{where}: field {named!r} is missing{nearest(named, row)}; map it by --{what}-field")
        return named
    for name in common:
        if row.get(name) is not None:
            return name
    raise GradAlignError(
        f"{where}: no field for the {what} (looked for {', '.join(common)}; the row has {', '.join(row) or 'none'}); "
        f"name it by --{what}-field"
    )


def _prompt(value: Any, where: str) -> Prompt:
    if isinstance(value, str) and value.strip():
        return value
    messages = isinstance(value, list) and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in value
    )
    if messages and value:
        return [{"role": m["role"], "content": m["content"]} for m in value]
    raise GradAlignError(
        f'{where} is {_short(value)}; write a text, or chat messages [{{"role": "user", "content": "..."}}]'
    )


def _text(value: Any, where: str) -> str:
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, int | float) and not isinstance(value, bool) and value == value:
        return str(value)
    raise GradAlignError(f"{where} is {_short(value)}; write a text or a number")


def _short(value: Any) -> str:
    text = repr(value)
    return (
        "empty" if value in (None, "", []) else f"{type(value).__name__} {text[:40]}{'...' if len(text) > 40 else ''}"
    )
