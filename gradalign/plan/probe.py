"""This machine's speeds, measured in some seconds: its own rates, or the engines themselves on a like model.

That model has the planned one's architecture and random weights; of a large one only as many layers as have twice the
output layer's weights. It takes random tokens of the planned lengths through the very code that a run takes: engines,
sampler, the trainer's generation, a training pass. What comes out are operations a second by kind of work, and
seconds a step by rows; the overhead of small models is within both.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from gradalign.alignment.direction import build_direction
from gradalign.alignment.directional import Directional
from gradalign.alignment.exact import Exact
from gradalign.alignment.sketch import Sketch, Sketching
from gradalign.bench.counts import Count, Lengths, Shape, completed, head_sketched, shared, sketched
from gradalign.bench.machine import product_seconds, product_width, synchronise
from gradalign.bench.workloads import Workload, random_groups
from gradalign.plan.anatomy import Anatomy
from gradalign.plan.responses import Responses
from gradalign.plan.speeds import HOST, SHARES, Speeds, Steps
from gradalign.policy.group import Group
from gradalign.policy.load import Policy, cover
from gradalign.policy.objective import Objective
from gradalign.rollouts.sample import Sampling, sample_batch

LEAST, MOST = 0.2, 5
"""Seconds that one thing is measured for, and times, at most (once at least)."""
ENOUGH = {"cpu": 6e10}
"""By device: operations of the groups that an engine is measured on, about; 1e13 on others."""
ROWS = {"cpu": 64}
"""By device: rows decoded side by side, at most, in a model of more than `SMALL` weights; 512 on others."""
SMALL = 5_000_000
WHOLE = 200_000_000
"""Parameters up to which a model is measured with all its layers: what the output layer costs each group, whatever its
tokens, would else be scaled up with the layers."""
STEPS = (2, 6)
"""Tokens of the two samplings whose difference is that of the steps between."""


@dataclass(frozen=True)
class Planned:
    """The lengths that are measured.

    Attributes:
        group: a scored group: its prompt, distinct responses, their mean tokens.
        groups: of them.
        responses: say how long each of the responses is.
        context: tokens that a sampled token looks back on, halfway.
        rows: responses decoded side by side, at most.
        stop: texts that end a response.
        batch_tokens: tokens in one pass of an engine.
        sketching: of engine sketch.
        kinds: of work, beside sampling.
        training: rows of a training pass; 0 where nothing is trained.
        generated: rows of the trainer's generation; 0 where it has none.
    """

    group: Lengths
    groups: int
    responses: Responses
    context: int
    rows: int
    stop: tuple[str, ...]
    batch_tokens: int
    sketching: Sketching
    kinds: tuple[str, ...]
    training: int = 0
    generated: int = 0


def counter(kind: str, sketching: Sketching) -> Count:
    """What a group's work of a kind is counted by."""
    if kind == "sketch":
        rank = int(sketching.projection.partition(":")[2] or 0) if sketching.projection.startswith("two-sided") else 0
        return head_sketched(rank) if sketching.layers == "lm-head" else sketched(rank)
    return {"forward": shared(1), "train": completed(3)}.get(kind, shared(3))


def rough(device: torch.device, dtype: torch.dtype) -> Speeds:
    """Of this machine, as of a card: its product rate and bandwidth, and the shares of `gradalign.plan.speeds`."""
    rate, bandwidth = _product(device, dtype), _bandwidth(device)
    rates = {kind: rate * share for kind, share in SHARES.items()}
    source = f"measured matrix-product rate {rate / 1e9:.0f} GFLOP/s and bandwidth {bandwidth / 1e9:.1f} GB/s"
    facts = {"product": rate, "bandwidth": bandwidth}
    return dataclasses.replace(_here(device), source=source, rates=rates, bandwidth=bandwidth, host=HOST, facts=facts)


def measured(model: Anatomy, planned: Planned, device: torch.device, dtype: torch.dtype) -> Speeds:
    """Of this machine, by a model like ``model``."""
    start = time.perf_counter()
    policy = _like(model, device, dtype)
    shape = dataclasses.replace(model.shape, layers=policy.config.get_text_config().num_hidden_layers)
    rates = _engines(policy, shape, planned)
    if planned.training:
        rates["train"] = _training(policy, shape, planned)
    scale = _step_work(model.shape, planned.context) / _step_work(shape, planned.context)
    sampling = _steps(_sampler(policy, planned), _rows(policy, planned.rows), device, scale)
    generating = None
    if planned.generated and model.parameters <= SMALL:  # of a large model the sampler's steps will do
        generating = _steps(_generator(policy, planned), _rows(policy, planned.generated), device, scale)
    rate, bandwidth = _product(device, dtype), _bandwidth(device)
    layers = f"{shape.layers} of {model.shape.layers} layers" if shape.layers < model.shape.layers else "all layers"
    facts = {
        "product": rate, "bandwidth": bandwidth, "layers": shape.layers, "rates": rates,
        "sampling": _record(sampling), "generating": generating and _record(generating),
        "seconds": time.perf_counter() - start,
    }  # fmt: skip
    source = f"measured on random weights ({layers}) in {facts['seconds']:.0f} s"
    return dataclasses.replace(
        _here(device), source=source, rates=rates, bandwidth=bandwidth, sampling=sampling, generating=generating,
        facts=facts,
    )  # fmt: skip


def _record(steps: Steps) -> dict[str, float]:
    return {str(rows): seconds for rows, seconds in zip(steps.rows, steps.seconds, strict=True)}


def _here(device: torch.device) -> Speeds:
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return Speeds(properties.name, "", {}, 1.0, float(properties.total_memory), True)
    memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) if hasattr(os, "sysconf") else None
    return Speeds("this machine", "", {}, 1.0, memory, False, torch.get_num_threads())


class _Endless:
    """A tokenizer in which no token ends a response."""

    eos_token_id = None

    def __init__(self, tokenizer: Any) -> None:
        self.decode = tokenizer.decode


def _like(model: Anatomy, device: torch.device, dtype: torch.dtype) -> Policy:
    """A policy of random weights, with fewer layers where the model is large."""
    config = copy.deepcopy(model.policy.config)
    text, shape = config.get_text_config(), model.shape
    if model.parameters > WHOLE:
        text.num_hidden_layers = min(shape.layers, max(2, 2 * shape.head_weights // shape.layer_weights))
        if getattr(text, "layer_types", None) is not None:
            text.layer_types = text.layer_types[: text.num_hidden_layers]
    text.eos_token_id = config.eos_token_id = None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    made.generation_config.eos_token_id = None
    policy = cover(made.to(device, dtype).eval(), model.policy.path)
    policy.given_tokenizer = cast(Any, _Endless(model.policy.tokenizer))
    return policy


def _engines(policy: Policy, shape: Shape, planned: Planned) -> dict[str, float]:
    """Kind of work -> operations a second of the engine that does it, or of the direction."""
    lengths, objective, tokens = planned.group, Objective(), planned.batch_tokens
    enough = ENOUGH.get(policy.device.type, 1e13)
    if shared(3)(shape, lengths).total > enough:  # fewer responses, of the same length
        fewer = round(lengths.rollouts * enough / shared(3)(shape, lengths).total)
        lengths = dataclasses.replace(lengths, rollouts=max(2, fewer))
    number = max(2, min(round(enough / shared(3)(shape, lengths).total), planned.groups))
    vocabulary = _vocabulary(policy)
    longest = dataclasses.replace(lengths, response=len(planned.responses.running))
    whole = random_groups(Workload(number, longest), number, vocabulary, 0)
    groups = [_cut(group, planned.responses.lengths(i, lengths.rollouts)) for i, group in enumerate(whole)]
    short = random_groups(Workload(2, Lengths(2, 2, 2)), 2, vocabulary, 0)  # the first pass of anything is slower
    along = build_direction(short, Exact(policy, objective, tokens, True).add_up)
    runs: dict[str, Callable[[Sequence[Group]], Any]] = {
        "direction": lambda some: build_direction(some, Exact(policy, objective, tokens, True).add_up),
        "exact": lambda some: list(Exact(policy, objective, tokens, True).measure(some, along)),
        "forward": lambda some: Directional(policy, objective, tokens, True, "forward-mode").record(some),
        "forward-mode": lambda some: list(
            Directional(policy, objective, tokens, True, "forward-mode").measure(some, along)
        ),
        "sketch": lambda some: list(Sketch(policy, objective, tokens, True, planned.sketching).measure(some, along)),
    }
    rates = {}
    for kind in planned.kinds:
        runs[kind](short)
        seconds = _timed(partial(runs[kind], groups), policy.device)
        rates[kind] = number * counter(kind, planned.sketching)(shape, lengths).total / seconds
    return rates


def _cut(group: Group, lengths: Sequence[int]) -> Group:
    """The group with its responses cut to these lengths."""
    for rollout, length in zip(group.rollouts, lengths, strict=True):
        rollout.response_ids = rollout.response_ids[:length]
    return Group(group.key, group.prompt_ids, group.rollouts)


def _training(policy: Policy, shape: Shape, planned: Planned) -> float:
    """Operations a second of a trainer's forward and backward pass."""
    lengths = dataclasses.replace(planned.group, rollouts=planned.training)
    one = completed(3)(shape, dataclasses.replace(lengths, rollouts=1)).total
    lengths = dataclasses.replace(
        lengths, rollouts=max(1, min(planned.training, round(ENOUGH.get(policy.device.type, 1e13) / one)))
    )
    source = torch.Generator().manual_seed(0)
    size = (lengths.rollouts, lengths.prompt + lengths.response)
    ids = torch.randint(_vocabulary(policy), size, generator=source).to(policy.device)

    def run() -> None:
        kept = {"logits_to_keep": lengths.response + 1} if "logits_to_keep" in policy.forward_arguments else {}
        logits = policy.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **kept).logits
        logprobs = torch.log_softmax(logits[:, -lengths.response - 1 : -1].float(), -1)
        logprobs.gather(2, ids[:, -lengths.response :, None]).mean().backward()
        policy.model.zero_grad(set_to_none=True)

    return completed(3)(shape, lengths).total / _timed(run, policy.device)


def _vocabulary(policy: Policy) -> int:
    """Tokens of the input embedding."""
    return int(policy.model.get_input_embeddings().weight.shape[0])


def _step_work(shape: Shape, context: int) -> float:
    return shape.layers * (shape.layer_weights + context * 2 * shape.attention_width) + shape.head_weights


def _rows(policy: Policy, most: int) -> list[int]:
    if sum(p.numel() for p in policy.parameters) > SMALL:
        most = min(most, ROWS.get(policy.device.type, 512))
    return sorted({1, max(1, most // 4), most})


def _sampler(policy: Policy, planned: Planned) -> Callable[[int, int], None]:
    prompt = np.random.default_rng(0).integers(0, _vocabulary(policy), planned.context)
    stop = tuple("\0" * len(text) for text in planned.stop)

    def run(rows: int, tokens: int) -> None:
        sample_batch(policy, ["probe"], [prompt], Sampling(rows, tokens, stop=stop))

    return run


def _generator(policy: Policy, planned: Planned) -> Callable[[int, int], None]:
    source = torch.Generator().manual_seed(0)
    prompt = torch.randint(_vocabulary(policy), (1, planned.context), generator=source).to(policy.device)

    def run(rows: int, tokens: int) -> None:
        ids = prompt.expand(rows, -1)
        with torch.no_grad():
            policy.model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=True, top_k=0, pad_token_id=0
            )

    return run


def _steps(run: Callable[[int, int], None], rows: list[int], device: torch.device, scale: float) -> Steps:
    """Seconds of a step by rows, of a model whose step is ``scale`` times the work."""
    few, many = STEPS
    run(1, few)
    seconds = []
    for count in rows:
        short, long = (_timed(partial(run, count, tokens), device) for tokens in STEPS)
        seconds.append(max(long - short, 1e-6) / (many - few) * scale)
    return Steps(tuple(rows), tuple(np.maximum.accumulate(seconds).tolist()))


def _timed(run: Callable[[], Any], device: torch.device) -> float:
    """Median seconds of ``run``."""
    seconds: list[float] = []
    while not seconds or (sum(seconds) < LEAST and len(seconds) < MOST):
        synchronise(device)
        start = time.perf_counter()
        run()
        synchronise(device)
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def _product(device: torch.device, dtype: torch.dtype) -> float:
    return 2 * product_width(device) ** 3 / float(np.median(product_seconds(device, dtype)))


def _bandwidth(device: torch.device) -> float:
    """Bytes a second that a copy reads and writes."""
    source = torch.ones(2**25, device=device)
    to = source.clone()  # pages that were never written cost more
    return 2 * source.numel() * source.element_size() / _timed(lambda: to.copy_(source), device)
