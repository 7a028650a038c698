"""Options of commands that read problems: where fields are, what is left out, how the policy is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from gradalign.config import Options
from gradalign.errors import GradAlignError
from gradalign.problems.fields import FieldMap
from gradalign.problems.pool import Pool
from gradalign.problems.prompts import SHOT, Asking, worked
from gradalign.problems.read import overlap, read_problems


class FieldOptions(Options):
    """How problems are read."""

    prompt_field: str | None = None
    """Field of the prompt, outer.inner for a nested one (default: prompt, question, problem or input)."""
    answer_field: str | None = None
    """Field of the gold answer (default: answer, ground_truth, target, solution or verl's)."""
    key_field: str | None = None
    """Field of the key (default: key, else a hash of the prompt)."""
    source_field: str | None = None
    """Field of the source (default: source or data_source, else the file's name)."""
    on_bad_problem: Literal["stop", "skip"] = "stop"
    """A row of a pool that cannot be used stops the run, or is left out, counted and named in a warning."""
    near_duplicates: Annotated[float, Field(gt=0, le=1)] | None = None
    """Leave out problems that are this similar to an earlier one, and count as overlap such ones of two sets: share of
    their runs of three words that they have in common, 0.8 for instance (default: only equal texts)."""

    def read_plain(self, spec: str) -> Pool:
        """Read a pool, prompts as they stand in it."""
        fields = FieldMap(self.prompt_field, self.answer_field, self.key_field, self.source_field)
        return read_problems(spec, fields, self.on_bad_problem == "skip", self.near_duplicates)


class ProblemOptions(FieldOptions):
    """How problems are read and asked."""

    template: str = "{prompt}"
    """Text around each plain-text prompt, with {prompt} in its place; @FILE reads it from a file."""
    chat: bool = False
    """Ask plain-text prompts as a user message, through the tokenizer's chat template."""
    system: str | None = None
    """System message before each chat prompt that has none; of plain text, what stands before everything; @FILE."""
    few_shot: str | None = None
    """Worked examples put before each prompt, as turns of the chat or as text: a pool, all of its problems in order."""
    shot_field: str | None = None
    """Field of their responses (default: solution where there is one, else the answer)."""
    shot_template: str = SHOT
    """A worked example in a plain-text prompt, with {prompt} (within --template) and {response};
    \\n is a line break."""

    @field_validator("template", "system", "shot_template")
    @classmethod
    def _from_file(cls, value: str | None) -> str | None:
        if value is None or not value.startswith("@"):
            return value
        try:
            return Path(value[1:]).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"cannot be read ({error})") from error

    @model_validator(mode="after")
    def _have_places(self) -> ProblemOptions:
        for name, places in (("template", ("{prompt}",)), ("shot_template", ("{prompt}", "{response}"))):
            for place in places:
                if place not in getattr(self, name):
                    raise ValueError(f"--{name.replace('_', '-')}: has no {place} in it; write where it goes")
        if self.few_shot is None and (self.shot_field is not None or self.shot_template != SHOT):
            raise ValueError("--shot-field and --shot-template are of --few-shot; add that, or leave them out")
        return self

    def asking(self) -> Asking:
        """How problems are asked."""
        shots = () if self.few_shot is None else worked(self.read_plain(self.few_shot), self.shot_field)
        return Asking(self.template, self.chat, self.system, shots, self.shot_template.replace("\\n", "\n"))

    def asked(self, problems: Pool, asking: Asking) -> Pool:
        """The problems with their prompts as the policy is asked them.

        Raises:
            GradAlignError: one is a worked example, so that its answer would stand in its own prompt.
        """
        shared = (
            overlap(problems, [problem for problem, _ in asking.shots], self.near_duplicates) if asking.shots else []
        )
        if shared:
            raise GradAlignError(
                f"option --few-shot: {self.few_shot}: holds {len(shared)} of the problems that are to be asked (first: "
                f"key {shared[0]!r}), whose answer would stand in their own prompt; take them out of one of the two"
            )
        return problems.mapped(asking)
