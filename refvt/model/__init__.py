"""HaltingVT, written once against the table of operations: no file here knows NumPy kernels, threads or a GPU.

Read in this order:

1. ``config`` — the sizes and switches; ``parameters`` — names, shapes, initial values
2. ``blocks`` — the two sublayers of every block: pre-norm attention, pre-norm MLP
3. ``glimpser`` — temporal attention, spatial attention, selection of patches
4. ``joint`` — attention over all living tokens, halting, layer after layer
5. ``plan`` — the index arrays that make dense and compact execution out of 3 and 4
6. ``network`` — the whole: clip → tokens → Glimpser blocks → joint blocks → heads; ``haltingvt`` — what users call

Where the paper's statements stand:

- patches are embedded, CLS is put in front: ``network.network_forward``, pass 1; ``ops/embedding``
- attention through time, then inside a frame: ``glimpser._temporal_forward``, ``glimpser._spatial_forward``
- the Glimpser scores patches by the attention of CLS: ``glimpser._choose_patches``; ``ops/glimpser``
- it keeps ceil(R · S) patches per frame: ``config.kept_patches``; the others go: ``glimpser._selection_forward``
- joint attention over space and time: ``joint._block_forward``
- halting score, weight, remainder, ponder (equations 4–8): ``joint._halt_forward``, ``joint.halting_outcome``;
  ``ops/halting``
- the output of a token is the mean of its states under its weights: ``joint._output_forward``
- halted tokens become zero vectors (``plan.Dense``) or are removed (``plan.Compact``), with one ghost for all of them:
  ``ops/compaction``
- recognition, ponder and motion loss (equations 9–11): ``haltingvt.HaltingVT._loss_and_backward``; ``ops/losses``
- static twins for the motion loss: ``refvt/data/twins.py``
- multiply-adds of a clip (GFLOPs): ``flops``

Every ``x_forward`` has its ``x_backward``, which walks the same numbered passes in reverse.
"""
