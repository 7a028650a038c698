"""A device's memory at its fullest, by what holds it. An estimate: allocators and libraries take some more."""

from __future__ import annotations

import math

from gradalign.alignment.passes import LOGITS
from gradalign.bench.counts import Lengths
from gradalign.plan.recipe import Recipe
from gradalign.plan.work import Setting, group_of

KEPT_HIDDEN, KEPT_INNER = 11, 4
"""Numbers that a layer's backward pass needs of a token, in widths of the model and of its feed-forward part: what
goes into each matrix, norm, activation, product and rotation of a Llama-like layer."""
DIRECTION = 3
"""Directions held while one is found: both halves' sums, and what is being added."""


def memory(recipe: Recipe, setting: Setting) -> dict[str, dict[str, float]]:
    """Stage -> what holds memory in it -> bytes; weights, direction and the optimiser's state as they last."""
    model, own = setting.model, setting.candidates
    lasting: dict[str, float] = {"weights": model.parameters * recipe.width + model.adapter * recipe.width}
    if recipe.training is not None:
        lasting["optimiser"] = 8.0 * model.covered
    found: dict[str, dict[str, float]] = {}
    if recipe.sampled:
        most = max(recipe.rollouts * recipe.looked, recipe.validation_rollouts * recipe.validation)
        rows = min(recipe.batch_rollouts, most)
        found["sampling"] = lasting | _sampling(recipe, setting, rows)
    if recipe.followed:
        lengths = group_of(setting, own, recipe.rollouts)
        backward = recipe.engine in ("exact", "sketch", "reference")
        last = 0.0 if recipe.offload else 4.0 * model.covered
        found["direction"] = lasting | {
            "direction": DIRECTION * 4.0 * model.covered, "activations": _passed(recipe, setting, lengths, True),
        }  # fmt: skip
        if backward:
            found["scoring"] = lasting | {"direction": last, "activations": _passed(recipe, setting, lengths, True)}
        if recipe.engine == "directional" or recipe.contributions:
            held = {"direction": last, "weights moved": float(model.covered * recipe.width)}
            found["forward-only scores"] = lasting | held | {"activations": _passed(recipe, setting, lengths, False)}
    if recipe.training is not None:
        training = recipe.training
        tokens = training.rows * (setting.longest + own.longest(training.batch * training.generations))
        kept = _kept(setting) if not training.checkpointing else model.hidden * model.shape.layers + _layer(setting)
        logits = 2 * 4.0 * training.rows * own.longest(training.rows) * model.vocabulary
        found["training"] = lasting | {
            "gradients": 4.0 * model.covered, "activations": tokens * kept * _number(recipe) + logits,
        }  # fmt: skip
        if not training.served and recipe.mode == "round":
            rows = math.ceil(training.batch * training.generations / setting.devices)
            found["training rollouts"] = lasting | _sampling(recipe, setting, rows)
    return found or {"weights": lasting}


def peak(parts: dict[str, dict[str, float]]) -> tuple[str, float]:
    """The stage that takes most, and its bytes."""
    return max(((name, sum(held.values())) for name, held in parts.items()), key=lambda pair: pair[1])


def advice(recipe: Recipe, stage: str) -> str:
    """What to change where a stage's memory does not suffice."""
    half = [] if recipe.width < 4 else ["weights of a shorter type (--dtype bfloat16)"]
    if stage in ("sampling", "training rollouts"):
        return ", ".join([*half, "fewer responses side by side (--batch-rollouts, per_device_train_batch_size)"])
    if stage == "training":
        more = [] if recipe.training is None or recipe.training.checkpointing else ["gradient_checkpointing"]
        return ", ".join([*half, *more, "an adapter (--lora-r)", "a smaller per_device_train_batch_size", "sharding"])
    off = [] if recipe.offload else ["the direction in a file (--offload)"]
    fewer = "fewer parameters (--parameters, an adapter)"
    return ", ".join([*half, fewer, *off, "fewer --batch-tokens", "a model sharded over several cards"])


def _number(recipe: Recipe) -> int:
    """Bytes of a number that is computed."""
    return 2 if recipe.half else 4


def _layer(setting: Setting) -> float:
    """Numbers kept of a token in one layer."""
    return KEPT_HIDDEN * setting.model.hidden + KEPT_INNER * setting.model.inner


def _kept(setting: Setting) -> float:
    return setting.model.shape.layers * _layer(setting)


def _passed(recipe: Recipe, setting: Setting, lengths: Lengths, backward: bool) -> float:
    """Activations of a pass of scoring, and the logits that are held at a time."""
    model = setting.model
    whole = max(1, min(recipe.batch_tokens // lengths.tokens, recipe.looked))  # groups that share a pass
    tokens = max(min(whole * lengths.tokens, recipe.batch_tokens), lengths.prompt + lengths.response)
    places = min(tokens, max(1, lengths.rollouts * lengths.response))
    limit = LOGITS["cuda" if setting.speeds.card else "cpu"]
    logits = 3 * 4.0 * min(limit, places * model.vocabulary)
    if not backward:
        return tokens * _layer(setting) * _number(recipe) + logits
    head = 4.0 * model.vocabulary * model.hidden  # one group's gradient of the output layer
    return tokens * _kept(setting) * _number(recipe) + logits + 2 * head


def _sampling(recipe: Recipe, setting: Setting, rows: int) -> dict[str, float]:
    """Keys and values of all rows at their longest (those of one layer twice, while it grows), and the logits."""
    model = setting.model
    context = setting.longest + recipe.max_new_tokens
    cache = rows * context * 2 * model.keys * (model.shape.layers + 1) * _number(recipe)
    return {"keys and values": float(cache), "logits": rows * model.vocabulary * (4.0 + _number(recipe))}
