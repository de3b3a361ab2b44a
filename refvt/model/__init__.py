"""HaltingVT, written once against the table of operations: no file here calls a backend's kernels directly.

Read in this order:

1. ``config`` — the sizes and switches; ``parameters`` — names, shapes, initial values
2. ``blocks`` — the two sublayers of every block: pre-norm attention, pre-norm MLP
3. ``plan`` — the index arrays that say which rows take part: all switches of the model end there
4. ``glimpser`` — temporal attention, spatial attention, selection of patches
5. ``joint`` — attention over all living tokens, halting, layer after layer
6. ``network`` — the whole: clip → tokens → Glimpser blocks → joint blocks → heads; ``haltingvt`` — what users call
7. ``inputs``, ``decisions``, ``drop_path`` — checks, imposed decisions, stochastic depth

Where the paper's statements stand:

- patches are embedded, CLS is put in front: ``network.network_forward``, pass 1; ``ops/embedding``
- attention through time, then inside a frame: ``glimpser._temporal_forward``, ``glimpser._spatial_forward``
- the Glimpser scores patches by the attention of CLS: ``glimpser._choose_patches``; ``ops/glimpser``
- it keeps ceil(R · S) patches per frame: ``config.num_kept_patches``; the others go: ``glimpser._selection_forward``
- joint attention over space and time: ``joint._block_forward``
- halting score, the condition Σh > 1 − ε, remainder (equations 4–8): ``joint._halt_forward``; ``ops/halting``
- ponder: ``joint.halting_outcome``; CLS halts like any token, the heads read its output: ``network``, pass 4
- the output of a token is the mean of its states under its weights: ``joint._output_forward``
- halted tokens become zero vectors or are masked (``plan.Dense``), or are removed (``plan.Compact``); where they count
  as zero vectors, one ghost per clip stands for them: ``ops/compaction``
- recognition, ponder and motion loss (equations 9–11): ``haltingvt.HaltingVT._loss_and_backward``; ``ops/losses``
- static twins for the motion loss: ``refvt/data/twins.py``
- multiply-adds of a clip (GFLOPs): ``flops``

Backward functions walk the numbered passes of their forward in reverse. A pass without a backward is a decision.
"""
