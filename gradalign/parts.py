"""Parts found by name: the registries, the plug-ins that extend them, and ``name(parameter=value)`` in configurations.

A part is a frozen dataclass whose fields are its parameters, or a plain function. A new one of the project's own is a
file and a line in a registry; anyone else's is an entry point of the registry's group in their package's
``pyproject.toml``::

    [project.entry-points."gradalign.ranks"]
    mine = "my_package.ranks:Mine"
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from gradalign.errors import GradAlignError, nearest, warn

T = TypeVar("T")
_WRITTEN = re.compile(r"\s*(?P<name>[^\W\d](?:[\w-]*\w)?)\s*(?P<arguments>\(.*\))?\s*", re.DOTALL)


class Registry(Mapping[str, T]):
    """Name -> part: the project's own, then those that installed packages add; these are imported when named.

    Args:
        group: of entry points, ``gradalign.ranks`` and the like.
        own: the project's own parts; a plug-in of the same name is warned of and never used.
        wants: attributes that a plug-in must have.
    """

    def __init__(self, group: str, own: Mapping[str, T], wants: tuple[str, ...] = ()) -> None:
        self.group = group
        self.own = own
        self.wants = wants

    @functools.cached_property
    def plugins(self) -> dict[str, EntryPoint]:
        """Plug-ins by name, not imported yet."""
        found = dict[str, EntryPoint]()
        for point in entry_points(group=self.group):
            first = found.setdefault(point.name, point)
            if first.value != point.value:
                warn(f"{self.group}: {point.name!r} is {first.value}, and also {point.value}; the latter is left out")
        for name in found.keys() & self.own.keys():
            warn(f"plug-in {name!r} ({found.pop(name).value}) has the name of one of {self.group}'s own; left out")
        return found

    def __getitem__(self, name: str) -> T:
        """The part of that name.

        Raises:
            KeyError: there is none.
            GradAlignError: a plug-in cannot be imported, or is not what it must be.
        """
        if name in self.own:
            return self.own[name]
        point = self.plugins[name]
        where = f"plug-in {name!r} of {self.group} ({point.value})"
        try:
            loaded = point.load()
        except (Exception, SystemExit) as error:
            said = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise GradAlignError(f"{where}: cannot be imported ({said}); mend or uninstall its package") from error
        missing = [attribute for attribute in self.wants if not hasattr(loaded, attribute)]
        if missing:
            raise GradAlignError(f"{where}: has no {', '.join(missing)}; see docs/plugins.md")
        return loaded

    def __contains__(self, name: object) -> bool:
        return name in self.own or name in self.plugins

    def __iter__(self) -> Iterator[str]:
        return iter([*self.own, *self.plugins])

    def __len__(self) -> int:
        return len(self.own) + len(self.plugins)


def find(name: str, registry: Mapping[str, T], kind: str) -> T:
    """The part of that name.

    Raises:
        GradAlignError: there is none, or a plug-in is broken.
    """
    if name not in registry:
        raise GradAlignError(f"unknown {kind} {name!r}{nearest(name, registry)}")
    return registry[name]


def parse(text: str, registry: Mapping[str, type[T]], kind: str) -> T:
    """The part that ``text`` names: ``name`` or ``name(parameter=value, ...)``, values as Python writes them.

    Raises:
        GradAlignError: unknown name or parameter, or a value that the part does not take.
    """
    written = _WRITTEN.fullmatch(text)
    try:
        if written is None:
            raise ValueError
        node = ast.parse(f"part{written['arguments'] or '()'}", mode="eval").body
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.args:
            raise ValueError
        values = {keyword.arg or "": _value(keyword.value) for keyword in node.keywords}
        if len(values) < len(node.keywords):
            raise ValueError
    except (SyntaxError, ValueError) as error:
        raise GradAlignError(
            f"{kind} {text!r}: write name or name(parameter=value, ...), each parameter once, and texts in quotes"
        ) from error
    head = written["name"]
    made = find(head, registry, kind)
    if not dataclasses.is_dataclass(made):
        raise GradAlignError(f"{kind} {head!r}: is no dataclass, whose fields are its parameters; see docs/plugins.md")
    fields = {field.name: field for field in dataclasses.fields(made) if field.init}
    for name in values:
        if name not in fields:
            hint = nearest(name, fields) if fields else "; it has no parameters"
            raise GradAlignError(f"{kind} {head!r}: unknown parameter {name!r}{hint}")
    try:
        part = TypeAdapter(made).validate_python(values)
        for name in values:
            own = getattr(part, name)
            if isinstance(own, float) and not math.isfinite(own):
                raise GradAlignError(f"{kind} {head!r}: {name}: is {own}; write a finite number")
        return part
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        message = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
        raise GradAlignError(f"{kind} {head!r}: {name + ': ' if name else ''}{message}") from error


def _value(node: ast.expr) -> Any:
    return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)  # bare words are texts


def spec(part: Any, registry: Mapping[str, type]) -> str:
    """How a configuration names the part; parameters at their defaults are left out.

    A part that no configuration can name, as a plug-in strategy may have, goes by its class.
    """
    kind = type(part)
    name = next((n for n in registry if _names(n, kind, registry)), f"{kind.__module__}.{kind.__qualname__}")
    given = [
        f"{field.name}={getattr(part, field.name)!r}"
        for field in dataclasses.fields(part)
        if getattr(part, field.name) != (field.default_factory() if callable(field.default_factory) else field.default)
    ]
    return f"{name}({', '.join(given)})" if given else name


def _names(name: str, kind: type, registry: Mapping[str, type]) -> bool:
    try:
        return registry[name] is kind
    except GradAlignError:  # a broken plug-in made no part
        return False
