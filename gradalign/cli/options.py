"""Options that several commands share, in groups that a command's own options inherit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from gradalign.alignment.combined import REFERENCE_WEIGHT, parse_targets
from gradalign.alignment.directional import Difference
from gradalign.alignment.engines import EngineName
from gradalign.alignment.sketch import USUAL, Sketching
from gradalign.config import Options
from gradalign.errors import GradAlignError
from gradalign.policy.load import Policy, load_policy
from gradalign.policy.objective import Advantage, Aggregation, Objective
from gradalign.rewards.base import Reward
from gradalign.rewards.coin import Coin
from gradalign.rewards.find import find_reward
from gradalign.rewards.several import AnyReward, together
from gradalign.rollouts.sample import Sampling
from gradalign.selection import Size, Strategy, find_strategy

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class PolicyOptions(Options):
    """Which policy, and how it is loaded."""

    model: Annotated[str, Field(min_length=1)]
    """The policy: hub id, folder, .gguf file, or `embedded`."""
    adapter: str | None = None
    """LoRA adapter, folder or hub id; then gradients are over its parameters alone."""
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto"
    """Type of the weights; auto is float32 on a CPU, else the checkpoint's own."""
    device: str = "auto"
    """Where to compute; auto is cuda where there is one, else cpu."""

    def policy(self, parameters: Sequence[str] = (), shard: bool = False) -> Policy:
        """Load the policy."""
        return load_policy(self.model, self.adapter, self.dtype, self.device, parameters, shard)


class ScoringOptions(Options):
    """How alignments are computed."""

    engine: EngineName = "exact"
    """exact: one backward pass a group; directional: forward passes alone; sketch: short vectors, see --layers and
    --projection; reference: slow and plain."""
    contributions: bool = False
    """With exact and sketch: a further forward-only pass gives each problem's standard error, t and reward
    correlation."""
    advantage: Advantage = "mean"
    """Of a response within its problem: mean (reward - mean), std (that / standard deviation), loo (reward - mean of
    the others)."""
    aggregation: Aggregation = "token_mean"
    """token_mean (all tokens of the problem weigh the same), sequence_mean (all responses do; TRL's grpo), sum (TRL's
    dapo, bnpo, dr_grpo)."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Of softmax(logits / temperature), in scoring and, where responses are sampled, in sampling."""
    batch_tokens: Count = 4096
    """Tokens in one forward or backward pass, at most; changes speed and memory, not scores (beyond rounding)."""
    difference: Difference | None = None
    """How forward-only scores differentiate: central (two passes), one-sided (one pass beside --engine exact
    --contributions, less precise), forward-mode (about three, exact to rounding, also in half precision); default:
    central in float32, else forward-mode."""
    offload: bool = False
    """Keep the validation direction in a file, not in memory; for policies that fill it."""
    unit: bool = False
    """Divide each validation problem's gradient by its norm before averaging."""
    targets: tuple[str, ...] = ()
    """SOURCE=WEIGHT for every source of the validation set: each source's direction counts by its weight, whatever its
    length; 0 leaves a source out (default: all problems weigh the same)."""
    reference_weight: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of trusted responses' likelihood in the direction, where there are some; 1 follows them alone (default:
    0.5)."""
    parameters: tuple[str, ...] = ()
    """Patterns such as *layers.1[0-9].*; score over matching parameters only (default: all trainable ones)."""

    layers: str = USUAL.layers
    """With sketch: all, lm-head (the output layer alone, no backward pass through the rest), last:K (the last K
    blocks), lora:R (what fresh adapters of rank R would get)."""
    projection: str = USUAL.projection
    """With sketch, of each parameter's gradient: two-sided:R (R x R numbers a matrix), coordinates:N (N random ones of
    all), none."""
    store: Path | None = None
    """With sketch: folder that features are kept in; what is in it is not computed again."""
    gram: bool = False
    """With --store: also write the inner products of all its rows (gram.npy)."""

    @model_validator(mode="after")
    def _sketch_alone(self) -> ScoringOptions:
        sketching = self.sketching  # refuses what cannot be
        weighed = self.weighed  # likewise
        if weighed and self.reference_weight == 1:
            raise ValueError("--targets weighs policy gradients, and --reference-weight 1 follows none; leave one out")
        names = ("layers", "projection", "store", "gram")
        given = [name for name in names if getattr(sketching, name) != getattr(USUAL, name)]
        if self.engine != "sketch" and given:
            raise ValueError(f"option --{given[0]} is of --engine sketch; add that, or leave the option out")
        return self

    @property
    def sketching(self) -> Sketching:
        """What engine sketch does."""
        return Sketching(self.layers, self.projection, self.store, self.gram)

    @property
    def weighed(self) -> dict[str, float]:
        """Validation source -> weight."""
        return parse_targets(self.targets)

    @property
    def reference_share(self) -> float:
        """Share of trusted responses in the direction, where there are some."""
        return REFERENCE_WEIGHT if self.reference_weight is None else self.reference_weight

    @property
    def objective(self) -> Objective:
        """The objective that is differentiated."""
        return Objective(self.advantage, self.aggregation, self.temperature)


class SelectionOptions(Options):
    """Which strategy, and how many to choose."""

    strategy: str | None = None
    """gradalign (the paper's cosine), guarded (for rewards that are not trusted), dot, expected, tscore, corr,
    permutation, lcb, shrunk; with --engine sketch nearest, learnalign, cropi, dtv; by the pass rate accgreedy, accband,
    learnability, dynamic, simacc; for comparison static, norm, negative, random, oracle (default: gradalign where the
    engine gives a cosine, else dot)."""
    gates: tuple[str, ...] = ()
    """Which may be chosen, in place of the strategy's own gates: consistent, "sound(fdr=0.1)", "band(low=0.2,
    high=0.8)", dtv, "oracle(keys='clean.txt')", "oracle(corrupt=0.5, seed=0)"; none for none at all."""
    rank: str | None = None
    """Which are most useful, in place of the strategy's own: cosine, dot, tscore, corr, permutation, lcb, shrunk,
    expected, norm, negative, simacc, learnability, learnalign, "nearest(k=5)", "cropi(k=60)", accgreedy, dynamic,
    random."""
    pick: str | None = None
    """Which of them are chosen, in place of the strategy's own: top, "sample(temperature=0.5)", diverse; each takes
    "caps={'web': 0.3}", "floors={'code': 0.1}", "explore=0.1"."""
    top: Count | None = None
    """Choose this many."""
    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """Choose this share of the candidates, scored or not, rounded down."""
    threshold: float | None = None
    """Choose all with at least this score, in the strategy's own units."""
    seed: int = 0
    """Seed of ties, of the validation halves, of sampling, and of sketches."""

    @model_validator(mode="after")
    def _one_size(self) -> SelectionOptions:
        given = [name for name in ("top", "fraction", "threshold") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"--{given[0]} and --{given[1]} exclude each other; give one of them")
        return self

    @property
    def size(self) -> Size:
        """How many to choose."""
        return Size(self.top, self.fraction, self.threshold)

    def chosen_strategy(self, engine: str, contributions: bool) -> Strategy:
        """The strategy, held against what the engine gives."""
        return find_strategy(self.strategy, engine, contributions, self.gates, self.rank, self.pick)


class PayOptions(Options):
    """Who pays."""

    reward: Annotated[tuple[str, ...], Field(min_length=1)]
    """exact, number, countdown, choice, math, reasoning-gym, "judge(url='http://127.0.0.1:8000/v1', model='M')",
    python:pkg.module:function with TRL's signature (a chat problem's completions are lists of messages),
    verl:path.py:compute_score; several are added up."""
    reward_weights: tuple[Annotated[float, Field(allow_inf_nan=False)], ...] = ()
    """Weight of each reward, in the same order (default: 1 for each)."""
    reward_timeout: Annotated[float, Field(gt=0, le=86400)] = 60.0
    """Seconds that the reward of one problem's responses may take; math, reasoning-gym and judge have limits of their
    own, for each response."""

    def paid_by(self, coin: Coin | None = None) -> AnyReward:
        """The reward, with ``coin``."""
        terms = [Reward(spec, find_reward(spec), self.reward_timeout, coin) for spec in self.reward]
        return together(terms, self.reward_weights)


class RewardOptions(PayOptions):
    """Who pays, and for which problems it is a coin."""

    corrupt: Share = 0.0
    """Chance of each problem to be paid by a fair coin instead, for experiments (never the validation set)."""
    corrupt_seed: int = 0
    """Seed of those coins."""

    def rewards(self) -> tuple[AnyReward, AnyReward]:
        """(reward of candidates, reward of the validation set)."""
        trusted = self.paid_by()
        return trusted if self.corrupt == 0 else self.paid_by(Coin(self.corrupt, self.corrupt_seed)), trusted


class SamplingOptions(Options):
    """How responses are sampled."""

    rollouts: Count = 16
    """Responses for each problem."""
    max_new_tokens: Count = 128
    """Longest response, in tokens."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Texts that end a response; \\n is a line break."""
    batch_rollouts: Count = 512
    """Responses decoded side by side, at most; part of the run's identity, since rounding depends on it."""

    def sampling(self, rollouts: int, temperature: float, seed: int) -> Sampling:
        """Sampling of ``rollouts`` responses a problem."""
        stop = tuple(text.replace("\\n", "\n") for text in self.stop)
        return Sampling(rollouts, self.max_new_tokens, temperature, stop, seed, self.batch_rollouts)


def distinct(name: str, out: Path, *inputs: Any) -> None:
    """Refuse an output that is one of the inputs.

    Raises:
        GradAlignError: it is.
    """
    for path in inputs:
        if Path(path).resolve() == out.resolve():
            raise GradAlignError(f"option --{name}: {out} is also an input; name another file")
