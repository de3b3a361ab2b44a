"""Training: recipes, optimisers, the loop, checkpoints that continue to the bit, several processes over MPI.

``train`` runs a ``Recipe`` on two data sets; ``refvt train`` is its command. See docs/training.md.
"""

from refvt.training.batches import TrainingError
from refvt.training.loop import evaluate, train
from refvt.training.recipe import RECIPES, Recipe, paper_recipe

__all__ = ["RECIPES", "Recipe", "TrainingError", "evaluate", "paper_recipe", "train"]
