"""``gradalign score``: rollouts in, alignment table out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gradalign.alignment.align import score
from gradalign.alignment.table import is_alignments, write_alignments
from gradalign.cli.options import PolicyOptions, ScoringOptions, SelectionOptions, distinct
from gradalign.config import parse, resolved
from gradalign.curriculum.folder import claim
from gradalign.errors import GradAlignError, warn
from gradalign.files import check_writable, write_json
from gradalign.policy.group import Group
from gradalign.policy.load import Policy
from gradalign.report.console import alignment_tables, progress_bars, show, show_scoring, times
from gradalign.rollouts.table import Limits, OnBadRow, read_rollouts
from gradalign.selection import choose, find_strategy


class ScoreOptions(SelectionOptions, ScoringOptions, PolicyOptions):
    """Align candidate rollouts with the validation set's policy gradient, and rank the problems."""

    candidates: Path
    """Rollouts of the candidate problems, .parquet or .jsonl: key, prompt_ids, response_ids, reward."""
    validation: Path
    """Rollouts of the trusted validation set, in the same form."""
    out: Path
    """Alignment table to write (.parquet); its configuration lands beside it."""
    on_bad_row: OnBadRow = "stop"
    """A row that cannot be scored stops the run, or marks its problem no_tokens or failed."""


def run(arguments: Sequence[str]) -> None:
    """Run the command."""
    options = parse(ScoreOptions, "score", arguments)
    strategy = find_strategy(options.strategy, options.engine, options.contributions)
    if options.out.suffix != ".parquet":
        raise GradAlignError(f"option --out: {options.out}: the alignment table is Parquet; name it .parquet")
    distinct("out", options.out, options.candidates, options.validation)
    config = options.out.with_suffix(".config.json")
    claim(config, "score", options.out)
    if options.out.exists() and not is_alignments(options.out):
        raise GradAlignError(f"option --out: {options.out} exists and is no alignment table; name another file")
    check_writable(options.out)
    policy = options.policy(options.parameters)
    limits = Limits.of(policy)
    candidates = read_rollouts(options.candidates, limits, options.on_bad_row)
    validation = read_rollouts(options.validation, limits, options.on_bad_row)
    _compare(policy, candidates, validation)
    with progress_bars() as progress:
        scored = score(
            policy, candidates, validation, options.objective, options.engine, options.batch_tokens,
            options.contributions, options.unit, options.seed, progress,
        )  # fmt: skip
    choose(scored.alignments, strategy, options.size, options.seed)
    write_alignments(options.out, scored.alignments)
    facts = {
        "strategy": strategy.name,
        "policy": policy.fingerprint,
        "covered": policy.covered,
        "direction": scored.direction.facts(),
        "seconds": scored.seconds,
    }
    write_json(config, resolved("score", options, **facts))

    show_scoring(scored)
    if policy.covered < 1:
        show(f"covered: {policy.covered:.1%} of the trainable parameters, as asked for by --parameters")
    show(f"engine {options.engine}, strategy {strategy.name}: {times(scored.seconds)}")
    for made in alignment_tables(scored.alignments, {}):
        show(made)
    show(f"wrote {options.out} and {config}")


def _compare(policy: Policy, candidates: Sequence[Group], validation: Sequence[Group]) -> None:
    """Warn of rollouts of another policy, and of validation problems among the candidates."""
    others = {g.policy for g in [*candidates, *validation] if g.policy is not None} - {policy.fingerprint}
    if others:
        warn(
            f"some rollouts were sampled by another policy ({', '.join(sorted(others))}; this one is "
            f"{policy.fingerprint}): scores of stale rollouts are biased; sample again with `gradalign rollout` "
            "(the same weights in another --dtype count as another policy)"
        )
    held = {group.prompt_ids.tobytes() for group in validation}
    shared = [group.key for group in candidates if group.prompt_ids.tobytes() in held]
    if shared:
        warn(
            f"{len(shared)} candidates have the prompt of a validation problem (first: {shared[0]!r}): never train on "
            "the validation set; leave them out"
        )
