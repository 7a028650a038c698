"""``gradalign audit`` and ``gradalign bench audit`` from the outside."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from gradalign.bench.audit import AuditPlan, _sampled
from gradalign.bench.audit_beds import spoil
from gradalign.policy.group import Group
from gradalign.policy.load import Policy
from gradalign.report.audit import COLUMNS
from gradalign.rollouts.table import read_rollouts, write_rollouts
from tests.conftest import Ran, make_groups

Run = Callable[..., Ran]
pytestmark = pytest.mark.filterwarnings("ignore::gradalign.errors.GradAlignWarning")
NASTY = '</script><b onclick="x">&amp; "quoted", \'so\'\nsecond line'


@pytest.fixture(scope="module")
def tables(embedded: Policy, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, set[str]]:
    """Candidates of which a quarter is paid by coin, validation, and the keys of the coins."""
    folder = tmp_path_factory.mktemp("audit")
    groups = _sampled(embedded, AuditPlan([100], 48, 48, [16], 0.25, 0.1, 4096), 100)
    candidates, which = spoil(groups[:48], "coins", 0.25, 0)
    write_rollouts(folder / "c.parquet", candidates)
    write_rollouts(folder / "v.parquet", groups[48:])
    return folder / "c.parquet", folder / "v.parquet", {g.key for g, bad in zip(candidates, which, strict=True) if bad}


def arguments(model: Any, files: tuple[Any, ...], out: Path, *more: Any) -> list[Any]:
    return [
        "audit", "--model", model, "--candidates", files[0], "--validation", files[1], "--out", out, "--device", "cpu",
        *more,
    ]  # fmt: skip


def read(out: Path) -> dict[str, dict[str, str]]:
    with (out / "audit.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(COLUMNS)
    return {row["key"]: row for row in rows}


class _Page(HTMLParser):
    """What a page is made of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_coins_are_listed_with_their_evidence(
    gradalign: Run, tables: tuple[Path, Path, set[str]], tmp_path: Path
) -> None:
    out = tmp_path / "D"
    pool = ["--pool", "embedded:mixed?size=96&seed=100", "--fdr", "0.2"]
    ran = gradalign(*arguments("embedded", tables, out, *pool))
    assert ran.status == 0, ran.err
    rows = read(out)
    groups = {group.key: group for group in read_rollouts(tables[0])}
    assert rows.keys() == groups.keys()
    listed = {key for key, row in rows.items() if row["verdict"] == "uninformative"}
    assert len(listed & tables[2]) >= 10  # of twelve
    assert len(listed - tables[2]) <= 4
    for key, group in groups.items():
        row = rows[key]
        paid = {(r.response, r.reward) for r in group.rollouts}
        assert int(row["contradictions"]) == len(paid) - len({text for text, _ in paid})
        assert float(row["pass_rate"]) == pytest.approx(group.rewards.mean())
        assert int(row["n_rollouts"]) == 16
        if group.status == "zero_variance":
            assert (row["verdict"], row["p_reversed"], row["dot"]) == ("untestable", "", "")
            continue
        assert float(row["t"]) == pytest.approx(float(row["dot"]) / float(row["se"]))
        assert row["rewarded"] in {r.response for r in group.rollouts if r.reward == 1}
        assert row["unrewarded"] in {r.response for r in group.rollouts if r.reward == 0}
        assert (row["verdict"] == "ok") == (min(float(row["q_reversed"]), float(row["q_uninformative"])) > 0.2)
        if "," not in row["problem"]:
            assert str(eval(row["problem"].rstrip("="))) == row["answer"]
    assert next(iter(rows.values()))["verdict"] in ("reversed", "uninformative")  # worst first

    page = _Page((out / "audit.html").read_text(encoding="utf-8"))
    verdicts = [attributes["data-verdict"] for tag, attributes in page.tags if tag == "tr" and attributes]
    assert verdicts == [row["verdict"] for row in rows.values()]
    assert not any({"src", "href"} & attributes.keys() for _, attributes in page.tags)  # no network
    assert "@import" not in "".join(page.text)
    config = json.loads((out / "config.json").read_text())
    assert sum(config["verdicts"].values()) == 48
    for words in ("the smallest possible p is", "validation problems with varied rewards are needed", "Assumed:"):
        assert words in ran.out, words
    before = (out / "audit.csv").read_bytes(), (out / "audit.html").read_bytes()
    assert gradalign(*arguments("embedded", tables, out, *pool)).status == 0  # its own is overwritten, to the byte
    assert ((out / "audit.csv").read_bytes(), (out / "audit.html").read_bytes()) == before
    assert sorted(path.name for path in out.iterdir()) == ["audit.csv", "audit.html", "config.json"]


def test_texts_are_escaped_and_other_engines_do(gradalign: Run, llama_folder: Path, tmp_path: Path) -> None:
    candidates = make_groups(6, 1)
    for rollout in candidates[0].rollouts:
        rollout.response = NASTY
    write_rollouts(tmp_path / "c.parquet", candidates)
    write_rollouts(tmp_path / "v.parquet", make_groups(8, 2, prefix="v"))
    (tmp_path / "p.jsonl").write_text(json.dumps({"key": "g0", "prompt": NASTY, "answer": NASTY}))
    files = tmp_path / "c.parquet", tmp_path / "v.parquet"
    found = {}
    for more in (["exact", "--contributions"], ["directional"], ["reference"]):
        ran = gradalign(
            *arguments(llama_folder, files, tmp_path / "D", "--pool", tmp_path / "p.jsonl", "--engine", *more)
        )
        assert ran.status == 0, ran.err
        assert "lacks 5 of the candidates (first: 'g1')" in ran.err
        found[more[0]] = {key: float(row["dot"]) for key, row in read(tmp_path / "D").items()}
    assert found["exact"] == pytest.approx(found["reference"], rel=0.05)
    assert found["directional"] == pytest.approx(found["reference"], rel=0.05)
    row = read(tmp_path / "D")["g0"]
    assert row["problem"] == row["answer"] == row["rewarded"] == NASTY
    assert read(tmp_path / "D")["g1"]["problem"] == " ".join(map(str, candidates[1].prompt_ids))  # no tokenizer
    page = _Page((tmp_path / "D" / "audit.html").read_text(encoding="utf-8"))
    assert NASTY in page.text
    assert not any("onclick" in attributes or tag == "b" for tag, attributes in page.tags)
    assert [tag for tag, _ in page.tags].count("script") == 1


def _single(tmp: Path, groups: list[Group]) -> tuple[Path, Path]:
    write_rollouts(tmp / "one.parquet", [dataclasses.replace(g, rollouts=g.rollouts[:1]) for g in groups])
    return tmp / "one.parquet", tmp / "v.parquet"


def _equal(tmp: Path, groups: list[Group]) -> tuple[Path, Path]:
    equal = [dataclasses.replace(g, rollouts=[dataclasses.replace(r, reward=1.0) for r in g.rollouts]) for g in groups]
    write_rollouts(tmp / "equal.parquet", equal)
    return tmp / "equal.parquet", tmp / "v.parquet"


def _lone(tmp: Path, groups: list[Group]) -> tuple[Path, Path]:
    write_rollouts(tmp / "lone.parquet", make_groups(1, 2, prefix="v"))
    return tmp / "c.parquet", tmp / "lone.parquet"


def _foreign(tmp: Path, groups: list[Group]) -> tuple[Path, Path]:
    groups[1].rollouts[0].response_ids[0] = 99_999
    write_rollouts(tmp / "foreign.parquet", groups)
    return tmp / "foreign.parquet", tmp / "v.parquet"


def _as_they_are(tmp: Path, groups: list[Group]) -> tuple[Path, Path]:
    return tmp / "c.parquet", tmp / "v.parquet"


@pytest.mark.parametrize(
    ("make", "more", "message"),
    [
        (_lone, [], "1 of the 1 problems carry a gradient; at least two are needed"),
        (_single, [], "none of the 6 problems can be tested: within each, every rollout got the same reward"),
        (_equal, [], "none of the 6 problems can be tested"),
        (_foreign, [], "foreign.parquet:6: field 'response_ids': token id 99999 is outside the policy's vocabulary"),
        (_as_they_are, ["--fdr", "1"], "option --fdr: '1': should be less than 1"),
        (_as_they_are, ["--fdr", "0"], "option --fdr: '0': should be greater than 0"),
        (_as_they_are, ["--engine", "exact"], "option --engine: exact alone does not see single rollouts"),
        (_as_they_are, ["--pool", "embedded:mixed?size=8"], "none of its problems has the key of a candidate"),
        (_as_they_are, ["--candidates", "gone.parquet"], "gone.parquet: no such file"),
        (_as_they_are, ["--top", "3"], "unknown option --top"),
    ],
)
def test_bad_input_is_one_line(
    gradalign: Run, llama_folder: Path, tmp_path: Path, make: Any, more: list[str], message: str
) -> None:
    groups = make_groups(6, 1)
    write_rollouts(tmp_path / "c.parquet", groups)
    write_rollouts(tmp_path / "v.parquet", make_groups(8, 2, prefix="v"))
    out = tmp_path / "D"
    assert message in gradalign(*arguments(llama_folder, make(tmp_path, groups), out, *more)).error
    assert not out.exists() or not list(out.iterdir())


def test_nothing_that_is_not_its_own_is_overwritten(gradalign: Run, tmp_path: Path) -> None:
    files = tmp_path / "c.parquet", tmp_path / "v.parquet"
    for name, message in [
        ("audit.csv", "audit.csv: would be overwritten, and is no audit's"),
        ("audit.html", "audit.html: would be overwritten, and is no audit's"),
        ("config.json", "config.json: would be overwritten, and is not that of D"),
    ]:
        out = tmp_path / name.replace(".", "-") / "D"
        out.mkdir(parents=True)
        (out / name).write_text("{}")
        assert message in gradalign(*arguments("embedded", files, out)).error
        assert (out / name).read_text() == "{}"
    (tmp_path / "file").write_text("")
    assert "is a file; name a folder" in gradalign(*arguments("embedded", files, tmp_path / "file")).error


def test_the_benchmark_goes_on_and_tells_its_means(
    gradalign: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "a.json"
    small = [
        "bench",
        "audit",
        "--device",
        "cpu",
        "--problems",
        "16",
        "--validation",
        "12",
        "--rollouts",
        "8",
        "--out",
        out,
    ]

    def dies(policy: Policy, plan: AuditPlan, seed: int) -> list[Group]:
        if seed == 1:
            raise KeyboardInterrupt
        return _sampled(policy, plan, seed)

    with monkeypatch.context() as patch:
        patch.setattr("gradalign.bench.audit._sampled", dies)
        assert gradalign(*small, "--seeds", "2").status == 130
    first = json.loads(out.read_text())["measured"]["seeds"]
    assert first.keys() == {"0"}
    ran = gradalign(*small, "--seeds", "2")
    assert ran.status == 0, ran.err
    data = json.loads(out.read_text())
    assert data["measured"]["seeds"]["0"] == first["0"]
    assert data["measured"]["seeds"].keys() == {"0", "1"}
    own = [seed["8"]["permutation"]["swapped"]["reversed"] for seed in data["measured"]["seeds"].values()]
    share = sum(one["sound"] / max(1, one["listed"]) for one in own) / 2
    assert data["summary"]["8"]["permutation"]["swapped"]["reversed"]["sound_share"] == pytest.approx(share)
    assert all(
        seed["8"]["all"]["wrong-unreached"]["reversed"]["spoilt"] == 0 for seed in data["measured"]["seeds"].values()
    )
    assert "| all | coins | uninformative |" in ran.out
    assert "differs in spoilt" in gradalign(*small, "--seeds", "2", "--spoilt", "0.5").error
