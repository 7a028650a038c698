"""``gradalign bench regimes``: train with TRL on what every strategy chooses, under three kinds of bad data.

A run is one bed, arm and seed: rounds of choosing and training (`gradalign.bench.regime_beds`, `regime_arms`),
evaluated on the test set before training and after every round. All arms of a bed and seed have the same problems,
coins and settings. Rollouts are counted in full: those sampled to choose (candidates and validation set) and those
trained on, less the ones that served both. ``random`` trains longer, until it has spent as many rollouts as the others,
so that it can be compared at equal steps and at equal rollouts.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from filelock import FileLock, Timeout

from gradalign.bench.regime_arms import ARMS, HEADLINE, ORACLE
from gradalign.bench.regime_beds import BEDS, REWARD, SHARES, Bed, Rates, Sizes
from gradalign.bench.regime_evaluations import Evaluations
from gradalign.bench.regime_rows import Rows
from gradalign.errors import GradAlignError
from gradalign.policy.load import Policy, load_policy
from gradalign.problems.schema import Problem
from gradalign.rollouts.sample import Sampling
from gradalign.rollouts.sampler import PolicySampler, sampled
from gradalign.trainers.trl.config import GradAlignConfig
from gradalign.trainers.trl.run import TrainJob

COLLAPSE = 0.5
"""Of the accuracy before training: a run that ends below this share of it has collapsed."""


@dataclass(frozen=True)
class Setting:
    """Sizes and rates that all arms share.

    Attributes:
        sizes: of the beds; ``share`` is the share of the pool that ought to be chosen.
        rounds: of choosing and training.
        steps: optimiser steps in a round.
        chunk: candidates in a round.
        top: problems chosen of them.
        rollouts: responses for each candidate, and for each problem of a training batch.
        validation_rollouts: responses for each validation problem.
        test_rollouts: responses for each test problem.
        batch: responses in a training step.
        learning_rate: constant.
    """

    sizes: Sizes
    rounds: int = 8
    steps: int = 12
    chunk: int = 192
    top: int = 32
    rollouts: int = 16
    validation_rollouts: int = 32
    test_rollouts: int = 16
    batch: int = 256
    learning_rate: float = 2e-5

    def rounds_of(self, arm: str) -> int:
        """Rounds of an arm: ``random`` has as many more as the others' probes would buy, up to three times as many."""
        if arm != "random":
            return self.rounds
        trained = self.steps * self.batch
        probes = self.chunk * self.rollouts + self.sizes.validation * self.validation_rollouts
        return min(3 * self.rounds, math.ceil(self.rounds * (1 + probes / trained)))


@dataclass(frozen=True)
class RegimesPlan:
    """What is run.

    Attributes:
        bed: name in `BEDS`.
        arms: names in `ARMS`.
        seeds: of the headline arms; the first ``fewer`` of them are the other arms'.
        fewer: see ``seeds``.
        setting: what all share.
    """

    bed: str
    arms: Sequence[str]
    seeds: Sequence[int]
    fewer: int
    setting: Setting

    @property
    def runs(self) -> list[tuple[str, int]]:
        """(arm, seed) of every run, seed by seed, so that partial tables compare the same seeds."""
        return [
            (arm, seed)
            for place, seed in enumerate(self.seeds)
            for arm in self.arms
            if arm in HEADLINE or place < self.fewer
        ]


@dataclass(frozen=True)
class Subject:
    """Whom the regimes are tried on.

    Attributes:
        load: gives the policy before training.
        beds: name -> the regime it is of, and what makes it.
        settings: fields of `GradAlignConfig` of its own.
        lora: arguments of `peft.LoraConfig`; None trains all parameters.
        equal_rollouts: `random` trains on until it has spent as many rollouts as the others.
        own_tests: the test set is answered by the package's own sampler instead of TRL's evaluation, which takes each
            prompt once for every response and computes a loss besides.
    """

    load: Callable[[], Policy]
    beds: Mapping[str, tuple[str, Callable[[Sizes, int, Rates], Bed]]]
    settings: Mapping[str, Any]
    lora: dict[str, Any] | None = None
    equal_rollouts: bool = True
    own_tests: bool = False


EMBEDDED = Subject(lambda: load_policy("embedded", device="cpu"), BEDS, {"max_completion_length": 16})


def measure_regimes(plan: RegimesPlan, rows: Rows, tell: Callable[[str], None], subject: Subject = EMBEDDED) -> None:
    """Run what ``rows`` lacks; several processes may share the work.

    Args:
        plan: what is run.
        rows: where it is kept.
        tell: gets a line for every run.
        subject: whom on.

    Raises:
        GradAlignError: training fails.
    """
    spent: list[float] = []
    for arm, seed in plan.runs:
        claim = FileLock(rows.claims / f"{plan.bed}-{arm}-{seed}.lock", timeout=0)
        try:
            with claim:
                if rows.has(arm, seed):
                    continue
                start = time.perf_counter()
                row = run(plan.bed, arm, seed, plan.setting, subject)
                spent.append(time.perf_counter() - start)
                rows.keep({**row, "seconds": round(spent[-1], 1)})
        except Timeout:
            continue  # another process is at it
        left = len(rows.missing(plan.runs))
        tell(
            f"{plan.bed} {arm} seed {seed}: {row['accuracy'][0]:.3f} -> {row['final_accuracy']:.3f}, share "
            f"{mean(row['chosen_share']):.2f}; {left} runs left, about {left * mean(spent) / 60:.0f} min of one process"
        )
    if left := len(rows.missing(plan.runs)):
        tell(f"{left} runs are with other processes; should one of those have been stopped, run the same command again")


def run(bed_name: str, arm: str, seed: int, setting: Setting, subject: Subject = EMBEDDED) -> dict[str, Any]:
    """One run, as a row of the results."""
    regime, make = subject.beds[bed_name]
    bed = make(setting.sizes, seed, _rates)
    check_bed(bed, setting)
    with tempfile.TemporaryDirectory() as folder:
        args = _args(arm, seed, setting, bed, Path(folder), subject)
        test = [] if subject.own_tests else bed.test
        job = TrainJob(subject.load(), bed.reward, args, bed.pool, bed.validation, test)
        trainer = job.make(subject.lora)
        if subject.own_tests:
            new, side = args.max_completion_length or 16, args.per_device_eval_batch_size
            sampling = Sampling(setting.test_rollouts, new, args.temperature, seed=seed, batch_rollouts=side)
            trainer.add_callback(Evaluations(trainer, bed, sampling))
        job.train(trainer, lambda line: None)
        curriculum = trainer.curriculum
        assert curriculum is not None
        spent = _spent(trainer.state.log_history, setting)
    accuracy = {h["step"]: h["eval_reward"] for h in trainer.state.log_history if "eval_reward" in h}
    steps = sorted(accuracy)
    found = [accuracy[step] for step in steps]
    told = SHARES[regime][0]
    shares = [mean(key in bed.good for key in keys) for keys in curriculum.state.history]
    equal = found[: setting.rounds + 1]
    return {
        "regime": regime, "bed": bed_name, "arm": arm, "seed": seed,
        "final_accuracy": mean(equal[-2:]), "best_accuracy": max(equal), "area": mean(equal[1:]),
        "chosen_share": [1 - share if told == "corrupted" else share for share in shares],
        "steps": steps[len(equal) - 1], "rollouts": spent[min(len(equal), len(spent)) - 1],
        "accuracy": found, "steps_at": steps, "rollouts_at": spent[: len(found)],
        "collapsed": equal[-1] < COLLAPSE * equal[0],
    }  # fmt: skip


def check_bed(bed: Bed, setting: Setting) -> None:
    """Refuse a bed that does not hold what the setting asks for.

    Raises:
        GradAlignError: it has too few problems of some kind, or an impossible share.
    """
    sizes = setting.sizes
    held = {"pool": (bed.pool, sizes.pool), "validation": (bed.validation, sizes.validation)}
    for name, (problems, wanted) in {**held, "test": (bed.test, sizes.test)}.items():
        if len(problems) < wanted:
            raise GradAlignError(f"option --{name}: the bed has {len(problems)} problems of that kind, not {wanted}")
    if not 0 < len(bed.good) < len(bed.pool):
        raise GradAlignError(
            f"option --share: {sizes.share:g} of {sizes.pool} problems leaves {len(bed.good)} good ones; some, and not "
            "all, must be"
        )


def _args(arm: str, seed: int, setting: Setting, bed: Bed, folder: Path, subject: Subject) -> GradAlignConfig:
    own = dict(ARMS[arm])
    rounds = setting.rounds_of(arm) if subject.equal_rollouts else setting.rounds
    if arm == ORACLE:
        listed = folder / "good.txt"
        listed.write_text("\n".join(sorted(bed.good)) + "\n", encoding="utf-8")
        own["gates"] = [f"oracle(keys={str(listed)!r})"]
    if "budget" in own:
        own["budget"] = own["budget"].format(quarter=max(2, setting.rollouts // 4), half=max(2, setting.rollouts // 2))
    if own.get("mode") != "batch":
        whole = own["strategy"] == "static"  # chooses once, for all rounds
        own |= {
            "chunk": setting.chunk, "top": min(len(bed.pool), setting.top * (setting.rounds if whole else 1)),
            "rollouts": setting.rollouts * (2 if "budget" in own else 1),
        }  # fmt: skip
    size = subject.settings.get("per_device_train_batch_size", setting.batch)
    usual = {
        "per_device_train_batch_size": size, "gradient_accumulation_steps": setting.batch // size,
        "per_device_eval_batch_size": 1024, "use_cpu": True, "eval_on_start": not subject.own_tests,
        "eval_strategy": "no" if subject.own_tests else "epoch",
    }  # fmt: skip
    return GradAlignConfig(
        str(folder / "run"), **own, **{**usual, **subject.settings}, seed=seed, steps_per_round=setting.steps,
        max_steps=rounds * setting.steps,
        validation_rollouts=setting.validation_rollouts, noise_patience=0,
        num_generations=setting.rollouts,
        learning_rate=setting.learning_rate, lr_scheduler_type="constant", scale_rewards="none",
        gradient_checkpointing=False,
        num_generations_eval=setting.test_rollouts, save_strategy="no", logging_steps=setting.steps,
        report_to="none", disable_tqdm=True,
    )  # fmt: skip


def _spent(history: list[dict[str, Any]], setting: Setting) -> list[int]:
    """Rollouts spent at every evaluation, from the trainer's log."""
    found, probes, reused = [], 0.0, 0.0
    for entry in history:
        probes = entry.get("gradalign/rollouts_total", probes)
        reused = entry.get("gradalign/rollouts_reused_total", reused)
        if "eval_reward" in entry:
            found.append(round(entry["step"] * setting.batch + probes - reused))
    return found


def _rates(problems: Sequence[Problem]) -> list[float]:
    """Pass rates under the embedded policy, of 16 responses each, those of 0 and 1 left out."""
    policy = EMBEDDED.load()
    groups = sampled(PolicySampler(policy, REWARD, Sampling(16, max_new_tokens=16, seed=0)), problems)
    return [rate for group in groups if 0 < (rate := float(group.rewards.mean())) < 1] or [0.5]


def identity(setting: Setting) -> dict[str, Any]:
    """The setting as JSON values."""
    return json.loads(json.dumps(asdict(setting)))
