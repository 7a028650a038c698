"""From problems to groups: prompts to tokens, responses sampled, rewards given; kept batch by batch as they finish."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from gradalign.errors import GradAlignError, warn
from gradalign.files import writing
from gradalign.policy.group import Group
from gradalign.problems.schema import Problem, fingerprint
from gradalign.processes import ALONE, Processes
from gradalign.rollouts.sampler import Sampler, Tokens, in_batches
from gradalign.rollouts.table import gather, read_rollouts, to_rows, write_rollouts, writer_of
from gradalign.rows import Row


def collect(
    sampler: Sampler,
    problems: Sequence[Problem],
    out: Path,
    done: Callable[[int], None] = lambda rollouts: None,
    begun: Callable[[], None] = lambda: None,
) -> list[Group]:
    """Sample and reward every problem's responses into the table ``out``; go on where an interrupted call stopped.

    Finished batches are kept in ``out``.part until the last one is in. With the same arguments the table is the same,
    interrupted or not.

    Args:
        sampler: samples and pays.
        problems: distinct keys.
        out: ``.parquet`` or ``.jsonl``.
        done: called with the number of rollouts of each batch as it is in.
        begun: called when ``out``.part is this process's, and this run's.

    Raises:
        GradAlignError: a prompt that leaves no room for a response; a reward that fails; ``out``.part is another
            run's; the place cannot be written to.
    """
    writer_of(out)
    keys = [problem.key for problem in problems]
    if out.exists():
        groups = read_rollouts(out, on_bad_row="mark")
        if [(g.key, len(g.rollouts)) for g in groups] != [(key, sampler.rollouts) for key in keys]:
            raise GradAlignError(f"{out}: does not hold this run's problems and rollouts; delete it to sample again")
        done(len(keys) * sampler.rollouts)
        return groups
    prompts = sampler.prompts(problems)
    batches = sampler.batches(prompts)
    part = out.with_name(out.name + ".part")
    with _alone(part):
        expected = [[keys[i] for i in batch for _ in range(sampler.rollouts)] for batch in batches]
        asked = {"problems": fingerprint(problems), "prompts": _hash(prompts)}
        kept = _kept(part, {**sampler.identity, **asked}, expected)
        begun()
        for rows in kept.values():
            done(len(rows))
        missing = [number for number in range(len(batches)) if number not in kept]
        work = [[(problems[i], prompts[i]) for i in batches[number]] for number in missing]
        for place, groups in in_batches(sampler, work):
            number = missing[place]
            kept[number] = [row for group in groups for row in to_rows(group)]
            with writing(part), part.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"batch": number, "rows": kept[number]}) + "\n")
            done(len(kept[number]))
        rows = [row for number in range(len(batches)) for row in kept[number]]
        by_key = {group.key: group for group in gather(enumerate(rows, 1), part, on_bad_row="mark")}
        ordered = [by_key[key] for key in keys]
        write_rollouts(out, ordered)
        part.unlink()
    return ordered


def collect_shared(
    sampler: Sampler,
    problems: Sequence[Problem],
    out: Path,
    done: Callable[[int], None] = lambda rollouts: None,
    processes: Processes = ALONE,
) -> list[Group]:
    """`collect` by several processes: each samples its share, all get all groups, the first writes ``out``.

    Raises:
        GradAlignError: see `collect`; in every process where it happens in one.
    """
    if processes.count == 1:
        return collect(sampler, problems, out, done)
    found = processes.together(lambda: collect(sampler, problems, out) if processes.first and out.exists() else None)
    if found[0] is not None:
        return found[0]
    share = out.with_name(f"{out.stem}.{processes.rank}-of-{processes.count}{out.suffix}")
    if sampler.lockstep:  # leftovers of the processes may differ
        for path in (share, share.with_name(share.name + ".part")):
            path.unlink(missing_ok=True)
    mine = shared_out(problems, sampler, processes)
    shares = processes.together(lambda: collect(sampler, mine, share, done) if mine else [])
    groups = joined(shares, len(problems), processes)
    processes.together(lambda: write_rollouts(out, groups) if processes.first else None)
    share.unlink(missing_ok=True)
    return groups


def shared_out(problems: Sequence[Problem], sampler: Sampler, processes: Processes) -> list[Problem]:
    """This process's share of the problems; shares of equal length where the sampler works in lockstep."""
    mine = list(processes.mine(problems))
    if sampler.lockstep:
        mine += problems[: -(-len(problems) // processes.count) - len(mine)]
    return mine


def joined(shares: Sequence[Sequence[Group]], count: int, processes: Processes) -> list[Group]:
    """The groups of ``count`` problems from the processes' shares, in the problems' order."""
    return processes.joined([own[: len(range(rank, count, processes.count))] for rank, own in enumerate(shares)])


@contextlib.contextmanager
def _alone(part: Path) -> Iterator[None]:
    """Hold ``part`` for this process."""
    lock = part.with_name(f".{part.name}.lock")
    with writing(part):
        part.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(lock)
        try:
            held.acquire(timeout=0)
        except Timeout as error:
            raise GradAlignError(f"{part}: another process is at work on it; wait, or name another place") from error
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        held.release()


def _hash(prompts: Sequence[Tokens]) -> str:
    """Of what the policy is asked, in its own tokens."""
    told = hashlib.sha256()
    for prompt in prompts:
        told.update(len(prompt).to_bytes(8, "little") + prompt.tobytes())
    return told.hexdigest()[:16]


def _kept(part: Path, settings: dict[str, Any], expected: list[list[str]]) -> dict[int, list[Row]]:
    """Batches by number that an interrupted run left in ``part``, up to the first torn or foreign line, which is cut
    off; they need not be in order.

    Starts the file where there is none, or where no batch was finished. ``expected``: the keys of each batch's rows.
    """
    lines = part.read_bytes().splitlines(keepends=True) if part.exists() else []
    header = json.dumps(settings).encode() + b"\n"
    ours = not lines or header.startswith(lines[0]) or _decoded(lines[0]).keys() == settings.keys()
    if not ours:
        raise GradAlignError(f"{part}: is in the way and no leftover of this program; move it")
    if lines[1:] and lines[0] != header:
        found = _decoded(lines[0])
        differ = ", ".join(name for name in settings if found.get(name) != settings[name])
        raise GradAlignError(
            f"{part}: holds an unfinished run (it differs in: {differ}); finish that one, delete the file, or name "
            "another place"
        )
    kept: dict[int, list[Row]] = {}
    for line in lines[1:]:
        found = _decoded(line) if line.endswith(b"\n") else {}
        number: Any = found.get("batch")
        rows: Any = found.get("rows")
        fits = type(number) is int and 0 <= number < len(expected) and number not in kept and isinstance(rows, list)
        if not fits or [_key(row) for row in rows] != expected[number]:
            if line.endswith(b"\n"):
                warn(f"{part}: its line {len(kept) + 2} is damaged; sampling goes on from there")
            break
        kept[number] = rows
    with writing(part):
        if kept:  # cut in place: a kill here must not cost what was finished
            os.truncate(part, sum(map(len, lines[: 1 + len(kept)])))
        else:
            part.write_bytes(header)
    return kept


def _key(row: Any) -> Any:
    return row.get("key") if isinstance(row, dict) else None


def _decoded(line: bytes) -> dict[str, Any]:
    """A line's JSON object; empty where it is none."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
