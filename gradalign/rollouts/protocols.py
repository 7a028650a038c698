"""What servers speak: a request's body, what is read of the answer, how new weights are loaded. No connection here.

`Completions` is OpenAI's ``/v1/completions`` with two further fields that vLLM documents: ``return_token_ids`` (since
0.10.2) and, before it, ``return_tokens_as_token_ids``. `Generate` is SGLang's own ``/generate``. Every setting that
would change the distribution is sent, since servers else take them from the model's generation_config.json.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from gradalign.endpoint import PassingError, shown
from gradalign.rollouts.engine import Request
from gradalign.rollouts.sample import Response

PLAIN = {
    "top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}  # fmt: skip
"""The whole distribution."""


class UnfitError(Exception):
    """An answer without what a rollout is made of; the server will not give it by another try."""


class Spoken(Protocol):
    """What a server speaks.

    Attributes:
        path: where requests go to.
        how: how a server is started that takes new weights.
    """

    path: ClassVar[str]
    how: ClassVar[str]

    @property
    def engine(self) -> str:
        """The server's name."""
        ...

    def body(self, request: Request) -> dict[str, Any]:
        """The request as JSON."""
        ...

    def read(self, answer: Any, request: Request) -> Response:
        """The response in an answer.

        Raises:
            UnfitError: no token ids, no log-probabilities, another number of responses, another prompt.
            PassingError: the server gave up on the response.
        """
        ...

    def loading(self, folder: Path) -> list[tuple[str, dict[str, Any]]]:
        """(path, body) of the posts, in order, after which it samples with the weights in ``folder``."""
        ...


@dataclass(frozen=True)
class Completions:
    """vLLM, and whatever else speaks OpenAI's completions with token ids.

    Attributes:
        model: as the server names it.
        engine: the server's name.
    """

    model: str
    engine: str = "vllm"
    path: ClassVar[str] = "/v1/completions"
    how: ClassVar[str] = "start vLLM with the environment's VLLM_SERVER_DEV_MODE=1"

    def body(self, request: Request) -> dict[str, Any]:
        """See `Spoken`."""
        sampling = request.sampling
        return {
            "model": self.model, "prompt": list(request.prompt), "n": 1, "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature, "seed": request.seed, "stop": list(sampling.stop),
            "stop_token_ids": list(request.ends), "logprobs": 0, "return_token_ids": True,
            "return_tokens_as_token_ids": True, **PLAIN,
        }  # fmt: skip

    def read(self, answer: Any, request: Request) -> Response:
        """See `Spoken`."""
        choices = _field(answer, "choices", list)
        if len(choices) != 1:
            raise UnfitError(f"gave {len(choices)} responses where one was asked for")
        choice = choices[0] if isinstance(choices[0], dict) else {}
        if choice.get("prompt_token_ids", list(request.prompt)) != list(request.prompt):
            raise UnfitError("answered another prompt than the token ids it was given")
        said = choice["logprobs"] if isinstance(choice.get("logprobs"), dict) else {}
        ids = choice.get("token_ids") or _named(said.get("tokens"))
        return response_of(ids, said.get("token_logprobs"), choice.get("text"), choice.get("finish_reason"), request)

    def loading(self, folder: Path) -> list[tuple[str, dict[str, Any]]]:
        """See `Spoken`."""
        reload = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        return [("/collective_rpc", reload), ("/reset_prefix_cache", {})]


@dataclass(frozen=True)
class Generate:
    """SGLang."""

    engine: str = "sglang"
    path: ClassVar[str] = "/generate"
    how: ClassVar[str] = "start SGLang with /update_weights_from_disk open to this key"

    def body(self, request: Request) -> dict[str, Any]:
        """See `Spoken`."""
        sampling = request.sampling
        return {
            "input_ids": list(request.prompt), "return_logprob": True,
            "sampling_params": {
                "max_new_tokens": sampling.max_new_tokens, "temperature": sampling.temperature, "n": 1,
                "sampling_seed": request.seed, "stop": list(sampling.stop), "stop_token_ids": list(request.ends),
                **PLAIN,
            },
        }  # fmt: skip

    def read(self, answer: Any, request: Request) -> Response:
        """See `Spoken`."""
        if isinstance(answer, list):
            raise UnfitError(f"gave {len(answer)} responses where one was asked for")
        about = _field(answer, "meta_info", dict)
        given = about.get("output_token_logprobs")
        if not isinstance(given, list) or not all(isinstance(one, list) and len(one) >= 2 for one in given):
            raise UnfitError(f"gave no log-probabilities ({shown(answer)})")
        reason = about.get("finish_reason")
        kind = reason.get("type") if isinstance(reason, dict) else reason
        return response_of([one[1] for one in given], [one[0] for one in given], answer.get("text"), kind, request)

    def loading(self, folder: Path) -> list[tuple[str, dict[str, Any]]]:
        """See `Spoken`."""
        return [("/update_weights_from_disk", {"model_path": str(folder), "flush_cache": True})]


def _field(answer: Any, name: str, kind: type) -> Any:
    value = answer.get(name) if isinstance(answer, Mapping) else None
    if not isinstance(value, kind):
        raise UnfitError(f"gave no {name!r} ({shown(answer)})")
    return value


def _named(tokens: Any) -> list[int] | None:
    """Token ids that are written ``token_id:7``; None where they are not."""
    texts = tokens if isinstance(tokens, list) else []
    found = [str(text).removeprefix("token_id:") for text in texts if str(text).startswith("token_id:")]
    return [int(text) for text in found] if found and len(found) == len(texts) else None


def response_of(ids: Any, logprobs: Any, text: Any, reason: Any, request: Request) -> Response:
    """A response of what an answer said of it, everything checked."""
    if reason not in ("stop", "length"):
        raise PassingError(f"ended a response by {reason!r}")
    if not isinstance(ids, list) or not ids or not all(type(one) is int and one >= 0 for one in ids):
        raise UnfitError(
            "gave no token ids; texts cannot be turned back into the tokens that were sampled: take vLLM 0.10.2 or "
            "later, or SGLang"
        )
    if not isinstance(logprobs, list) or len(logprobs) != len(ids):
        raise UnfitError(f"gave no log-probability for each of a response's {len(ids)} tokens")
    if not all(isinstance(one, int | float) and math.isfinite(one) for one in logprobs):
        raise UnfitError("gave a log-probability that is no number")
    if reason == "stop" and not request.sampling.stop and ids[-1] not in request.ends:
        raise UnfitError(
            f"ended a response at token {ids[-1]}, which does not end one for this policy (its end tokens: "
            f"{', '.join(map(str, request.ends))}); serve this model with its own tokenizer and generation_config.json"
        )
    return Response(list(ids), [float(one) for one in logprobs], text if isinstance(text, str) else None, reason)
