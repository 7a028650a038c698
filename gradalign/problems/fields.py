"""From a row to a problem: common field names are recognised, others are mapped, nested ones are written with dots."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from decimal import Decimal
from typing import Any

from gradalign.errors import GradAlignError, nearest
from gradalign.problems.schema import Problem, Prompt, content_key
from gradalign.rows import Row

PROMPT_FIELDS = ("prompt", "question", "problem", "input")
ANSWER = "gradalign_answer"
"""In ``extra_info`` of a row of verl's that our writer has written: the answer as it was read."""
ANSWER_FIELDS = ("answer", "ground_truth", "target", "solution", f"extra_info.{ANSWER}", "reward_model.ground_truth")
KEY_FIELDS = ("key", "extra_info.key")
SOURCE_FIELDS = ("source", "data_source")
LONGEST = 1_000_000
"""Characters of a prompt or an answer; longer ones are a mistake of whoever wrote the file."""


@dataclass(frozen=True, slots=True)
class FieldMap:
    """Names of the fields to read, ``outer.inner`` for nested ones; None means to recognise a common name."""

    prompt: str | None = None
    answer: str | None = None
    key: str | None = None
    source: str | None = None

    def over(self, other: FieldMap) -> FieldMap:
        """This map, and ``other`` where this one says nothing."""
        return FieldMap(*(getattr(self, f.name) or getattr(other, f.name) for f in fields(self)))


def to_problem(row: Row, names: FieldMap, where: str, stem: str) -> Problem:
    """The problem that a row holds.

    An answer that holds ``####`` (GSM8K) is what follows it; the whole text is kept as metadata ``solution``. Rows of
    verl's form are recognised: the answer is in ``reward_model``, and what our own writer put into ``extra_info`` comes
    out again. Every other field is metadata.

    Args:
        row: field name -> value.
        names: which fields to read.
        where: file and row, for messages.
        stem: source of a row that brings none.

    Raises:
        GradAlignError: a field is missing or holds what it cannot.
    """
    prompt_field = _field(row, names.prompt, PROMPT_FIELDS, "prompt", where)
    prompt = prompt_of(_get(row, prompt_field), f"{where}: field {prompt_field!r}")
    answer_field = _field(row, names.answer, ANSWER_FIELDS, "answer", where)
    answer = _text(_get(row, answer_field), f"{where}: field {answer_field!r}", "answer")
    used: set[str | None] = {prompt_field, answer_field}
    key, key_field = key_of(row, names.key, lambda: prompt, where)
    used.add(key_field)
    source = stem
    source_field = _optional(row, names.source, SOURCE_FIELDS, "source", where)
    if source_field is not None:
        value = _get(row, source_field)
        source = stem if value is None else str(value)
        used.add(source_field)
    metadata = {n: None if v != v else v for n, v in row.items() if n not in used}
    if "####" in answer:
        metadata["solution"], answer = answer, answer.rsplit("####", 1)[1].strip()
        if not answer:
            raise GradAlignError(f"{where}: field {answer_field!r} has nothing after ####; write the answer there")
    plain, written = _get(row, "extra_info.plain"), _get(row, "extra_info.metadata")
    if "reward_model" in row and (isinstance(written, str) or (isinstance(written, dict) and plain is not None)):
        metadata = _restored(written, where)
        if plain and len(prompt) == 1 and not isinstance(prompt, str):
            prompt = prompt[0]["content"]
    return Problem(key, prompt, answer, source, metadata)


def key_of(row: Row, named: str | None, prompt: Callable[[], Prompt], where: str) -> tuple[str, str | None]:
    """(key, its field) of a row: the field ``named``, else a common one; a hash of the prompt where there is none.

    Raises:
        GradAlignError: the field is missing, or holds no text and no number.
    """
    field = _optional(row, named, KEY_FIELDS, "key", where)
    if field is None:
        return content_key(prompt()), None
    return _text(_get(row, field), f"{where}: field {field!r}", "key"), field


def _restored(written: str | dict[str, Any], where: str) -> dict[str, Any]:
    """Metadata as our own writer put it into a row of verl's form: JSON text, or as it is."""
    try:
        value = json.loads(written) if isinstance(written, str) else written
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise GradAlignError(f"{where}: field 'extra_info.metadata' is no JSON object; write one, or rename the field")
    return value


def _get(row: Row, name: str) -> Any:
    """The value of a field, or of a nested one by its dotted name; None where it is not there."""
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            return None
        value = value[part]
    return value


def _optional(row: Row, named: str | None, common: Sequence[str], what: str, where: str) -> str | None:
    if named is not None:
        return named if named in row else _field(row, named, (), what, where)
    return next((name for name in common if _get(row, name) is not None), None)


def _field(row: Row, named: str | None, common: Sequence[str], what: str, where: str) -> str:
    names = common if named is None else (named,)
    for name in names:
        if _get(row, name) is not None:
            return name
    empty = next((name for name in names if name in row), None)
    if empty is not None:
        raise GradAlignError(f"{where}: field {empty!r} is empty; fill it, or name another by --{what}-field")
    if named is not None:
        outer, _, inner = named.rpartition(".")
        within = _get(row, outer) if outer else row
        hint = nearest(inner, within) if isinstance(within, dict) else nearest(named, row)
        raise GradAlignError(f"{where}: field {named!r} is missing or empty{hint}; map it by --{what}-field")
    raise GradAlignError(
        f"{where}: no field for the {what} (looked for {', '.join(common)}; the row has {', '.join(row) or 'none'}); "
        f"name it by --{what}-field"
    )


def prompt_of(value: Any, where: str) -> Prompt:
    """A prompt as it stands in a row.

    Raises:
        GradAlignError: it is neither a text nor chat messages, empty, or too long.
    """
    if isinstance(value, str) and value.strip():
        return _not_too_long(value, where)
    messages = isinstance(value, list) and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in value
    )
    if messages and value:
        _not_too_long("".join(m["content"] for m in value), where)
        return [{"role": m["role"], "content": m["content"]} for m in value]
    raise GradAlignError(
        f'{where} is {_short(value)}; write a text, or chat messages [{{"role": "user", "content": "..."}}]'
    )


def _text(value: Any, where: str, what: str) -> str:
    if isinstance(value, str) and value.strip():
        return _not_too_long(value, where)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float | Decimal) and math.isfinite(value):
        return str(int(value)) if value == int(value) else str(value)
    inside = f", or name the field inside it by --{what}-field" if isinstance(value, dict) else ""
    raise GradAlignError(f"{where} is {_short(value)}; write a text or a number{inside}")


def _not_too_long(text: str, where: str) -> str:
    if len(text) > LONGEST:
        raise GradAlignError(f"{where} has {len(text):,} characters; a text may have {LONGEST:,}")
    return text


def _short(value: Any) -> str:
    text = repr(value)
    return (
        "empty" if value in (None, "", []) else f"{type(value).__name__} {text[:40]}{'...' if len(text) > 40 else ''}"
    )
