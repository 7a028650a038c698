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
from gradalign.problems.readers.gym import Gym
from gradalign.problems.readers.hub import Hub, names_hub
from gradalign.problems.readers.recipe import FromRecipe

READERS: Registry[type[Reader]] = Registry(
    "gradalign.readers",
    {"file": File, "hf": Hub, "recipe": FromRecipe, "reasoning-gym": Gym, "embedded": Embedded},
    ("label", "stem", "fields", "rows"),
)
"""Scheme -> class of ``scheme:NAME?setting=value``."""


def open_reader(spec: str) -> Reader:
    """The reader that a pool spec names: ``scheme:NAME?setting=value``, a path, or ``OWNER/NAME`` of the Hub.

    A reader with a field ``settings`` gets there, as texts, the settings that are none of its other fields.

    Raises:
        GradAlignError: an unknown scheme or setting, a value that the setting does not take.
    """
    scheme, colon, rest = spec.partition(":")
    if not colon or not re.fullmatch(r"[a-z][a-z0-9_-]+", scheme) or Path(spec).exists():
        here = Path(spec.partition("?")[0]).expanduser()
        if here.is_file() or not (here.is_dir() or names_hub(spec)):
            return File(spec)
        scheme, rest = "hf", spec
    if scheme not in READERS:
        raise GradAlignError(f"{spec}: unknown kind of pool {scheme!r}{nearest(scheme, READERS)}")
    kind, (name, _, query) = READERS[scheme], rest.partition("?")
    given, others = dict[str, str](), dict[str, str]()
    known = {field.name for field in dataclasses.fields(kind)} - {"name"}  # type: ignore[arg-type]
    takes_others = "settings" in known
    known.discard("settings")
    for setting, value in parse_qsl(query, keep_blank_values=True):
        if setting in given or setting in others:
            raise GradAlignError(f"{spec}: names setting {setting!r} twice; name it once")
        if setting not in known and not takes_others:
            hint = nearest(setting, sorted(known)) if known else "; it has none"
            raise GradAlignError(f"{spec}: unknown setting {setting!r}{hint}")
        (given if setting in known else others)[setting] = value
    settings = {"settings": others} if takes_others else {}
    try:
        return TypeAdapter(kind).validate_python({"name": name, **given, **settings})
    except ValidationError as error:
        first = error.errors()[0]
        setting = str(first["loc"][0]) if first["loc"] else "name"
        said = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
        raise GradAlignError(f"{spec}: {setting} is {given.get(setting, name)!r}: {said}") from error
