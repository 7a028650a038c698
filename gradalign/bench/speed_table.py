"""What `gradalign bench speed` measured, summed up and as a table."""

from __future__ import annotations

from statistics import median
from typing import Any

from gradalign.bench.measures import relative_rms_error
from gradalign.bench.results import markdown_table, provenance, text_of
from gradalign.bench.speed_arms import ARMS, BASELINE

NOTES = """\
- seconds a group: median (least to most) over the repeats, in which the arms took turns on the same groups.
- tokens/s: of the response tokens and of each prompt once.
- peak: memory above what was held before (weights and direction), the most of any repeat.
- operations: counted from the shapes, a group; rate: these over the median time; of product: that rate over the rate
  of this machine's product of two square matrices, measured between the arms.
- speed-up: of the median over `plain`'s; promised: by the operations with weights (without attention's); kept: the one
  over the other.
- error: of the dots against `plain`'s, root mean square over root mean square."""


def finish_speed(data: dict[str, Any]) -> str:
    """Fill in ``summary``; gives the Markdown."""
    data["summary"] = {name: summary(record) for name, record in data["measured"].items()}
    parts = []
    for name, record in data["measured"].items():
        parts += [f"## {name}", _text(record, data["summary"][name])]
    arms = "\n".join(f"- `{name}`: {ARMS[name].about}." for name in data["options"]["arms"])
    return "\n\n".join([*parts, "## How to read this", f"{arms}\n{NOTES}", provenance(data)])


def summary(record: dict[str, Any]) -> dict[str, Any]:
    """A workload's numbers by arm, and the machine's own rate; what was not measured is None."""
    product = record["product"]
    rate = 2 * product["width"] ** 3 / median(product["seconds"]) if product["seconds"] else None
    return {
        "product_rate": rate,
        "arms": {arm: _arm(record, arm, rate) for arm, own in record["arms"].items() if own["seconds"]},
    }


def _arm(record: dict[str, Any], arm: str, product_rate: float | None) -> dict[str, float | None]:
    own, base = record["arms"][arm], record["arms"].get(BASELINE, {"seconds": []})
    operations = record["operations"][arm]
    total = operations["weights"] + operations["attention"]
    each = [seconds / record["groups"] for seconds in own["seconds"]]
    peaks = [one for one in own["peak_bytes"] if one is not None]
    found: dict[str, float | None] = {
        "seconds": median(each), "least": min(each), "most": max(each),
        "tokens_per_second": record["tokens"] / median(each),
        "peak_bytes": max(peaks) if peaks else None,
        "operations": total, "rate": total / median(each),
        "of_product": total / median(each) / product_rate if product_rate else None,
        "speed_up": None, "promised": None, "kept": None, "error": None,
    }  # fmt: skip
    if base["seconds"]:
        speed_up = median(base["seconds"]) / median(own["seconds"])
        promised = record["operations"][BASELINE]["weights"] / operations["weights"]
        found["speed_up"], found["promised"], found["kept"] = speed_up, promised, speed_up / promised
        found["error"] = relative_rms_error(own["dots"], base["dots"])
    return found


def _text(record: dict[str, Any], found: dict[str, Any]) -> str:
    lines = [
        f"{record['groups']} groups; prompt {record['prompt']} tokens, {record['rollouts']} rollouts of "
        f"{record['response']} tokens. Product of two matrices of width {record['product']['width']}: "
        f"{text_of(_over(found['product_rate'], 1e9), '.0f')} GFLOP/s."
    ]
    columns = [
        "arm", "s/group", "tokens/s", "peak MiB", "GFLOP", "GFLOP/s", "of product", "speed-up", "promised", "kept",
        "error",
    ]  # fmt: skip
    rows = []
    for arm, own in found["arms"].items():
        spread = f"{own['seconds']:.3g} ({own['least']:.3g} to {own['most']:.3g})"
        rows.append([
            arm, spread, f"{own['tokens_per_second']:.0f}", text_of(_over(own["peak_bytes"], 2**20), ".0f"),
            f"{own['operations'] / 1e9:.3g}", f"{own['rate'] / 1e9:.3g}", text_of(own["of_product"], ".0%"),
            text_of(own["speed_up"], ".2f"), text_of(own["promised"], ".2f"), text_of(own["kept"], ".0%"),
            text_of(own["error"], ".1e"),
        ])  # fmt: skip
    lines.append(markdown_table(columns, rows))
    lines += [f"`{arm}` is left out: {why}." for arm, why in record["left_out"].items()]
    return "\n\n".join(lines)


def _over(value: float | None, unit: float) -> float | None:
    return None if value is None else value / unit
