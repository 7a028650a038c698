"""The configuration: TRL's, and the fields that choosing adds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from trl.trainer.grpo_config import GRPOConfig

from gradalign.alignment.combined import REFERENCE_WEIGHT, parse_targets
from gradalign.alignment.directional import Difference
from gradalign.alignment.engines import ENGINES
from gradalign.alignment.sketch import USUAL, Sketching
from gradalign.errors import GradAlignError, nearest
from gradalign.policy.objective import Objective
from gradalign.selection import STRATEGIES, Budget, Size, Strategy, compose, find_budget
from gradalign.trainers.trl.rules import SEQUENCE_MEAN, check_together

OFF = "off"
"""The strategy that leaves TRL's trainer as it is."""


def _help(text: str, default: Any = None) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class GradAlignConfig(GRPOConfig):
    """Everything `trl.GRPOConfig` takes, and how problems are chosen.

    A round is ``steps_per_round`` optimiser steps; the trainer calls it an epoch, so ``save_strategy="epoch"`` and
    ``eval_strategy="epoch"`` mean once a round. ``max_steps`` counts optimiser steps as ever; where it is not given,
    ``num_train_epochs`` counts looks at the whole pool. Without a GPU, ``bf16`` defaults to false.

    Raises:
        ValueError: a value that TRL refuses, or fields that do not go together.
    """

    strategy: str | None = _help(
        "Which problems are preferred: gradalign (the paper's cosine), guarded (for rewards that are not trusted), "
        "dot, expected, tscore, corr, permutation, lcb, shrunk; with engine sketch learnalign (its first round is a "
        "warm-up on problems drawn at random), cropi (samples the pool once), nearest, dtv; by the pass rate "
        "accgreedy, accband, learnability, dynamic, simacc; for comparison static (chooses once), norm, negative, "
        "random, oracle; off trains on everything, as stock TRL (default: gradalign; in mode batch dot, which needs no "
        "cosine)."
    )
    gates: list[str] | None = field(
        default=None,
        metadata={
            "help": "Which problems may be chosen, in place of the strategy's own gates: consistent, sound(fdr=0.1), "
            "band(low=0.2, high=0.8), dtv, oracle(keys='clean.txt'); none for none at all."
        },
    )
    rank: str | None = _help(
        "Which are most useful, in place of the strategy's own rank: dot, lcb(level=0.9), expected(worth=learnability)."
    )
    pick: str | None = _help(
        "Which of them are chosen, in place of the strategy's own pick: top, sample(temperature=0.5), diverse; each "
        "takes caps={'web': 0.3}, floors={'code': 0.1}, explore=0.1."
    )
    mode: Literal["round", "batch"] = _help(
        "round: choose from a chunk once every steps_per_round. batch: sample oversample times as many problems as a "
        "generation batch takes, and train on the rollouts of those that align.",
        "round",
    )
    steps_per_round: int = _help("Optimiser steps between two looks at the direction.", 10)
    chunk: int | None = _help(
        "Round mode: problems looked at in a round (default: 8 times those it trains on; at most the pool)."
    )
    top: int | None = _help(
        "Round mode: problems chosen from the chunk (default: as many as the round has places, each trained on once; "
        "for strategy static, an eighth of the pool)."
    )
    fraction: float | None = _help("Round mode: choose this share of the chunk instead.")
    threshold: float | None = _help(
        "Round mode: choose all with at least this score instead, in the strategy's own units."
    )
    oversample: int = _help("Batch mode: problems sampled for each problem that is trained on, at most the pool.", 4)
    rollouts: int | None = _help("Round mode: responses sampled to score a problem (default: num_generations).")
    budget: str = _help(
        "Round mode: fixed, rollouts for every problem; racing(screen=8, mean=12): few for all, then up to rollouts "
        "where the place in the choice is still open.",
        "fixed",
    )
    validation_rollouts: int | None = _help(
        "Responses sampled for each validation problem, every round (default: as many as for the others)."
    )
    recycle: bool = _help(
        "Round mode: train on the rollouts that were sampled for scoring while the policy is still the one that "
        "sampled them: the first generation batch of each round.",
        True,
    )
    engine: str | None = _help(
        "How alignments are computed: exact, directional (forward passes alone, float32 weights), sketch, reference "
        "(default: exact in round mode, directional in batch mode)."
    )
    contributions: bool = _help("With exact: a further forward-only pass gives standard errors, t and corr.", False)
    unit: bool = _help("Divide each validation problem's gradient by its norm before averaging.", False)
    targets: list[str] | None = field(
        default=None,
        metadata={
            "help": "SOURCE=WEIGHT for every source of the validation set: each source's direction counts by its "
            "weight, whatever its length; 0 leaves a source out (default: all problems weigh the same)."
        },
    )
    reference_field: str | None = _help(
        "Column of the validation set with trusted responses as text: moving along the direction makes them likelier."
    )
    reference_weight: float | None = _help(
        "Share of these in the direction, in (0, 1]; at 1 no validation responses are sampled (default: 0.5)."
    )
    direction_average: float = _help(
        "Weight of the earlier rounds' direction in the one that is followed, in [0, 1).", 0.0
    )
    noise_patience: int = _help(
        "Stop training when the direction's halves, over this many rounds together, agree no better than noise does; 0 "
        "never stops.",
        5,
    )
    difference: str | None = _help(
        "How forward-only scores differentiate: central, one-sided (with contributions), forward-mode; default: "
        "central in float32, else forward-mode.",
        None,
    )
    offload: bool = _help("Keep the validation direction in a file, not in memory.", False)
    layers: str = _help("With engine sketch: all, lm-head, last:K (blocks), lora:R.", USUAL.layers)
    projection: str = _help("With engine sketch: two-sided:R, coordinates:N, none.", USUAL.projection)
    batch_tokens: int = _help("Tokens in one pass of scoring, at most.", 4096)
    batch_rollouts: int = _help("Responses that are decoded side by side when sampling for scoring, at most.", 512)
    sampler: str = _help(
        "Round mode: policy, the model itself samples what is scored; server, vLLM or SGLang servers at endpoints do, "
        "which load the policy's weights from the run's folder at every round's beginning.",
        "policy",
    )
    endpoints: list[str] | None = field(
        default=None,
        metadata={"help": "With sampler server: the servers' addresses; GRADALIGN_SERVER_KEY is sent as their key."},
    )
    concurrency: int = _help("With sampler server: requests at a time to each endpoint, at most.", 64)
    save_strategy: str = _help("As in TRL; epoch, the default, saves after every round.", "epoch")

    def __post_init__(self) -> None:
        if self.bf16 is None and not torch.cuda.is_available():
            self.bf16 = False
        for name, least in (("per_device_train_batch_size", 1), ("gradient_accumulation_steps", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.learning_rate < 0 or self.temperature <= 0:
            name = "learning_rate" if self.learning_rate < 0 else "temperature"
            raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
        super().__post_init__()
        if self.strategy is None:
            self.strategy = "dot" if self.mode == "batch" else "gradalign"
        if self.strategy not in (*STRATEGIES, OFF):
            raise ValueError(f"strategy: unknown {self.strategy!r}{nearest(self.strategy, [*STRATEGIES, OFF])}")
        if not self.choosing:
            return
        try:
            self.composed  # noqa: B018
        except GradAlignError as error:
            raise ValueError(str(error)) from error
        for name in ("steps_per_round", "chunk", "top", "oversample", "batch_tokens", "batch_rollouts", "concurrency"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        for name in ("rollouts", "validation_rollouts"):
            value = getattr(self, name)
            if value is not None and value < 2:
                raise ValueError(f"{name} is {value}; rewards are compared within a problem, so sample at least 2")
        if self.mode not in ("round", "batch"):
            raise ValueError(f"mode: unknown {self.mode!r}{nearest(self.mode, ['round', 'batch'])}")
        if self.engine is not None and self.engine not in ENGINES:
            raise ValueError(f"engine: unknown {self.engine!r}{nearest(self.engine, ENGINES)}")
        if self.difference is not None and self.difference not in get_args(Difference):
            raise ValueError(f"difference: unknown {self.difference!r}{nearest(self.difference, get_args(Difference))}")
        try:
            self.sketching, self.weighed  # noqa: B018
        except GradAlignError as error:
            raise ValueError(str(error)) from error
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise ValueError(f"fraction is {self.fraction}; it must be in (0, 1]")
        if not 0 <= self.direction_average < 1:
            raise ValueError(f"direction_average is {self.direction_average}; it must be in [0, 1)")
        if self.noise_patience < 0:
            raise ValueError(f"noise_patience is {self.noise_patience}; it must be at least 0")
        check_together(self)

    @property
    def choosing(self) -> bool:
        """Whether anything is chosen at all."""
        return self.strategy != OFF

    @property
    def composed(self) -> Strategy:
        """The strategy with the parts that are given in place of its own."""
        return compose(self.strategy, self.gates or (), self.rank, self.pick)

    @property
    def most(self) -> int:
        """Responses that a problem is scored by, at most."""
        assert self.num_generations is not None  # TRL has filled it in
        return self.rollouts or self.num_generations

    @property
    def raced(self) -> Budget:
        """How many of them each problem gets."""
        return find_budget(self.budget, self.most, self.composed)

    @property
    def generation_steps(self) -> int:
        """Forward-backward passes that one generation batch is used for."""
        assert self.steps_per_generation is not None  # TRL has filled it in
        return self.steps_per_generation * self.num_iterations

    @property
    def batch_prompts(self) -> int:
        """Problems in one generation batch, over all processes."""
        assert self.generation_batch_size is not None  # TRL has filled it in
        assert self.num_generations is not None
        return self.generation_batch_size // self.num_generations

    @property
    def round_prompts(self) -> int:
        """Places for problems in one round."""
        batches = self.steps_per_round * self.gradient_accumulation_steps // self.generation_steps
        return batches * self.batch_prompts

    @property
    def candidates(self) -> int:
        """Problems looked at together: of a round, or of a batch."""
        if self.mode == "batch":
            return self.oversample * self.batch_prompts
        return self.chunk or 8 * self.round_prompts

    @property
    def size(self) -> Size:
        """How many are chosen of them."""
        size = Size(self.top, self.fraction, self.threshold)
        return size if size.given else Size(top=self.round_prompts)

    @property
    def reference_share(self) -> float:
        """Share of trusted responses in the direction, where there are some."""
        return REFERENCE_WEIGHT if self.reference_weight is None else self.reference_weight

    @property
    def sketching(self) -> Sketching:
        """What engine sketch does."""
        return Sketching(self.layers, self.projection)

    @property
    def weighed(self) -> dict[str, float]:
        """Validation source -> weight."""
        return parse_targets(self.targets or ())

    @property
    def objective(self) -> Objective:
        """The policy gradient that this loss has on-policy; a KL term is never part of a score."""
        return Objective(
            advantage="std" if self.scale_rewards == "group" else "mean",
            aggregation="sequence_mean" if self.loss_type in SEQUENCE_MEAN else "sum",
            temperature=self.temperature,
            mask_truncated=self.mask_truncated_completions,
        )
