"""Operations of one group, counted from shapes: what an engine has to compute, whatever the machine.

A token costs two operations (a product and a sum) for each weight of each matrix it is multiplied by. A backward pass
costs twice its forward pass (gradients of inputs, gradients of weights). Attention's products are counted apart, over
visible pairs of tokens. Norms, softmax and other element-wise work are not counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """What of a Llama-like model the counts depend on.

    Attributes:
        layers: number of layers.
        layer_weights: weights of one layer's matrices.
        head_weights: weights of the output layer, tied or not.
        attention_width: heads times head size.
        layer_sides: rows and columns of one layer's matrices, added up.
        head_sides: rows and columns of the output layer.
    """

    layers: int
    layer_weights: int
    head_weights: int
    attention_width: int
    layer_sides: int = 0
    head_sides: int = 0

    @classmethod
    def of(cls, config: Any) -> Shape:
        """The shape that a Llama or Qwen2 configuration describes."""
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        queries, keys = config.num_attention_heads * size, config.num_key_value_heads * size
        others = 2 * queries + 2 * keys + 3 * config.intermediate_size
        weights, sides = config.hidden_size * others, 7 * config.hidden_size + others
        head = config.vocab_size * config.hidden_size, config.vocab_size + config.hidden_size
        return cls(config.num_hidden_layers, weights, head[0], queries, sides, head[1])


@dataclass(frozen=True)
class Lengths:
    """One group: prompt tokens, rollouts, and response tokens of each rollout."""

    prompt: int
    rollouts: int
    response: int

    @property
    def tokens(self) -> int:
        """The prompt once, and all response tokens."""
        return self.prompt + self.rollouts * self.response


@dataclass(frozen=True)
class Operations:
    """Operations with weights, and those of attention's two products."""

    weights: int
    attention: int

    @property
    def total(self) -> int:
        """Both."""
        return self.weights + self.attention


Count = Callable[[Shape, Lengths], Operations]
"""Operations of one group."""


def repeated(forwards: int) -> Count:
    """The prompt repeated for each rollout, logits at all positions; the work of ``forwards`` forward passes."""

    def count(shape: Shape, lengths: Lengths) -> Operations:
        one = lengths.prompt + lengths.response
        tokens = lengths.rollouts * one
        return _operations(shape, forwards, tokens, tokens, lengths.rollouts * _causal(one))

    return count


def completed(forwards: int) -> Count:
    """The prompt repeated for each rollout, logits at the responses alone: what a trainer's pass does."""

    def count(shape: Shape, lengths: Lengths) -> Operations:
        one = lengths.prompt + lengths.response
        tokens, places = lengths.rollouts * one, lengths.rollouts * (lengths.response + 1)
        return _operations(shape, forwards, tokens, places, lengths.rollouts * _causal(one))

    return count


def shared(forwards: int) -> Count:
    """The prompt once, logits only where a response token is predicted; the work of ``forwards`` forward passes.

    A response's last token predicts nothing and is left out; all first tokens are predicted by the prompt's last.
    """
    return lambda shape, lengths: _operations(shape, forwards, *_passed(lengths))


def sketched(rank: int) -> Count:
    """The same, forward and backward, but no gradient of a weight is formed: its factors are projected.

    Either side of a factor costs a token ``rank`` products; the product of the two projections is not counted.
    """

    def count(shape: Shape, lengths: Lengths) -> Operations:
        tokens, places, pairs = _passed(lengths)
        carried = _operations(shape, 2, tokens, places, 0).weights
        projected = 2 * rank * (tokens * shape.layers * shape.layer_sides + places * shape.head_sides)
        return Operations(carried + projected, _operations(shape, 3, 0, 0, pairs).attention)

    return count


def head_sketched(rank: int) -> Count:
    """The same for the output layer alone: a forward pass, and the projections of one matrix."""

    def count(shape: Shape, lengths: Lengths) -> Operations:
        tokens, places, pairs = _passed(lengths)
        forward = _operations(shape, 1, tokens, places, pairs)
        return Operations(forward.weights + 2 * rank * places * shape.head_sides, forward.attention)

    return count


def _passed(lengths: Lengths) -> tuple[int, int, int]:
    """Tokens, places with logits, and visible pairs of tokens in a pass over a group whose prompt is shared."""
    more = lengths.rollouts * (lengths.response - 1)
    pairs = _causal(lengths.prompt) + more * lengths.prompt + lengths.rollouts * _causal(lengths.response - 1)
    return lengths.prompt + more, 1 + more, pairs


def _operations(shape: Shape, forwards: int, tokens: int, places: int, pairs: int) -> Operations:
    weights = tokens * shape.layers * shape.layer_weights + places * shape.head_weights
    return Operations(2 * forwards * weights, 2 * forwards * 2 * pairs * shape.layers * shape.attention_width)


def _causal(length: int) -> int:
    """Pairs of a token with itself and those before it."""
    return length * (length + 1) // 2
