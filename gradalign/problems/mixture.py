"""Mixtures: several pools as one, by weights and limits, from a ``.yaml`` file.

    seed: 0                 # of which problems are taken
    size: 5000              # problems in all; without it as many as the weights allow
    limits: {web: 300}      # source -> problems of it, at most
    parts:
      - pool: hf:openai/gsm8k?config=main
        weight: 2           # share of the mixture; without weights every part gives all it has
        limit: 3000         # problems of this part, at most
        source: school      # source of its problems, in place of their own
      - pool: web.csv       # paths are seen from the mixture's folder
        weight: 1
        prompt_field: text
        answer_field: gold

Fields that a part does not name are those of the options (``--prompt-field``). A prompt that two parts have is the
first one's. Which of a part's problems are taken is decided by a hash of seed and key, so that a part gives the same
problems whatever is beside it, and more of the same when it may give more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gradalign.errors import GradAlignError, nearest
from gradalign.problems.fields import FieldMap
from gradalign.problems.fill import Filter, fill
from gradalign.problems.near import NearIndex
from gradalign.problems.pool import Pool

Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Limit = Annotated[int, Field(ge=1)]


class Part(BaseModel):
    """One pool of a mixture."""

    model_config = ConfigDict(extra="forbid", strict=True)

    pool: Annotated[str, Field(min_length=1)]
    weight: Annotated[Weight, Field(strict=False)] | None = None
    limit: Limit | None = None
    source: Annotated[str, Field(min_length=1)] | None = None
    prompt_field: str | None = None
    answer_field: str | None = None
    key_field: str | None = None
    source_field: str | None = None

    def spec(self, folder: Path) -> str:
        """The pool as it is seen from anywhere."""
        path = folder / Path(self.pool).expanduser()
        return str(path) if path.exists() else self.pool


class Mixture(BaseModel):
    """A mixture's file."""

    model_config = ConfigDict(extra="forbid", strict=True)

    parts: list[Part]
    seed: int = 0
    size: Limit | None = None
    limits: dict[str, Limit] = {}


def is_mixture(spec: str) -> bool:
    """Whether a pool spec names a mixture's file."""
    return Path(spec).suffix in (".yaml", ".yml")


def read_mixture(spec: str, fields: FieldMap, skip: bool = False, near: NearIndex | None = None) -> Pool:
    """Read the pools that a mixture names, and take of each what it says.

    Args:
        spec: the file.
        fields: which fields to read where a part names none.
        skip: see `gradalign.problems.read.read_problems`.
        near: empty, where near-duplicates are to be left out, within and across the parts.

    Raises:
        GradAlignError: the file is not such a one; a part cannot be read, or has too few problems for its share; a
            source with a limit that no problem has.
    """
    path = Path(spec).expanduser()
    mixture = _parsed(path)
    weighted = [part.weight is not None for part in mixture.parts]
    if any(weighted) != all(weighted):
        raise GradAlignError(f"{path}: part {weighted.index(False) + 1} has no weight, others have; weigh all or none")
    if mixture.size is not None and not all(weighted):
        raise GradAlignError(f"{path}: size needs weights; give each part one, or limit the parts by limit")
    pool, places = Pool(), list[range]()
    for number, part in enumerate(mixture.parts, 1):
        if is_mixture(part.pool):
            raise GradAlignError(f"{path}: part {number}: {part.pool} is a mixture itself; list its parts here")
        own = FieldMap(part.prompt_field, part.answer_field, part.key_field, part.source_field)
        start = len(pool)
        fill(pool, part.spec(path.parent), Filter(own.over(fields), skip, part.source), near)
        places.append(range(start, len(pool)))
    for source in mixture.limits:
        if source not in pool.sources:
            raise GradAlignError(f"{path}: limits: no problem has source {source!r}{nearest(source, pool.sources)}")
    return _taken(mixture, pool, places, path)


def _taken(mixture: Mixture, pool: Pool, places: Sequence[range], path: Path) -> Pool:
    limits = [part.limit if part.limit is not None else len(pool) for part in mixture.parts]
    most = [min(limit, len(numbers)) for limit, numbers in zip(limits, places, strict=True)]
    allowed = pool.drawn(list(zip(places, most, strict=True)), mixture.seed, mixture.limits)
    if mixture.parts[0].weight is None:
        return allowed
    have = [sum(number in numbers for number in allowed.places) for numbers in places]
    counts = _shares(mixture, have, path)
    return pool.drawn(list(zip(places, counts, strict=True)), mixture.seed, mixture.limits)


def _shares(mixture: Mixture, have: Sequence[int], path: Path) -> list[int]:
    """How many problems each part gives: largest remainders, of ``size`` or of the most that all parts can serve."""
    weights = [part.weight or 0.0 for part in mixture.parts]
    total = math.fsum(weights)
    size = mixture.size
    if size is None:
        size = math.floor(min(number * total / weight for number, weight in zip(have, weights, strict=True)) + 1e-9)
    exact = [size * weight / total for weight in weights]
    counts = [math.floor(share + 1e-9) for share in exact]
    by_remainder = sorted(range(len(counts)), key=lambda i: (counts[i] - exact[i], i))
    for index in by_remainder[: size - sum(counts)]:
        counts[index] += 1
    for number, (count, held) in enumerate(zip(counts, have, strict=True), 1):
        if count > held and mixture.size is None:
            counts[number - 1] = held
        elif count > held:
            raise GradAlignError(
                f"{path}: part {number} ({mixture.parts[number - 1].pool}) can give {held} problems, and its share of "
                f"size {size} is {count}; lower size or its weight, or raise its limits"
            )
    return counts


def _parsed(path: Path) -> Mixture:
    try:
        written: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise GradAlignError(f"{path}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise GradAlignError(f"{path}: cannot be read ({error})") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise GradAlignError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(written, dict) or not written.get("parts"):
        what = f"has {', '.join(map(str, written)) or 'nothing'}" if isinstance(written, dict) else "is no mapping"
        raise GradAlignError(f"{path}: {what}; list a mixture's pools under parts: [{{pool: FILE}}, ...]")
    try:
        return Mixture.model_validate(written)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part + 1 if isinstance(part, int) else part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = Part.model_fields if len(first["loc"]) > 1 else Mixture.model_fields
            raise GradAlignError(f"{path}: unknown field {place!r}{nearest(str(first['loc'][-1]), known)}") from error
        said = first["msg"].removeprefix("Input ")
        raise GradAlignError(f"{path}: field {place!r}: {said[0].lower()}{said[1:]}") from error
