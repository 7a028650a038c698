"""The feature store: what an interruption leaves is taken up, damage is found, and nobody else's features are taken."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradalign.alignment.gram import gram
from gradalign.alignment.store import FeatureStore, Row, digest
from gradalign.errors import GradAlignError
from gradalign.policy.group import Group, Rollout
from tests.conftest import make_groups
from tests.store_run import IDENTITY, features, fill, many

FILES = ("store.json", "features.f32", "rows.jsonl")


def content(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def error(folder: Path, identity: dict[str, Any] = IDENTITY) -> str:
    with pytest.raises(GradAlignError) as caught:
        FeatureStore.open(folder, identity)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_appended_is_read_back(tmp_path: Path) -> None:
    groups = make_groups(6, 1)
    groups[2].source = "gsm8k"
    fill(tmp_path / "s", groups)
    expected = np.array([features(group) for group in groups], np.float32)
    with FeatureStore.open(tmp_path / "s", IDENTITY) as store:
        assert isinstance(store.features(), np.memmap)
        assert not store.features().flags.writeable
        np.testing.assert_array_equal(store.features(), expected)
        np.testing.assert_array_equal(store.features([digest(groups[4]), digest(groups[1])]), expected[[4, 1]])
        assert store.rows[2] == Row("g2", "gsm8k", groups[2].rewards.mean(), 5, digest(groups[2]))
        assert len(store) == 6
        store.append(make_groups(1, 2)[0], np.ones(5))
        assert store.features().shape == (7, 5)
    assert (tmp_path / "s" / "features.f32").read_bytes() == expected.tobytes() + np.ones(5, "<f4").tobytes()


def test_an_empty_store(tmp_path: Path) -> None:
    for _ in range(2):
        with FeatureStore.open(tmp_path / "s", IDENTITY) as store:
            assert store.features().shape == (0, 5)
            assert store.features([]).shape == (0, 5)
            assert gram(store).shape == (0, 0)


def test_the_digest_sees_all_that_a_gradient_depends_on() -> None:
    group = make_groups(1, 1, masks=True)[0]

    def other(**changes: Any) -> Group:
        return dataclasses.replace(group, rollouts=[dataclasses.replace(group.rollouts[0], **changes), *rest])

    first, rest = group.rollouts[0], list(group.rollouts[1:])
    moved = Rollout(np.append(first.response_ids, rest[0].response_ids[:1]), first.reward)
    shorter = Rollout(rest[0].response_ids[1:], rest[0].reward)
    variants = [
        group,
        other(reward=0.5),
        other(finish_reason="length"),
        other(response_ids=(first.response_ids + 1) % 61),
        other(response_mask=~first.mask),
        dataclasses.replace(group, key="other"),
        dataclasses.replace(group, rollouts=rest),
        dataclasses.replace(group, rollouts=[*rest, first]),
        dataclasses.replace(group, rollouts=[moved, shorter, *rest[1:]]),
        dataclasses.replace(group, prompt_ids=group.prompt_ids[:-1]),
    ]  # fmt: skip
    assert len({digest(variant) for variant in variants}) == len(variants)
    same = [dataclasses.replace(rollout, response="text", finish_reason="stop") for rollout in group.rollouts]
    assert digest(dataclasses.replace(group, rollouts=same, source="elsewhere", policy="f" * 16)) == digest(group)


def test_the_same_key_with_other_rollouts_is_another_row(tmp_path: Path) -> None:
    old, new = make_groups(1, 1)[0], make_groups(1, 2)[0]
    assert old.key == new.key
    fill(tmp_path / "s", [old])
    with FeatureStore.open(tmp_path / "s", IDENTITY) as store:
        assert digest(old) in store
        assert digest(new) not in store
        store.append(new, features(new))
        assert [row.key for row in store.rows] == ["g0", "g0"]
        np.testing.assert_array_equal(store.features([digest(new)])[0], features(new).astype(np.float32))
        with pytest.raises(ValueError, match="'g0' is in the store already"):
            store.append(new, features(new))


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"seed": 2, "policy": "f" * 16}, "policy, seed"),
        ({"objective": {"advantage": "mean", "temperature": 0.3}}, "objective"),
        ({"seed": 1.0}, "seed"),
        ({"seed": True}, "seed"),
        ({"seed": "1"}, "seed"),
        ({"layers": ["a"]}, "layers"),
        ({"dimension": 6}, "dimension"),
        ({"unit": None}, "unit"),
    ],
)
def test_another_identity_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], names: str) -> None:
    fill(tmp_path / "s", make_groups(2, 1))
    before = content(tmp_path / "s")
    message = error(tmp_path / "s", IDENTITY | changes)
    assert message == (
        f"{tmp_path / 's'}: holds other features (made with another {names}); give what they were made with, or name "
        "another folder"
    )
    assert content(tmp_path / "s") == before
    turned = dict(reversed(IDENTITY.items())) | {"layers": ["a", "b"]}
    with FeatureStore.open(tmp_path / "s", turned) as store:
        assert len(store) == 2


def test_a_torn_last_row_is_cut_off_at_every_byte(tmp_path: Path) -> None:
    groups = make_groups(3, 1)
    folder = tmp_path / "s"
    fill(folder, groups)
    whole = content(folder)
    ends = whole["rows.jsonl"].index(b"\n", whole["rows.jsonl"].index(b"\n") + 1) + 1
    states = [(len(whole["features.f32"]), cut) for cut in range(ends, len(whole["rows.jsonl"]))]
    states += [(cut, ends) for cut in range(2 * 20, 3 * 20)]
    for held, listed in states:
        (folder / "features.f32").write_bytes(whole["features.f32"][:held])
        (folder / "rows.jsonl").write_bytes(whole["rows.jsonl"][:listed])
        with FeatureStore.open(folder, IDENTITY) as store:
            assert [row.key for row in store.rows] == ["g0", "g1"]
        assert (folder / "features.f32").stat().st_size == 2 * 20
        fill(folder, groups)
        assert content(folder) == whole, (held, listed)


def test_a_first_append_that_was_torn(tmp_path: Path) -> None:
    fill(tmp_path / "s", [])
    (tmp_path / "s" / "features.f32").write_bytes(b"1234567")
    with FeatureStore.open(tmp_path / "s", IDENTITY) as store:
        assert len(store) == 0
    (tmp_path / "s" / "store.json").unlink()  # killed before even that
    (tmp_path / "s" / ".store.json.77.part").touch()
    fill(tmp_path / "s", make_groups(2, 1))
    fill(tmp_path / "t", make_groups(2, 1))
    assert content(tmp_path / "s") == content(tmp_path / "t")


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    groups = make_groups(3, 1)
    fill(folder, groups)
    whole = content(folder)
    for name in ("features.f32", "rows.jsonl"):
        for place in range(len(whole[name])):
            damaged = bytearray(whole[name])
            damaged[place] ^= 0x21
            (folder / name).write_bytes(damaged)
            if name == "rows.jsonl" and place == len(damaged) - 1:  # the last line's end: as if it were cut short
                fill(folder, groups)
                assert content(folder) == whole
                continue
            number = 1 + (place // 20 if name == "features.f32" else whole[name][:place].count(b"\n"))
            message = error(folder)
            fails = f"{folder / 'rows.jsonl'}:{number}: it or row {number} of features.f32 fails the checksum; delete"
            fits = rf"features.f32: has 60 bytes, and the [24] rows of rows.jsonl take [48]0; delete {folder}"
            assert message.startswith(fails) or re.search(fits, message), (place, message)
        (folder / name).write_bytes(whole[name])


Damage = Callable[[Path], object]
DAMAGED: dict[str, tuple[Damage, str]] = {
    "no features": (lambda s: (s / "features.f32").unlink(), r"s/features\.f32: missing; delete .*/s to compute"),
    "no rows": (lambda s: (s / "rows.jsonl").unlink(), r"s/rows\.jsonl: missing; delete"),
    "no identity": (lambda s: (s / "store.json").unlink(), "is not empty and no feature store"),
    "not JSON": (lambda s: (s / "store.json").write_text('{"format": 1'), r"s/store\.json: not JSON .*; delete"),
    "deep": (lambda s: (s / "store.json").write_text("[" * 99999), r"; delete .*/s to compute the features again"),
    "a list": (lambda s: (s / "store.json").write_text("[1]"), r"s/store\.json: no identity in it; delete"),
    "NaN": (
        lambda s: (s / "store.json").write_text('{"format": 1, "identity": {"seed": NaN}}'), "with another dimension"
    ),
    "format": (lambda s: (s / "store.json").write_text('{"format": 2, "identity": {}}'), "is of format 2, this prog"),
    "rows shorter": (lambda s: os.truncate(s / "features.f32", 30), "has 30 bytes, and the 3 rows of rows.jsonl"),
    "rows longer": (lambda s: os.truncate(s / "features.f32", 81), "has 81 bytes"),
    "lines lost": (lambda s: os.truncate(s / "rows.jsonl", 0), "has 60 bytes, and the 0 rows of rows.jsonl take 0"),
    "lines swapped": (
        lambda s: (s / "rows.jsonl").write_bytes(b"".join((s / "rows.jsonl").read_bytes().splitlines(True)[::-1])),
        r"s/rows\.jsonl:1: it or row 1 of features\.f32 fails the checksum",
    ),
    "a number for a line": (
        lambda s: (s / "rows.jsonl").write_bytes(b"7\n" + (s / "rows.jsonl").read_bytes().split(b"\n", 1)[1]),
        r"s/rows\.jsonl:1: it or row 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_one_line(tmp_path: Path, case: str) -> None:
    damage, message = DAMAGED[case]
    fill(tmp_path / "s", make_groups(3, 1))
    damage(tmp_path / "s")
    assert re.search(message, error(tmp_path / "s"))


def test_places_that_cannot_be_a_store(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert error(tmp_path / "file") == f"{tmp_path / 'file'}: cannot be written (File exists); name another place"
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").touch()
    assert "thesis: is not empty and no feature store (no store.json); name another" in error(tmp_path / "thesis")
    assert not (tmp_path / "thesis" / "store.json").exists()


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with FeatureStore.open(tmp_path / "s", IDENTITY):
        assert "s: another process is at work on this feature store; wait" in error(tmp_path / "s")
    fill(tmp_path / "s", make_groups(1, 1))
    error(tmp_path / "s", IDENTITY | {"seed": 2})
    fill(tmp_path / "s", make_groups(1, 1))  # a refusal holds nothing


def test_features_that_are_not_features(tmp_path: Path) -> None:
    groups = make_groups(2, 1)
    with FeatureStore.open(tmp_path / "s", IDENTITY) as store:
        store.append(groups[0], features(groups[0]))
        for bad in (np.full(5, np.nan), np.full(5, 1e300)):
            with pytest.raises(GradAlignError, match="problem 'g1': its features are not finite"):
                store.append(groups[1], bad)
        with pytest.raises(ValueError, match="shape"):
            store.append(groups[1], np.zeros(6))
        store.append(groups[1], features(groups[1]))
    fill(tmp_path / "t", groups)
    assert content(tmp_path / "s") == content(tmp_path / "t")


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """The system refuses files beyond 1,000 bytes, then no longer: one line, and the same store goes on."""
    command = [sys.executable, "-m", "tests.store_run", str(tmp_path / "s"), "9", "1000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1:] == [
        f"{tmp_path}/s/rows.jsonl: cannot be written (File too large); free space, then run the same command again: "
        "what was finished is kept"
    ]
    fill(tmp_path / "t", many(9))
    assert content(tmp_path / "s") == content(tmp_path / "t")


def test_killed_again_and_again_the_bytes_are_the_same(tmp_path: Path) -> None:
    """kill -9 a process that appends, wherever it is; what follows goes on from there."""
    count, sizes = 3000, [0]
    listed = tmp_path / "s" / "rows.jsonl"
    for kill in range(6):
        command = [sys.executable, "-m", "tests.store_run", str(tmp_path / "s"), str(count)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            while not listed.exists() or listed.stat().st_size <= sizes[-1]:
                assert process.poll() is None
                time.sleep(0.001)
            time.sleep(0.0137 * kill)
            process.send_signal(signal.SIGKILL)
        sizes.append(listed.stat().st_size)
    fill(tmp_path / "t", many(count))
    assert 0 < sizes[1] < sizes[-1] < (tmp_path / "t" / "rows.jsonl").stat().st_size
    fill(tmp_path / "s", many(count))
    assert content(tmp_path / "s") == content(tmp_path / "t")


@pytest.mark.parametrize("block", [1, 3, 256])
@pytest.mark.parametrize("cosines", [False, True])
def test_inner_products_of_all_pairs(tmp_path: Path, block: int, cosines: bool) -> None:
    groups = make_groups(8, 1)
    rows = np.array([features(group) for group in groups], np.float32).astype(np.float64)
    rows[5] = 0
    with FeatureStore.open(tmp_path / "s", IDENTITY) as store:
        for group, row in zip(groups, rows, strict=True):
            store.append(group, row)
        found = gram(store, cosines, block)
        name = "cosines.npy" if cosines else "gram.npy"
        np.testing.assert_array_equal(np.load(tmp_path / "s" / name), found)
        np.testing.assert_array_equal(found, found.T)
        for i, a in enumerate(rows):
            for j, b in enumerate(rows):
                scale = np.linalg.norm(a) * np.linalg.norm(b) if cosines else 1.0
                assert found[i, j] == pytest.approx(a @ b / scale if scale else 0.0, abs=1e-12)
        store.append(make_groups(1, 2)[0], rows[0])
        assert not (tmp_path / "s" / name).exists()  # it would lack the new row
