"""Where a model is, by its name: a hub id, a folder, a GGUF file, or ``embedded``."""

from __future__ import annotations

import os
from pathlib import Path

from transformers import AutoConfig

from gradalign.errors import GradAlignError

EMBEDDED = Path(__file__).parent / "embedded"
"""The folder of the embedded default, a character-level Llama; ``--model embedded`` means it."""
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model.bin.index.json")


def locate(model: str) -> tuple[str, dict[str, str]]:
    """What to hand to transformers for a model's name: (folder or hub id, further arguments).

    Raises:
        GradAlignError: there is no such model here.
    """
    if model == "embedded":
        return str(EMBEDDED), {}
    path = Path(model).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise GradAlignError(f"model {model}: no such GGUF file")
        return str(path.parent), {"gguf_file": path.name}
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise GradAlignError(f"model {model}: the folder holds no config.json; name a Hugging Face model folder")
        if not any(any(path.glob(pattern)) for pattern in _WEIGHTS):
            raise GradAlignError(f"model {model}: no weights in the folder (model.safetensors); save the model there")
        return str(path), {}
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise GradAlignError(f"model {model}: no such folder")
    if os.environ.get("HF_HUB_OFFLINE") != "1":
        return model, {}
    try:
        AutoConfig.from_pretrained(model)
    except Exception as error:
        raise GradAlignError(f"model {model}: no such folder, and not in the local hub cache (offline)") from error
    return model, {}


def model_folder(model: str) -> str:
    """The folder or hub id behind a model's name, for a program that loads it by itself.

    Raises:
        GradAlignError: it is a GGUF file, which is none.
    """
    folder, kwargs = locate(model)
    if kwargs:
        raise GradAlignError(f"model {model}: is a GGUF file; save it as a model folder first")
    return folder


def require_model(model: str) -> None:
    """Find out before anything is started that there is no such model.

    Raises:
        GradAlignError: no such folder or file, or no weights in it.
    """
    locate(model)


def first_line(error: BaseException) -> str:
    """The first line of what an error says; its kind where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
