"""Values as Arrow holds them, where it gives them back as they were; rows as a table in a file."""

from __future__ import annotations

import itertools
import json
import mmap
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from gradalign.errors import warn
from gradalign.problems.database import filling, temporary_folder

BLOCK = 1000
"""Rows of a table on disk that are made at a time."""


class SeveralKindsError(ValueError):
    """The values of a field cannot be in one column as they are; the message is the field's name."""


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


def stored(rows: Callable[[], Iterable[Mapping[str, Any]]]) -> pa.Table:
    """The rows as a table with every field that any has, null where one has none; whole numbers among decimals become
    decimals. It is in a file without a name, mapped into memory, so that it may be larger than that.

    Args:
        rows: gives them; is called twice.

    Raises:
        SeveralKindsError: a field's values cannot be in one column as they are.
        GradAlignError: there is no room on disk.
    """
    kinds = _kinds(rows())
    with filling("the rows of a pool"), tempfile.TemporaryFile(dir=temporary_folder()) as file:
        with pa.ipc.new_file(file, pa.schema(list(kinds.items()))) as writer:
            for block in _blocks(rows()):
                arrays = [_of_kind([row.get(name) for row in block], name, kind) for name, kind in kinds.items()]
                writer.write_batch(pa.record_batch(arrays, names=list(kinds)))
        file.flush()
        mapped = pa.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    return pa.ipc.open_file(mapped).read_all()


def _blocks(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    rest = iter(rows)
    while block := list(itertools.islice(rest, BLOCK)):
        yield block


def _kinds(rows: Iterable[Mapping[str, Any]]) -> dict[str, pa.DataType]:
    """Field -> the type that Arrow would find for all its values together."""
    kinds: dict[str, pa.DataType] = {}
    for block in _blocks(rows):
        for name in dict.fromkeys(name for row in block for name in row):
            array = _array([row.get(name) for row in block])
            if array is None:
                raise SeveralKindsError(name)
            known = kinds.setdefault(name, array.type)
            if known != array.type:
                kinds[name] = _wider(known, array.type, name)
    return kinds


def _wider(one: pa.DataType, other: pa.DataType, name: str) -> pa.DataType:
    schemas = [pa.schema([(name, kind)]) for kind in (one, other)]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field(name).type
    except pa.ArrowException as error:  # of values it may find a type all the same: decimals for truth among decimals
        array = _array([_sample(one), _sample(other)])
        if array is None:
            raise SeveralKindsError(name) from error
        return array.type


def _sample(kind: pa.DataType) -> Any:
    """A value for which Arrow would find this type, of those that JSON has."""
    if pa.types.is_struct(kind):
        return {field.name: _sample(field.type) for field in kind}
    if pa.types.is_list(kind):
        return [_sample(kind.value_type)]
    known = {pa.bool_(): False, pa.int64(): 0, pa.float64(): 0.0, pa.string(): ""}
    return known.get(kind)


def _of_kind(values: list[Any], name: str, kind: pa.DataType) -> pa.Array:
    array = _array(values, kind)
    if array is None or array.to_pylist() != values:
        raise SeveralKindsError(name)
    return array


def _array(values: Sequence[Any], kind: pa.DataType | None = None) -> pa.Array | None:
    try:
        array = pa.array(values, kind)
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
