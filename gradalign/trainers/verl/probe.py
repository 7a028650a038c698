"""Asked by `gradalign verl` of verl's Python: what verl makes of a configuration, before anything is launched.

    python -m gradalign.trainers.verl.probe OVERRIDE ...

Composes and validates the configuration as ``verl.trainer.main_ppo`` does. The last line printed is JSON: ``{"verl":
version, "settings": {name: value}}``; or, with exit status 1, ``{"lacking": what cannot be imported}`` or ``{"error":
one line}``.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import sys
from collections.abc import Sequence
from typing import Any

from gradalign.trainers.verl.settings import SETTINGS


def main(overrides: Sequence[str]) -> int:
    """Print the answer; gives the exit status."""
    try:
        importlib.import_module("gradalign.trainers.verl.dataset")
        answer: dict[str, Any] = {"verl": importlib.metadata.version("verl"), "settings": composed(overrides)}
    except ImportError as error:
        answer = {"lacking": str(error)}
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        answer = {"error": " ".join(lines) or type(error).__name__}
    print(f"\n{json.dumps(answer)}", flush=True)
    return int("settings" not in answer)


def composed(overrides: Sequence[str]) -> dict[str, Any]:
    """The settings of verl's composed and validated configuration that `gradalign verl` looks at.

    Raises:
        Exception: whatever hydra and verl raise of a configuration that they do not take.
    """
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", overrides=list(overrides))
    validate_config(config, need_reference_policy(config), need_critic(config))
    found = {name: OmegaConf.select(config, name) for name in SETTINGS}
    return {n: OmegaConf.to_container(v, resolve=True) if OmegaConf.is_config(v) else v for n, v in found.items()}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
