"""``gradalign score``: rollouts in, alignment table out."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pydantic import model_validator

from gradalign.alignment.align import score, silent
from gradalign.alignment.direction import Direction
from gradalign.alignment.engines import check_cut
from gradalign.alignment.saved import is_direction, load_direction, origin_of, save_direction
from gradalign.alignment.scored import Scored
from gradalign.alignment.table import is_alignments, write_alignments
from gradalign.cli.executor_options import AtWork, ExecutorOptions
from gradalign.cli.options import ScoringOptions, SelectionOptions, distinct
from gradalign.config import parse, resolved
from gradalign.curriculum.folder import claim
from gradalign.errors import GradAlignError, GradAlignWarning, warn
from gradalign.files import check_writable, write_json
from gradalign.policy.group import Group
from gradalign.policy.load import Policy
from gradalign.policy.shards import leads, leave
from gradalign.processes import ALONE
from gradalign.report.console import alignment_tables, progress_bars, show, show_scoring, times
from gradalign.rollouts.references import read_references
from gradalign.rollouts.table import Limits, OnBadRow, read_rollouts
from gradalign.selection import Strategy, check_rollouts, choose


class ScoreOptions(SelectionOptions, ScoringOptions, ExecutorOptions):
    """Align candidate rollouts with the validation set's policy gradient, and rank the problems."""

    candidates: Path
    """Rollouts of the candidate problems, .parquet or .jsonl: key, prompt_ids, response_ids, reward."""
    validation: Path | None = None
    """Rollouts of the trusted validation set, in the same form; this or --direction."""
    references: Path | None = None
    """Trusted responses to validation problems, in the same form (rewards are not looked at): moving along the
    direction makes them likelier, too."""
    direction: Path | None = None
    """Direction that an earlier run saved, to take instead of the validation set's."""
    save_direction: Path | None = None
    """Keep the validation set's direction in this file (.safetensors), for later runs' --direction."""
    out: Path
    """Alignment table to write (.parquet); its configuration lands beside it."""
    shard: bool = False
    """Cut the policy and the direction over the processes of torchrun, for policies larger than one device:
    `torchrun --nproc-per-node N -m gradalign score ... --shard`; engines exact and directional."""
    on_bad_row: OnBadRow = "stop"
    """A row that cannot be scored stops the run, or marks its problem no_tokens or failed."""

    @model_validator(mode="after")
    def _one_direction(self) -> ScoreOptions:
        if self.shard and self.executor != "local":
            raise ValueError(f"--shard and --executor {self.executor} exclude each other; leave one out")
        alone = self.references is not None and self.reference_weight == 1
        if self.reference_weight is not None and self.references is None:
            raise ValueError("--reference-weight is of --references; give the trusted responses, or leave it out")
        if alone and self.validation is not None:
            raise ValueError("--reference-weight 1 follows --references alone; leave --validation out, or lower it")
        if self.references is not None and self.validation is None and not alone and self.direction is None:
            raise ValueError(
                "option --validation is missing: rollouts of the trusted validation set; or follow --references alone, "
                "by --reference-weight 1"
            )
        if self.validation is None and self.direction is None and not alone:
            raise ValueError(
                "option --validation is missing: rollouts of the trusted validation set; or give --direction, a file "
                "that an earlier run saved"
            )
        names = ("validation", "references", "targets", "save_direction", "unit")
        making = [f"--{n.replace('_', '-')}" for n in names if getattr(self, n)]
        if self.direction is not None and making:
            raise ValueError(f"--direction and {making[0]} exclude each other; give one of them")
        return self


def run(arguments: Sequence[str]) -> None:
    """Run the command."""
    options = parse(ScoreOptions, "score", arguments)
    strategy = options.chosen_strategy(options.engine, options.contributions)
    if options.out.suffix != ".parquet":
        raise GradAlignError(f"option --out: {options.out}: the alignment table is Parquet; name it .parquet")
    given = (options.candidates, options.validation, options.references, options.direction)
    read = [path for path in given if path is not None]
    distinct("out", options.out, *read)
    config = options.out.with_suffix(".config.json")
    first = leads() or not options.shard
    if first:
        _check_out(options, config, read)
    else:
        warnings.simplefilter("ignore", GradAlignWarning)  # the first process speaks
    if options.shard:
        check_cut(options.engine, options.offload, ALONE)
    with options.at_work(options.parameters, options.shard) as work:
        scored = _scored(options, work, strategy, first)
        if first:
            _write(options, config, work.policy, strategy, scored)


def _scored(options: ScoreOptions, work: AtWork, strategy: Strategy, first: bool) -> Scored:
    """Read and score; the direction is saved, too."""
    policy = work.policy
    limits = Limits.of(policy)
    candidates = read_rollouts(options.candidates, limits, options.on_bad_row)
    validation: list[Group] = []
    references: list[Group] = []
    direction: Direction | None = None
    if options.validation is not None:
        validation = read_rollouts(options.validation, limits, options.on_bad_row)
    if options.references is not None:
        references = read_references(options.references, limits, options.on_bad_row)
    if options.direction is not None:
        direction = load_direction(options.direction, policy, options.objective)
        _warn_if_stale(options.direction, policy)
    compare(policy, candidates, validation, references)
    check_rollouts(strategy, max((len(group.rollouts) for group in candidates), default=0))
    with progress_bars() if first else contextlib.nullcontext(silent) as progress:
        scored = score(
            policy, candidates, validation, options.objective, options.engine, options.batch_tokens,
            options.contributions, options.unit, options.seed, progress, direction, options.difference,
            options.offload, options.sketching, strategy.needs, references, options.weighed, options.reference_share,
            work.scorer,
        )  # fmt: skip
    if options.save_direction is not None:
        save_direction(options.save_direction, policy, options.objective, scored.direction)
    if options.shard:
        leave()
    return scored


def _write(options: ScoreOptions, config: Path, policy: Policy, strategy: Strategy, scored: Scored) -> None:
    """Choose, write, show."""
    choose(scored.alignments, strategy, options.size, options.seed)
    write_alignments(options.out, scored.alignments)
    facts = {
        "strategy": strategy.name,
        "policy": policy.fingerprint,
        "covered": policy.covered,
        "direction": scored.direction.facts(),
        "sketch": scored.sketched and asdict(scored.sketched),
        "seconds": scored.seconds,
    }
    write_json(config, resolved("score", options, **facts))

    show_scoring(scored)
    if policy.covered < 1:
        show(f"covered: {policy.covered:.1%} of the trainable parameters, as asked for by --parameters")
    show(f"engine {options.engine}, strategy {strategy.name}: {times(scored.seconds)}")
    for made in alignment_tables(scored.alignments, {}):
        show(made)
    saved = "" if options.save_direction is None else f", and the direction to {options.save_direction}"
    show(f"wrote {options.out} and {config}{saved}")


def _check_out(options: ScoreOptions, config: Path, read: Sequence[Path]) -> None:
    """Refuse places for the results that are none."""
    claim(config, "score", options.out)
    if options.out.exists() and not is_alignments(options.out):
        raise GradAlignError(f"option --out: {options.out} exists and is no alignment table; name another file")
    check_writable(options.out)
    if options.save_direction is not None:
        _check_place(options.save_direction, [*read, config])


def _check_place(path: Path, others: Sequence[Path]) -> None:
    """Refuse a place for the direction that is not one."""
    if path.suffix != ".safetensors":
        raise GradAlignError(f"option --save-direction: {path}: a direction is safetensors; name it .safetensors")
    distinct("save-direction", path, *others)
    if path.exists() and not is_direction(path):
        raise GradAlignError(f"option --save-direction: {path} exists and is no direction; name another file")
    check_writable(path)


def _warn_if_stale(path: Path, policy: Policy) -> None:
    origin = origin_of(path)
    if origin != policy.fingerprint:
        warn(
            f"{path}: the direction was taken at other weights ({origin}; these are {policy.fingerprint}): a stale "
            "direction may point elsewhere by now; take it again with --validation (the same weights in another "
            "--dtype count as others)"
        )


def compare(
    policy: Policy, candidates: Sequence[Group], validation: Sequence[Group], references: Sequence[Group] = ()
) -> None:
    """Warn of rollouts of another policy, and of validation problems among the candidates."""
    others = {g.policy for g in [*candidates, *validation] if g.policy is not None} - {policy.fingerprint}
    if others:
        warn(
            f"some rollouts were sampled by another policy ({', '.join(sorted(others))}; this one is "
            f"{policy.fingerprint}): scores of stale rollouts are biased; sample again with `gradalign rollout` "
            "(the same weights in another --dtype count as another policy)"
        )
    held = {group.prompt_ids.tobytes() for group in [*validation, *references]}
    shared = [group.key for group in candidates if group.prompt_ids.tobytes() in held]
    if shared:
        warn(
            f"{len(shared)} candidates have the prompt of a validation problem (first: {shared[0]!r}): never train on "
            "the validation set; leave them out"
        )
