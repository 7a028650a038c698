"""The order in which a trainer sees problems."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from trl.trainer.utils import RepeatSampler

if TYPE_CHECKING:
    from gradalign.trainers.trl.trainer import GradAlignTrainer


class Places(RepeatSampler):
    """The round's places, each repeated as `RepeatSampler` repeats; always as many, whatever was chosen."""

    def __init__(self, trainer: GradAlignTrainer) -> None:
        args = trainer.args
        places = range(args.round_prompts)
        super().__init__(places, trainer.num_generations, args.batch_prompts, args.generation_steps, shuffle=False)
        self.trainer = trainer

    def __iter__(self) -> Iterator[int]:
        places = self.trainer.places
        if places:
            yield from (places[place] for place in super().__iter__())


class Resumable(RepeatSampler):
    """TRL's own order; but a run that goes on in a later epoch sees that epoch's, not the first one's."""

    def __init__(self, stock: RepeatSampler, trainer: GradAlignTrainer) -> None:
        super().__init__(
            stock.data_source, stock.mini_repeat_count, stock.batch_size, stock.repeat_count, True, stock.seed
        )
        self.trainer = trainer

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed(self.seed or 0)
        for _ in range(int((self.trainer.state.epoch or 0) + 1e-6)):
            torch.randperm(self.num_samples, generator=self.generator)
        yield from super().__iter__()
