"""Training: recipes, optimisers, the loop, checkpoints from which a run resumes bit for bit, several processes.

``train`` runs a ``Recipe`` on two data sets, as ``refvt train`` does; ``evaluate`` runs a model on one. See
docs/training.md and docs/data.md.
"""

from refvt.evaluation import Evaluation, evaluate
from refvt.training.errors import TrainingError, UnreadableClipWarning
from refvt.training.loop import train
from refvt.training.observer import Observer
from refvt.training.recipe import RECIPES, Recipe, paper_recipe

__all__ = [
    "RECIPES",
    "Evaluation",
    "Observer",
    "Recipe",
    "TrainingError",
    "UnreadableClipWarning",
    "evaluate",
    "paper_recipe",
    "train",
]
