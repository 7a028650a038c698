"""``gradalign train``: TRL's GRPO on the problems that a curriculum chooses."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from gradalign.alignment.align import Progress
from gradalign.cli.options import Count, RewardOptions
from gradalign.cli.problem_options import ProblemOptions
from gradalign.config import Given, parse_further, resolved
from gradalign.curriculum.folder import begin_run, check_run
from gradalign.errors import GradAlignError, missing_extra
from gradalign.policy.load import Policy, load_policy
from gradalign.problems.pool import Pool
from gradalign.problems.read import overlap
from gradalign.problems.schema import fingerprint
from gradalign.report.console import progress_bars, show
from gradalign.rollouts.sample import end_tokens

try:
    from gradalign.trainers.trl.run import TrainJob, further_options
except ImportError as missing:
    raise missing_extra(str(missing.name), "train") from missing


class TrainOptions(RewardOptions, ProblemOptions):
    """Train a policy with TRL's GRPO, choosing problems as it moves; every field of trl.GRPOConfig is an option too."""

    model: Annotated[str, Field(min_length=1)]
    """The policy: hub id, folder, .gguf file, or `embedded`."""
    adapter: str | None = None
    """LoRA adapter to go on training, folder or hub id."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    """Type of the weights; bf16 (an option of TRL) computes in bfloat16 on float32 weights."""
    pool: Annotated[str, Field(min_length=1)]
    """What to choose from: a .jsonl, .parquet, .csv or .tsv file, a mixture's .yaml, or scheme:NAME?setting=value
    (embedded:mixed?size=256&seed=0, hf:OWNER/NAME?split=train, ...)."""
    validation: Annotated[str, Field(min_length=1)] | None = None
    """The small trusted set whose gradient is followed; never trained on (strategies that follow none need none)."""
    test: Annotated[str, Field(min_length=1)] | None = None
    """Held-out problems to evaluate on after every round; neither trained on nor the validation set."""
    out: Path
    """Run folder to write; the same command goes on in it where it was interrupted."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Texts of one token each that end a response, as the end-of-sequence token does; \\n is a line break."""
    allow_overlap: bool = False
    """Leave validation and test problems out of the pool instead of refusing it."""
    lora_r: Count | None = None
    """Train a new LoRA adapter of this rank instead of all weights."""
    lora_alpha: Annotated[float, Field(gt=0)] = 32.0
    """LoRA's scale is this over the rank."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """LoRA's dropout."""
    lora_target_modules: tuple[str, ...] = ("all-linear",)
    """Modules that get an adapter, by name."""


def run(arguments: Sequence[str]) -> None:
    """Run the command."""
    options, further = parse_further(TrainOptions, "train", arguments, further_options())
    if options.lora_r is not None and options.adapter is not None:
        raise GradAlignError("--lora-r makes a new adapter and --adapter goes on with one; give one of them")
    sets = {name: _read(options, name) for name in ("pool", "validation", "test")}
    sets["pool"] = _disjoint(options, sets)
    args = configured({**defaults(options), **further}, options.out)
    policy = load_policy(options.model, options.adapter, options.dtype, "cpu")
    _end_at(policy, options.stop)
    asking = options.asking()
    asked = {name: options.asked(problems, asking) for name, problems in sets.items()}
    job = TrainJob(policy, options.rewards()[0], args, asked["pool"], asked["validation"], asked["test"])
    known = {
        "policy": policy.fingerprint,
        "problems": fingerprint(chain.from_iterable(asked.values())),
        "rewards": options.rewards()[0].identity,
    }
    facts = resolved("train", options, **known)
    facts["options"] |= {name: given.value for name, given in further.items()}
    lora = None
    if options.lora_r is not None:
        lora = {
            "r": options.lora_r, "lora_alpha": options.lora_alpha, "lora_dropout": options.lora_dropout,
            "target_modules": _modules(options.lora_target_modules), "task_type": "CAUSAL_LM",
        }  # fmt: skip
    with progress_bars() as progress:
        new = check_run(options.out, facts)  # before the trainer makes folders there
        trainer = _made(job, lora, progress, options)
        if new and trainer.accelerator.is_main_process:
            begin_run(options.out, facts)
        job.train(trainer, show)


def _made(job: TrainJob, lora: dict[str, Any] | None, progress: Progress, options: TrainOptions) -> Any:
    """The trainer; what it says of its data sets is said of the files."""
    try:
        return job.make(lora, progress)
    except GradAlignError as error:
        said = str(error)
        for name, spec in (
            ("train_dataset", options.pool),
            ("validation_dataset", options.validation or "--validation"),
        ):
            said = said.replace(name, spec)
        raise GradAlignError(said) from error


def _read(options: TrainOptions, name: str) -> Pool:
    spec = getattr(options, name)
    return Pool() if spec is None else options.read_plain(spec)


def _disjoint(options: TrainOptions, sets: dict[str, Pool]) -> Pool:
    """The pool without what the others hold, where that is allowed.

    Raises:
        GradAlignError: two of the sets share a problem.
    """
    for name, other in (("test", "validation"), ("pool", "validation"), ("pool", "test")):
        shared = overlap(sets[name], sets[other], options.near_duplicates)
        if shared and not (name == "pool" and options.allow_overlap):
            mend = "take them out" + ("" if name == "test" else ", or leave them out of the pool by --allow-overlap")
            raise GradAlignError(
                f"{getattr(options, name)}: {len(shared)} problems are also in the {other} set "
                f"{getattr(options, other)} (first: key {shared[0]!r}); {mend}"
            )
        sets[name] = sets[name].without(shared)
    if not sets["pool"]:
        raise GradAlignError(f"{options.pool}: every problem is in the validation or the test set; nothing is left")
    return sets["pool"]


def _end_at(policy: Policy, stop: tuple[str, ...]) -> None:
    """Let further tokens end a response, in the generation configuration that trainer and sampler read.

    Raises:
        GradAlignError: a text is not one token.
    """
    ends = sorted(end_tokens(policy))
    for text in (text.replace("\\n", "\n") for text in stop):
        ids = policy.tokenizer.encode(text, add_special_tokens=False)
        if len(ids) != 1:
            raise GradAlignError(f"option --stop: {text!r} is {len(ids)} tokens of this model; name a single one")
        ends += ids
    if stop:
        policy.model.generation_config.eos_token_id = ends


def _modules(names: tuple[str, ...]) -> str | list[str]:
    return names[0] if len(names) == 1 and names[0] == "all-linear" else list(names)


def defaults(options: TrainOptions) -> dict[str, Given]:
    """Where this command differs from TRL: quiet, and evaluating each round where there is a test set."""
    values: dict[str, Any] = {"report_to": "none", "disable_tqdm": True, "logging_steps": 1}
    if options.test is not None:
        values |= {
            "eval_strategy": "epoch", "eval_on_start": True, "load_best_model_at_end": True,
            "metric_for_best_model": "eval_reward", "greater_is_better": True,
        }  # fmt: skip
    return {name: Given(value, f"option --{name.replace('_', '-')}") for name, value in values.items()}


def configured(given: dict[str, Given], out: Path) -> Any:
    """The trainer's configuration.

    Raises:
        GradAlignError: TRL refuses a value, or ours does; names the field.
    """
    from gradalign.trainers.trl.config import GradAlignConfig

    try:
        return GradAlignConfig(str(out), **{name: one.value for name, one in given.items()})
    except (ValueError, TypeError, AssertionError, argparse.ArgumentTypeError) as error:
        message = " ".join(str(error).split())
        places = {name: found.start() for name in given if (found := re.search(rf"\b{name}\b", message))}
        files = [one.where.split(": field ")[0] for one in given.values() if ": field " in one.where]
        where = ": ".join([*files[:1], "the trainer's options"])
        valued = [one for one in given.values() if isinstance(one.value, str) and repr(one.value) in message]
        valued += [one for one in given.values() if isinstance(one.value, str) and f"{one.value} " in f"{message} "]
        if places:
            where = given[min(places, key=places.__getitem__)].where
        elif valued:
            where = valued[0].where
        raise GradAlignError(f"{where}: {message}") from error
