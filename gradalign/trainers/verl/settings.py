"""verl's settings as choosing needs them: the objective, the batch, the chat template; what rounds cannot go with."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gradalign.errors import GradAlignError, warn
from gradalign.policy.objective import Advantage, Aggregation

ESTIMATOR, BY_STD = "algorithm.adv_estimator", "algorithm.norm_adv_by_std_in_grpo"
LOSS, AGGREGATION = "actor_rollout_ref.actor.policy_loss.loss_mode", "actor_rollout_ref.actor.loss_agg_mode"
TEMPERATURE, RESPONSE = "actor_rollout_ref.rollout.temperature", "data.max_response_length"
TOP_P, TOP_K = "actor_rollout_ref.rollout.top_p", "actor_rollout_ref.rollout.top_k"
TEMPLATE, TEMPLATE_VALUES = "actor_rollout_ref.model.custom_chat_template", "data.apply_chat_template_kwargs"
BATCH, SAVE = "data.train_batch_size", "trainer.save_freq"
MODE, BACKEND = "trainer.v1.trainer_mode", "actor_rollout_ref.actor.strategy"
LORA, LORA_NEW = "actor_rollout_ref.model.lora_rank", "actor_rollout_ref.model.lora.rank"
REWARD, REWARD_NAME = "reward.custom_reward_function.path", "reward.custom_reward_function.name"
SETTINGS = (
    ESTIMATOR, BY_STD, LOSS, AGGREGATION, TEMPERATURE, RESPONSE, TOP_P, TOP_K, TEMPLATE, TEMPLATE_VALUES, BATCH, SAVE,
    MODE, BACKEND, LORA, LORA_NEW, REWARD, REWARD_NAME,
)  # fmt: skip
"""What is asked of verl's composed configuration."""

AGGREGATIONS: dict[str, Aggregation] = {
    "token-mean": "sum",
    "token-sum": "sum",
    "seq-mean-token-sum": "sum",
    "seq-mean-token-sum-norm": "sum",
    "seq-mean-token-mean": "sequence_mean",
}
"""verl's loss_agg_mode by the aggregation of its gradient. ``sum``: the denominator (the batch's tokens or sequences, a
constant) is common to all groups."""
LOSSES = ("vanilla", "gspo", "cispo")
"""Loss modes whose on-policy gradient is the policy gradient, whatever they do off-policy."""
OWN = (
    "actor_rollout_ref.model.path", "data.train_files", "data.custom_cls", "data.gradalign", "data.train_max_samples",
    "trainer.default_local_dir", "trainer.resume_mode", "trainer.resume_from_path", "trainer.total_epochs",
    "trainer.total_training_steps",
)  # fmt: skip
"""verl's settings that the rounds say."""


@dataclass(frozen=True)
class Settings:
    """What verl's Python said.

    Attributes:
        version: verl's.
        values: of `SETTINGS`.
    """

    version: str
    values: dict[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.values.get(name)

    @property
    def advantage(self) -> Advantage | None:
        """What verl's advantages are; None for those that are not of a group's rewards alone, or weighed otherwise."""
        estimator = str(self[ESTIMATOR])
        if estimator in ("grpo", "grpo_vectorized"):
            return "std" if self[BY_STD] in (None, True) else "mean"
        return "loo" if estimator in ("rloo", "rloo_vectorized") else None

    @property
    def aggregation(self) -> Aggregation | None:
        """How verl weighs tokens; None where its loss weighs them in another way."""
        return AGGREGATIONS.get(str(self[AGGREGATION])) if self[LOSS] in LOSSES else None

    def template(self, of_tokenizer: str | None, model: str) -> str:
        """The chat template that verl asks by.

        Raises:
            GradAlignError: there is none, or it takes values that are no texts, numbers, true or false.
        """
        template = self[TEMPLATE] or of_tokenizer
        if template is None:
            raise GradAlignError(
                f"model {model}: verl asks through the tokenizer's chat template, and it has none; give one by the "
                f"override {TEMPLATE}=..., or take an instruction-tuned model"
            )
        values = self[TEMPLATE_VALUES] or {}
        for name, value in values.items():
            if not isinstance(value, str | int | float):
                raise GradAlignError(f"verl override {TEMPLATE_VALUES}: {name} is {value!r}, which scores cannot take")
        return "".join(f"{{%- set {n} = {json.dumps(v)} -%}}" for n, v in values.items()) + template

    def check(self, steps: int) -> None:
        """Refuse what rounds cannot go with.

        Args:
            steps: of a round.

        Raises:
            GradAlignError: names the setting and the mend.
        """
        if self[MODE] != "sync":
            raise GradAlignError(
                f"verl override {MODE}: {self[MODE]} carries prompts of one round into the next; leave it at sync"
            )
        if self[BACKEND] not in ("fsdp", "fsdp2"):
            raise GradAlignError(
                f"verl override {BACKEND}: checkpoints of {self[BACKEND]} are not exported; take fsdp or fsdp2"
            )
        for name in (LORA, LORA_NEW):
            if (self[name] or 0) > 0:
                raise GradAlignError(
                    f"verl override {name}: rounds train all weights; leave it out, or choose by hand with "
                    "gradalign select --adapter"
                )
        every = self[SAVE] or 0
        if every < 1 or steps % every:
            raise GradAlignError(
                f"verl override {SAVE}: is {every}; it must divide --steps-per-round {steps}, so that a round ends "
                "with a checkpoint"
            )
        if self[TOP_P] != 1 or self[TOP_K] != -1:
            warn(f"{TOP_P} or {TOP_K}: scores are of responses from the whole distribution, as top_p=1, top_k=-1 give")


def check_overrides(overrides: Sequence[str]) -> list[str]:
    """Names of the settings that verl's overrides say.

    Raises:
        GradAlignError: one is no override, or is the rounds' to say.
    """
    names = []
    for override in overrides:
        found = re.match(r"(?:\+\+|\+|~)?([A-Za-z_][\w./@-]*)(=|$)", override)
        if found is None:
            raise GradAlignError(f"verl override {override!r}: write name=value, as verl's trainer takes it")
        name = found[1]
        if any(name == own or name.startswith(f"{own}.") for own in OWN):
            raise GradAlignError(f"verl override {name!r}: is said by the rounds; leave it out")
        names.append(name)
    return names


def ask(python: str, overrides: Sequence[str]) -> Settings:
    """verl's settings, as its own configuration system composes and validates them.

    Raises:
        GradAlignError: ``python`` cannot be run, lacks verl or this package, or verl refuses an override.
    """
    command = [python, "-m", "gradalign.trainers.verl.probe", *overrides]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=600,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise GradAlignError(f"option --verl-python: {python}: verl did not load within 600 s") from error
    except OSError as error:
        raise GradAlignError(
            f"option --verl-python: {python}: cannot be run ({error.strerror}); name the Python that has verl"
        ) from error
    try:
        answer = json.loads(done.stdout.strip().rsplit("\n", 1)[-1])
        known = answer.keys() if isinstance(answer, dict) else ()
    except ValueError:
        known = ()
    if "lacking" in known:
        raise GradAlignError(
            f"option --verl-python: {python}: {answer['lacking']}; install verl and its requirements there, or name "
            "the Python that has them"
        )
    if "error" in known:
        raise GradAlignError(f"verl refuses its configuration: {answer['error']}")
    if "settings" not in known:
        said = (done.stderr.strip() or done.stdout.strip() or f"status {done.returncode}").splitlines()[-1]
        raise GradAlignError(
            f"option --verl-python: {python}: {said}; install this package beside verl: "
            f"{python} -m pip install gradalign"
        )
    return Settings(answer["verl"], answer["settings"])


def quoted(value: str) -> str:
    """A text as a value in hydra's grammar, whatever is in it."""
    if re.fullmatch(r"[/A-Za-z][\w./:@+-]*", value):
        return value
    escaped = re.sub(r"(\\*)'", lambda found: found[1] * 2 + "\\'", value)
    return "'" + re.sub(r"(\\+)$", lambda found: found[1] * 2, escaped) + "'"
