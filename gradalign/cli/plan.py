"""``gradalign plan``: what a recipe of ``train`` or ``select`` will cost before it starts, and what others would."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import yaml
from pydantic import Field

from gradalign.cli.options import Count
from gradalign.cli.plan_recipes import from_select, from_train, known_to_train
from gradalign.cli.select import SelectOptions
from gradalign.config import Options, parse
from gradalign.errors import GradAlignError, warn
from gradalign.plan.anatomy import Anatomy, anatomy
from gradalign.plan.plan import Plan, duration, hours, make, record, too_much
from gradalign.plan.probe import Planned, measured, rough
from gradalign.plan.recipe import Recipe
from gradalign.plan.responses import Responses, earlier
from gradalign.plan.sets import Sized, sized
from gradalign.plan.speeds import Speeds, find_card, of_card
from gradalign.plan.work import Setting, group_of
from gradalign.problems.fields import FieldMap
from gradalign.report.console import Cell, show, table
from gradalign.rollouts.sampler import prompt_tokens


class PlanOptions(Options):
    """How the cost is estimated."""

    device: str = "auto"
    """auto, cpu, cuda: this machine, measured; or a card by name, from published numbers: b200, h200, h100, h100-pcie,
    a100, a100-40gb, l40s, l4, rtx4090."""
    devices: Count = 1
    """How many of them share the work."""
    measure: bool = True
    """On this machine: time engines, sampling and training on random weights of the model's shape, some seconds;
    --no-measure takes the machine's matrix-product rate and what engines reach of it elsewhere."""
    pool_size: Count | None = None
    """Problems in the pool (default: they are counted)."""
    validation_size: Count | None = None
    """Validation problems (default: they are counted)."""
    test_size: Count | None = None
    """Test problems (default: they are counted)."""
    prompt_tokens: Count | None = None
    """Tokens of a prompt (default: the mean of the first problems')."""
    response_tokens: Annotated[float, Field(ge=1)] | None = None
    """Mean tokens of a response (default: as in --like, else the most that may be sampled)."""
    like: Path | None = None
    """Folder of an earlier run of a like policy, whose rollouts tell how long responses are, how many differ, and how
    often rewards vary (default: --out, where it holds some)."""
    format: Literal["text", "json"] = "text"
    """Tables, or one JSON object."""


class PlanSelectOptions(PlanOptions, SelectOptions):
    """Tell what a recipe will cost before it starts: time, memory and device hours of every stage, and of the other
    engines, budgets and modes. Takes a recipe of `gradalign train`, with all of that command's options, or one of
    `gradalign select`, whose options are shown here."""

    pool: str = ""
    """As in the recipe; not needed with --pool-size and --prompt-tokens."""
    validation: str = ""
    """As in the recipe; not needed with --validation-size."""
    reward: tuple[str, ...] = ()
    """As in the recipe; what it takes to compute is not estimated."""
    out: Path = Path("runs/plan")
    """As in the recipe; nothing is written."""


def run(arguments: Sequence[str]) -> None:
    """Run the command."""
    options, recipe, model, sets = _read(arguments)
    setting = _setting(options, recipe, model, sets)
    plans = make(recipe, setting)
    if options.format == "json":
        print(json.dumps(record(plans, setting), indent=1))
    else:
        _show(plans, setting)
    line = too_much(plans[0], setting)
    if line is not None:
        warn(line)


def _read(arguments: Sequence[str]) -> tuple[Any, Recipe, Anatomy, dict[str, Sized]]:
    """The options, the recipe, its model, and what is known of its sets."""
    if _is_train(arguments):
        return from_train(arguments, _sets)
    options = parse(PlanSelectOptions, "plan", arguments)
    sets = _sets(options)
    model = anatomy(options.model, options.parameters, adapter=options.adapter)
    return options, from_select(options, model, sets), model, sets


def _is_train(arguments: Sequence[str]) -> bool:
    """Whether anything is given that ``train`` knows and ``select`` does not."""
    names = {one[2:].partition("=")[0].replace("-", "_") for one in arguments if one.startswith("--")}
    for place, one in enumerate(arguments):
        path = one.partition("=")[2] if one.startswith("--config=") else "".join(arguments[place + 1 : place + 2])
        if one.partition("=")[0] == "--config":
            try:
                content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
            except (OSError, ValueError, RecursionError, yaml.YAMLError):
                return False  # is told of where it is parsed
            if isinstance(content, dict) and "options" in content and "command" in content:
                return bool(content["command"] == "train")
            if isinstance(content, dict):
                names |= {str(name).replace("-", "_") for name in content}
    known = {*PlanSelectOptions.model_fields, "config", "help"} | {
        f"no_{name}" for name in PlanSelectOptions.model_fields
    }
    return any(name in known_to_train() for name in names - known)


def _sets(options: Any) -> dict[str, Sized]:
    """Pool, validation and test set, as far as they are named: sizes, and the first problems.

    Raises:
        GradAlignError: a size that is neither given nor to be counted.
    """
    found: dict[str, Sized] = {}
    for name in ("pool", "validation", "test"):
        spec, size = getattr(options, name, None), getattr(options, f"{name}_size")
        if spec and (size is None or (options.prompt_tokens is None and name == "pool")):
            fields = FieldMap(options.prompt_field, options.answer_field, options.key_field, options.source_field)
            own = sized(spec, fields, options.on_bad_problem == "skip")
            found[name] = Sized(size or own.size, own.some)
        elif size is not None:
            found[name] = Sized(size, [])
        elif name == "pool":
            raise GradAlignError("option --pool-size is missing: name a --pool, or say how many problems it will hold")
    return found


def _setting(options: Any, recipe: Recipe, model: Anatomy, sets: dict[str, Sized]) -> Setting:
    lengths = _prompts(options, model, sets)
    candidates, trusted = _responses(options, recipe)
    mean, longest = sum(lengths) / len(lengths), max(lengths)
    made = Setting(model, _NOWHERE, options.devices, mean, longest, candidates, trusted)
    return Setting(model, _speeds(options, recipe, made), options.devices, mean, longest, candidates, trusted)


_NOWHERE = Speeds("", "", {}, 1.0, None, False)


def _prompts(options: Any, model: Anatomy, sets: dict[str, Sized]) -> list[int]:
    """Tokens of the prompts that are looked at.

    Raises:
        GradAlignError: there are none to look at; see `prompt_tokens`.
    """
    if options.prompt_tokens is not None:
        return [options.prompt_tokens]
    some = [problem for one in sets.values() for problem in one.some]
    if not some:
        raise GradAlignError("option --prompt-tokens is missing: name a --pool, or say how long its prompts will be")
    asking = options.asking()
    return [len(prompt_tokens(model.policy, asking(problem))) for problem in some]


def _responses(options: Any, recipe: Recipe) -> tuple[Responses, Responses]:
    """What is assumed of candidates' and validation problems' responses.

    Raises:
        GradAlignError: the earlier run named holds no rollouts; a mean that cannot be.
    """
    most = recipe.max_new_tokens
    place = options.like or (options.out if "out" in options.model_fields_set else None)
    found = None if place is None else earlier(place, most)
    if options.like is not None and found is None:
        raise GradAlignError(f"option --like: {options.like}: holds no round's rollouts; name a run's folder")
    if options.response_tokens is None and found is not None:
        return found
    made = Responses.assumed(options.response_tokens, most)
    return made, made


def _speeds(options: Any, recipe: Recipe, setting: Setting) -> Speeds:
    """The device's.

    Raises:
        GradAlignError: an unknown card, or no such device here.
    """
    name = options.device
    if not (name in ("auto", "cpu") or name.startswith("cuda")):
        find_card(name)
        return of_card(name, recipe.half)
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise GradAlignError(
            f"option --device: {name}: there is none here; name the card of another machine, such as h100"
        )
    device = torch.device("cuda" if name == "auto" and torch.cuda.is_available() else name.replace("auto", "cpu"))
    dtype = torch.bfloat16 if recipe.half else torch.float32
    if not options.measure:
        return rough(device, dtype)
    return measured(setting.model, _planned(recipe, setting), device, dtype)


def _planned(recipe: Recipe, setting: Setting) -> Planned:
    """The lengths that are measured, and the kinds of work."""
    own, training = setting.candidates, recipe.training
    kinds: tuple[str, ...] = ("forward",)
    if recipe.strategy.needs_engine:
        kinds += ("direction", "exact", "sketch", *([recipe.forward] if recipe.forward == "forward-mode" else []))
    rows, generated = int(recipe.engine == "reference"), 0
    if training is not None:
        rows = training.rows
        generated = 0 if training.served else training.batch * training.generations // setting.devices
    return Planned(
        group_of(setting, own, recipe.rollouts), max(2, round(recipe.looked * own.varying(recipe.rollouts))), own,
        round(setting.prompt + own.mean / 2), min(recipe.batch_rollouts, recipe.rollouts * recipe.looked), recipe.stop,
        recipe.batch_tokens, recipe.sketching, kinds, rows, generated,
    )  # fmt: skip


def _show(plans: Sequence[Plan], setting: Setting) -> None:
    chosen, model, speeds = plans[0], setting.model, setting.speeds
    engine, budget, mode = chosen.recipe.label
    known = "as in an earlier run" if setting.candidates.groups else "assumed, all different, all rewards varying"
    show(f"{model.policy.path}: {model.parameters:,} parameters, {model.covered:,} differentiated")
    show(f"{setting.devices} x {speeds.name}: {speeds.source}")
    show(
        f"prompts of {setting.prompt:.0f} tokens; responses of {setting.candidates.mean:.1f}, to validation problems "
        f"{setting.trusted.mean:.1f} ({known})\n"
    )
    rows: list[list[Cell]] = [
        [s.name, s.times, s.rollouts, s.tokens, s.operations / 1e12, duration(s.seconds), duration(s.times * s.seconds)]
        for s in chosen.stages
    ]
    rows.append([
        "in all", None, round(chosen.total("rollouts")), round(chosen.total("tokens")),
        chosen.total("operations") / 1e12, None, duration(chosen.seconds),
    ])  # fmt: skip
    title = f"this recipe: engine {engine}, budget {budget}, mode {mode}, rounds {chosen.recipe.rounds}"
    show(table(title, ["stage", "times", "rollouts", "tokens", "TFLOP", "time each", "time in all"], rows))
    held: list[list[Cell]] = [
        [stage, ", ".join(f"{name} {size / 1e9:.2g}" for name, size in parts.items()), sum(parts.values()) / 1e9]
        for stage, parts in chosen.memory.items()
    ]
    show(table("memory of a device", ["stage", "held, in GB", "GB"], held, left=2))
    show(_alternatives(plans, setting))


def _alternatives(plans: Sequence[Plan], setting: Setting) -> Any:
    rows: list[list[Cell]] = []
    for plan in plans:
        overhead = None if plan.overhead is None else f"{plan.overhead:+.0%}"
        gigabytes = max(sum(parts.values()) for parts in plan.memory.values()) / 1e9
        rows.append([
            *plan.recipe.label, round(plan.total("rollouts")), plan.total("operations") / 1e12,
            duration(sum(s.times * s.seconds for s in plan.stages if s.choosing)), duration(plan.seconds),
            hours(plan.seconds, setting), overhead, gigabytes,
        ])  # fmt: skip
    unit = "GPU-hours" if setting.speeds.card else "core-hours"
    columns = ["engine", "budget", "mode", "rollouts", "TFLOP", "choosing", "in all", unit, "overhead", "peak GB"]
    return table("this recipe, and others", columns, rows, left=3)
