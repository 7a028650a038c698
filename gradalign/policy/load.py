"""Loading a policy: a causal language model by hub id, folder or GGUF file, with an optional LoRA adapter."""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import inspect
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers import logging as transformers_logging

from gradalign.errors import GradAlignError, missing_extra
from gradalign.policy.precision import KeepDouble
from gradalign.policy.shards import Shards, join, load_cut, whole
from gradalign.policy.where import first_line, locate

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


@dataclass
class Policy:
    """A loaded policy, in evaluation mode (no dropout).

    Attributes:
        model: the Hugging Face causal language model; exactly the covered parameters require a gradient.
        path: the folder, GGUF file or hub id it came from.
        names: names of the covered parameters, in the model's order; tied parameters appear once.
        covered: number of covered parameters over all trainable ones (with an adapter: the adapter's).
        given_tokenizer: the tokenizer, where it is not the one beside the weights.
        computes_in: the type of its matrix products, where mixed precision makes it another than the weights'.
        shards: how it is cut, where several processes hold it between them; every process must then do the same.
    """

    model: Any
    path: str
    names: list[str]
    covered: float
    given_tokenizer: PreTrainedTokenizerBase | None = None
    computes_in: torch.dtype | None = None
    shards: Shards | None = None

    @cached_property
    def parameters(self) -> list[torch.nn.Parameter]:
        """The covered parameters, in the order of `names`."""
        by_name = dict(self.model.named_parameters())
        return [by_name[name] for name in self.names]

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' type."""
        return next(self.model.parameters()).dtype

    @property
    def reduction_dtype(self) -> torch.dtype:
        """The type sums are taken in: float64 for a float64 policy, float32 for any other."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    @property
    def half(self) -> bool:
        """Whether it computes in half precision."""
        return (self.computes_in or self.dtype) in (torch.float16, torch.bfloat16)

    @cached_property
    def forward_arguments(self) -> frozenset[str]:
        """Names of the arguments that the model's forward takes."""
        model = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        return frozenset(inspect.signature(model.forward).parameters)

    @cached_property
    def max_length(self) -> int | None:
        """Longest sequence in tokens that the model takes; None where its configuration does not say."""
        return getattr(self.config.get_text_config(), "max_position_embeddings", None)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer beside the weights (left padding).

        Raises:
            GradAlignError: there is none.
        """
        if self.given_tokenizer is not None:
            return self.given_tokenizer
        folder, kwargs = locate(self.path)
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, **kwargs)
        except Exception as error:
            raise GradAlignError(
                f"model {self.path}: no tokenizer can be loaded ({first_line(error)}); put tokenizer.json beside the "
                "weights, or give rollouts as token ids to `gradalign score`, which needs none"
            ) from error
        tokenizer.padding_side = "left"
        return cast(PreTrainedTokenizerBase, tokenizer)

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that depend on every weight: which policy sampled, which one scored."""
        digest = hashlib.sha256()
        for name, tensor in self.model.state_dict().items():
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(whole(tensor).detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()[:16]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens left out."""
        return cast(str, self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def opened(self) -> contextlib.AbstractContextManager[Any]:
        """The context in which passes are made and what lies outside of blocks is whole."""
        return contextlib.nullcontext() if self.shards is None else self.shards.opened()

    def arithmetic(self) -> contextlib.AbstractContextManager[Any]:
        """The context to run forward passes in."""
        return KeepDouble() if self.dtype == torch.float64 else contextlib.nullcontext()


def load_policy(
    model: str,
    adapter: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    parameters: Sequence[str] = (),
    shard: bool = False,
) -> Policy:
    """Load a causal language model for sampling and scoring.

    Args:
        model: hub id, folder, ``.gguf`` file, or ``embedded`` for the policy inside this package.
        adapter: LoRA adapter (folder or hub id); then only its parameters are trainable, hence covered.
        dtype: ``auto`` (float32 on a CPU; elsewhere the checkpoint's own), or one of float32, bfloat16, float16,
            float64.
        device: ``auto`` (cuda, else cpu), or any name that torch knows.
        parameters: patterns like ``*layers.1[0-9].*``; where given, only matching parameters are covered.
        shard: all processes of torchrun hold the policy between them; see `gradalign.policy.shards`.

    Raises:
        GradAlignError: not found, no weights, an unknown dtype or device, patterns that match nothing; ``shard``
            without torchrun.
    """
    place = _device(str(join(device)) if shard else device)
    if dtype not in ("auto", *DTYPES):
        raise GradAlignError(f"dtype {dtype!r} is not one of auto, {', '.join(DTYPES)}")
    wanted: torch.dtype | str = torch.float32 if dtype == "auto" and place.type != "cuda" else DTYPES.get(dtype, "auto")
    if not shard:
        return cover(_read(model, adapter, wanted).to(place).eval(), str(model), parameters)
    shards = load_cut(lambda: _read(model, adapter, wanted), place)
    policy = cover(shards.model, str(model), parameters)
    policy.shards = shards
    assert policy.parameters  # found while all of them are cut
    return policy


def _read(model: str, adapter: str | None, wanted: torch.dtype | str) -> Any:
    """The model, on the CPU."""
    folder, kwargs = locate(model)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for chatty in ("httpx", "huggingface_hub"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    try:
        both: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=wanted, output_loading_info=True, **kwargs)
        loaded, info = both
    except Exception as error:
        here = "" if Path(folder).exists() else "no such folder here, and "
        raise GradAlignError(f"model {model}: {here}cannot be loaded: {first_line(error)}") from error
    lacking = sorted(info["missing_keys"])
    if lacking:
        raise GradAlignError(
            f"model {model}: the weights lack {len(lacking)} tensors (first: {lacking[0]}), which would be made up at "
            "random; save the whole model again"
        )
    if "gguf_file" in kwargs:  # de-quantised on loading: plain weights from here on
        loaded = loaded.to(wanted if isinstance(wanted, torch.dtype) else torch.float32)
    return loaded if adapter is None else _with_adapter(loaded, adapter)


def cover(model: Any, path: str = "", parameters: Sequence[str] = ()) -> Policy:
    """Wrap a model that is already loaded; only parameters that are trainable and match a pattern stay trainable.

    A model with soft-capped attention does not stay with ``sdpa``, which leaves the cap out without a word in earlier
    versions of transformers; experts in float64 do not stay with grouped products, which do not know it.

    Raises:
        GradAlignError: no trainable parameter matches; a prompt in front of every input is what is trained.
    """
    tuned = getattr(model, "active_peft_config", None)
    if tuned is not None and tuned.is_prompt_learning and tuned.peft_type != "PREFIX_TUNING":
        raise GradAlignError(
            f"adapter of type {tuned.peft_type.value}: it puts tokens in front of every prompt, which are not scored; "
            "train a LoRA adapter, or take strategy off"
        )
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    chosen = [n for n in trainable if not parameters or any(fnmatch.fnmatch(n, pattern) for pattern in parameters)]
    if not chosen:
        raise GradAlignError(
            f"no trainable parameter matches {', '.join(parameters) or 'anything'}; "
            f"trainable names look like {next(iter(trainable), '(none)')}"
        )
    for name in set(trainable) - set(chosen):
        trainable[name].requires_grad_(False)
    for config in (model.config, model.config.get_text_config()):
        if getattr(config, "attn_logit_softcapping", None) is not None and config._attn_implementation == "sdpa":
            config._attn_implementation = "eager"
        if hasattr(config, "_experts_implementation") and next(model.parameters()).dtype == torch.float64:
            config._experts_implementation = "eager"
    covered = sum(trainable[name].numel() for name in chosen) / sum(p.numel() for p in trainable.values())
    return Policy(model, path, chosen, covered)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, dtype=torch.float64, device=name).item()  # reductions are in float64
        return torch.device(name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise GradAlignError(f"device {name!r} cannot be used here: {first_line(error)[:120]}") from error


def _with_adapter(model: Any, adapter: str) -> Any:
    try:
        from peft import PeftModel, get_peft_model_state_dict, load_peft_weights
    except ImportError as error:
        raise missing_extra("peft", "lora") from error
    try:
        adapted = PeftModel.from_pretrained(model, adapter, is_trainable=True)
        differ = get_peft_model_state_dict(adapted).keys() ^ load_peft_weights(adapter, device="cpu").keys()
    except Exception as error:
        raise GradAlignError(f"adapter {adapter}: cannot be loaded: {first_line(error)}") from error
    if differ:
        raise GradAlignError(
            f"adapter {adapter}: its tensors do not fit this model (first: {min(differ)}); take the model that it was "
            "trained on"
        )
    return adapted
