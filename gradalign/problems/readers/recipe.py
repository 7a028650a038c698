"""``recipe:NAME?split=S&path=P``: a data set by its short name, its fields made into problems.

The recipes are in `gradalign.problems.recipes`. Rows come from the Hub (see `gradalign.problems.readers.hub`), in the
recipe's own configuration and split unless others are named, or from ``path``: a file of the same rows, or a folder as
``hf:FOLDER`` takes it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gradalign.errors import GradAlignError, warn
from gradalign.parts import find
from gradalign.problems.fields import FieldMap
from gradalign.problems.plain import PlainFields
from gradalign.problems.readers.files import File
from gradalign.problems.readers.hub import Hub, saved_whole
from gradalign.problems.recipes import RECIPES
from gradalign.problems.recipes.base import LeftOutError, Recipe
from gradalign.rows import Refuse, Row


@dataclass(frozen=True)
class FromRecipe:
    """See the module's text.

    Attributes:
        name: the recipe.
        split: which split, instead of the recipe's.
        config: which configuration, instead of the recipe's.
        revision: of the data set on the Hub.
        path: where its rows are on this machine.
    """

    name: str
    split: str | None = None
    config: str | None = None
    revision: str | None = None
    path: str | None = None

    @property
    def label(self) -> str:
        """See `gradalign.problems.readers.base.Reader`."""
        return f"recipe:{self.name}"

    @property
    def stem(self) -> str:
        """See `gradalign.problems.readers.base.Reader`."""
        return self.name

    @property
    def fields(self) -> FieldMap:
        """See `gradalign.problems.readers.base.Reader`."""
        return FieldMap(prompt="prompt", answer="answer", source="source")

    def rows(self, refuse: Refuse) -> Iterator[tuple[int, Row]]:
        """See `gradalign.problems.readers.base.Reader`; numbers are those of the data set's rows."""
        recipe = find(self.name, RECIPES, "recipe")
        kept = PlainFields(self.label, "which metadata cannot hold; left out")
        left, read, others = Counter[str](), 0, 0
        for number, row in self._source(recipe, refuse):
            read += 1
            try:
                if not recipe.part(row):
                    others += 1
                    continue
                made = recipe.make(dict(row))
            except LeftOutError as error:
                left[str(error)] += 1
                continue
            except GradAlignError as error:
                refuse(GradAlignError(f"{self.label}:{number}: {error}; is this {recipe.hub}?"))
                continue
            yield number, {"source": self.name, **kept(made)}
        if read and others == read:
            raise GradAlignError(f"{self.label}: none of {read} rows is one of its problems; is this {recipe.hub}?")
        for reason, times in left.items():
            warn(f"{self.label}: {times} of {read} rows {reason} and are left out")
        kept.say()

    def _source(self, recipe: Recipe, refuse: Refuse) -> Iterator[tuple[int, Row]]:
        config, split = self.config or recipe.config, self.split or recipe.split
        if self.path is None:
            return Hub(recipe.hub, config, split, self.revision).raw()
        named = [name for name in ("config", "split", "revision") if getattr(self, name) is not None]
        folder = Path(self.path).expanduser()
        if not folder.is_dir():
            if named:
                raise GradAlignError(f"{self.label}: {self.path} is a file, without ?{named[0]}=; leave it out")
            return File(self.path).rows(refuse)
        if saved_whole(folder):
            return Hub(self.path, self.config, self.split, self.revision).raw()
        if (folder / "dataset_dict.json").exists():
            return Hub(self.path, self.config, split, self.revision).raw()
        return Hub(self.path, config, split, self.revision).raw()
