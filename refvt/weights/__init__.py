"""Weights that come with refvt: two models trained on moving digits, and weights of the paper's size set by hand.

``load("photographs")`` and ``load("digits")`` return a trained model and its recipe; ``handmade_parameters`` are
explained in ``handmade``.
"""

from refvt.weights.handmade import handmade_parameters
from refvt.weights.shipped import SHIPPED, find_backbone, find_files, load

__all__ = ["SHIPPED", "find_backbone", "find_files", "handmade_parameters", "load"]
