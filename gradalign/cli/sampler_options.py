"""Options of who samples: the loaded policy, vLLM in this process, or servers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, model_validator

from gradalign.cli.options import Count, PolicyOptions
from gradalign.errors import GradAlignError
from gradalign.policy.load import Policy
from gradalign.problems.schema import Problem
from gradalign.report.console import show
from gradalign.rollouts.engine import PROBES, EngineSampler, EngineSampling, verified
from gradalign.rollouts.sample import Sampling
from gradalign.rollouts.sampler import PaidSampler, prompts_of


class SamplerOptions(PolicyOptions):
    """Which policy, and what samples its responses."""

    sampler: Literal["policy", "vllm", "server"] = "policy"
    """policy: the loaded model itself; vllm: vLLM in this process; server: vLLM, SGLang or another OpenAI-compatible
    server that gives token ids and log-probabilities, at --endpoints."""
    endpoints: tuple[str, ...] = ()
    """With server: addresses of servers of this very model, such as http://127.0.0.1:8000/v1; the environment's
    GRADALIGN_SERVER_KEY is sent as their key."""
    concurrency: Count = 64
    """With server: requests at a time to each endpoint, at most."""
    request_timeout: Annotated[float, Field(gt=0, le=86400)] = 600.0
    """With server: seconds that one response may take."""
    served_model: str | None = None
    """With server: the model's name there, where it serves several."""
    vllm_args: tuple[str, ...] = ()
    """With vllm: NAME=VALUE, arguments of vllm.LLM, such as gpu_memory_utilization=0.4 tensor_parallel_size=2."""

    @model_validator(mode="after")
    def _sampler_alone(self) -> SamplerOptions:
        if self.sampler == "server" and not self.endpoints:
            raise ValueError("--sampler server needs --endpoints; name the servers' addresses")
        for sampler, name in (("server", "endpoints"), ("server", "served_model"), ("vllm", "vllm_args")):
            if getattr(self, name) and self.sampler != sampler:
                raise ValueError(f"--{name.replace('_', '-')} is of --sampler {sampler}; add that, or leave it out")
        if self.sampler == "vllm" and self.adapter is not None:
            raise ValueError("--sampler vllm loads no --adapter; merge it into the model, or take --sampler server")
        odd = [text for text in self.vllm_args if "=" not in text]
        if odd:
            raise ValueError(f"--vllm-args: {odd[0]!r} is no NAME=VALUE; write gpu_memory_utilization=0.4 for instance")
        return self

    def sampling_engine(self, policy: Policy, problems: Sequence[Problem], sampling: Sampling) -> EngineSampling | None:
        """What samples in the policy's place, held against it on some of the problems; None where it samples itself.

        Raises:
            GradAlignError: it is not there, or is not this policy; see `verified`.
        """
        if self.sampler == "policy":
            return None
        probed = problems[:PROBES]
        keys, prompts = [problem.key for problem in probed], prompts_of(policy, probed, sampling.max_new_tokens)
        if self.sampler == "vllm":
            from gradalign.rollouts.vllm import start

            found = verified(start(policy, self._settings()), policy, keys, prompts, sampling)
        else:
            from gradalign.rollouts.server import connect

            servers = connect(self.endpoints, self.concurrency, self.request_timeout, self.served_model)
            found = verified(servers, policy, keys, prompts, sampling)
        agreement = found.agreement
        show(
            f"{agreement.name} samples this policy: over {agreement.tokens} tokens its log-probabilities differ by "
            f"{agreement.difference:.2g} on average (at most {agreement.tolerance:g} is let pass)"
        )
        return found

    def _settings(self) -> dict[str, Any]:
        found = {}
        for text in self.vllm_args:
            name, value = text.split("=", 1)
            try:
                found[name] = yaml.safe_load(value)
            except (yaml.YAMLError, ValueError, RecursionError) as error:
                said = " ".join(str(error).split())
                raise GradAlignError(f"option --vllm-args: {text!r}: its value is not YAML ({said})") from error
        return found


def sampler_of(engine: EngineSampling | None, usual: PaidSampler) -> PaidSampler:
    """The sampler that ``engine`` does the work of ``usual`` for; that itself where there is no engine."""
    return usual if engine is None else EngineSampler(usual.policy, usual.reward, usual.sampling, engine)
