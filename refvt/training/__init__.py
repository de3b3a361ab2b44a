"""Training and evaluation."""

from refvt.training.evaluation import Evaluation, evaluate

__all__ = ["Evaluation", "evaluate"]
