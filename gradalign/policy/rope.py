"""How far a pass may go before positions change their meaning."""

from __future__ import annotations

from typing import Any


def steady_length(config: Any) -> int | None:
    """Longest pass, in tokens, in which a position means the same to all sequences; None where it always does.

    transformers takes the frequencies of rotary embeddings of the types ``dynamic`` and ``longrope`` by the longest
    sequence of a pass, and gives them to all.

    Args:
        config: of a model, or of its text part.
    """
    text = config.get_text_config()
    given = getattr(text, "rope_parameters", None) or {}
    kinds = [given] if "rope_type" in given else [own for own in given.values() if isinstance(own, dict)]
    lengths = [
        own.get("original_max_position_embeddings")
        or getattr(text, "original_max_position_embeddings", None)
        or text.max_position_embeddings
        for own in kinds
        if own.get("rope_type") in ("dynamic", "longrope")
    ]
    return min(map(int, lengths), default=None)
