"""``verl:path.py:compute_score``: a reward function written for verl, as it stands.

verl calls ``compute_score(data_source, solution_str, ground_truth, extra_info=None)`` for one response after the other
and takes a number, or a dictionary with a number under ``score``. Here ``data_source`` is the problem's source,
``ground_truth`` and ``extra_info`` are what verl's row holds of them; of any other row the answer as it was read, and
all metadata.
Coroutine functions run side by side.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from gradalign.errors import GradAlignError, nearest
from gradalign.rewards.base import said

_NOT_METADATA = ("prompts", "completions", "completion_ids", "answer", "source", "key")


@dataclass(frozen=True)
class VerlReward:
    """See the module's text.

    Attributes:
        path: of the file.
        name: of the function in it.
        function: the function itself.
    """

    takes_text: ClassVar[bool] = True

    path: Path
    name: str
    function: Callable[..., Any]

    @property
    def identity(self) -> str:
        """The name and a hash of the file."""
        return f"verl:{self.path.name}:{self.name} {hashlib.sha256(self.path.read_bytes()).hexdigest()[:16]}"

    def __call__(
        self,
        completions: Sequence[str],
        answer: Sequence[str],
        source: Sequence[str],
        key: Sequence[str],
        **columns: Any,
    ) -> Any:
        """Scores of responses; a coroutine of them where the function is one."""
        values = []
        for i, text in enumerate(completions):
            metadata = {name: column[i] for name, column in columns.items() if name not in _NOT_METADATA}
            extra, model = metadata.get("extra_info"), metadata.get("reward_model")
            values.append(
                self.function(
                    data_source=source[i], solution_str=text,
                    ground_truth=model.get("ground_truth", answer[i]) if isinstance(model, dict) else answer[i],
                    extra_info=extra if isinstance(extra, dict) else metadata,
                )
            )  # fmt: skip
        if any(map(inspect.iscoroutine, values)):
            return self._awaited(values, key)
        return [self._score(value, k) for value, k in zip(values, key, strict=True)]

    async def _awaited(self, values: Sequence[Coroutine[Any, Any, Any]], key: Sequence[str]) -> list[Any]:
        return [self._score(value, k) for value, k in zip(await asyncio.gather(*values), key, strict=True)]

    def _score(self, value: Any, key: str) -> Any:
        if not isinstance(value, dict):
            return value
        if "score" not in value:
            raise GradAlignError(
                f"reward 'verl:{self.path}:{self.name}' on problem {key!r}: returned a dictionary without 'score' "
                f"(it has {', '.join(map(str, value)) or 'nothing'}); return a number, or one under 'score'"
            )
        return value["score"]


def verl_reward(spec: str) -> VerlReward:
    """The reward that ``verl:path.py:function`` names.

    Raises:
        GradAlignError: the file or the function cannot be found, or the file cannot be run.
    """
    place, _, name = spec.removeprefix("verl:").rpartition(":")
    if not place or not name:
        raise GradAlignError(f"reward {spec!r}: write verl:path.py:compute_score")
    path = Path(place).expanduser().resolve()
    if not path.is_file():
        raise GradAlignError(f"reward {spec!r}: {place}: no such file; write verl:path.py:compute_score")
    found = importlib.util.spec_from_file_location(f"_verl_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}", path)
    if found is None or found.loader is None:
        raise GradAlignError(f"reward {spec!r}: {place}: is not Python; name a .py file")
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module  # dataclasses and pickles of the file look themselves up there
    try:
        found.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[found.name]
        raise GradAlignError(f"reward {spec!r}: {place} cannot be imported ({said(error)})") from error
    function = getattr(module, name, None)
    if not callable(function):
        functions = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise GradAlignError(f"reward {spec!r}: {place} has no function {name!r}{nearest(name, functions)}")
    return VerlReward(path, name, function)
