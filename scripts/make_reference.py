"""Write docs/reference from docstrings: a page for every reader, reward, strategy, rank, gate, pick and budget.

    python scripts/make_reference.py [--check]

With ``--check`` nothing is written, and the exit status is 1 where a page is not what its docstring says.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import sys
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import docstring_parser

from gradalign.alignment.engines import ENGINES, provides
from gradalign.parts import Registry, spec
from gradalign.problems.readers import READERS
from gradalign.problems.recipes import RECIPES
from gradalign.problems.recipes.base import Recipe
from gradalign.rewards.find import REWARDS
from gradalign.selection import BUDGETS, GATES, PICKS, RANKS, STRATEGIES, Strategy
from gradalign.selection.parts import FROM_ROLLOUTS

LONGEST = 60
"""Characters of a default that is shown."""
OUT = Path(__file__).parents[1] / "docs" / "reference"
SECTIONS: dict[str, tuple[str, str, Mapping[str, Any]]] = {
    "readers": ("Readers", "Where problems come from: `--pool`, `--validation`, `--test`, `--problems`.", READERS.own),
    "recipes": ("Recipes", "Known data sets: `--pool recipe:NAME`.", RECIPES.own),
    "rewards": ("Rewards", "What responses are paid: `--reward`, several with `--reward-weights`.", REWARDS.own),
    "strategies": ("Strategies", "Ready-made ways to choose: `--strategy`.", STRATEGIES.own),
    "ranks": ("Ranks", "Which problems are most useful: `--rank`.", RANKS.own),
    "gates": ("Gates", "Which problems may be chosen: `--gates`.", GATES.own),
    "picks": ("Picks", "Which of them are: `--pick`.", PICKS.own),
    "budgets": ("Budgets", "How many rollouts each candidate gets: `--budget`.", BUDGETS),
}
"""Folder -> title, what its parts are for, the parts by name."""


def pages() -> Iterator[tuple[Path, str]]:
    """(path, text) of every page."""
    index = [
        "# Reference", "",
        "Every part that a configuration can name. `python scripts/make_reference.py` makes these pages from",
        "their docstrings. [A part of one's own](../plugins.md) needs 20 lines.", "",
    ]  # fmt: skip
    for folder, (title, what, parts) in SECTIONS.items():
        index += [f"## {title}", "", what, "", "| name | |", "| --- | --- |"]
        for name, part in parts.items():
            yield OUT / folder / f"{name}.md", page(name, part)
            index.append(f"| [`{name}`]({folder}/{name}.md) | {summary(part)} |")
        index.append("")
    yield OUT / "index.md", "\n".join(index).rstrip() + "\n"


def prose(part: Any) -> str:
    """What a part's docstring says before its sections; the module's where the class refers to it."""
    own = inspect.getdoc(part) or ""
    if own.startswith("See the module's text"):
        own = inspect.getdoc(inspect.getmodule(part)) or ""
    return markdown(own)


def markdown(text: str) -> str:
    """reStructuredText as docstrings have it, as Markdown: code in single backticks, headed sections as lists."""
    text = re.sub(r"``(.+?)``", r"`\1`", text, flags=re.S).replace("\\\\", "\\")
    lines, section = [], ""
    for line in text.splitlines():
        if re.fullmatch(r"(Args|Attributes|Returns|Raises):", line):
            section = line.removesuffix(":")
            lines += [] if section in ("Args", "Attributes") else [f"**{section}**", ""]
        elif section in ("Args", "Attributes"):
            continue
        else:
            lines.append(line.removeprefix("    ") if section else line)
    return "\n".join(lines).strip().replace("::\n", ":\n")


def summary(part: Any) -> str:
    """The first sentence."""
    if isinstance(part, Strategy):
        return part.prefers
    if isinstance(part, Recipe):
        return f"{part.hub}, reward `{part.reward}`{'' if part.seen else ', not run on real rows'}"
    text = " ".join(prose(part).split("\n\n")[0].split())
    text = re.sub(r"^`[^`]*`(?: \([^)]*\))?: ", "", text)
    first = re.split(r"(?<=[.;])\s", text)[0].rstrip(".;")
    return first.replace("|", "\\|")


def page(name: str, part: Any) -> str:
    """The page of a part."""
    if isinstance(part, Strategy):
        return strategy_page(name, part)
    return recipe_page(name, part) if isinstance(part, Recipe) else part_page(name, part)


def recipe_page(name: str, recipe: Recipe) -> str:
    """The page of a recipe: where its rows are from, what they become."""
    config = "" if recipe.config is None else f", configuration `{recipe.config}`"
    seen = "run on real rows" if recipe.seen else "made from documented columns, not run on real rows here"
    return "\n".join([
        f"# {name}", "", markdown(inspect.getdoc(recipe.make) or ""), "",
        f"- Data set: [{recipe.hub}](https://huggingface.co/datasets/{recipe.hub}){config}, split `{recipe.split}`",
        f"- Reward that fits: [`{recipe.reward}`](../rewards/{recipe.reward.partition('(')[0]}.md)",
        f"- Licence: {recipe.licence or 'not stated, or not seen'}", f"- Checked: {seen}", "",
        "```", f"gradalign pool --pool recipe:{name}", "```", "",
    ])  # fmt: skip


def part_page(name: str, part: Any) -> str:
    """The page of a reader, reward, rank, gate, pick or budget."""
    lines = [f"# {name}", "", prose(part)]
    if inspect.isclass(part) and dataclasses.is_dataclass(part):
        rows = list(parameters(part))
        if rows:
            lines += ["", "| parameter | type | default | |", "| --- | --- | --- | --- |", *rows]
    needs = getattr(part, "needs", None)
    if needs is not None:
        lines += ["", f"Reads {', '.join(f'`{need}`' for need in sorted(needs)) or 'nothing'} of alignments."]
    module = inspect.getmodule(part)
    assert module is not None
    source = module.__name__.replace(".", "/")
    return "\n".join([*lines, "", f"Source: [`{source}.py`](../../../{source}.py)", ""])


def parameters(part: type) -> Iterator[str]:
    """Rows of the table of a part's parameters."""
    documents = [docstring_parser.parse(own.__doc__ or "") for own in reversed(part.__mro__)]
    said = {p.arg_name: p.description or "" for document in documents for p in document.params}
    hints = typing.get_type_hints(part, include_extras=True)
    for field in (field for field in dataclasses.fields(part) if field.init):
        default = field.default_factory() if callable(field.default_factory) else field.default
        text = "" if default is dataclasses.MISSING else f"`{default!r}`"
        text = text if len(text) <= LONGEST else "a text"
        what = " ".join(markdown(said.get(field.name, "")).split())
        yield f"| `{field.name}` | {kind(hints[field.name])} | {text} | {what} |".replace("\\|", "|")


def kind(hint: Any) -> str:
    """A type, with its bounds, in a few words."""
    if typing.get_origin(hint) is Annotated:
        inner, *more = typing.get_args(hint)
        signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
        bounds = [
            f"{sign} {getattr(own, name)}"
            for info in more
            for own in getattr(info, "metadata", [])
            for name, sign in signs.items()
            if getattr(own, name, None) is not None
        ]
        return " ".join([kind(inner), ", ".join(bounds)]).strip()
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(f"`{value}`" for value in typing.get_args(hint))
    if typing.get_origin(hint) is not None and type(None) in typing.get_args(hint):
        return " or ".join(kind(own) for own in typing.get_args(hint) if own is not type(None)) + " or none"
    return f"`{getattr(hint, '__name__', str(hint).replace('typing.', ''))}`"


def strategy_page(name: str, strategy: Strategy) -> str:
    """The page of a ready-made strategy: what it is put together from, what it needs."""
    links = [f"gate [`{spec(gate, GATES)}`](../gates/{name_of(gate, GATES)}.md)" for gate in strategy.gates]
    links.append(f"rank [`{spec(strategy.rank, RANKS)}`](../ranks/{name_of(strategy.rank, RANKS)}.md)")
    links.append(f"pick [`{spec(strategy.pick, PICKS)}`](../picks/{name_of(strategy.pick, PICKS)}.md)")
    lines = [f"# {name}", "", f"Prefers: {strategy.prefers}.", "", f"Put together from {', '.join(links)}.", ""]
    for gate in strategy.gates:
        lines += [prose(type(gate)), ""]
    lines += [prose(type(strategy.rank)), ""]
    needs = strategy.needs
    if not needs:
        lines.append("Needs no rollouts of the candidates.")
    elif needs <= FROM_ROLLOUTS:
        lines.append("Needs rollouts of the candidates, and no engine.")
    else:
        able = [e for e in ENGINES if needs <= provides(e, False) | FROM_ROLLOUTS]
        more = [e for e in ENGINES if e not in able and needs <= provides(e, True) | FROM_ROLLOUTS]
        served = [f"`--engine {e}`" for e in able] + [f"`--engine {e} --contributions`" for e in more]
        lines.append(f"Needs {', '.join(f'`{n}`' for n in sorted(needs))}: {', '.join(served)}.")
    return "\n".join([*lines, "", "```", f"gradalign select --strategy {name} ...", "```", ""])


def name_of(part: Any, registry: Registry[Any]) -> str:
    """The name of a part."""
    return spec(part, registry).partition("(")[0]


def main() -> int:
    """Write the pages, or check them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    made = dict(pages())
    stale = [path for path, text in made.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    stale += [path for path in sorted(OUT.rglob("*.md")) if path not in made]
    for path in stale:
        if check:
            print(f"{path.relative_to(OUT.parent)}: not what the docstrings say; python scripts/make_reference.py")
        elif path in made:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(made[path], encoding="utf-8")
        else:
            path.unlink()
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
