"""What problems and responses say: from the choice that was written, and from the rollouts, decoded where need be.

Rollout tables may be large, so they are read in pieces, and only what is shown of them is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gradalign.errors import GradAlignError, warn
from gradalign.policy.where import EMBEDDED
from gradalign.problems.schema import prompt_text
from gradalign.report.runs import Round, Run
from gradalign.rows import read_rows

LONGEST = 400
"""Characters of a text that are shown, at most."""
RESPONSES = 4
"""Distinct responses of a problem that are shown, at most."""
Decode = Callable[[Sequence[int]], str]
Response = str | tuple[int, ...]
"""A response's text, or where that was not kept its token ids."""


@dataclass(frozen=True)
class Text:
    """A problem's texts.

    Attributes:
        prompt: its own; empty where not known.
        answer: its gold answer; None where not known.
        responses: (text, how often it was sampled, mean reward), the most frequent ones, best paid first.
        distinct: how many distinct responses there were.
    """

    prompt: str
    answer: str | None
    responses: list[tuple[str, int, float]]
    distinct: int


def decoder(run: Run) -> Decode:
    """From token ids to text with the run's own tokenizer, where it is here; to the ids themselves otherwise.

    Nothing is fetched: a hub's model counts as here where its tokenizer is in the local cache.
    """
    from transformers import AutoTokenizer  # takes seconds, and is not needed where texts are known

    trained = run.path / "model"
    name = str(trained) if (trained / "tokenizer.json").exists() else run.model
    if name is None:
        return _ids
    place, more = (str(EMBEDDED) if name == "embedded" else name), {}
    if name.endswith(".gguf"):
        place, more = str(Path(name).parent), {"gguf_file": Path(name).name}
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(place, local_files_only=True, **more)
    except Exception:  # whatever is wrong with it, the ids can be shown
        warn(f"{run.path}: the tokenizer of {name} is not here: token ids are shown where no text was kept")
        return _ids
    return lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True))


def _ids(ids: Sequence[int]) -> str:
    return "token ids " + " ".join(map(str, ids))


def read_texts(found: Round, keys: Collection[str], decode: Decode) -> dict[str, Text]:
    """Texts of some of a round's problems, by key; problems of which nothing is known are left out.

    Raises:
        GradAlignError: the rollouts or the choice cannot be read.
    """
    written: dict[str, tuple[str, str | None]] = {}
    for number, row in read_rows(found.written) if found.written is not None else []:
        try:
            answer = row.get("answer")
            written[row["key"]] = prompt_text(row["prompt"]), None if answer is None else str(answer)
        except (KeyError, TypeError) as error:
            raise GradAlignError(f"{found.written}:{number}: is no chosen problem ({error}); select again") from error
    prompts, responses = ({}, {}) if found.rollouts is None else _sampled(found.rollouts, set(keys), decode)
    texts = {}
    for key in keys:
        if key not in written and key not in prompts:
            continue
        prompt, answer = written.get(key, (prompts.get(key, ""), None))
        kinds = responses.get(key, {})
        shown = sorted(kinds.items(), key=lambda item: -len(item[1]))[:RESPONSES]
        told = [(cut(text), len(paid), sum(paid) / len(paid)) for text, paid in shown]
        texts[key] = Text(cut(prompt), answer, sorted(told, key=lambda one: -one[2]), len(kinds))
    return texts


def cut(text: str) -> str:
    """The text, or its beginning where it is long."""
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "\u2026"


def _sampled(path: Path, keys: set[str], decode: Decode) -> tuple[dict[str, str], dict[str, dict[str, list[float]]]]:
    """Prompt by key, and key -> response -> its rewards, of the problems asked for."""
    prompts: dict[str, str] = {}
    raw: dict[str, dict[Response, list[float]]] = {}
    for key, prompt, response, reward in _rollouts(path, keys):
        if key not in prompts:
            prompts[key] = decode(prompt())
        raw.setdefault(key, {}).setdefault(response, []).append(reward)
    texts: dict[str, dict[str, list[float]]] = {}
    for key, kinds in raw.items():
        for kind, paid in kinds.items():
            told = kind if isinstance(kind, str) else decode(kind)
            texts.setdefault(key, {}).setdefault(told, []).extend(paid)
    return prompts, texts


def _rollouts(path: Path, keys: set[str]) -> Iterator[tuple[str, Callable[[], list[int]], Response, float]]:
    """(key, prompt's ids, response's text or ids, reward) of every rollout of the problems asked for.

    Raises:
        GradAlignError: the table cannot be read, or is none of rollouts.
    """
    if path.suffix != ".parquet":
        for number, row in read_rows(path):
            try:
                if row["key"] in keys:
                    ids, text = row["prompt_ids"], row.get("response")
                    yield row["key"], ids.copy, tuple(row["response_ids"]) if text is None else text, row["reward"]
            except (KeyError, TypeError, AttributeError) as error:
                raise GradAlignError(f"{path}:{number}: is no rollout ({error}); name a table of rollouts") from error
        return
    columns = ["key", "prompt_ids", "response_ids", "response", "reward"]
    try:
        with pq.ParquetFile(path) as file:
            names = [name for name in columns if name in file.schema_arrow.names]
            lacking = [name for name in columns if name not in names and name != "response"]
            if lacking:
                raise GradAlignError(f"{path}: no column {lacking[0]!r}: it is no table of rollouts")
            for batch in file.iter_batches(4096, columns=names):
                plain = batch.column("key").to_pylist()
                for index in [index for index, key in enumerate(plain) if key in keys]:
                    text = batch.column("response")[index].as_py() if "response" in names else None
                    response = tuple(batch.column("response_ids")[index].as_py()) if text is None else text
                    prompt = batch.column("prompt_ids")[index].as_py
                    yield plain[index], prompt, response, batch.column("reward")[index].as_py()
    except (OSError, pa.ArrowException, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise GradAlignError(f"{path}: cannot be read as Parquet ({reason}); run the same command again") from error
