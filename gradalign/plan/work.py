"""A recipe's work, stage by stage: rollouts, tokens, operations, and the seconds that a device takes for them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from gradalign.alignment.directional import SWEEP, TRIED
from gradalign.alignment.sketch import CHECKED
from gradalign.bench.counts import Lengths, completed, repeated, shared
from gradalign.plan.anatomy import Anatomy
from gradalign.plan.probe import counter
from gradalign.plan.recipe import Recipe, Training
from gradalign.plan.responses import Responses
from gradalign.plan.speeds import Speeds

SEARCH = 4
"""Steps that the search of a finite difference tries: three that bracket the valley, and the rule's."""
MOVES = 10
"""Times that the covered weights are read or written for one central difference: copied, moved twice, put back."""
OPTIMISER = 10
"""Times that the trained weights' size is read or written in an optimiser step: Adam's seven, clipping, zeroing."""


@dataclass(frozen=True)
class Setting:
    """Where and on what a recipe works.

    Attributes:
        model: its sizes.
        speeds: of one device.
        devices: that share the work.
        prompt: mean tokens of a candidate's prompt, or a validation problem's.
        longest: tokens of the longest prompt.
        candidates: responses to candidates.
        trusted: responses to validation problems.
    """

    model: Anatomy
    speeds: Speeds
    devices: int
    prompt: float
    longest: int
    candidates: Responses
    trusted: Responses


@dataclass(frozen=True)
class Stage:
    """One stage of a run, as often as it comes.

    Attributes:
        name: as in a round's ``metrics.json``, or of training.
        times: how often, in the whole run.
        rollouts: sampled each time.
        tokens: sampled or passed over.
        operations: of arithmetic.
        seconds: each time.
        choosing: whether it is there for choosing; training and evaluation are not.
    """

    name: str
    times: int
    rollouts: int
    tokens: int
    operations: float
    seconds: float
    choosing: bool = True


def stages(recipe: Recipe, setting: Setting) -> list[Stage]:
    """All stages of a run, in order."""
    found = [*_followed(recipe, setting), *_candidates(recipe, setting)]
    if recipe.training is not None:
        found += _trained(recipe, recipe.training, setting)
    return [stage for stage in found if stage.times]


def alone(recipe: Recipe, setting: Setting) -> list[Stage]:
    """The stages of the same training without choosing: every rollout is sampled by the trainer."""
    if recipe.training is None:
        return []
    return [stage for stage in _trained(recipe, recipe.training, setting, chosen=False) if stage.times]


def group_of(setting: Setting, responses: Responses, rollouts: int) -> Lengths:
    """A group as it is scored: each distinct response once."""
    number = max(1, round(responses.distinct(rollouts)))
    return Lengths(max(1, round(setting.prompt)), number, max(1, round(responses.distinct_mean)))


def sampled(
    recipe: Recipe, setting: Setting, responses: Responses, problems: int, rollouts: int
) -> tuple[int, int, float, float]:
    """(rollouts, tokens, operations, seconds) of sampling so many of each problem."""
    model, speeds = setting.model, setting.speeds
    served = recipe.training is not None and recipe.training.served
    size = max(1, recipe.batch_rollouts // rollouts)
    whole, rest = divmod(math.ceil(problems / setting.devices), size)
    context = setting.prompt + responses.mean / 2
    seconds = 0.0
    for number, count in ((size, whole), (rest, 1)):
        if number and count:
            prefill = number * shared(1)(model.shape, Lengths(round(setting.prompt), 1, 1)).total
            own = speeds.work("forward", prefill, 1, model.shape.layers)
            for rows, steps in responses.decoding(number * rollouts, leaving=True):
                own += steps * speeds.step(model, rows, context, recipe.width, False, served)
            seconds += count * own
    one = shared(1)(model.shape, Lengths(round(setting.prompt), rollouts, max(1, round(responses.mean)))).total
    tokens = round(problems * rollouts * responses.mean)
    return problems * rollouts, tokens, float(problems * one), seconds


def scored(recipe: Recipe, setting: Setting, kind: str, groups: float, lengths: Lengths) -> tuple[int, float, float]:
    """(tokens, operations, seconds) of one kind of scoring over so many groups; ``kind`` may be ``central``."""
    model, speeds = setting.model, setting.speeds
    base = {"central": "forward", "one-sided": "forward", "reference": "train"}.get(kind, kind)
    tokens = groups * lengths.tokens
    passes = math.ceil(tokens / recipe.batch_tokens / setting.devices)
    one: float = counter(base, recipe.sketching)(model.shape, lengths).total
    if kind == "reference":
        one = repeated(3)(model.shape, lengths).total
    elif base in ("exact", "direction"):
        one *= (1 + model.formed) / 3
    times = 2 if kind == "central" else 1
    operations = times * groups * one
    seconds = times * speeds.work(base, groups * one / setting.devices, passes, model.shape.layers)
    if kind in ("central", "one-sided"):
        sweeps = max(1, math.ceil(tokens / setting.devices / SWEEP / recipe.batch_tokens))
        seconds += sweeps * speeds.moved(MOVES * model.covered * recipe.width)
    return round(tokens), operations, seconds


def _tried(setting: Setting, responses: Responses, lengths: Lengths) -> tuple[int, float, float]:
    """(tokens, operations, seconds) of trying whether groups can be packed: four responses twice alone, two groups."""
    model = setting.model
    singles = Lengths(setting.longest, 8, responses.longest(lengths.rollouts))
    operations = float(completed(1)(model.shape, singles).total + 2 * shared(1)(model.shape, lengths).total)
    seconds = setting.speeds.work("forward", operations, 6, model.shape.layers)
    return 8 * (singles.prompt + singles.response) + 2 * lengths.tokens, operations, seconds


def _added(parts: Iterable[tuple[int, float, float]]) -> tuple[int, float, float]:
    tokens, operations, seconds = (sum(column) for column in zip(*parts, strict=True))
    return round(tokens), operations, seconds


def _followed(recipe: Recipe, setting: Setting) -> Iterator[Stage]:
    """Validation rollouts, the direction, and in mode ``batch`` the self-check on them."""
    times, trusted = recipe.followed, setting.trusted
    if not times:
        return
    count, rollouts = recipe.validation, recipe.validation_rollouts
    yield Stage("validation rollouts", times, *sampled(recipe, setting, trusted, count, rollouts))
    groups = count * trusted.varying(rollouts)
    lengths = group_of(setting, trusted, rollouts)
    made = scored(recipe, setting, "direction", groups, lengths), _tried(setting, trusted, lengths)
    yield Stage("direction", times, 0, *_added(made))
    if recipe.mode == "batch":
        yield from _checked(recipe, setting, trusted, groups, lengths)


def _checked(
    recipe: Recipe, setting: Setting, responses: Responses, groups: float, lengths: Lengths
) -> Iterator[Stage]:
    """The self-check of forward-only scores and sketches, every process on the same few groups."""
    parts = []
    if recipe.engine == "directional" or recipe.contributions:
        tries = 1 if recipe.forward == "forward-mode" else SEARCH
        parts += [("exact", TRIED), *[(recipe.forward, TRIED)] * tries]
    if recipe.engine == "sketch":
        parts += [("sketch", CHECKED), ("exact", CHECKED), ("sketch", CHECKED)]
    made = [scored(recipe, setting, kind, min(groups, most) * setting.devices, lengths) for kind, most in parts]
    if made:
        yield Stage("self-check", recipe.followed, 0, *_added([*made, _tried(setting, responses, lengths)]))


def _candidates(recipe: Recipe, setting: Setting) -> Iterator[Stage]:
    """Candidates' rollouts and scores, over all stages of a race; in mode ``batch`` of every batch."""
    training = recipe.training
    if not recipe.sampled:
        return
    often = training.batches if recipe.mode == "batch" and training is not None else 1
    own = setting.candidates
    rollouts, tokens, operations, seconds = 0, 0, 0.0, 0.0
    scores: dict[str, tuple[int, float, float]] = {}
    kinds = {"candidates": recipe.forward if recipe.engine == "directional" else recipe.engine}
    if not recipe.followed:
        kinds = {}
    elif recipe.contributions and recipe.engine in ("exact", "sketch"):
        kinds["contributions"] = recipe.forward
    for stage in recipe.stages():
        for count, before, after in stage:
            more = sampled(recipe, setting, own, count, after - before)
            rollouts, tokens, operations, seconds = (
                rollouts + more[0], tokens + more[1], operations + more[2], seconds + more[3]
            )  # fmt: skip
            for name, kind in kinds.items():
                groups, lengths = count * own.varying(after), group_of(setting, own, after)
                made = [scores.get(name, (0, 0.0, 0.0)), scored(recipe, setting, kind, groups, lengths)]
                tried = name == "candidates" and kind != "reference"
                scores[name] = _added([*made, _tried(setting, own, lengths)] if tried else made)
    yield Stage("candidate rollouts", often * recipe.sampled, rollouts, tokens, operations, seconds)
    if recipe.mode == "round" and recipe.followed:
        count, _, after = recipe.stages()[0][0]
        yield from _checked(recipe, setting, own, count * own.varying(after), group_of(setting, own, after))
    for name, values in scores.items():
        yield Stage(name, often * recipe.followed, 0, *values)


def _trained(recipe: Recipe, training: Training, setting: Setting, chosen: bool = True) -> Iterator[Stage]:
    """Generation, passes and optimiser of training, and evaluation."""
    model, speeds, own = setting.model, setting.speeds, setting.candidates
    generated = training.batches
    if chosen and recipe.mode == "batch":
        generated = 0
    elif chosen and recipe.sampled and not recipe.strategy.stale and training.recycle:
        generated -= recipe.rollouts >= training.generations
    rows = training.batch * training.generations
    make = partial(_generated, recipe, training, setting)
    yield Stage("training rollouts", recipe.rounds * generated, rows, *make(rows), choosing=False)

    longest = own.longest(max(1, rows // setting.devices))
    padded = Lengths(setting.longest, training.rows, longest)
    forward: float = completed(1)(model.shape, padded).total
    factor = 1 + model.formed + training.references + training.checkpointing
    passes = training.steps * training.passes
    seconds = passes * speeds.work("train", factor * forward, factor / 3, model.shape.layers)
    tokens = passes * padded.rollouts * (padded.prompt + padded.response)
    yield Stage(
        "training passes", recipe.rounds, 0, tokens * setting.devices, passes * factor * forward * setting.devices,
        seconds, choosing=False,
    )  # fmt: skip
    moved = speeds.moved(OPTIMISER * 4 * model.covered)
    yield Stage("optimiser", recipe.rounds * training.steps, 0, 0, 0.0, moved, choosing=False)
    if training.tests and training.evaluations:
        count = training.tests * training.test_generations
        batches = math.ceil(count / training.test_rows / setting.devices)
        tokens, operations, seconds = make(min(count, training.test_rows * setting.devices))
        scored_ = Lengths(setting.longest, min(count, training.test_rows), longest)
        one = completed(1)(model.shape, scored_).total
        seconds += 3 * one / (3 * speeds.rates["train"])
        yield Stage(
            "evaluation", training.evaluations, count, tokens * batches, (operations + one) * batches,
            seconds * batches, choosing=False,
        )  # fmt: skip


def _generated(recipe: Recipe, training: Training, setting: Setting, rows: int) -> tuple[int, float, float]:
    """(tokens, operations, seconds) of the trainer's own generation of ``rows`` responses, prompts repeated."""
    model, speeds, own = setting.model, setting.speeds, setting.candidates
    here = math.ceil(rows / setting.devices)
    prompts: float = here * shared(1)(model.shape, Lengths(setting.longest, 1, 1)).total
    seconds = speeds.work("forward", prompts, 1, model.shape.layers)
    context = setting.longest + own.mean / 2
    for number, steps in own.decoding(here, leaving=training.served):
        seconds += steps * speeds.step(model, number, context, recipe.width, True, training.served)
    one = repeated(1)(model.shape, Lengths(setting.longest, 1, max(1, round(own.mean)))).total
    return round(rows * own.mean), float(rows * one), seconds
