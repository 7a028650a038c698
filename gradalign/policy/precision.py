"""float64 all the way: the referee's arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class KeepDouble(TorchFunctionMode):
    """Lifts the casts to float32 that model code makes for stability (norms, softmax, rotary angles).

    For a float32 or bfloat16 policy those casts go up; for a float64 policy they would go down and cost half of the
    digits. Inside this context a float64 tensor stays float64, and whole-number positions become float64.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.float:
            return args[0].double()
        if func in (torch.Tensor.to, torch.Tensor.type):
            if any(arg is torch.float32 for arg in args[1:]):
                args = [args[0], *(torch.float64 if arg is torch.float32 else arg for arg in args[1:])]
            if kwargs.get("dtype") is torch.float32:
                kwargs["dtype"] = torch.float64
        elif kwargs.get("dtype") is torch.float32 and func in (
            torch.softmax, torch.nn.functional.softmax, torch.nn.functional.log_softmax, torch.Tensor.softmax,
        ):  # fmt: skip
            kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)
