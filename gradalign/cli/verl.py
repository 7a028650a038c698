"""``gradalign verl``: verl's trainer on the problems that are chosen round by round."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from gradalign.cli.options import Count
from gradalign.cli.select import ChoiceOptions, check, read_sets
from gradalign.config import parse, resolved
from gradalign.curriculum.curriculum import Curriculum
from gradalign.curriculum.folder import open_run
from gradalign.errors import GradAlignError
from gradalign.policy.load import Policy, load_policy
from gradalign.policy.where import EMBEDDED
from gradalign.problems.keys import Keys
from gradalign.problems.schema import fingerprint
from gradalign.report.console import progress_bars, show
from gradalign.rewards.verl import VerlReward
from gradalign.rollouts.sampler import PolicySampler, Sampler
from gradalign.trainers.verl.run import Plan, VerlRun
from gradalign.trainers.verl.settings import (
    AGGREGATION,
    BATCH,
    BY_STD,
    ESTIMATOR,
    LOSS,
    RESPONSE,
    REWARD,
    REWARD_NAME,
    TEMPERATURE,
    TEMPLATE,
    TEMPLATE_VALUES,
    Settings,
    ask,
    check_overrides,
    quoted,
)

FREE = ("dry_run", "verl_python", "overrides")
"""Options that may differ when a run goes on: what choosing needs of verl's settings is part of the identity."""


class VerlOptions(ChoiceOptions):
    """Train with verl in rounds: export the policy, choose problems, let verl train on them, and again."""

    rounds: Count
    """How often to choose and train."""
    steps_per_round: Count
    """Optimiser steps of verl's between two choices; a round has this times data.train_batch_size places for
    problems, filled by the chosen ones again and again."""
    overrides: tuple[str, ...] = ()
    """verl's own settings, as its trainer takes them: data.train_batch_size=128 actor_rollout_ref.rollout.n=8 ... The
    objective (--advantage, --aggregation, --temperature), --max-new-tokens and --chat follow from them. A run may go
    on with others, where what choosing needs of them is the same."""
    verl_python: Annotated[str, Field(min_length=1)] = "python"
    """The Python that has verl, and this package beside it."""
    checkpoints: Path | None = None
    """verl's folder of checkpoints (default: OUT/checkpoints)."""
    noise_patience: Annotated[int, Field(ge=0)] = 5
    """Stop when the direction's halves, over this many rounds together, agree no better than noise does; 0 never
    stops."""
    dry_run: bool = False
    """Ask verl what it makes of the settings, print what would be launched, and write nothing."""


def run(arguments: Sequence[str]) -> None:
    """Run the command."""
    options = parse(VerlOptions, "verl", arguments)
    _check(options)
    plan = _planned(options)
    settings = ask(plan.python, plan.all_overrides(0, options.steps_per_round))
    settings.check(options.steps_per_round)
    options = agreed(options, settings)
    strategy = options.chosen_strategy(options.engine, options.contributions)
    choosing = options.plan(strategy)
    if options.dry_run:
        for line in plan.lines(options.steps_per_round * int(settings[BATCH])):
            print(line)
        return
    rewards = options.rewards()
    asking = options.asking()
    pool, validation = (options.asked(problems, asking) for problems in read_sets(options))

    def load(model: str) -> Policy:
        policy = load_policy(model, None, options.dtype, options.device, options.parameters)
        policy.tokenizer.chat_template = settings.template(policy.tokenizer.chat_template, model)
        return policy

    def look(model: str) -> tuple[Policy, tuple[Sampler, Sampler]]:
        policy = load(model)
        pairs = zip(rewards, options.samplings, strict=True)
        candidates, trusted = (PolicySampler(policy, reward, sampling) for reward, sampling in pairs)
        return policy, (candidates, trusted)

    first = load(plan.model)
    known = {
        "policy": first.fingerprint,
        "problems": fingerprint(chain(pool, validation)),
        "rewards": rewards[0].identity,
        "verl": {name: settings[name] for name in (BATCH, TEMPLATE, TEMPLATE_VALUES)},
    }
    curriculum = Curriculum(
        pool, Keys(pool.keys), validation, choosing, options.chunk, options.out, _identity(options, known),
        patience=options.noise_patience,
    )  # fmt: skip
    check(first, options, strategy, [pool[i] for i in curriculum.chunks[0]], validation)
    del first  # verl wants the memory
    config = resolved("verl", options, **known)
    config["versions"]["verl"] = settings.version
    open_run(options.out, config, FREE)
    with progress_bars() as progress:
        made = VerlRun(plan, settings, curriculum, look, show, progress).run()
    if made is not None:
        show(f"trained; the policy is in {made}")


def _check(options: VerlOptions) -> None:
    """Refuse options that mean nothing here.

    Raises:
        GradAlignError: names the option.
    """
    if options.adapter is not None or options.model.endswith(".gguf"):
        what = "--adapter" if options.adapter is not None else f"--model {options.model}"
        raise GradAlignError(f"option {what}: verl trains all weights of a Hugging Face folder or hub id; name one")
    if options.corrupt:
        raise GradAlignError("option --corrupt: verl would pay no coins; corrupt problems are of select and train")


def _planned(options: VerlOptions) -> Plan:
    """What verl is told.

    Raises:
        GradAlignError: an override is the rounds' to say, or --reward's.
    """
    named = check_overrides(options.overrides)
    model = str(EMBEDDED) if options.model == "embedded" else options.model
    folder = Path(model).expanduser()
    terms = options.paid_by().terms
    function = getattr(terms[0], "function", None) if len(terms) == 1 else None
    overrides = options.overrides
    if isinstance(function, VerlReward):
        if REWARD in named:
            raise GradAlignError(f"verl override {REWARD!r}: is said by --reward {options.reward[0]}; leave it out")
        overrides += (f"{REWARD}={quoted(str(function.path))}", f"{REWARD_NAME}={function.name}")
    out = options.out.resolve()
    return Plan(
        python=options.verl_python, model=str(folder.resolve()) if folder.is_dir() else model, out=out,
        checkpoints=(options.checkpoints or out / "checkpoints").resolve(), rounds=options.rounds,
        steps=options.steps_per_round, overrides=overrides, named=frozenset(named),
    )  # fmt: skip


def agreed(options: VerlOptions, settings: Settings) -> VerlOptions:
    """The options with what follows from verl's settings.

    Raises:
        GradAlignError: an option contradicts them, or they say nothing of it.
    """
    found: dict[str, Any] = {}
    for name, value, where in (
        ("advantage", settings.advantage, f"{ESTIMATOR}={settings[ESTIMATOR]}, {BY_STD}={settings[BY_STD]}"),
        ("aggregation", settings.aggregation, f"{AGGREGATION}={settings[AGGREGATION]}, {LOSS}={settings[LOSS]}"),
        ("temperature", float(settings[TEMPERATURE]), f"{TEMPERATURE}={settings[TEMPERATURE]}"),
        ("chat", True, "verl asks every problem through the chat template"),
    ):
        given = name in options.model_fields_set
        if value is None and not given:
            raise GradAlignError(
                f"verl's {where}: scores do not know these; say by --{name} what they come nearest to, or train with "
                "others"
            )
        if value is not None and given and getattr(options, name) != value:
            raise GradAlignError(
                f"option --{name} {getattr(options, name)}: contradicts verl's ({where}); leave it out"
            )
        if value is not None:
            found[name] = value
    if "max_new_tokens" not in options.model_fields_set:
        found["max_new_tokens"] = int(settings[RESPONSE])
    if not options.size.given:
        found["top"] = options.steps_per_round * int(settings[BATCH])
    return options.model_copy(update=found)


def _identity(options: VerlOptions, known: dict[str, Any]) -> dict[str, Any]:
    """All that may not differ when a run goes on from checkpoints."""
    said = options.model_dump(mode="json")
    return {**known, **{name: value for name, value in said.items() if name not in ("out", "checkpoints", *FREE)}}
