"""Runs read back for a report: folders of ``select``, ``train`` and ``demo``, and tables of ``score``.

A demo's folder is several runs: what it chose once, and one for each strategy it trained with. Nothing is computed
again. A run that was interrupted is read as far as it came, and says so.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gradalign.alignment.record import Alignment, Numbers
from gradalign.alignment.table import EVIDENCE, NUMBERS, SCHEMA
from gradalign.curriculum.folder import CONFIG
from gradalign.curriculum.stages import TABLE
from gradalign.curriculum.state import STATE
from gradalign.errors import GradAlignError, warn
from gradalign.files import read_json
from gradalign.problems.write import FILES
from gradalign.report.logs import Log, read_log
from gradalign.rows import require_file
from gradalign.selection import find_strategy

COMMANDS = ("select", "train", "verl", "demo")
"""Commands whose folders can be read."""


@dataclass(frozen=True)
class Round:
    """What is on disk of a round.

    Attributes:
        number: its number.
        alignments: one a problem that was looked at; where every batch is chosen, those of all its batches.
        metrics: its numbers; None where it was not finished, or only its batches were.
        batches: how many were chosen one by one.
        sampled: whether its candidates' rollouts were its own; a strategy may score those of an earlier round again.
        rollouts: the table of the candidates' rollouts; None where there is none.
        written: the chosen problems with their texts; None where they were not written as TRL rows.
    """

    number: int
    alignments: list[Alignment]
    metrics: dict[str, Any] | None
    batches: int
    sampled: bool
    rollouts: Path | None
    written: Path | None

    @property
    def direction(self) -> dict[str, Any]:
        """Numbers of the direction; empty where none was followed."""
        return (self.metrics or {}).get("direction") or {}

    @property
    def seconds(self) -> dict[str, float]:
        """Wall-clock time by stage."""
        return (self.metrics or {}).get("seconds") or {}

    @property
    def chosen(self) -> list[Alignment]:
        """The chosen ones, best first."""
        return sorted((a for a in self.alignments if a.selected), key=lambda a: a.rank or 0)


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        name: what the report calls it.
        path: its folder or table.
        command: that made it.
        strategy: that chose; empty where not told.
        model: the policy, as the command was given it; None where not told.
        rounds: in order; those of which there is something.
        log: of training; None where nothing was trained, or nothing was saved.
        unfinished: why it is not whole; None where it is.
        others: folders of a demo's training runs.
    """

    name: str
    path: Path
    command: str
    strategy: str
    model: str | None
    rounds: list[Round]
    log: Log | None = None
    unfinished: str | None = None
    others: list[Path] = field(default_factory=list)


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Read runs, in the order given; a demo's become several.

    Raises:
        GradAlignError: one is missing, empty, foreign, damaged, or holds nothing yet; one is given twice.
    """
    runs: list[Run] = []
    places = [path.resolve() for path in paths]
    for path, place in zip(paths, places, strict=True):
        if places.count(place) > 1:
            raise GradAlignError(f"{path}: is given twice; name every run once")
        runs += _folder(path) if path.is_dir() else [_scored(path)]
    return _named(runs)


def _named(runs: list[Run]) -> list[Run]:
    """Runs of one name called by as much of their paths as tells them apart."""
    names = [run.name for run in runs]
    paths = [run.path.resolve() for run in runs]
    for length in range(2, max(len(path.parts) for path in paths) + 1):
        if len(set(names)) == len(names):
            break
        names = ["/".join(path.parts[-length:]) for path in paths]
    return [dataclasses.replace(run, name=name) for run, name in zip(runs, names, strict=True)]


def _folder(path: Path) -> list[Run]:
    config = _config(path)
    command, options = config.get("command", "train"), config.get("options", {})
    run = _run(path, path.resolve().name, command, options)
    arms = [_run(other, f"{path.resolve().name}/{other.name}", "train", {"model": "embedded"}) for other in run.others]
    whole = [found for found in (run, *arms) if found.rounds]
    if not whole:
        raise GradAlignError(f"{path}: its run has finished nothing yet; report it when a round is done")
    for arm in arms:
        if not arm.rounds:
            warn(f"{arm.path}: has finished nothing yet, and is left out")
    return whole


def _config(path: Path) -> dict[str, Any]:
    """The configuration saved with the run; empty for a training run of one's own script.

    Raises:
        GradAlignError: the folder is no run's.
    """
    what = f"name a folder of gradalign {', '.join(COMMANDS)}, or a table of gradalign score"
    if not any(path.iterdir()):
        raise GradAlignError(f"{path}: is empty; {what}")
    if not (path / CONFIG).exists():
        if not _numbered(path):
            raise GradAlignError(f"{path}: holds no run (no {CONFIG}, no round-0000); {what}")
        return {}
    config = _object(path / CONFIG)
    options = config.get("options")
    if not isinstance(options, dict) or not isinstance(options.get("model") or "", str):
        raise GradAlignError(f"{path / CONFIG}: is not a run's configuration; {what}")
    if config.get("command") not in COMMANDS:
        raise GradAlignError(f"{path}: is of gradalign {config.get('command')}, which has no rounds; {what}")
    return config


def _run(path: Path, name: str, command: str, options: dict[str, Any]) -> Run:
    rounds = [_round(number, folder) for number, folder in _numbered(path)]
    whole: list[Round] = []
    for one in (one for one in rounds if one.alignments):
        earlier = whole[-1].rollouts if whole and not one.batches else None
        whole.append(dataclasses.replace(one, rollouts=one.rollouts or earlier))
    log = read_log(path) if command == "train" else None
    others = sorted(p for p in path.glob("train-*") if p.is_dir()) if command == "demo" else []
    unfinished = None
    if rounds and not rounds[-1].alignments:
        unfinished = f"round {rounds[-1].number} was begun and not finished"
    elif command == "select" and not _written(path):
        unfinished = "nothing was chosen, or the choice was not written"
    elif command == "train" and not (path / "model").is_dir() and (log is None or log.step < log.planned):
        steps = "no checkpoint yet" if log is None else f"{log.step:,} of {log.planned:,} steps at its last checkpoint"
        unfinished = f"training has not ended ({steps})"
    elif command == "verl" and len(whole) < options.get("rounds", 0):
        unfinished = f"{len(whole)} of {options['rounds']} rounds were begun"
    elif command == "demo" and options.get("rounds") and not others:
        unfinished = "training has not begun"
    strategy = _strategy(path, command, options)
    return Run(name, path, command, strategy, options.get("model") or _model(command), whole, log, unfinished, others)


def _model(command: str) -> str | None:
    return "embedded" if command == "demo" else None


def _strategy(path: Path, command: str, options: dict[str, Any]) -> str:
    """By what is chosen, from the options, a training run's state, or a round's plan."""
    if command == "demo":
        return "gradalign"
    if command in ("select", "verl"):
        o = options
        try:
            found = find_strategy(o["strategy"], o["engine"], o["contributions"], o["gates"], o["rank"], o["pick"])
            return found.name
        except (GradAlignError, KeyError, TypeError):  # a plug-in's, or another version's
            return str(options.get("strategy") or "")
    for checkpoint in sorted(path.glob(f"checkpoint-*/{STATE}")):
        return str((_object(checkpoint).get("identity") or {}).get("strategy", ""))
    if options.get("strategy"):
        return str(options["strategy"])
    for marker in sorted(path.glob("round-*/round.json")):
        return str((_object(marker).get("plan") or {}).get("strategy", ""))
    return ""


def _written(path: Path) -> list[Path]:
    return [found for name in FILES.values() for found in path.glob(f"round-*/{name}")]


def _numbered(path: Path) -> list[tuple[int, Path]]:
    found = [(re.fullmatch(r"round-(\d{4,})", p.name), p) for p in path.iterdir() if p.is_dir()]
    return sorted((int(match[1]), p) for match, p in found if match)


def _round(number: int, folder: Path) -> Round:
    table, metrics = folder / "alignments.parquet", folder / "metrics.json"
    batches = sorted(folder.glob("batch-*.alignments.parquet"))
    alignments = [a for path in batches for a in read_table(path)]
    if not batches and table.exists() and metrics.exists():  # metrics come last
        alignments = read_table(table)
    facts = _object(metrics) if metrics.exists() else None
    if facts is not None and not all(isinstance(facts.get(name) or {}, dict) for name in ("direction", "seconds")):
        raise GradAlignError(f"{metrics}: is not a round's (direction and seconds are objects); run the command again")
    rollouts, written = (path if path.exists() else None for path in (folder / TABLE, folder / FILES["trl"]))
    sampled = rollouts is not None or bool(batches)
    return Round(number, alignments, facts, len(batches), sampled, rollouts, written)


def _object(path: Path) -> dict[str, Any]:
    """What a JSON file of a run holds.

    Raises:
        GradAlignError: it cannot be read, or holds something else than names and values.
    """
    found = read_json(path)
    if not isinstance(found, dict):
        raise GradAlignError(f"{path}: is not what gradalign writes there (no JSON object); run the same command again")
    return found


def _scored(path: Path) -> Run:
    """A table that ``gradalign score`` wrote, with what its configuration says of it."""
    require_file(path)
    alignments, config = read_table(path), path.with_suffix(".config.json")
    saved: Any = read_json(config) if config.exists() else None
    if not isinstance(saved, dict) or saved.get("command") != "score" or not isinstance(saved.get("options"), dict):
        warn(f"{path}: no {config.name} of gradalign score beside it: direction, times and responses are not known")
        return Run(path.stem, path, "score", "", None, [Round(0, alignments, None, 0, True, None, None)])
    metrics = {"direction": saved.get("direction"), "seconds": saved.get("seconds")}
    options = saved["options"]
    candidates = Path(options.get("candidates") or "")
    if not candidates.is_file():
        warn(f"{path}: its rollouts {candidates} are not here: problems and responses are shown by their keys alone")
    only = Round(0, alignments, metrics, 0, True, candidates if candidates.is_file() else None, None)
    return Run(path.stem, path, "score", saved.get("strategy") or "", options.get("model"), [only])


def read_table(path: Path) -> list[Alignment]:
    """An alignment table without the evidence of single rollouts, which would fill the memory over many rounds.

    Raises:
        GradAlignError: it cannot be read, or is no alignment table.
    """
    columns = [name for name in SCHEMA.names if name not in EVIDENCE]
    try:
        with pq.ParquetFile(path) as file:
            missing = [name for name in columns if name not in file.schema_arrow.names]
            if missing:
                raise GradAlignError(f"{path}: no column {missing[0]!r}; name an alignment table, or a run's folder")
            rows = file.read(columns).cast(pa.schema([SCHEMA.field(name) for name in columns])).to_pylist()
    except (OSError, pa.ArrowException, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise GradAlignError(
            f"{path}: cannot be read as Parquet ({reason}); name a table of gradalign score or a run's folder, and "
            "where it was cut short run the command that wrote it again"
        ) from error
    if not rows:
        raise GradAlignError(f"{path}: holds no problem; score some with gradalign score")
    found = []
    for row in rows:
        numbers = Numbers(**{name: row.pop(name) for name in NUMBERS})
        found.append(Alignment(numbers=numbers, **(row | {"source": row["source"] or ""})))
    return found
