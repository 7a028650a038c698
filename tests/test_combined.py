"""Directions of several sources and of trusted responses, and what the halves' agreement means."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gradalign.alignment.align import Scorer
from gradalign.alignment.combined import Part, check_targets, combine, parse_targets, parts_of
from gradalign.alignment.direction import Direction, NoGradientError, build_direction
from gradalign.alignment.saved import load_direction, save_direction
from gradalign.alignment.sums import halved, one_by_one
from gradalign.errors import GradAlignError, GradAlignWarning
from gradalign.files import read_json
from gradalign.policy.group import Group, Rollout
from gradalign.policy.load import Policy
from gradalign.policy.objective import Likelihood, Objective
from gradalign.problems.schema import Problem
from gradalign.rollouts.references import reference_groups
from gradalign.rollouts.sampler import prompt_tokens
from gradalign.rollouts.table import read_rollouts, to_rows, write_rollouts
from tests.conftest import Ran, make_groups, make_policy
from tests.engine_tools import flat
from tests.test_engines import written_out
from tests.test_select_command import choice, write_pool
from tests.trl_run import trainer

Run = Callable[..., Ran]
SIZE = 40


def combined(parts: Sequence[tuple[float, dict[str, np.ndarray]]], **options: Any) -> Direction:
    """The direction of parts (weight, key -> gradient)."""
    made, adders = [], {}
    for number, (weight, gradients) in enumerate(parts):
        groups = [Group(key, np.array([1]), [Rollout(np.array([1]), 1.0)]) for key in gradients]
        made.append(Part(f"p{number}", weight, groups))

        def gradient(group: Group, gradients: dict[str, np.ndarray] = gradients) -> list[torch.Tensor]:
            return [torch.from_numpy(gradients[group.key].copy())]

        adders[f"p{number}"] = one_by_one(gradient, lambda: [torch.zeros(SIZE).double()])
    return combine(made, lambda part: adders[part.name], **options)


def drawn(rng: np.random.Generator, prefix: str, count: int, mean: Any = 0.0) -> dict[str, np.ndarray]:
    return {f"{prefix}{i}": row for i, row in enumerate(mean + rng.normal(size=(count, SIZE)))}


def test_parts_count_by_their_weights_whatever_their_lengths() -> None:
    rng = np.random.default_rng(0)
    parts = [(0.5, drawn(rng, "a", 7)), (0.2, drawn(rng, "b", 4, 100.0)), (0.3, drawn(rng, "c", 1))]
    found = combined(parts)
    means = [np.mean(list(gradients.values()), axis=0) for _, gradients in parts]
    v = sum(weight * mean / np.linalg.norm(mean) for (weight, _), mean in zip(parts, means, strict=True))
    np.testing.assert_allclose(flat(found.unit), v / np.linalg.norm(v))
    assert found.norm == pytest.approx(np.linalg.norm(v))
    assert (found.n_problems, found.parts) == (12, {"p0": 0.5, "p1": 0.2, "p2": 0.3})


def test_reliability_is_that_of_halves_within_each_part() -> None:
    rng = np.random.default_rng(1)
    parts = [(0.6, drawn(rng, "a", 8)), (0.4, drawn(rng, "b", 5))]
    found = combined(parts, seed=3)
    ends = []
    for half in (0, 1):
        vectors = []
        for weight, gradients in parts:
            keys = [g.key for g in halved([Group(k, np.array([1]), []) for k in gradients], 3)[half]]
            mean = np.mean([gradients[key] for key in keys], axis=0)
            vectors.append(weight * mean / np.linalg.norm(mean))
        ends.append(sum(vectors))
    cosine = ends[0] @ ends[1] / np.linalg.norm(ends[0]) / np.linalg.norm(ends[1])
    assert found.reliability == pytest.approx(cosine)


def test_one_part_is_the_plain_direction() -> None:
    gradients = drawn(np.random.default_rng(2), "a", 9)
    one = combined([(1.0, gradients)], seed=5)
    groups = [Group(k, np.array([1]), [Rollout(np.array([1]), r) for r in (0.0, 1.0)]) for k in gradients]
    zeros = [torch.zeros(SIZE).double()]
    plain = build_direction(
        groups, one_by_one(lambda g: [torch.from_numpy(gradients[g.key].copy())], lambda: [zeros[0].clone()]), seed=5
    )
    np.testing.assert_allclose(flat(one.unit), flat(plain.unit), atol=1e-12)
    assert one.reliability == pytest.approx(plain.reliability)
    assert one.reliability_se == pytest.approx(plain.reliability_se)


@pytest.mark.parametrize("shared", [False, True], ids=["disjoint", "the same problems"])
def test_noise_of_parts_is_seldom_taken_for_a_signal(shared: bool) -> None:
    """Also where a problem's gradients in two parts are one and the same noise."""
    rng = np.random.default_rng(4)
    wrong = []
    for _ in range(300):
        first = drawn(rng, "a", 8)
        second = {k: 3 * g + 0.5 * rng.normal(size=SIZE) for k, g in first.items()} if shared else drawn(rng, "b", 12)
        wrong.append(not combined([(0.5, first), (0.5, second)]).within_noise)
    assert np.mean(wrong) <= 0.05 + 3 * (0.05 * 0.95 / 300) ** 0.5


def test_the_standard_error_of_parts_is_about_right() -> None:
    rng = np.random.default_rng(5)
    means = 0.4 * rng.normal(size=(2, SIZE))
    built = [combined([(0.7, drawn(rng, "a", 24, means[0])), (0.3, drawn(rng, "b", 16, means[1]))]) for _ in range(80)]
    cosines = np.array([d.reliability for d in built], np.float64)
    errors = np.array([d.reliability_se for d in built], np.float64)
    assert 0.4 < errors.mean() / cosines.std() < 1.6


def test_a_problem_is_in_the_same_half_of_every_part() -> None:
    a, b = ([Group(f"k{i}", np.array([1]), []) for i in some] for some in (range(11), range(4, 20)))
    halves = halved(a, 7)
    held = {g.key: number for number, half in enumerate(halves) for g in half}
    others = halved(b, 7, held)
    assert all(number == held.get(g.key, number) for number, half in enumerate(others) for g in half)
    assert [len(half) for half in halves] == [6, 5]
    assert [len(half) for half in others] == [8, 8]


def test_few_problems_of_a_part_cannot_be_told() -> None:
    rng = np.random.default_rng(6)
    assert combined([(0.5, drawn(rng, "a", 9)), (0.5, drawn(rng, "b", 3))]).reliability_se is None
    alone = combined([(0.5, drawn(rng, "a", 1)), (0.5, drawn(rng, "b", 1))])
    assert (alone.reliability, alone.within_noise) == (None, True)
    g = drawn(rng, "a", 1)["a0"]
    with pytest.raises(GradAlignError, match="the gradients of p1 cancel to zero"):
        combined([(0.5, drawn(rng, "a", 4)), (0.5, {"x": g, "y": -g})])
    with pytest.raises(GradAlignError, match="the parts' gradients cancel to zero"):
        combined([(0.5, {"x": g}), (0.5, {"y": -2 * g})])
    with pytest.raises(GradAlignError, match="problem 'y': gradient not finite"):
        combined([(0.5, {"x": g}), (0.5, {"y": g * np.nan})])


@pytest.mark.parametrize("strength", [0.3, 0.7, 2.0])
def test_agreement_says_how_far_the_whole_is_right(strength: float) -> None:
    """Of the mean agreement over many sets: expected cosine with the truth, and |mu|^2 over the mean's noise."""
    rng = np.random.default_rng(8)
    mean = np.zeros(SIZE * 10)
    mean[0] = strength * SIZE**0.5
    count, cosines, agreements = 20, [], []
    for _ in range(200):
        gradients = mean + rng.normal(size=(count, len(mean)))
        whole, one, other = gradients.mean(0), gradients[::2].mean(0), gradients[1::2].mean(0)
        cosines.append(whole[0] / np.linalg.norm(whole))
        agreements.append(one @ other / np.linalg.norm(one) / np.linalg.norm(other))
    rho = float(np.mean(agreements))
    signal = Direction([], 1.0, count, 0, 0, rho, 0.1).signal
    assert signal is not None
    assert signal.cosine == pytest.approx(np.mean(cosines), abs=0.04)
    assert signal.ratio == pytest.approx(mean[0] ** 2 / (len(mean) / count), rel=0.3)
    assert signal.reliability == pytest.approx(signal.cosine**2)


def test_no_agreement_is_no_signal() -> None:
    made = Direction([], 1.0, 9, 0, 0, -0.1, 0.1)
    for rho in (None, -0.3, 0.0):
        facts = dataclasses.replace(made, reliability=rho).facts()
        assert facts["whole_reliability"] is facts["expected_cosine"] is facts["signal_to_noise"] is None
    equal = dataclasses.replace(made, reliability=1.0 + 1e-12).signal
    assert equal == (1.0, 1.0, None)
    assert "parts" not in made.facts()


def test_targets_are_read_and_held_against_the_sources() -> None:
    assert parse_targets(["a=2", "b=x=0.5", "c=0"]) == {"a": 2.0, "b=x": 0.5, "c": 0.0}
    for texts, message in [
        (["a"], "'a': write SOURCE=WEIGHT"), (["a=-1"], "finite weight of at least 0"), (["a=nan"], "finite weight"),
        (["a=inf"], "finite weight"), (["a=1", "a=2"], "'a' is named twice"), (["a=0"], "every weight is 0"),
    ]:  # fmt: skip
        with pytest.raises(GradAlignError, match=message):
            parse_targets(texts)
    check_targets({}, ["a", "b"])
    check_targets({"a": 1.0, "b": 0.0}, ["a", "b", "a"])
    with pytest.raises(GradAlignError, match="source 'b' have no weight; add b=WEIGHT, or b=0"):
        check_targets({"a": 1.0}, ["a", "b"])
    with pytest.raises(GradAlignError, match="no validation problem is of source 'gsm9k'; did you mean 'gsm8k'"):
        check_targets({"gsm8k": 1.0, "gsm9k": 1.0}, ["gsm8k"])


def silenced(groups: list[Group]) -> list[Group]:
    for rollout in (rollout for group in groups for rollout in group.rollouts):
        rollout.reward = 1.0
    return groups


def test_what_is_followed_where_gradients_are_lacking() -> None:
    def named(source: str, groups: list[Group]) -> list[Group]:
        return [dataclasses.replace(group, source=source) for group in groups]

    said: list[str] = []

    def parts(validation: list[Group], references: list[Group], targets: dict[str, float], weight: float) -> Any:
        said.clear()
        made = parts_of(validation, references, targets, weight, said.append)
        return [(part.name, pytest.approx(part.weight), len(part.groups)) for part in made]

    a, b = named("a", make_groups(3, 1, prefix="a")), named("b", make_groups(5, 2, prefix="b"))
    silent, likely = named("c", silenced(make_groups(2, 3, prefix="c"))), make_groups(4, 4, prefix="r")
    assert parts([*a, *b], [], {"a": 1, "b": 3}, 0.5) == [("source a", 0.25, 3), ("source b", 0.75, 5)]
    assert parts([*a, *b], likely, {"a": 1, "b": 3}, 0.2) == [
        ("source a", 0.2, 3), ("source b", 0.6, 5), ("references", 0.2, 4)
    ]  # fmt: skip
    assert parts([*a, *silent], likely, {}, 0.5) == [("validation", 0.5, 3), ("references", 0.5, 4)]
    assert parts([*a, *b], [], {"a": 1, "b": 0}, 0.5) == [("source a", 1.0, 3)]
    assert parts([], likely, {}, 1.0) == [("references", 1.0, 4)]
    assert not said
    assert parts([*a, *silent], [], {"a": 1, "c": 1}, 0.5) == [("source a", 1.0, 3)]
    assert "source 'c': none of its 2 problems carries a gradient; the others are followed" in said[0]
    assert parts(silent, likely, {}, 0.3) == [("references", 1.0, 4)]
    assert "none of the 2 validation problems carries a policy gradient: the 4 trusted responses alone" in said[0]
    with pytest.raises(NoGradientError):
        parts([*a, *silent], [], {"a": 0, "c": 1}, 0.5)
    for group in likely:
        group.invalid = "failed"
    with pytest.raises(GradAlignError, match="references: none of the 4 problems has a row that can be scored"):
        parts(a, likely, {}, 0.5)


def likelihood_gradient(policy: Policy, group: Group, temperature: float) -> np.ndarray:
    """grad (1 / Z) sum_k sum_t log pi(y_kt) by autograd, over every parameter."""
    total, tokens = torch.zeros(()).double(), 0
    for rollout in group.rollouts:
        ids = torch.from_numpy(np.r_[group.prompt_ids, rollout.response_ids])
        with policy.arithmetic():
            logits = policy.model(input_ids=ids[None]).logits[0].double()
        logprobs = torch.log_softmax(logits / temperature, -1)
        for place, (token, counts) in enumerate(zip(rollout.response_ids, rollout.mask, strict=True)):
            if counts:
                total = total + logprobs[len(group.prompt_ids) - 1 + place, int(token)]
                tokens += 1
    return flat(torch.autograd.grad(total / tokens, policy.parameters))


@pytest.mark.parametrize("engine", ["exact", "reference"])
@pytest.mark.parametrize("name", ["llama-tied", "gpt2"])
def test_likelihoods_in_float64_against_autograd(engine: str, name: str) -> None:
    policy = make_policy(name, torch.float64)
    objective = Objective("std", "sequence_mean", 0.7)
    validation = make_groups(5, 2, masks=True, prefix="v")
    references = silenced(make_groups(4, 3, rollouts=2, masks=True, prefix="r"))
    references[0].rollouts[1].response_ids = references[0].rollouts[0].response_ids  # the same response twice
    references[0].rollouts[1].response_mask = references[0].rollouts[0].response_mask
    own = np.mean([flat(written_out(policy, g, objective)) for g in validation], axis=0)
    likely = np.mean([likelihood_gradient(policy, g, 0.7) for g in references], axis=0)
    for weight in (0.25, 1.0):
        scorer = Scorer(policy, objective, engine, batch_tokens=64, reference_weight=weight)
        found = scorer.direction([] if weight == 1 else validation, references=references)
        v = (1 - weight) * own / np.linalg.norm(own) + weight * likely / np.linalg.norm(likely)
        np.testing.assert_allclose(flat(found.unit), v / np.linalg.norm(v), atol=1e-10)
        assert found.norm == pytest.approx(np.linalg.norm(v), rel=1e-9)
        assert found.n_references == 4
        scorer.offload = True
        mapped = scorer.direction([] if weight == 1 else validation, references=references)
        np.testing.assert_array_equal(flat(mapped.unit), flat(found.unit))
        assert mapped.facts() == found.facts()
    scorer = Scorer(policy, objective, engine, reference_weight=1.0, unit=True)
    gradient = flat(scorer.direction([], references=references).unit)
    each = [likelihood_gradient(policy, g, 0.7) for g in references]
    v = np.mean([g / np.linalg.norm(g) for g in each], axis=0)
    np.testing.assert_allclose(gradient, v / np.linalg.norm(v), atol=1e-10)


def test_a_likelihood_rises_along_its_direction() -> None:
    policy, references = make_policy("llama", torch.float64), silenced(make_groups(3, 3, rollouts=2, prefix="r"))
    for group in references:
        group.rollouts = group.rollouts[:1]
    direction = Scorer(policy, Objective(), reference_weight=1.0).direction([], references=references)

    def likelihood() -> float:
        with torch.no_grad():
            sums = []
            for group in references:
                ids = torch.from_numpy(np.r_[group.prompt_ids, group.rollouts[0].response_ids])
                with policy.arithmetic():
                    logprobs = torch.log_softmax(policy.model(input_ids=ids[None]).logits[0], -1)
                own = logprobs[len(group.prompt_ids) - 1 : -1]
                sums.append(float(own.gather(1, ids[len(group.prompt_ids) :, None]).mean()))
        return float(np.mean(sums))

    before = likelihood()
    with torch.no_grad():
        for parameter, v in zip(policy.parameters, direction.unit, strict=True):
            parameter.add_(v, alpha=1e-4)
    slope = (likelihood() - before) / 1e-4
    truth = np.mean([likelihood_gradient(policy, g, 1.0) for g in references], axis=0)
    assert slope == pytest.approx(np.linalg.norm(truth), rel=1e-2)
    assert Likelihood().coefficients(references[0]).tolist() == [1 / references[0].n_tokens]


def test_responses_are_written_as_the_policy_would(embedded: Policy) -> None:
    ids = embedded.tokenizer.get_vocab()

    def tokens(problem: Problem) -> list[int]:
        prompt = np.array(prompt_tokens(embedded, problem))
        return reference_groups(embedded, [problem], [prompt], "worked")[0].rollouts[0].response_ids.tolist()

    own = [ids[c] for c in "12"] + [ids["<eos>"]]
    assert tokens(Problem("a", "3+9=", "12", metadata={"worked": "12"})) == own
    chat = Problem("b", [{"role": "user", "content": "3+9"}], "12", metadata={"worked": "12"})
    tokenizer = embedded.tokenizer
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% else %}=({{ m.content }})<eos>,{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}=({% endif %}"
    )
    try:
        tokenizer.chat_template = template
        assert tokens(chat) == [ids[c] for c in "12)"] + [ids["<eos>"]]  # what the template writes, to its end token
        tokenizer.chat_template = template.replace("=({{", ">{{")  # does not begin with the prompt
        assert tokens(chat) == own
    finally:
        tokenizer.chat_template = None


def test_fields_without_trusted_responses(embedded: Policy) -> None:
    def made(field: str = "worked", **metadata: Any) -> list[Group]:
        problems = [Problem("a", "3+9=", "12", "s", metadata), Problem("b", "4+9=", "13", "s")]
        return reference_groups(embedded, problems, [np.array([4])] * 2, field)

    assert [g.key for g in made(worked="12")] == ["a"]
    assert [g.key for g in made("answer")] == ["a", "b"]
    with pytest.raises(GradAlignError, match="no problem has a trusted response in field 'wroked'; did you mean"):
        made("wroked", worked="12")
    with pytest.raises(GradAlignError, match="problem 'a': field 'worked' is 7; write the trusted response as text"):
        made(worked=7)
    with pytest.raises(GradAlignError, match="problem 'a': field 'worked' is ' '; write"):
        made(worked=" ")
    with pytest.raises(GradAlignError, match="prompt and response have 302 tokens, the policy takes 256; shorten"):
        made(worked="1" * 300)


def test_a_direction_of_parts_survives_its_file(tmp_path: Path) -> None:
    policy, objective = make_policy("llama"), Objective()
    validation = [dataclasses.replace(g, source="ab"[i % 2]) for i, g in enumerate(make_groups(10, 2, prefix="v"))]
    paths = [tmp_path / f"{number}.safetensors" for number in range(2)]
    for path, targets in zip(paths, ({"a": 1.0, "b": 1.0}, {"a": 1.0, "b": 2.0}), strict=True):
        direction = Scorer(policy, objective, targets=targets).direction(validation)
        save_direction(path, policy, objective, direction)
        found = load_direction(path, policy, objective)
        assert found.facts() == direction.facts()
        assert set(found.parts) == {"source a", "source b"}
    assert paths[0].read_bytes() != paths[1].read_bytes()


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Any]:
    validation = [dataclasses.replace(g, source="ab"[i % 2]) for i, g in enumerate(make_groups(12, 2, prefix="v"))]
    references = make_groups(6, 3, rollouts=2, prefix="r")
    write_rollouts(tmp_path / "c.parquet", make_groups(6, 1))
    write_rollouts(tmp_path / "v.parquet", validation)
    rows = [row for group in references for row in to_rows(group)]
    bare = [{k: row[k] for k in ("key", "prompt_ids", "response_ids")} for row in rows]  # nobody pays them
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in bare))
    return {name: tmp_path / f"{name}.{end}" for name, end in (("c", "parquet"), ("v", "parquet"), ("r", "jsonl"))}


@pytest.mark.filterwarnings("ignore::gradalign.errors.GradAlignWarning")
def test_score_follows_targets_and_references(
    gradalign: Run, llama_folder: Path, files: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "s.parquet"
    base = ["score", "--model", llama_folder, "--candidates", files["c"], "--out", out]
    alone = [*base, "--references", files["r"], "--reference-weight", 1]
    with_validation = [*base, "--validation", files["v"]]
    ran = gradalign(*with_validation, "--references", files["r"], "--reference-weight", 0.25, "--targets", "a=1", "b=2")
    assert ran.status == 0, ran.err
    assert "it is made of 25% source a, 50% source b, 25% references" in ran.out
    facts = read_json(tmp_path / "s.config.json")["direction"]
    assert facts["parts"] == pytest.approx({"source a": 0.25, "source b": 0.5, "references": 0.25})
    assert (facts["problems"], facts["references"]) == (18, 6)
    ran = gradalign(*alone, "--save-direction", tmp_path / "v.safetensors")
    assert ran.status == 0, ran.err
    assert "6 problems (6 with a trusted response, 0 more carry no gradient)" in ran.out
    once = out.read_bytes()
    assert gradalign(*base, "--direction", tmp_path / "v.safetensors").status == 0
    assert out.read_bytes() == once
    for command, message in [
        ([*with_validation, "--targets", "a=1"], "source 'b' have no weight"),
        ([*with_validation, "--targets", "a=1", "b=x"], "targets: 'b=x': write SOURCE=WEIGHT"),
        ([*with_validation, "--reference-weight", 0.5], "--reference-weight is of --references"),
        ([*with_validation, "--references", files["r"], "--reference-weight", 0], "greater than 0"),
        ([*with_validation, "--references", files["r"], "--reference-weight", 1], "leave --validation out"),
        ([*base, "--references", files["r"]], "or follow --references alone, by --reference-weight 1"),
        ([*base, "--references", files["r"], "--reference-weight", 1, "--targets", "a=1"], "leave one out"),
        ([*base, "--references", files["r"], "--direction", tmp_path / "v.safetensors"], "exclude each other"),
        ([*base, "--targets", "a=1", "--direction", tmp_path / "v.safetensors"], "exclude each other"),
        ([*with_validation, "--references", tmp_path / "no.jsonl"], "no.jsonl: no such file"),
    ]:  # fmt: skip
        error = gradalign(*command).error
        assert message in error, (command, error)


@pytest.mark.filterwarnings("ignore::gradalign.errors.GradAlignWarning")
def test_select_follows_targets_and_references(gradalign: Run, tmp_path: Path) -> None:
    pool, trusted = write_pool(tmp_path / "pool.jsonl", 24, 1), write_pool(tmp_path / "val.jsonl", 16, 2)
    rows = [json.loads(line) for line in trusted.read_text().splitlines()]
    for number, row in enumerate(rows):
        row |= {"source": "ab"[number % 2], "worked": row["answer"] if number % 4 else None}
    trusted.write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = ["select", "--model", "embedded", "--reward", "countdown", "--max-new-tokens", 6, "-n", 6, "--pool", pool,
            "--validation", trusted, "--allow-overlap", "--top", 5]  # fmt: skip
    ran = gradalign(*base, "--targets", "a=3", "b=1", "--reference-field", "worked", "--out", tmp_path / "both")
    assert ran.status == 0, ran.err
    facts = read_json(tmp_path / "both" / "round-0000" / "metrics.json")
    assert facts["direction"]["parts"] == {"source a": 0.375, "source b": 0.125, "references": 0.5}
    assert facts["direction"]["references"] == 12
    candidates = len(read_rollouts(tmp_path / "both" / "round-0000" / "candidates.parquet"))
    assert facts["rollouts"] == 6 * (candidates + 16)

    ran = gradalign(*base, "--reference-field", "answer", "--reference-weight", 1, "--out", tmp_path / "alone")
    assert ran.status == 0, ran.err
    facts = read_json(tmp_path / "alone" / "round-0000" / "metrics.json")
    assert (facts["rollouts"], facts["direction"]["problems"]) == (6 * candidates, 16)
    assert not (tmp_path / "alone" / "round-0000" / "validation.parquet").exists()
    assert len(choice(tmp_path / "alone")) == 5

    for row in rows:
        row["answer"] = "never"
    trusted.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ran = gradalign(*base, "--reference-field", "worked", "--out", tmp_path / "unsolved")
    assert ran.status == 0, ran.err
    assert re.search(r"none of the 16 validation problems carries a policy gradient: the 12 trusted", ran.err)
    bad: list[tuple[list[Any], str]] = [
        (["--targets", "a=1"], "source 'b' have no weight"),
        (["--targets", "a=1", "b=1", "c=1"], "no validation problem is of source 'c'"),
        (["--reference-field", "wroked"], "did you mean 'worked'"),
        (["--reference-weight", 0.5], "--reference-weight is of --reference-field"),
    ]
    for more, message in bad:
        assert message in gradalign(*base, *more, "--out", tmp_path / "bad").error
        assert not (tmp_path / "bad").exists()


@pytest.mark.filterwarnings("ignore::gradalign.errors.GradAlignWarning")
@pytest.mark.parametrize("mode", ["round", "batch"])
def test_training_follows_trusted_responses(tmp_path: Path, mode: str) -> None:
    options: dict[str, Any] = {"max_steps": 2, "mode": mode, "reference_field": "answer"}
    options |= {"reference_weight": 1.0} if mode == "batch" else {"direction_average": 0.5}
    made = trainer(tmp_path, **options)
    made.train()
    assert made.curriculum is not None
    facts = read_json(tmp_path / "round-0000" / "metrics.json")["direction"]
    assert facts["references"] == 32
    assert facts["parts"]["references"] == (1.0 if mode == "batch" else 0.5)
    assert (tmp_path / "round-0000" / "validation.parquet").exists() == (mode == "round")
    if mode == "batch":  # the step was chosen on the first batch
        assert made.curriculum.state.step is not None
    with pytest.raises(GradAlignError, match=r"is of another run \(differs in followed\)"):
        trainer(tmp_path, **options | {"reference_weight": 0.75}).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"targets": ["a"]}, "targets: 'a': write SOURCE=WEIGHT"),
        ({"reference_weight": 0.5}, "reference_weight is of reference_field"),
        ({"reference_field": "answer", "reference_weight": 1.5}, "reference_weight is 1.5; it must be in .0, 1."),
        ({"reference_field": "answer", "reference_weight": 1.0, "targets": ["a=1"]}, "leave one out"),
    ],
)  # fmt: skip
def test_bad_configurations_of_a_trainer(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, **arguments)


def test_a_trainer_says_what_does_not_fit_before_it_trains(tmp_path: Path) -> None:
    with pytest.raises(GradAlignError, match=r"targets: validation problems of source .* have no weight"):
        trainer(tmp_path, targets=["mul1=1"])
    with pytest.raises(GradAlignError, match="no problem has a trusted response in field 'worked'"):
        trainer(tmp_path, reference_field="worked")
    with pytest.warns(GradAlignWarning):
        Scorer(make_policy("llama"), Objective()).direction(
            silenced(make_groups(3, 1)), references=make_groups(4, 2, prefix="r")
        )
