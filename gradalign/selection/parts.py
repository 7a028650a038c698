"""The parts that a strategy is put together from, and how a configuration names them: ``sound(fdr=0.1)``.

A part is a frozen dataclass; its fields are its parameters. A new one is a file of its own in ``gates/``, ``ranks/`` or
``picks/`` and a line in that folder's registry.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

from pydantic import TypeAdapter, ValidationError

from gradalign.alignment.record import Alignment
from gradalign.errors import GradAlignError, nearest

Needs = frozenset[str]
"""What a part reads of an alignment: ``pass_rate`` and ``responses`` come with rollouts, all else from an engine: names
of `gradalign.alignment.record.Numbers`."""

FROM_ROLLOUTS: Needs = frozenset({"pass_rate", "responses"})
"""What rollouts give without an engine."""


class Gate(Protocol):
    """Says which groups may be chosen."""

    needs: ClassVar[Needs]
    final: ClassVar[bool]
    """Whether a group that was refused stays so, however many rollouts are added."""

    def passes(self, alignments: Sequence[Alignment], seed: int) -> Sequence[bool]:
        """Of each alignment, all of status ``scored``, whether it may be chosen."""
        ...


class Rank(Protocol):
    """Says how useful groups are."""

    needs: ClassVar[Needs]
    prefers: ClassVar[str]
    """In a few words, for tables."""

    def scores(self, alignments: Sequence[Alignment], seed: int) -> Sequence[float | None]:
        """Usefulness of each alignment, all of status ``scored``; higher is better, None where it cannot be told."""
        ...


@runtime_checkable
class Unsure(Protocol):
    """A rank that knows how unsure its scores are."""

    def errors(self, alignments: Sequence[Alignment]) -> Sequence[float | None]:
        """Standard error of each alignment's score, all of status ``scored``; None where it cannot be told."""
        ...


class Pick(Protocol):
    """Says which of the groups that may be chosen are, given how useful they are."""

    needs: ClassVar[Needs]

    def picks(self, alignments: Sequence[Alignment], count: int, seed: int) -> list[int]:
        """Indices of at most ``count`` alignments, first choice first.

        Args:
            alignments: those that may be chosen, best first by ``score``, which none of them lacks.
            count: places.
            seed: of draws.
        """
        ...


P = TypeVar("P")


def parse(text: str, registry: Mapping[str, type[P]], kind: str) -> P:
    """The part that ``text`` names: ``name`` or ``name(parameter=value, ...)``, values as Python writes them.

    Raises:
        GradAlignError: unknown name or parameter, or a value that the part does not take.
    """
    try:
        node = ast.parse(text.strip(), mode="eval").body
        head, keywords, others = node, list[ast.keyword](), list[ast.expr]()
        if isinstance(node, ast.Call):
            head, keywords, others = node.func, node.keywords, node.args
        if not isinstance(head, ast.Name) or others:
            raise ValueError
        values = {name: _value(keyword.value) for keyword in keywords for name in [keyword.arg or ""]}
    except (SyntaxError, ValueError) as error:
        raise GradAlignError(f"{kind} {text!r}: write name or name(parameter=value, ...)") from error
    if head.id not in registry:
        raise GradAlignError(f"unknown {kind} {head.id!r}{nearest(head.id, registry)}")
    made = registry[head.id]
    fields = {field.name: field for field in dataclasses.fields(made) if field.init}  # type: ignore[arg-type]
    for name in values:
        if name not in fields:
            hint = nearest(name, fields) if fields else "; it has no parameters"
            raise GradAlignError(f"{kind} {head.id!r}: unknown parameter {name!r}{hint}")
    try:
        return TypeAdapter(made).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        message = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
        raise GradAlignError(f"{kind} {head.id!r}: {name + ': ' if name else ''}{message}") from error


def _value(node: ast.expr) -> Any:
    return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)  # bare words are texts


def spec(part: Any, registry: Mapping[str, type]) -> str:
    """How a configuration names the part; parameters at their defaults are left out."""
    name = next(name for name, kind in registry.items() if kind is type(part))
    given = [
        f"{field.name}={getattr(part, field.name)!r}"
        for field in dataclasses.fields(part)
        if getattr(part, field.name) != (field.default_factory() if callable(field.default_factory) else field.default)
    ]
    return f"{name}({', '.join(given)})" if given else name
