"""``reasoning-gym:NAME?size=500&seed=0``: problems of reasoning-gym's generators, made once and kept on disk.

Further settings are the generator's own (``reasoning-gym:countdown?size=1000&max_numbers=4``): numbers and words as
they are, lists and mappings as JSON; a plus is written ``%2B``. A problem is the generator's question and answer; its
source is NAME, and its metadata are ``reasoning_gym``, the generator that the library scores it by, and ``entry``, the
library's whole entry as JSON text: what the reward ``reasoning-gym`` reads. Where a question has many answers, the
answer is the entry's own example of one; generators that know none are refused.

Generators may take long (Countdown: half a minute for a thousand), so what they made is kept in ``reasoning-gym/`` of
`gradalign.files.cache_folder`, in a JSONL file for each name, size, seed, settings and version of the library: a line
of what it holds, the problems, a line with their number and checksum. It is renamed when it is whole; one that is
damaged is made anew.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError

from gradalign.errors import GradAlignError, missing_extra, nearest, warn
from gradalign.files import cache_folder, replacing
from gradalign.problems.fields import FieldMap
from gradalign.rows import Refuse, Row

LARGEST = 1_000_000
"""Problems of one pool."""
EXAMPLES = ("example_answer", "example_correct_answer", "possible_answer")
"""Where entries without an answer keep an example of one."""


@dataclass(frozen=True)
class Gym:
    """See the module's text.

    Attributes:
        name: the generator.
        size: problems, at most `LARGEST`.
        seed: of all draws.
        settings: the generator's own.
    """

    name: str
    size: Annotated[int, Field(ge=1, le=LARGEST)] = 500
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """See `gradalign.problems.readers.base.Reader`."""
        return f"reasoning-gym:{self.name}"

    @property
    def stem(self) -> str:
        """See `gradalign.problems.readers.base.Reader`."""
        return self.name

    @property
    def fields(self) -> FieldMap:
        """See `gradalign.problems.readers.base.Reader`."""
        return FieldMap(prompt="question", answer="answer")

    def rows(self, refuse: Refuse) -> Iterator[tuple[int, Row]]:
        """See `gradalign.problems.readers.base.Reader`.

        Raises:
            GradAlignError: unknown generator or setting, a value that it does not take, problems without an answer.
        """
        if importlib.util.find_spec("reasoning_gym") is None:
            raise missing_extra("reasoning-gym", "rewards")
        values = self._values()
        path = self.cached
        if not _whole(path):
            if path.exists():
                warn(f"{path}: is damaged; its problems are made again")
            with replacing(path) as part, part.open("wb") as file:
                for line in _sealed(self.identity, self._made(values)):
                    file.write(line)
        with path.open("rb") as lines:
            next(lines)
            for number, line in enumerate(lines, 1):
                if number <= self.size:
                    yield number, json.loads(line)

    @property
    def identity(self) -> dict[str, Any]:
        """All that the problems depend on."""
        own = {"name": self.name, "size": self.size, "seed": self.seed, "settings": dict(sorted(self.settings.items()))}
        return own | {"reasoning-gym": version("reasoning-gym")}

    @property
    def cached(self) -> Path:
        """The file that keeps the problems."""
        digest = hashlib.sha256(json.dumps(self.identity).encode()).hexdigest()[:16]
        return cache_folder("reasoning-gym") / f"{re.sub(r'[^a-z0-9_]', '_', self.name)}-{digest}.jsonl"

    def _values(self) -> dict[str, Any]:
        """The settings as the generator's configuration has them."""
        from reasoning_gym.factory import DATASETS

        if self.name not in DATASETS:
            raise GradAlignError(f"{self.label}: unknown generator {self.name!r}{nearest(self.name, sorted(DATASETS))}")
        kind = DATASETS[self.name][1]
        types, values = get_type_hints(kind), dict[str, Any]()
        known = [f.name for f in dataclasses.fields(kind) if f.name not in ("size", "seed")]
        for name, text in self.settings.items():
            if name not in known:
                hint = nearest(name, ["size", "seed", *known])
                raise GradAlignError(f"{self.label}: unknown setting {name!r}{hint}")
            try:
                values[name] = TypeAdapter(types[name]).validate_python(_json(text))
            except ValidationError as error:
                said = error.errors()[0]["msg"].removeprefix("Input ")
                raise GradAlignError(f"{self.label}: {name} is {text!r}: {said}") from error
        return values

    def _made(self, values: dict[str, Any]) -> Iterator[Row]:
        import reasoning_gym

        try:
            entries = reasoning_gym.create_dataset(self.name, size=self.size, seed=self.seed, **values)
        except Exception as error:  # what generators raise at settings they do not like is their own affair
            said = str(error) or "it gives no reason"
            raise GradAlignError(f"{self.label}: the generator refuses its settings ({said}); change them") from error
        for index in range(self.size):
            try:
                entry = entries[index]
            except Exception as error:
                raise GradAlignError(
                    f"{self.label}: the generator cannot make problem {index + 1} ({error}); change its settings"
                ) from error
            yield self._row(entry, index + 1)

    def _row(self, entry: Mapping[str, Any], number: int) -> Row:
        metadata, answer = entry["metadata"], entry["answer"]
        if answer is None:
            answer = next((metadata[name] for name in EXAMPLES if metadata.get(name) is not None), None)
            answer = answer if answer is None or isinstance(answer, str) else json.dumps(answer)
        try:
            text = json.dumps(entry, ensure_ascii=False)
        except TypeError as error:
            raise GradAlignError(f"{self.label}:{number}: its entry cannot be kept as JSON ({error})") from error
        if answer is None:
            raise GradAlignError(
                f"{self.label}:{number}: has no answer, nor an example of one, which a problem needs; take another "
                "generator"
            )
        scored_by = metadata.get("source_dataset", self.name)  # of a composite, the part that made the entry
        return {
            "question": entry["question"],
            "answer": answer,
            "source": self.name,
            "reasoning_gym": scored_by,
            "entry": text,
        }


def _json(text: str) -> Any:
    """A list or a mapping that JSON writes; any other text as it is."""
    if text[:1] in ("[", "{"):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    return text


def _sealed(identity: Mapping[str, Any], rows: Iterator[Row]) -> Iterator[bytes]:
    """The lines of a cache file."""
    digest, count = hashlib.sha256(), 0
    for row in itertools.chain((identity,), rows):
        line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
        digest.update(line)
        count += 1
        yield line
    yield json.dumps({"problems": count - 1, "sha256": digest.hexdigest()}).encode() + b"\n"


def _whole(path: Path) -> bool:
    """Whether the file is there and as it was written."""
    if not path.exists():
        return False
    digest, last = hashlib.sha256(), b""
    with path.open("rb") as lines:
        for line in lines:
            digest.update(last)
            last = line
    try:
        seal = json.loads(last)
    except ValueError:
        return False
    return isinstance(seal, dict) and seal.get("sha256") == digest.hexdigest()
