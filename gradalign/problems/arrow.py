"""Values as Arrow holds them, where it gives them back as they were."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from gradalign.errors import warn


def held(values: Sequence[Any]) -> pa.Array | None:
    """The values (plain ones, see `gradalign.problems.plain`) as an array that Parquet can hold and that gives back the
    very same; None where there is none."""
    array = _array(values)
    if array is None or not _same(array.to_pylist(), values):
        return None
    return array


def alike(values: Sequence[Any]) -> pa.Array | None:
    """As `held`, whole numbers among decimals becoming decimals."""
    array = _array(values)
    return array if array is not None and array.to_pylist() == list(values) else None


def column(values: Sequence[Any], where: str) -> pa.Array:
    """As `alike`; else each value's JSON text, which a warning says.

    Args:
        values: plain ones.
        where: names the column in the warning.
    """
    array = alike(values)
    if array is not None:
        return array
    warn(f"{where}: its values are of several kinds, which one column cannot hold; written as JSON text")
    return pa.array([None if value is None else json.dumps(value, ensure_ascii=False) for value in values], pa.string())


def _array(values: Sequence[Any]) -> pa.Array | None:
    try:
        array = pa.array(values)
    except (pa.ArrowException, OverflowError, ValueError, TypeError):
        return None
    return None if _fieldless(array.type) else array


def _fieldless(kind: pa.DataType) -> bool:
    """Whether there is a struct without a field in it, which Parquet does not know."""
    if pa.types.is_struct(kind):
        return kind.num_fields == 0 or any(_fieldless(field.type) for field in kind)
    return pa.types.is_list(kind) and _fieldless(kind.value_type)


def _same(left: Sequence[Any], right: Sequence[Any]) -> bool:
    """Whether they are equal, 1, 1.0 and True being three things and NaN equal to itself."""
    return json.dumps(left, sort_keys=True) == json.dumps(list(right), sort_keys=True)
