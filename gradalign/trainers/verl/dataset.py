"""verl's data set, of the chosen problems alone: ``data.custom_cls``.

    data.custom_cls.path=pkg://gradalign.trainers.verl.dataset data.custom_cls.name=SelectedDataset
    +data.gradalign.selection=runs/first/round-0000/chosen.jsonl

Runs in verl's environment, as part of verl's trainer.
"""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf
from verl.utils.dataset.rl_dataset import RLHFDataset

from gradalign.errors import GradAlignError
from gradalign.trainers.verl.chosen import Selection, is_training


class SelectedDataset(RLHFDataset):
    """Rows of ``data.train_files`` that ``data.gradalign.selection`` names, in its order; see `Selection`.

    The selection is read with the files: when the data set is made, and again in `resume_dataset_state`. Rows are as
    verl gives them; ``data.val_files`` are left as they are. Chosen prompts that verl filters out for their length
    leave their places to the others.

    Raises:
        GradAlignError: see `Selection`; or ``data.train_max_samples`` is set, or no chosen prompt is short enough.
    """

    def maybe_filter_out_long_prompts(self, dataframe: Any = None) -> Any:
        """The chosen rows; called by verl with all rows of the files."""
        files = _texts(self.original_data_files) or []
        if not is_training(files, _texts(self.config.get("train_files")), _texts(self.config.get("val_files"))):
            return super().maybe_filter_out_long_prompts(dataframe)
        if self.max_samples > 0:
            raise GradAlignError(
                f"data.train_max_samples: is {self.max_samples}, and the selection says which rows are taken; leave "
                "it at -1"
            )
        values = self.config.get("gradalign")
        selection = Selection.read(None if values is None else OmegaConf.to_container(OmegaConf.create(values)))
        named = (selection.key_field or "").split(".")[0]
        needed = [name for name in dataframe.column_names if name in (self.prompt_key, "key", "extra_info", named)]
        rows = selection.rows(dataframe.select_columns(needed), self.prompt_key, ", ".join(files))
        kept = super().maybe_filter_out_long_prompts(dataframe.select(rows))
        if len(kept) == 0:
            raise GradAlignError(
                f"{selection.selection}: all {len(rows)} prompts are longer than data.max_prompt_length "
                f"({self.max_prompt_length} tokens); raise it"
            )
        placed = kept.select(selection.placed(len(kept)))
        print(f"gradalign: {len(rows)} chosen rows, {len(rows) - len(kept)} too long, {len(placed)} places")
        return placed


def _texts(files: Any) -> list[str] | None:
    """verl's one file or list of files as a list; None where there is none."""
    if files is None:
        return None
    return [files] if isinstance(files, str) else [str(file) for file in files]
