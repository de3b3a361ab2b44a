"""Sweeps that stand for the paper's tables and figures, and the weights made for measuring them."""
