"""Weights that come with refvt: a trained model of moving digits, and weights of the paper's size set by hand.

``load("digits")`` returns the trained model and its recipe; ``handmade_parameters`` are explained in ``handmade``.
"""

from refvt.weights.handmade import handmade_parameters
from refvt.weights.shipped import SHIPPED, find_files, load

__all__ = ["SHIPPED", "find_files", "handmade_parameters", "load"]
