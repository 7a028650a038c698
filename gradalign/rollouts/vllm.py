"""Engine ``vllm``: vLLM in this process, on the policy's own weights, asked through its Python interface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradalign.endpoint import PassingError
from gradalign.errors import GradAlignError, missing_extra
from gradalign.policy.load import Policy
from gradalign.policy.where import model_folder
from gradalign.rollouts.engine import Request
from gradalign.rollouts.protocols import PLAIN, UnfitError, response_of
from gradalign.rollouts.sample import Response


@dataclass
class VllmEngine:
    """vLLM as an engine.

    Attributes:
        llm: a ``vllm.LLM``.
        version: vLLM's.
        dtype: of its weights.
    """

    llm: Any
    version: str
    dtype: str

    @property
    def identity(self) -> dict[str, Any]:
        """Engine, version and type of the weights; the policy is the loaded one."""
        return {"name": "vllm", "version": self.version, "dtype": self.dtype}

    @property
    def max_length(self) -> int | None:
        """As vLLM was started."""
        return int(self.llm.llm_engine.model_config.max_model_len)

    def respond(self, requests: Sequence[Request]) -> list[Response]:
        """See `gradalign.rollouts.engine.Engine`; vLLM batches by itself."""
        prompts = [{"prompt_token_ids": list(request.prompt)} for request in requests]
        outputs = self.llm.generate(prompts, [_parameters(request) for request in requests], use_tqdm=False)
        return [_read(output.outputs[0], request) for output, request in zip(outputs, requests, strict=True)]

    def each(self, requests: Sequence[Request]) -> list[tuple[str, str | None, list[Response]]]:
        """See `gradalign.rollouts.engine.Engine`."""
        return [("vllm", self.dtype, self.respond(requests))]

    def load(self, folder: Path) -> None:
        """See `gradalign.rollouts.engine.Engine`."""
        try:
            self.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder.resolve())})
            self.llm.reset_prefix_cache()
        except Exception as error:  # whatever a worker raised
            raise GradAlignError(
                f"vllm: its policy is stale, and it does not load the weights in {folder} ({_line(error)}); take a "
                "later vLLM, or --sampler server"
            ) from error


def start(policy: Policy, settings: Mapping[str, Any]) -> VllmEngine:
    """Start vLLM on the policy's model.

    Args:
        policy: the loaded one; vLLM reads its folder or hub id once more.
        settings: further arguments of ``vllm.LLM``, such as ``gpu_memory_utilization``.

    Raises:
        GradAlignError: vLLM is not installed or does not start; the policy is a GGUF file.
    """
    try:
        import vllm
    except ImportError as error:
        raise missing_extra("vllm", "vllm") from error
    folder = model_folder(policy.path)
    dtype = str(policy.dtype).removeprefix("torch.").replace("float64", "float32")
    arguments = {
        "model": folder, "dtype": dtype, "logprobs_mode": "processed_logprobs", "generation_config": "vllm",
        **settings,
    }  # fmt: skip
    try:
        llm = vllm.LLM(**arguments)
    except Exception as error:  # vLLM raises what its workers raise
        raise GradAlignError(
            f"vllm: does not start on {policy.path} ({_line(error)}); its arguments are given by --vllm-args, such as "
            "gpu_memory_utilization=0.4"
        ) from error
    return VllmEngine(llm, str(vllm.__version__), str(arguments["dtype"]))


def _parameters(request: Request) -> Any:
    from vllm import SamplingParams

    sampling = request.sampling
    return SamplingParams(
        n=1, max_tokens=sampling.max_new_tokens, temperature=sampling.temperature, seed=request.seed,
        stop=list(sampling.stop), stop_token_ids=list(request.ends), logprobs=0, **PLAIN,
    )  # fmt: skip


def _read(output: Any, request: Request) -> Response:
    """The response in one of vLLM's outputs.

    Raises:
        GradAlignError: it has no tokens or no log-probabilities.
    """
    ids = [int(token) for token in output.token_ids]
    given = output.logprobs or []
    logprobs = [float(one[token].logprob) for one, token in zip(given, ids, strict=False) if token in one]
    try:
        return response_of(ids, logprobs, output.text, output.finish_reason, request)
    except (UnfitError, PassingError) as error:
        raise GradAlignError(f"problem {request.key!r}: vllm {error}") from error


def _line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
