"""Parts that an installed package adds by entry point, and those of a package that is broken."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gradalign.alignment.record import Alignment
from gradalign.errors import GradAlignError, GradAlignWarning
from gradalign.parts import Registry
from gradalign.selection import GATES, RANKS, STRATEGIES, Size, choose, compose, find_strategy
from gradalign.selection.ranks.dot import Dot
from tests.conftest import Ran, make_groups
from tests.test_selection import order, row
from tests.trl_run import trainer

MODULE = '''
from dataclasses import dataclass
from typing import ClassVar

from gradalign.selection.ranks.norm import Norm
from gradalign.selection.strategy import Strategy


@dataclass(frozen=True)
class Mine:
    """x times the pass rate."""

    needs: ClassVar = frozenset({"pass_rate"})
    prefers: ClassVar = "mine"

    x: float = 1.0

    def scores(self, alignments, seed):
        return [self.x * a.pass_rate for a in alignments]


class Plain:
    needs = frozenset()
    prefers = "no dataclass"

    def scores(self, alignments, seed):
        return [0.0 for a in alignments]


@dataclass(frozen=True)
class Hidden(Norm):
    """Reached through the strategy alone."""


ours = Strategy("ours", Mine(x=-1.0))
theirs = Strategy("theirs", Hidden())
nothing = 3
'''
RANK_POINTS = {
    "aaa": "gone_package:Rank", "bad": "bad_rank_package:Rank", "mine": "my_ranks:Mine", "plain": "my_ranks:Plain",
    "lost": "my_ranks:Lost", "number": "my_ranks:nothing", "dot": "my_ranks:Mine",
}  # fmt: skip
STRATEGY_POINTS = {"ours": "my_ranks:ours", "theirs": "my_ranks:theirs", "odd": "my_ranks:Mine"}


pytestmark = pytest.mark.filterwarnings("ignore:.*some repeat", "ignore:.*within noise")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A package with plug-ins, some of them broken, on the path; nothing of it is left afterwards."""
    folder = tmp_path / "site"
    info = folder / "my_ranks-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "my_ranks.py").write_text(MODULE)
    (folder / "bad_rank_package.py").write_text("raise RuntimeError('no licence\\nfor you')\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-ranks\nVersion: 1.0\n")
    sections = (("gradalign.ranks", RANK_POINTS), ("gradalign.strategies", STRATEGY_POINTS))
    lines = [line for group, points in sections for line in (f"[{group}]", *(f"{n} = {v}" for n, v in points.items()))]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(str(folder))
    importlib.invalidate_caches()
    registries: list[Registry[Any]] = [RANKS, STRATEGIES]
    for registry in registries:
        registry.__dict__.pop("plugins", None)
    with pytest.warns(
        GradAlignWarning, match=r"plug-in 'dot' .my_ranks:Mine. has the name of one of gradalign.ranks's"
    ):
        assert "mine" in RANKS
    assert RANKS["dot"] is Dot
    assert "my_ranks" not in sys.modules  # imported when named
    yield
    for registry in registries:
        registry.__dict__.pop("plugins", None)
    for name in ("my_ranks", "bad_rank_package"):
        sys.modules.pop(name, None)


def rows() -> list[Alignment]:
    return [row("low", rate=0.1, norm=1.0), row("high", rate=0.9, norm=3.0), row("mid", rate=0.5, norm=2.0)]


@pytest.mark.usefixtures("installed")
def test_a_rank_of_an_installed_package() -> None:
    made, strategy = rows(), find_strategy(None, "exact", rank="mine(x=2)")
    choose(made, strategy, Size(top=1))
    assert [a.score for a in made] == [0.2, 1.8, 1.0]
    assert strategy.recipe == "mine(x=2.0) > top"
    assert compose(None, (), *strategy.recipe.split(" > ")).recipe == strategy.recipe
    for text, said in (
        ("mine(y=2)", "rank 'mine': unknown parameter 'y'"),
        ("mine(x=[])", "rank 'mine': x: "),
        ("mime", "unknown rank 'mime'; did you mean 'mine'"),
    ):
        with pytest.raises(GradAlignError, match=said):
            compose(None, rank=text)


def test_a_name_that_two_packages_give_is_the_firsts(installed: Any, tmp_path: Path) -> None:
    info = tmp_path / "site" / "other_ranks-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-ranks\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[gradalign.gates]\nfirst = a:A\n[gradalign.picks]\ntwo = a:A\n")
    other = tmp_path / "site" / "third_ranks-1.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: third-ranks\nVersion: 1.0\n")
    (other / "entry_points.txt").write_text("[gradalign.gates]\nfirst = a:A\n[gradalign.picks]\ntwo = b:B\n")
    importlib.invalidate_caches()
    assert list(Registry[Any]("gradalign.gates", {})) == ["first"]
    with pytest.warns(GradAlignWarning, match=r"gradalign.picks: 'two' is (a:A, and also b:B|b:B, and also a:A)"):
        assert list(Registry[Any]("gradalign.picks", {})) == ["two"]


@pytest.mark.usefixtures("installed")
def test_a_strategy_of_an_installed_package(tmp_path: Path) -> None:
    made = rows()
    choose(made, find_strategy("ours", "exact"), Size(top=1))
    assert order(made) == ["low", "mid", "high"]
    hidden = find_strategy("theirs", "exact")
    choose(made, hidden, Size(top=1))
    assert order(made) == ["high", "mid", "low"]
    assert hidden.recipe == "my_ranks.Hidden > top"  # a class that no configuration can name
    with pytest.raises(
        GradAlignError, match=r"plug-in 'odd' of gradalign.strategies .my_ranks:Mine.: has no rank, gates"
    ):
        find_strategy("odd", "exact")
    trained = trainer(tmp_path, max_steps=2, strategy="ours", top=8)
    trained.train()
    assert trained.curriculum is not None
    assert trained.curriculum.plan.strategy.name == "ours"
    assert 0 < len(trained.curriculum.chosen) <= 8


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("aaa", r"plug-in 'aaa' of gradalign.ranks .gone_package:Rank.: cannot be imported .No module named"),
        ("bad", r"plug-in 'bad' of gradalign.ranks .*: cannot be imported .no licence.; mend or uninstall its package"),
        ("lost", r"plug-in 'lost' of gradalign.ranks .*: cannot be imported .*Lost"),
        ("number", r"plug-in 'number' of gradalign.ranks .*: has no needs, prefers, scores; see docs/plugins.md"),
        ("plain", r"rank 'plain': is no dataclass, whose fields are its parameters; see docs/plugins.md"),
    ],
)
def test_a_broken_one_is_one_line_and_disturbs_nobody(name: str, said: str) -> None:
    with pytest.raises(GradAlignError, match=said) as caught:
        compose(None, rank=name)
    assert "\n" not in str(caught.value)
    assert find_strategy(None, "exact", rank="mine(x=2)").recipe == "mine(x=2.0) > top"
    assert find_strategy("guarded", "reference").recipe == "consistent > expected > top"
    assert {*RANKS} >= {"cosine", "mine", name}
    assert "sound" in GATES


@pytest.mark.usefixtures("installed")
def test_from_the_command_line(gradalign: Callable[..., Ran], llama_folder: Path, tmp_path: Path) -> None:
    from gradalign.rollouts.table import write_rollouts

    write_rollouts(tmp_path / "c.parquet", make_groups(7, 1))
    write_rollouts(tmp_path / "v.parquet", make_groups(12, 2, prefix="v"))
    command = [
        "score", "--model", llama_folder, "--candidates", tmp_path / "c.parquet", "--validation",
        tmp_path / "v.parquet", "--out", tmp_path / "s.parquet", "--rank",
    ]  # fmt: skip
    ran = gradalign(*command, "mine(x=2)")
    assert ran.status == 0, ran.err
    assert "strategy mine(x=2.0) > top" in ran.out
    assert "plug-in 'bad' of gradalign.ranks" in gradalign(*command, "bad").error
