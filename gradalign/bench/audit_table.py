"""What `gradalign bench audit` measured, as a table."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradalign.bench.audit import EVIDENCE
from gradalign.bench.audit_beds import BEDS
from gradalign.bench.results import markdown_table, provenance

NOTES = """\
- Every number is the mean over seeds, plus or minus its standard error. Sound share: sound problems among those listed
  (0 where none is), which the audit promises to keep at the nominal rate in expectation. Found: spoilt problems that
  are listed, among those whose rewards vary.
- either: the problems whose verdict is reversed or uninformative. The rate is promised for each list, not for this.
- Evidence distinct: as though no two responses of a problem were equal, which is so of long ones; movements: that, and
  no log-probabilities; permutation: Benjamini and Hochberg on one-sided permutation p-values of a negative alignment,
  what the audit does not do."""


def finish_audit(data: dict[str, Any]) -> str:
    """The Markdown; the means also go into the data, under ``summary``."""
    seeds, options = data["measured"]["seeds"], data["options"]
    data["summary"] = {}
    parts = [
        f"{options['problems']} candidates, {options['spoilt']:.0%} of them spoilt, {options['validation']} validation "
        f"problems of which {_trusted(seeds)} have varied rewards; nominal rate {options['fdr']:.0%}; "
        f"{len(seeds)} seeds."
    ]
    for n in map(str, options["rollouts"]):
        rows = []
        for name in (*EVIDENCE, "permutation"):
            for bed in BEDS:
                for of in next(iter(seeds.values()))[n][name][bed]:
                    own = [seed[n][name][bed][of] for seed in seeds.values()]
                    shares = [one["sound"] / max(1, one["listed"]) for one in own]
                    found = [(one["listed"] - one["sound"]) / one["spoilt"] for one in own if one["spoilt"]]
                    listed = [float(one["listed"]) for one in own]
                    kept = data["summary"].setdefault(n, {}).setdefault(name, {}).setdefault(bed, {})
                    kept[of] = {
                        "sound_share": float(np.mean(shares)),
                        "found": float(np.mean(found)) if found else None,
                    }
                    rows.append([name, bed, of, f"{np.mean(listed):.1f}", _percent(shares), _percent(found)])
        columns = ["evidence", "bed", "list", "listed", "sound share", "found"]
        parts += [f"## {n} rollouts", markdown_table(columns, rows)]
    beds = "\n".join(f"- `{bed}`: {about}." for bed, (about, _) in BEDS.items())
    return "\n\n".join([*parts, "## How to read this", f"{beds}\n{NOTES}", provenance(data)])


def _trusted(seeds: dict[str, Any]) -> str:
    counts = [own["trusted"] for seed in seeds.values() for own in seed.values()]
    return f"{min(counts)} to {max(counts)}" if counts else "0"


def _percent(values: list[float]) -> str:
    if not values:
        return "-"
    error = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{np.mean(values):.1%} ± {error:.1%}"
