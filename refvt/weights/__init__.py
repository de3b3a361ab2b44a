"""Weights that come with refvt: a trained model of moving digits, and weights of the paper's size set by hand."""
