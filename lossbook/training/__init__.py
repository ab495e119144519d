"""Training: the one place where corpora, objectives, models and optimizers meet."""

from lossbook.training.checkpoint import Checkpoint
from lossbook.training.device import available as available
from lossbook.training.history import History
from lossbook.training.pretrain import Diverged, pretrain

__all__ = ["Checkpoint", "Diverged", "History", "pretrain"]
