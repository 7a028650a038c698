"""A run under torchrun whose reward dies in process 1 alone: ``python -m tests.trl_run_failing '{"out": ...}'``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from gradalign.rewards.countdown import countdown
from tests.trl_run import trainer


def mortal(completions: list[str], **columns: Any) -> list[float]:
    """Pays like `countdown`, but for process 1."""
    if os.environ["RANK"] == "1":
        raise RuntimeError("the judge of process 1 is down")
    return countdown(completions, **columns)


if __name__ == "__main__":
    out = Path(json.loads(sys.argv[1])["out"])
    trainer(out, mortal, per_device_train_batch_size=8, max_steps=2).train()
