"""One configuration system for all commands: a YAML file, overridden by options on the command line.

A command's options are a pydantic model: field names are the YAML keys and, with dashes, the options; a field's
docstring is its help. Unknown names are refused with the nearest known one. The resolved options are saved with every
run (`resolved`), and such a file can be given back as ``--config``.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import re
import subprocess
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from gradalign import __version__
from gradalign.errors import GradAlignError, nearest

SHORT = {"rollouts": "-n"}
"""Options with a short form."""
RENAMED = {"output_dir": "out", "model_name_or_path": "model", "dataset_name": "pool", "num_rollouts": "rollouts"}
"""What other tools call our options."""


class Options(BaseModel):
    """Base of every command's options."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )
    positional: typing.ClassVar[str | None] = None
    """The field, of several values, that arguments without an option's name are for."""


_NEGATIVE = re.compile(r"-(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$", re.IGNORECASE)

OptionsT = TypeVar("OptionsT", bound=Options)


def parse(kind: type[OptionsT], command: str, arguments: Sequence[str]) -> OptionsT:
    """Options of a command from its arguments: defaults, then ``--config FILE``, then the command line.

    Raises:
        GradAlignError: an unknown option or key, a missing or ill-typed value, an unreadable file.
        SystemExit: after ``--help``.
    """
    return parse_further(kind, command, arguments, {})[0]


@dataclass(frozen=True)
class Given:
    """A value of a further option, and where it was given: ``FILE: field 'name'`` or ``option --name``."""

    value: Any
    where: str


def parse_further(
    kind: type[OptionsT], command: str, arguments: Sequence[str], further: Mapping[str, Mapping[str, Any]]
) -> tuple[OptionsT, dict[str, Given]]:
    """`parse` for a command that hands ``further`` options on to a library: option -> arguments of ``add_argument``,
    and ``group``, the title under which ``--help`` shows it.

    Texts, also those of the file, are converted by the option's ``type``; the library judges the values.

    Returns:
        The command's own options, and the further ones that were given.
    """
    parser = _Parser(
        prog=f"gradalign {command}", description=kind.__doc__, allow_abbrev=False, argument_default=argparse.SUPPRESS
    )
    parser.add_argument("--config", metavar="FILE", help="YAML (or a saved config.json) with any of the options below")
    for name, field in kind.model_fields.items():
        _add(parser, name, field, name == kind.positional)
    groups: dict[str, Any] = {}
    for name, settings in further.items():
        title = settings["group"]
        group = groups.setdefault(title, None) or parser.add_argument_group(title)
        groups[title] = group
        rest = {key: value for key, value in settings.items() if key != "group"}
        group.add_argument(f"--{name.replace('_', '-')}", dest=name, **rest)
    names = [*kind.model_fields, *further]
    read = parser.parse_known_args if kind.positional is None else parser.parse_known_intermixed_args
    given, unknown = read(_normal(arguments))
    if unknown:
        known = [f"--{name.replace('_', '-')}" for name in names]
        option = unknown[0].split("=")[0]
        if option.startswith("-"):
            raise GradAlignError(f"unknown option {option}{_suggestion(option, known)}; see gradalign {command} --help")
        raise GradAlignError(f"{option!r} is not an option; options start with --; see gradalign {command} --help")
    chosen = vars(given)
    file = chosen.pop("config", None)
    values = {} if file is None else _from_file(Path(file), kind, names)
    more: dict[str, Given] = {}
    for name in further:
        if name in values:
            where = f"{file}: field {name!r}"
            more[name] = Given(_converted(values.pop(name), further[name], where), where)
        if name in chosen:
            more[name] = Given(chosen.pop(name), f"option --{name.replace('_', '-')}")
    try:
        return kind.model_validate({**values, **chosen}), more
    except ValidationError as error:
        raise _explained(error, kind, values, chosen, file) from error


def _converted(value: Any, settings: Mapping[str, Any], where: str) -> Any:
    """A file's value for a further option; YAML reads 1e-6 as a text."""
    convert = settings.get("type")
    odd = isinstance(value, bool) or not isinstance(value, int | float | str | list | None)
    if (convert in (int, float) and odd) or (convert is int and isinstance(value, float) and value % 1):
        raise GradAlignError(f"{where}: {value!r}: write a {'whole number' if convert is int else 'number'}")
    if isinstance(value, str) and convert is not None and convert is not str:
        try:
            return convert(value)
        except (TypeError, ValueError, argparse.ArgumentTypeError) as error:
            raise GradAlignError(f"{where}: {value!r}: {error}") from error
    return value


def resolved(command: str, options: Options, **facts: Any) -> dict[str, Any]:
    """What is saved with a run: command, options, versions, commit, and further facts."""
    versions = {"gradalign": __version__, "python": platform.python_version()}
    for package in ("torch", "transformers", "pyarrow", "numpy"):
        versions[package] = importlib.metadata.version(package)
    return {
        "command": command,
        "options": options.model_dump(mode="json"),
        "versions": versions,
        "commit": _commit(),
        **facts,
    }


class _Parser(argparse.ArgumentParser):
    def __init__(self, *others: Any, **named: Any) -> None:
        super().__init__(*others, **named)
        self._negative_number_matcher = _NEGATIVE  # -1e-3, too, is a value

    def error(self, message: str) -> typing.NoReturn:
        raise GradAlignError(f"{message}; see {self.prog} --help")


def _add(parser: argparse.ArgumentParser, name: str, field: FieldInfo, positional: bool) -> None:
    flags = [f"--{name.replace('_', '-')}", *([SHORT[name]] if name in SHORT else [])]
    text = " ".join((field.description or "").split()).replace("%", "%%")
    default = field.get_default(call_default_factory=True)
    if field.is_required():
        text += " (required)"
    elif default not in (None, (), ""):
        text += f" (default: {' '.join(map(str, default)) if isinstance(default, tuple) else default})"
    if positional:
        parser.add_argument(name, metavar=name.removesuffix("s").upper(), nargs="*", help=text)
        return
    if field.annotation is bool:
        parser.add_argument(*flags, dest=name, action=argparse.BooleanOptionalAction, help=text)
        return
    literal = _choices(field.annotation)
    metavar = "{" + ",".join(literal) + "}" if literal else name.rsplit("_", 1)[-1].upper()
    many: dict[str, Any] = {"nargs": "+"} if typing.get_origin(field.annotation) is tuple else {}
    parser.add_argument(*flags, dest=name, metavar=metavar, help=text, **many)


def _choices(annotation: Any) -> list[str]:
    if typing.get_origin(annotation) is typing.Literal:
        return [str(value) for value in typing.get_args(annotation)]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, tuple):
        return [choice for part in typing.get_args(annotation) for choice in _choices(part)]
    return []


def _normal(arguments: Sequence[str]) -> list[str]:
    """Arguments as argparse reads them: ``--batch_tokens`` as ``--batch-tokens``."""
    normal: list[str] = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        normal.append(name.replace("_", "-") + equals + value if argument.startswith("--") else argument)
    return normal


def _from_file(path: Path, kind: type[Options], names: Sequence[str]) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise GradAlignError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise GradAlignError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    if isinstance(content, dict) and "command" in content and "options" in content:  # a saved run's config.json
        content = content["options"]
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise GradAlignError(f"{path}: not a mapping; write one `option: value` a line")
    values = {str(name).replace("-", "_"): value for name, value in content.items()}
    for name in values:
        if name not in names:
            raise GradAlignError(f"{path}: unknown field {name!r}{_suggestion(name, list(names))}")
        if name not in kind.model_fields:
            continue
        annotation = kind.model_fields[name].annotation
        if isinstance(values[name], bool) and annotation is not bool:
            raise GradAlignError(f"{path}: field {name!r}: {values[name]} is true or false, which it cannot be")
        if isinstance(values[name], str) and typing.get_origin(annotation) is tuple:
            values[name] = (values[name],)
    return values


def _suggestion(name: str, known: list[str]) -> str:
    for other, ours in RENAMED.items():
        if name.lstrip("-").replace("-", "_") == other:
            return f"; did you mean {ours!r}?"
    return nearest(name, known).split(" (known")[0]


def _explained(
    error: ValidationError, kind: type[Options], values: dict[str, Any], chosen: dict[str, Any], file: str | None
) -> GradAlignError:
    first = error.errors()[0]
    if not first["loc"]:  # a rule over several fields
        return GradAlignError(first["msg"].removeprefix("Value error, "))
    name = str(first["loc"][0])
    option = f"--{name.replace('_', '-')}"
    if first["type"] == "missing" and name == kind.positional:
        option = name.removesuffix("s").upper()
    elif first["type"] == "missing":
        option = f"option {option}"
    if first["type"] == "missing":
        what = " ".join((kind.model_fields[name].description or "").split())
        return GradAlignError(f"{option} is missing: {what}".rstrip(": "))
    where = f"{file}: field {name!r}" if name in values and name not in chosen else f"option {option}"
    value = first["input"]
    if first["type"] == "literal_error":
        known = _choices(kind.model_fields[name].annotation)
        return GradAlignError(f"{where}: unknown {name} {value!r}{nearest(str(value), known)}")
    message = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return GradAlignError(f"{where}: {value!r}: {message}")


def _commit() -> str | None:
    """The commit of the checkout that runs, None where the package was installed from elsewhere."""
    folder = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        )
        tracked = subprocess.run(
            ["git", "-C", str(folder), "ls-files", "--error-unmatch", "config.py"], capture_output=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() if tracked.returncode == 0 else None
