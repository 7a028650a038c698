"""Directions in files: what was saved is followed, and nothing that is another model's, objective's or damaged."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch

from gradalign.alignment.align import Scorer, score
from gradalign.alignment.direction import Direction
from gradalign.alignment.saved import NOTES, is_direction, load_direction, origin_of, save_direction
from gradalign.errors import GradAlignError
from gradalign.policy.load import Policy, cover
from gradalign.policy.objective import Objective
from gradalign.rollouts.table import write_rollouts
from tests.conftest import Ran, make_groups, make_policy

Run = Callable[..., Ran]
OBJECTIVE = Objective("std", "sequence_mean", 0.7)


def random_direction(policy: Policy) -> Direction:
    torch.manual_seed(0)
    unit = [torch.randn_like(p, dtype=policy.reduction_dtype) for p in policy.parameters]
    norm = sum(float((u.double() ** 2).sum()) for u in unit) ** 0.5
    return Direction([u / norm for u in unit], 0.1 + 0.2, 5, 1, 0, 0.3, None)


@pytest.mark.parametrize("name", ["llama-tied", "gpt2"])
def test_a_direction_survives_its_file_bit_for_bit(tmp_path: Path, name: str) -> None:
    policy = make_policy(name)
    direction = random_direction(policy)
    direction.unit[0] = direction.unit[0].T.contiguous().T  # as autograd may lay it out
    save_direction(tmp_path / "v.safetensors", policy, OBJECTIVE, direction)
    found = load_direction(tmp_path / "v.safetensors", policy, OBJECTIVE)
    assert all(torch.equal(a, b) for a, b in zip(found.unit, direction.unit, strict=True))
    assert found.facts() == direction.facts()
    assert origin_of(tmp_path / "v.safetensors") == policy.fingerprint
    save_direction(tmp_path / "w.safetensors", policy, OBJECTIVE, found)
    assert (tmp_path / "w.safetensors").read_bytes() == (tmp_path / "v.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v.safetensors", "w.safetensors"]


def test_weights_that_moved_or_changed_their_type_follow_it_still(tmp_path: Path) -> None:
    path, policy = tmp_path / "v.safetensors", make_policy("llama")
    direction = random_direction(policy)
    save_direction(path, policy, OBJECTIVE, direction)
    for other in (
        make_policy("llama", scale=5.0),
        make_policy("llama", torch.float64),
        make_policy("llama", torch.bfloat16),
    ):
        found = load_direction(path, other, OBJECTIVE)
        assert {tensor.dtype for tensor in found.unit} == {other.reduction_dtype}
        assert all(torch.equal(a.float(), b) for a, b in zip(found.unit, direction.unit, strict=True))
        assert origin_of(path) == policy.fingerprint != other.fingerprint
        groups = make_groups(2, 1)
        scored = Scorer(other, OBJECTIVE).measure(groups, found)
        assert all(row.numbers.dot is not None for row in scored.alignments)


def part(name: str, *patterns: str) -> Policy:
    return cover(make_policy(name).model, name, patterns)


OTHERS: dict[str, tuple[Policy, Objective, str]] = {
    "fewer layers": (
        part("llama", "*layers.0*"), OBJECTIVE, r"has 12 more \(first: lm_head\.weight\); give the model and the param"
    ),
    "more layers": (part("llama"), OBJECTIVE, r"it lacks 9 of this run's \(first: model\.layers\.0\.input_layernorm"),
    "other layers": (part("llama", "*layers.0*", "*norm*"), OBJECTIVE, r"it lacks 9 of .* and has \d more"),
    "other architecture": (part("gpt2"), OBJECTIVE, "it lacks 28 of this run's .* and has 21 more"),
    "advantage": (
        part("llama"), Objective("mean", "sequence_mean", 0.7), r"another objective \(advantage std, here mean\); give"
    ),
    "all of it": (
        part("llama"), Objective("loo", "sum", 1.0, True),
        r"\(advantage std, here loo, aggregation sequence_mean, here sum, temperature 0.7, here 1.0, mask_tru",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHERS)
def test_what_it_does_not_fit_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    other, objective, message = OTHERS[case]
    policy = (
        part("llama", "*layers.1*", "model.[!l]*", "lm_head*") if "more" in case or "other l" in case else part("llama")
    )
    save_direction(tmp_path / "v.safetensors", policy, OBJECTIVE, random_direction(policy))
    with pytest.raises(GradAlignError) as caught:
        load_direction(tmp_path / "v.safetensors", other, objective)
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / 'v.safetensors'}: the direction is ")
    assert re.search(message, text), text
    assert "\n" not in text


def test_a_model_of_other_sizes_is_refused(tmp_path: Path) -> None:
    policy, other = make_policy("llama"), make_policy("llama")
    other.model.resize_token_embeddings(70)
    save_direction(tmp_path / "v", policy, OBJECTIVE, random_direction(policy))
    with pytest.raises(
        GradAlignError, match=r"another model's: .* is \(61, 32\) in it, and \(70, 32\) here; give the mod"
    ):
        load_direction(tmp_path / "v", cover(other.model), OBJECTIVE)


def rewritten(path: Path, change: Callable[[dict[str, torch.Tensor], dict[str, str]], object]) -> None:
    with safetensors.safe_open(path, framework="pt") as file:
        notes = file.metadata()
    tensors = safetensors.torch.load_file(path)
    change(tensors, notes)
    safetensors.torch.save_file(tensors, path, notes)


def note(**changes: Any) -> Callable[[Path], object]:
    """Change what is noted; a dict changes some of it."""

    def change(tensors: object, notes: dict[str, str]) -> None:
        found = json.loads(notes[NOTES])
        for name, value in changes.items():
            found[name] = found[name] | value if isinstance(value, dict) else value
        notes[NOTES] = json.dumps(found)

    return lambda path: rewritten(path, change)


def renoted(text: str) -> Callable[[Path], object]:
    return lambda path: rewritten(path, lambda tensors, notes: notes.update({NOTES: text}))


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


NO_DIRECTION = "holds no direction that this program saved; name one, or take it again"
DAMAGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "gone": (lambda p: p.unlink(), "cannot be read as a direction .*; name one, or take it again"),
    "a folder": (folder_instead, "cannot be read as a direction"),
    "empty": (lambda p: p.write_bytes(b""), "cannot be read as a direction"),
    "a text": (lambda p: p.write_text("This is not it.\n" * 9), "cannot be read as a direction"),
    "cut short": (lambda p: os.truncate(p, p.stat().st_size - 1), "cannot be read as a direction"),
    "weights": (lambda p: rewritten(p, lambda t, n: n.update(format=n.pop(NOTES))), NO_DIRECTION),
    "no notes": (lambda p: safetensors.torch.save_file(safetensors.torch.load_file(p), p), NO_DIRECTION),
    "no objective": (note(objective=None), NO_DIRECTION),
    "no origin": (note(origin=None), NO_DIRECTION),
    "a list": (renoted("[1]"), NO_DIRECTION),
    "not JSON": (renoted('{"facts": 1'), NO_DIRECTION),
    "deep": (renoted("[" * 99999), NO_DIRECTION),
    "a fact more": (note(facts={"length": 1.0}), NO_DIRECTION),
    "norm NaN": (note(facts={"norm": float("nan")}), NO_DIRECTION),
    "norm null": (note(facts={"norm": None}), NO_DIRECTION),
    "norm a text": (note(facts={"norm": "1"}), NO_DIRECTION),
    "norm too large": (note(facts={"norm": 10**400}), NO_DIRECTION),
    "NaN": (lambda p: rewritten(p, lambda t, n: t["lm_head.weight"][3].fill_(float("nan"))), "is nan, not 1"),
    "infinity": (lambda p: rewritten(p, lambda t, n: t["lm_head.weight"][3].fill_(float("inf"))), "is inf, not 1"),
    "too long": (lambda p: rewritten(p, lambda t, n: [x.mul_(3) for x in t.values()]), "is 3, not 1: it is damaged"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_one_line(tmp_path: Path, case: str) -> None:
    damage, message = DAMAGED[case]
    path, policy = tmp_path / "v.safetensors", make_policy("llama")
    save_direction(path, policy, OBJECTIVE, random_direction(policy))
    assert is_direction(path)
    damage(path)
    with pytest.raises(GradAlignError) as caught:
        load_direction(path, policy, OBJECTIVE)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert re.search(message, text), text
    assert "\n" not in text
    assert is_direction(path) == ("not 1" in message)


@pytest.mark.filterwarnings("ignore::gradalign.errors.GradAlignWarning")
def test_a_ready_direction_takes_the_validation_sets_place() -> None:
    policy, candidates, validation = make_policy("llama"), make_groups(4, 1), make_groups(6, 2, prefix="v")
    first = score(policy, candidates, validation, OBJECTIVE)
    second = score(policy, candidates, [], OBJECTIVE, direction=first.direction)
    assert second.alignments == first.alignments
    assert "direction" in first.seconds.keys() - second.seconds.keys()


@pytest.fixture
def files(tmp_path: Path) -> list[Any]:
    write_rollouts(tmp_path / "c.jsonl", make_groups(5, 1))
    write_rollouts(tmp_path / "v.jsonl", make_groups(6, 2, prefix="v"))
    return ["--candidates", tmp_path / "c.jsonl", "--validation", tmp_path / "v.jsonl"]


@pytest.mark.filterwarnings("ignore::gradalign.errors.GradAlignWarning")
def test_score_saves_a_direction_and_takes_it_again(
    gradalign: Run, llama_folder: Path, files: list[Any], tmp_path: Path
) -> None:
    v, common = tmp_path / "v.safetensors", ["score", "--model", llama_folder, "--advantage", "std"]
    ran = gradalign(*common, *files, "--save-direction", v, "--out", tmp_path / "a.parquet")
    assert ran.status == 0, ran.err
    assert f"and the direction to {v}" in ran.out
    ran = gradalign(*common, *files[:2], "--direction", v, "--out", tmp_path / "b.parquet")
    assert ran.status == 0, ran.err
    assert "other weights" not in ran.err
    assert pq.read_table(tmp_path / "a.parquet").equals(pq.read_table(tmp_path / "b.parquet"))
    configs = [json.loads((tmp_path / f"{name}.config.json").read_text()) for name in "ab"]
    assert configs[0]["direction"] == configs[1]["direction"]
    assert configs[1]["options"]["direction"] == str(v)

    make_policy("llama", scale=5.0).model.save_pretrained(tmp_path / "moved")
    moved = ["score", "--model", tmp_path / "moved", "--advantage", "std"]
    ran = gradalign(*moved, *files[:2], "--direction", v, "--out", tmp_path / "c.parquet")
    assert ran.status == 0, ran.err
    assert f"v.safetensors: the direction was taken at other weights ({origin_of(v)}; these are" in ran.err
    before = v.read_bytes()
    ran = gradalign(*common, *files, "--save-direction", v, "--seed", "5", "--out", tmp_path / "d.parquet")
    assert ran.status == 0, ran.err
    assert v.read_bytes() != before  # an older direction makes room

    bad: dict[str, tuple[list[Any], str]] = {
        "neither": (files[:2], "option --validation is missing: rollouts of the trusted validation set; or give"),
        "both": ([*files, "--direction", v], "--direction and --validation exclude each other; give one of them"),
        "kept again": ([*files[:2], "--direction", v, "--save-direction", v], "and --save-direction exclude"),
        "unit": ([*files[:2], "--direction", v, "--unit"], "--direction and --unit exclude each other"),
        "objective": ([*files[:2], "--direction", v, "--temperature", "0.5"], r"\(temperature 1.0, here 0.5\)"),
        "parameters": ([*files[:2], "--direction", v, "--parameters", "*mlp*"], "v.safetensors: the direction is over"),
        "not a direction": ([*files[:2], "--direction", tmp_path / "c.jsonl"], "c.jsonl: cannot be read as a dir"),
        "no place": ([*files, "--save-direction", tmp_path / "v.pt"], "v.pt: a direction is safetensors; name it"),
        "the weights": (
            [*files, "--save-direction", tmp_path / "moved" / "model.safetensors"], "exists and is no direction; name"
        ),
        "in a file": ([*files, "--save-direction", tmp_path / "c.jsonl" / "v.safetensors"], "cannot be written"),
    }  # fmt: skip
    for case, (more, message) in bad.items():
        error = gradalign(*common, *more, "--out", tmp_path / "e.parquet").error
        assert re.search(message, error), (case, error)
        assert not (tmp_path / "e.parquet").exists()
