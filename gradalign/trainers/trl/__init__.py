"""GradAlign inside TRL's GRPOTrainer: the same trainer, the same configuration, one new block."""

from gradalign.trainers.trl.config import GradAlignConfig
from gradalign.trainers.trl.trainer import GradAlignTrainer

__all__ = ["GradAlignConfig", "GradAlignTrainer"]
