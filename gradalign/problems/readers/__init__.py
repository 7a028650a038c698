"""Readers by scheme: where problems come from."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from urllib.parse import parse_qsl

from pydantic import TypeAdapter, ValidationError

from gradalign.errors import GradAlignError, nearest
from gradalign.parts import Registry
from gradalign.problems.readers.base import Reader
from gradalign.problems.readers.embedded import Embedded
from gradalign.problems.readers.files import File

READERS: Registry[type[Reader]] = Registry(
    "gradalign.readers", {"file": File, "embedded": Embedded}, ("label", "stem", "fields", "rows")
)
"""Scheme -> class of ``scheme:NAME?setting=value``."""


def open_reader(spec: str) -> Reader:
    """The reader that a pool spec names: ``scheme:NAME?setting=value``, or the path of a file.

    Raises:
        GradAlignError: an unknown scheme or setting, a value that the setting does not take.
    """
    scheme, colon, rest = spec.partition(":")
    if not colon or not re.fullmatch(r"[a-z][a-z0-9_-]+", scheme) or Path(spec).exists():
        return File(spec)
    if scheme not in READERS:
        raise GradAlignError(f"{spec}: unknown kind of pool {scheme!r}{nearest(scheme, READERS)}")
    kind, (name, _, query) = READERS[scheme], rest.partition("?")
    given: dict[str, str] = {}
    known = {field.name for field in dataclasses.fields(kind)} - {"name"}  # type: ignore[arg-type]
    for setting, value in parse_qsl(query, keep_blank_values=True):
        if setting not in known:
            hint = nearest(setting, sorted(known)) if known else "; it has none"
            raise GradAlignError(f"{spec}: unknown setting {setting!r}{hint}")
        given[setting] = value
    try:
        return TypeAdapter(kind).validate_python({"name": name, **given})
    except ValidationError as error:
        first = error.errors()[0]
        setting = str(first["loc"][0]) if first["loc"] else "name"
        said = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
        raise GradAlignError(f"{spec}: {setting} is {given.get(setting, name)!r}: {said}") from error
