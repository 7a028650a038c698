"""``hf:OWNER/NAME?config=C&split=S&revision=R``, a data set of the Hugging Face Hub, or ``hf:FOLDER``, one saved here.

A name without ``hf:`` is meant where there is no such path and it has no suffix (``openai/gsm8k?config=main``), and a
folder always is. Without a split, ``train`` is read, or the only split there is.

- **Online** rows are streamed, so that a data set may be larger than memory and disk.
- **Offline** (``HF_HUB_OFFLINE``, or the Hub does not answer within `ANSWER` seconds) they are read from the Hub's
  cache, as ``hf download`` fills it, or else from that of ``datasets``, as ``load_dataset`` fills it; the latter knows
  no revisions, so a named one is looked for in the former only.
- **FOLDER** was written by ``save_to_disk``, of a `Dataset` or a `DatasetDict`, or holds data files as a repository of
  the Hub does (``hf download ... --local-dir FOLDER``).

Values stay as they are stored (the number of a class label, for one); times become texts. A column that holds images,
sounds or bytes is left out where it does, and named in a warning.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from gradalign.errors import GradAlignError, missing_extra, nearest
from gradalign.files import read_json
from gradalign.problems.fields import FieldMap
from gradalign.problems.plain import PlainFields
from gradalign.rows import Refuse, Row

NAME = re.compile(r"(?:\w[\w.-]*/)?\w[\w.-]*")
ANSWER = 5.0
"""Seconds in which the Hub must answer, lest it counts as out of reach."""


def names_hub(spec: str) -> bool:
    """Whether a pool spec without a scheme is ``OWNER/NAME``: no path that exists, and no suffix of letters."""
    name = spec.partition("?")[0]
    return "/" in name and NAME.fullmatch(name) is not None and not Path(name).suffix[1:].isalpha()


def saved_whole(folder: Path) -> bool:
    """Whether ``save_to_disk`` wrote one data set there, without splits."""
    return (folder / "state.json").exists()


@dataclass(frozen=True)
class Hub:
    """See the module's text.

    Attributes:
        name: OWNER/NAME, or a folder.
        config: which of the data set's configurations.
        split: which split.
        revision: branch, tag or commit.
    """

    name: str
    config: str | None = None
    split: str | None = None
    revision: str | None = None

    @property
    def label(self) -> str:
        """See `gradalign.problems.readers.base.Reader`."""
        return f"hf:{self.name}"

    @property
    def stem(self) -> str:
        """See `gradalign.problems.readers.base.Reader`."""
        return Path(self.name).name

    @property
    def fields(self) -> FieldMap:
        """See `gradalign.problems.readers.base.Reader`."""
        return FieldMap()

    def rows(self, refuse: Refuse) -> Iterator[tuple[int, Row]]:
        """See `gradalign.problems.readers.base.Reader`."""
        kept = PlainFields(self.label, "which metadata cannot hold; left out")
        for number, row in self.raw():
            yield number, kept(row)
        kept.say()

    def raw(self) -> Iterator[tuple[int, Row]]:
        """(number, row) as the data set has them, media not decoded.

        Raises:
            GradAlignError: no such data set, configuration or split; it is not on this machine and there is no network;
                it holds no row, or a damaged one.
        """
        if importlib.util.find_spec("datasets") is None:
            raise missing_extra("datasets", "train")
        number = 0
        with self._clearly():
            for row in self._data():
                number += 1
                yield number, row
        if number == 0:
            raise self._empty()

    def _data(self) -> Any:
        import datasets

        if not self.name:
            raise GradAlignError(f"{self.label} names no data set; write hf:OWNER/NAME, or hf:FOLDER")
        folder = Path(self.name).expanduser()
        splits = folder / "dataset_dict.json"
        if not folder.is_dir():
            if NAME.fullmatch(self.name) is None:
                raise GradAlignError(f"{self.label}: no such folder, and no name of the form OWNER/NAME")
            found = self._streamed(self.name, self.revision) if self._online() else self._cached()
            rows = found[self._split(found)]
        elif self.revision is not None:
            raise GradAlignError(f"{self.label}: a folder has no revisions; leave ?revision= out")
        elif not saved_whole(folder) and not splits.exists():
            found = self._streamed(str(folder.absolute()))
            rows = found[self._split(found)]
        elif self.config is not None:
            raise GradAlignError(f"{self.label}: a folder by save_to_disk has no configuration; leave ?config= out")
        elif splits.exists():
            rows = self._saved(folder / self._split(read_json(splits).get("splits", [])))
        else:
            rows = self._saved(folder)
            own = None if rows.split is None else str(rows.split)
            if self.split not in (None, own):
                raise GradAlignError(
                    f"{self.label}: no split {self.split!r}: the folder holds one data set"
                    f"{f', {own!r}' if own else ''}; leave ?split= out"
                )
        if isinstance(rows, datasets.Dataset):
            rows = rows.to_iterable_dataset()
        if not rows.features:
            return rows
        rows = rows.decode(False)
        return rows.cast(datasets.Features({name: _read(own) for name, own in rows.features.items()}))

    def _saved(self, folder: Path) -> Any:
        """A data set by ``save_to_disk``; the library cannot read one without rows."""
        import datasets

        if not read_json(folder / "state.json").get("_data_files"):
            raise self._empty()
        return datasets.load_from_disk(str(folder))

    def _empty(self) -> GradAlignError:
        split = f"split {self.split!r}" if self.split else "the data set"
        return GradAlignError(f"{self.label}: {split} holds no row; name another")

    def _streamed(self, path: str, revision: str | None = None) -> Mapping[str, Any]:
        import datasets

        return datasets.load_dataset(path, self.config, revision=revision, streaming=True)

    def _online(self) -> bool:
        import datasets
        from huggingface_hub import constants, get_session

        if datasets.config.HF_HUB_OFFLINE or constants.HF_HUB_OFFLINE:
            return False
        try:
            get_session().head(constants.ENDPOINT, timeout=ANSWER)
        except Exception:  # whatever the client library in use raises: the Hub is out of reach
            return False
        return True

    def _cached(self) -> Mapping[str, Any]:
        """What the caches have, without asking the network."""
        import datasets
        from huggingface_hub import constants, snapshot_download

        with contextlib.suppress(FileNotFoundError):  # nothing of it there, or not the files of this configuration
            folder = snapshot_download(
                self.name, repo_type="dataset", revision=self.revision, local_files_only=True,
                cache_dir=constants.HF_HUB_CACHE,
            )  # fmt: skip
            return self._streamed(folder)
        with _no_network(), contextlib.suppress(FileNotFoundError, ConnectionError):
            if self.revision is None:
                return datasets.load_dataset(self.name, self.config)
        revision = f" --revision {self.revision}" if self.revision else ""
        raise GradAlignError(
            f"{self.label}: is no folder and in no cache of this machine, and the Hub is out of reach; where there is "
            f"a network run: hf download {self.name} --repo-type dataset{revision} --local-dir {self.stem}; bring that "
            f"folder here and name hf:{self.stem} (for a recipe: ?path={self.stem})"
        )

    def _split(self, known: Iterable[str]) -> str:
        names = list(map(str, known))
        wanted = self.split or (names[0] if len(names) == 1 else "train")
        if wanted not in names:
            raise GradAlignError(f"{self.label}: no split {wanted!r}{nearest(wanted, names)}; set ?split=")
        return wanted

    @contextlib.contextmanager
    def _clearly(self) -> Iterator[None]:
        """What the libraries raise as one line; theirs name what is known where a name is not."""
        from datasets.exceptions import DatasetNotFoundError, DatasetsError

        try:
            yield
        except (OSError, ValueError, RuntimeError, pa.ArrowException, DatasetsError) as error:
            said = " ".join(line.strip() for line in str(error).splitlines()[:2]) or type(error).__name__
            mend = "set ?config=" if "onfig" in said else "mend or replace it"
            if isinstance(error, DatasetNotFoundError):
                mend = "look at its name and revision, or log in where it asks for that"
            raise GradAlignError(f"{self.label}: cannot be read ({said}); {mend}") from error


def _read(feature: Any) -> Any:
    """The feature with JSON, which columns of several kinds of values are kept as, read; media stay as they are."""
    import datasets

    if isinstance(feature, dict):
        return {name: _read(own) for name, own in feature.items()}
    if isinstance(feature, datasets.List | datasets.LargeList):
        return dataclasses.replace(feature, feature=_read(feature.feature))
    return datasets.Json() if isinstance(feature, datasets.Json) else feature


@contextlib.contextmanager
def _no_network() -> Iterator[None]:
    """``datasets`` asks its cache at once, not after minutes of trying the Hub."""
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before
