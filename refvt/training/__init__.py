"""Training and evaluation: recipes, optimisers, the loop, checkpoints that continue to the bit, several processes.

``train`` runs a ``Recipe`` on two data sets, ``evaluate`` a model on one: ``refvt train`` and ``refvt evaluate``. See
docs/training.md and docs/data.md.
"""

from refvt.evaluation import Evaluation, evaluate
from refvt.training.batches import TrainingError
from refvt.training.loop import train
from refvt.training.observer import Observer
from refvt.training.recipe import RECIPES, Recipe, paper_recipe

__all__ = ["RECIPES", "Evaluation", "Observer", "Recipe", "TrainingError", "evaluate", "paper_recipe", "train"]
