"""``gradalign audit``: rollouts in, the problems whose reward is suspect out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from gradalign.alignment.align import Scorer
from gradalign.alignment.crossfit import crossfit
from gradalign.alignment.direction import warn_of_noise
from gradalign.alignment.engines import EngineName, provides
from gradalign.alignment.record import Alignment
from gradalign.cli.options import PolicyOptions, ScoringOptions
from gradalign.cli.problem_options import FieldOptions
from gradalign.cli.score import compare
from gradalign.config import parse, resolved
from gradalign.curriculum.folder import CONFIG, claim
from gradalign.errors import GradAlignError, warn
from gradalign.files import check_writable, write_json
from gradalign.policy.group import Group
from gradalign.policy.load import Policy
from gradalign.problems.schema import Problem, prompt_text
from gradalign.report.audit import Evidenced, check_own, write_csv, write_html
from gradalign.report.console import progress_bars, show, show_scoring, table, times
from gradalign.rollouts.table import Limits, OnBadRow, read_rollouts
from gradalign.selection.audit import Audit, Finding, audit


class AuditOptions(FieldOptions, ScoringOptions, PolicyOptions):
    """List the problems whose reward is suspect, by comparison with validation problems, at a false-discovery rate."""

    candidates: Path
    """Rollouts of the problems to audit, .parquet or .jsonl: key, prompt_ids, response_ids, reward."""
    validation: Path
    """Rollouts of the trusted validation set, in the same form; sampled in the same way, and of like difficulty."""
    pool: str | None = None
    """The problems themselves, for their texts and answers: a pool as `gradalign select` takes it
    (default: texts from the prompts' tokens, no answers)."""
    fdr: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Expected share of sound problems on each list, at most."""
    out: Path
    """Folder to write audit.csv and audit.html to."""
    engine: EngineName = "directional"
    """directional, or reference; exact or sketch with --contributions: see gradalign score --help."""
    seed: int = 0
    """Seed of the validation set's folds and halves, and of the rewards dealt at random."""
    on_bad_row: OnBadRow = "stop"
    """A row that cannot be scored stops the run, or leaves its problem out (untestable)."""


def run(arguments: Sequence[str]) -> None:
    """Run the command."""
    options = parse(AuditOptions, "audit", arguments)
    if "moves" not in provides(options.engine, options.contributions):
        raise GradAlignError(
            f"option --engine: {options.engine} alone does not see single rollouts, which an audit needs; add "
            "--contributions, or take --engine directional"
        )
    out = options.out
    if out.exists() and not out.is_dir():
        raise GradAlignError(f"option --out: {out} is a file; name a folder")
    files = out / "audit.csv", out / "audit.html"
    claim(out / CONFIG, "audit", out)
    check_own(*files)
    check_writable(files[0])
    pool = {problem.key: problem for problem in options.read_plain(options.pool)} if options.pool else {}
    policy = options.policy(options.parameters)
    candidates, validation = (
        read_rollouts(path, Limits.of(policy), options.on_bad_row) for path in (options.candidates, options.validation)
    )
    compare(policy, candidates, validation)
    _check_pool(options.pool, pool, candidates)
    scorer = Scorer(
        policy, options.objective, options.engine, options.batch_tokens, options.contributions, options.unit,
        options.seed, difference=options.difference, offload=options.offload, sketching=options.sketching,
        targets=options.weighed,
    )  # fmt: skip
    with progress_bars() as progress:
        direction = scorer.direction(validation, progress)
        warn_of_noise(direction)
        scored = scorer.measure(candidates, direction, progress)
        folds = crossfit(scorer, validation, progress=progress)
    found = audit(scored.alignments, folds, options.fdr, options.seed)
    decode = _decoder(policy)
    rows = [
        _evidenced(decode, alignment, finding, group, pool.get(group.key))
        for alignment, finding, group in zip(scored.alignments, found.findings, candidates, strict=True)
    ]
    notes = _notes(found)
    write_csv(files[0], rows)
    write_html(files[1], rows, found, notes)
    facts = {"policy": policy.fingerprint, "direction": direction.facts(), "seconds": scored.seconds}
    own = {"trusted": found.trusted, "smallest_p": found.smallest_p, "verdicts": found.counts}
    write_json(out / CONFIG, resolved("audit", options, **facts, **own))

    show_scoring(scored)
    show(f"engine {options.engine}: {times(scored.seconds)}")
    show(table("verdicts", ["verdict", "problems"], [*found.counts.items(), ("all", len(rows))]))
    for note in notes:
        show(note)
    show(f"wrote {files[0]}, {files[1]} and {out / CONFIG}")


def _check_pool(spec: str | None, pool: dict[str, Problem], candidates: Sequence[Group]) -> None:
    missing = [group.key for group in candidates if group.key not in pool]
    if spec is None or not missing:
        return
    if len(missing) == len(candidates):
        raise GradAlignError(
            f"option --pool: {spec}: none of its problems has the key of a candidate (first: {missing[0]!r}); name the "
            "pool that the rollouts were sampled from"
        )
    warn(f"{spec}: lacks {len(missing)} of the candidates (first: {missing[0]!r}), whose answers are left out")


Decode = Callable[[Sequence[int]], str]


def _decoder(policy: Policy) -> Decode:
    """From token ids to text; to the ids themselves where there is no tokenizer."""
    try:
        policy.decode([])
    except GradAlignError:
        return lambda ids: " ".join(map(str, ids))
    return policy.decode


def _evidenced(
    decode: Decode, alignment: Alignment, finding: Finding, group: Group, problem: Problem | None
) -> Evidenced:
    """A problem with its text, its answer, a typical rewarded and a typical unrewarded response."""
    text = decode(group.prompt_ids.tolist()) if problem is None else prompt_text(problem.prompt)
    answer = None if problem is None else problem.answer
    if group.invalid is not None:
        return Evidenced(alignment, finding, text, answer, None, None)
    rewards = group.rewards
    paid = rewards > (rewards.mean() if rewards.min() < rewards.max() else 0)
    return Evidenced(alignment, finding, text, answer, _typical(decode, group, paid), _typical(decode, group, ~paid))


def _typical(decode: Decode, group: Group, among: NDArray[np.bool_]) -> str | None:
    """The most frequent of some responses."""
    owner = group.distinct()[1]
    if not among.any():
        return None
    first = int(np.flatnonzero(owner == np.bincount(owner[among]).argmax())[0])
    rollout = group.rollouts[first]
    return decode(rollout.response_ids.tolist()) if rollout.response is None else rollout.response


def _notes(found: Audit) -> list[str]:
    """How to read the lists."""
    tenth = max(1, found.tested // 10)
    likelihood = (
        "and how likely the policy finds them" if found.likelihood else "no log-probabilities (some rows lack them)"
    )
    return [
        f"At most {found.fdr:.0%} of each list are expected to be sound problems. Assumed: sound candidates are like "
        "the validation problems (same mixture of difficulty, sampled in the same way). The lists are of suspects: "
        "look at them. A wrong gold answer that the policy itself finds likely is hardly ever seen.",
        f"Compared with {found.trusted} validation problems: the smallest possible p is {found.smallest_p:.2g}, so a "
        f"list holds at least {found.fewest} of the {found.tested} testable problems, or none. For lists as short as "
        f"{tenth}, {found.needed(tenth)} validation problems with varied rewards are needed; for a single suspect, "
        f"{found.needed(1)}.",
        f"Evidence: movements along the validation direction, which responses are equal, {likelihood}.",
    ]
