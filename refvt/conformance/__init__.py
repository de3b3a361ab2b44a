"""Holding an implementation against the truth: golden files, laws, budgets.

``golden`` reads the golden files of a PyTorch run, ``verify`` holds a backend against them, ``budgets`` says how much a
float32 candidate may err, ``laws`` collects the laws of every room, ``strategies`` makes inputs for them (the only
module that imports Hypothesis).
"""
