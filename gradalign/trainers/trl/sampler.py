"""Sampling and rewarding for scoring as the trainer does it: its prompts, its reward functions, its engine."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel
from trl.chat_template_utils import parse_response
from trl.data_utils import apply_chat_template, is_conversational

from gradalign.errors import GradAlignError
from gradalign.policy.group import Group, Status
from gradalign.policy.load import Policy
from gradalign.problems.schema import Problem, uniform_hash
from gradalign.rollouts.engine import EngineSampling
from gradalign.rollouts.sample import Response, Sampling, plan, sample_batch
from gradalign.rollouts.sampler import Tokens, rollout_of
from gradalign.trainers.trl.rewards import FIRST, RewardFunction

Row = dict[str, Any]


class TrainerSampler:
    """A `gradalign.rollouts.sampler.Sampler` over a GRPOTrainer.

    Responses come from the model itself, each problem's prompt once and from a random stream of its own, where the
    whole distribution is sampled; from servers where `gradalign.trainers.trl.servers.follow` has put them; from the
    trainer's own generation with vLLM, top-p, top-k and the like.

    Args:
        trainer: a `trl.GRPOTrainer`; gives prompts, rewards, temperature, lengths.
        policy: its policy as it is now.
        rows: a problem's row of the data set by its key; reward functions see its columns.
        rollouts: responses for each problem.
        batch_rollouts: responses decoded side by side, at most.
        seed: of the draws.
        tag: what rollouts say of the policy that sampled them.
    """

    def __init__(
        self,
        trainer: Any,
        policy: Policy,
        rows: Callable[[str], Row],
        rollouts: int,
        batch_rollouts: int,
        seed: int,
        tag: str,
    ) -> None:
        self.trainer = trainer
        self.policy = policy
        self.rows = rows
        self.tag = tag
        self.sampling = Sampling(
            rollouts, trainer.max_completion_length, trainer.temperature, seed=seed, batch_rollouts=batch_rollouts
        )
        whole = trainer.top_p in (None, 1.0) and not trainer.top_k and not trainer.min_p
        plain = trainer.repetition_penalty in (None, 1.0) and not trainer.args.generation_kwargs
        self.engine: EngineSampling | None = None
        self.own = whole and plain and not trainer.use_vllm and not trainer.use_transformers_continuous_batching

    @property
    def rollouts(self) -> int:
        """Responses for each problem."""
        return self.sampling.rollouts

    @property
    def lockstep(self) -> bool:
        """Whether all processes must sample the same number of batches: vLLM's server is called by all at once."""
        return bool(self.trainer.use_vllm)

    @property
    def identity(self) -> dict[str, Any]:
        """All that the rollouts depend on besides the problems."""
        trainer = self.trainer
        values: dict[str, Any] = {
            "policy": self.tag,
            "rewards": trainer.reward_states,
            "weights": trainer.reward_weights.tolist(),
            "sampling": dataclasses.asdict(self.sampling),
            "own": self.own,
        }
        if self.engine is not None:
            values |= {"engine": self.engine.engine.identity}
        if not self.own:
            values |= {name: getattr(trainer, name) for name in ("top_p", "top_k", "min_p", "repetition_penalty")}
            values |= {"generation_kwargs": trainer.args.generation_kwargs, "vllm": trainer.use_vllm}
        values |= {"chat": [trainer.chat_template, trainer.chat_template_kwargs]}
        return json.loads(json.dumps(values, default=str))

    def prompts(self, problems: Sequence[Problem]) -> list[Tokens]:
        """(tokens,) the prompt of each problem, as the trainer tokenises it.

        Raises:
            GradAlignError: one leaves no room for a response.
        """
        if not problems:
            return []
        texts = [problem.prompt for problem in problems]
        templates = self.trainer.chat_template, self.trainer._tokenizer.chat_template
        if is_conversational({"prompt": texts[0]}) and not any(templates):
            raise GradAlignError(
                f"problem {problems[0].key!r}: its prompt is a list of messages, and the policy's tokenizer has no "
                "chat template; write prompts as plain text, or take an instruction-tuned model"
            )
        ids = self.trainer._tokenize_prompts(texts)[0]
        prompts = [np.array(own, np.int64) for own in ids]
        longest, new = self.policy.max_length, self.sampling.max_new_tokens
        for problem, prompt in zip(problems, prompts, strict=True):
            if not len(prompt) or (longest is not None and len(prompt) + new > longest):
                raise GradAlignError(
                    f"problem {problem.key!r}: its prompt has {len(prompt)} tokens; with max_completion_length={new} "
                    f"that does not fit the policy's {longest}; lower it, or leave the problem out"
                )
        return prompts

    def batches(self, prompts: Sequence[Tokens]) -> list[list[int]]:
        """By length, so that little is padded; everything at once with vLLM, which batches by itself."""
        return [list(range(len(prompts)))] if self.lockstep else plan(prompts, self.sampling)

    def sample(self, problems: Sequence[Problem], prompts: Sequence[Tokens]) -> list[Group]:
        """The groups of one batch.

        Raises:
            GradAlignError: a reward function fails.
        """
        responses = self._own(problems, prompts) if self.own else self._trainers(problems, prompts)
        count = self.rollouts
        rows = [row for problem in problems for row in [self.rows(problem.key)] * count]
        ids = [prompt.tolist() for prompt in prompts for _ in range(count)]
        rewards = self._rewards(rows, ids, [response for own in responses for response in own])
        weights = self.trainer.reward_weights.double().cpu().numpy()
        given = ~np.isnan(rewards)
        totals = np.where(given.any(1), (np.where(given, rewards, 0.0) * weights).sum(1), np.nan)
        groups = []
        for number, (problem, prompt) in enumerate(zip(problems, prompts, strict=True)):
            first = number * count
            rollouts = [
                dataclasses.replace(rollout_of(response, float(totals[i])), rewards=tuple(rewards[i].tolist()))
                for i, response in enumerate(responses[number], first)
            ]
            invalid: Status | None = "failed" if np.isnan(totals[first : first + count]).any() else None
            groups.append(Group(problem.key, prompt, rollouts, problem.source, self.tag, invalid))
        return groups

    def part(self, first: int, rollouts: int) -> Self:
        """See `gradalign.rollouts.sampler.Sampler`."""
        made = copy.copy(self)
        made.sampling = dataclasses.replace(self.sampling, first=first, rollouts=rollouts)
        return made

    def _own(self, problems: Sequence[Problem], prompts: Sequence[Tokens]) -> list[list[Response]]:
        keys = [problem.key for problem in problems]
        if self.engine is not None:
            return self.engine.responses(self.policy, keys, prompts, self.sampling)
        return sample_batch(self.policy, keys, prompts, self.sampling)

    def _trainers(self, problems: Sequence[Problem], prompts: Sequence[Tokens]) -> list[list[Response]]:
        """By the trainer's own generation; its draws are seeded here and leave the trainer's random state alone."""
        trainer, count = self.trainer, self.rollouts
        repeated = [prompt.tolist() for prompt in prompts for _ in range(count)]
        cuda = [trainer.accelerator.device] if trainer.accelerator.device.type == "cuda" else []
        with torch.random.fork_rng(cuda):
            later = (self.sampling.first,) if self.sampling.first else ()
            keys = [problem.key for problem in problems]
            draw = uniform_hash("generate", self.sampling.seed, self.tag, keys, *later)
            torch.manual_seed(int(draw * 2**53))
            ids, logprobs = trainer._generate_single_turn(repeated, None, {}, count)
        trainer.model.eval()  # some of its engines leave the model in training mode
        ends = {*trainer.eos_token_ids, trainer._tokenizer.pad_token_id}
        responses = [
            Response(
                list(own), None if logprobs is None else [float("nan") if p is None else p for p in logprobs[i]],
                self.policy.decode(own), "stop" if own[-1] in ends else "length",
            )
            for i, own in enumerate(ids)
        ]  # fmt: skip
        return [responses[start : start + count] for start in range(0, len(responses), count)]

    def _rewards(self, rows: list[Row], prompt_ids: list[list[int]], responses: list[Response]) -> NDArray[np.float64]:
        """(responses, functions) rewards, NaN where a function gave none."""
        trainer = self.trainer
        prompts, ids = [row["prompt"] for row in rows], [response.ids for response in responses]
        completions = self._completions(prompts, prompt_ids, responses)
        names = [name for name in rows[0] if name not in ("prompt", "completion", "completion_ids")]
        columns: dict[str, Any] = {name: [row[name] for row in rows] for name in names}
        columns |= {"trainer_state": trainer.state, "log_extra": _unlogged, "log_metric": _unlogged}
        rewards = np.full((len(rows), len(trainer.reward_funcs)), np.nan)
        functions = zip(trainer.reward_funcs, trainer.reward_processing_classes, trainer.reward_func_names, strict=True)
        for number, (function, processing, name) in enumerate(functions):
            try:
                if isinstance(function, torch.nn.Module):
                    values = self._judged(function, processing, prompts, completions)
                else:
                    own = {FIRST: [self.sampling.first] * len(rows)} if isinstance(function, RewardFunction) else {}
                    values = function(prompts=prompts, completions=completions, completion_ids=ids, **columns, **own)
                    if asyncio.iscoroutine(values):
                        values = asyncio.run_coroutine_threadsafe(values, trainer.async_loop).result()
            except GradAlignError:
                raise
            except Exception as error:
                said = next(iter(str(error).splitlines()), "")
                raise GradAlignError(
                    f"reward {name!r}: raised {type(error).__name__}: {said}; mend it and start again: finished "
                    "rollouts and checkpoints are kept"
                ) from error
            if len(values) != len(rows):
                raise GradAlignError(
                    f"reward {name!r}: returned {len(values)} values for {len(rows)} responses; return one for each"
                )
            rewards[:, number] = [np.nan if value is None else float(value) for value in values]
        return rewards

    def _completions(self, prompts: list[Any], prompt_ids: list[list[int]], responses: list[Response]) -> list[Any]:
        """Responses as TRL hands them to reward functions: texts, or messages where the prompt is a conversation."""
        if not is_conversational({"prompt": prompts[0]}):
            return [response.text for response in responses]
        tokenizer = self.trainer._tokenizer
        if getattr(tokenizer, "response_template", None) or getattr(tokenizer, "response_schema", None):
            return [
                [parse_response(tokenizer, response.ids, prefix=own, tools=None)]
                for response, own in zip(responses, prompt_ids, strict=True)
            ]
        return [[{"role": "assistant", "content": response.text}] for response in responses]

    @torch.no_grad()
    def _judged(
        self, model: torch.nn.Module, processing: Any, prompts: list[Any], completions: list[Any]
    ) -> list[float]:
        """Rewards of a reward model, as TRL takes them."""
        texts = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
        if is_conversational({"prompt": prompts[0]}):
            kwargs = self.trainer.chat_template_kwargs
            texts = [apply_chat_template({"messages": text}, processing, **kwargs)["text"] for text in texts]
        assert isinstance(model, PreTrainedModel)
        size = self.trainer.args.per_device_train_batch_size
        rewards: list[float] = []
        for start in range(0, len(texts), size):
            inputs = processing(
                text=texts[start : start + size], return_tensors="pt", padding=True, padding_side="right",
                add_special_tokens=False,
            )  # fmt: skip
            rewards += model(**inputs.to(model.device)).logits[:, 0].tolist()
        return rewards


def _unlogged(*_: Any) -> None:
    """Stands in for TRL's logging hooks while rewards are taken for scoring."""
