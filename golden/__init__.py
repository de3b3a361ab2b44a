"""Golden files: what HaltingVT computes, from a PyTorch model that shares no line with refvt.

    python -m golden.generate              write golden/data: one .npz file per case, and manifest.json
    python -m golden.generate --check      generate the files again and compare them with those in golden/data
    python -m golden.generate --add        write only the cases that golden/data lacks
    python -m golden.generate --search     write the files with newly searched seeds of the model cases
    python -m golden.verify                check the PyTorch model by identities and finite differences

All floats are float64 and come from CPU autograd. Arguments, parameters, clips and cotangents are representable in
float32, so that a float32 candidate gets exactly the same numbers. Indices are int64, decisions bool.

Keys of an operation case, ``op-<operation>-<variant>.npz``:

    argument/<name>       the arguments that are given; settings (num_heads, k, ...) are in the manifest
    cotangent/<result>    random normal numbers, one array per float result
    result/<name>         the results
    gradient/<argument>   gradient of the sum of cotangent · result, one per argument that has a gradient

Keys of a model case, ``model-<name>.npz``:

    clips, labels, motion_labels, parameters/<name>
    forward/<tensor>      named tensors
    backward/<tensor>     gradient of the total loss at that tensor, zero if no gradient reaches it
    gradients/<name>      gradient of the total loss at that parameter
    decisions/            kept.<g>, halting_layer
    output/               logits, motion_logits, features, ponder, tokens_per_layer, alive
    loss/                 total, recognition, ponder, motion

Keys of a training case, ``training-<optimiser>.npz``, 20 steps on one batch:

    clips, labels, motion_labels, start/<name>
    losses                total loss before each step
    final/<name>          parameters after the last step
    decisions/            kept.<g>, halting_layer, of every step

Some model cases omit the named tensors to save space. The ``tiny-`` cases are for slow interpreters and simulators:
width 8, two heads, at most ten tokens.

Conventions of the named tensors:

- They are flat rows, clip after clip. A state has CLS first, then patch s of frame t at 1 + s*T + t. The rows of
  temporal attention are (clip, patch, frame), those of spatial attention (clip, frame, [CLS, patches]).
- ``temporal_fc``, ``attn.proj`` and ``mlp`` of a block include their residual; ``temporal_attn.proj`` has none. The
  scales of stochastic depth (DropPath) are applied. ``attn.proj`` of a Glimpser block has one row for CLS in every
  frame; it includes the skip input of CLS unless the block selects without ``cls_skip``.
- A joint block computes all tokens. The rows of halted tokens enter as zero; with ``masked`` the logits of their keys
  are also -inf. The outputs at these rows are not used. A clip without any key has ``attn.y`` = 0.
- ``joint.l.logit`` and ``joint.l.weight``, and their gradients, are zero for a token that does not enter layer l;
  ``joint.L.logit`` is zero everywhere. The gradient at a logit is only the one through the halting score, the gradient
  at a weight only the one through y and ρ.
- ``kept.<g>`` contains original patch indices of the frame; the fused token is -1. It contains all patches if the
  block keeps all of them.

The manifest gives the error of PyTorch's float32 for each tensor: ``float32_error`` is the relative L2 error, the
largest over several orders of summation (``absolute`` is true if the truth is zero and the error is absolute), and
``float32_peak`` the largest error of one element, relative to the root mean square of the truth (absolute if the truth
is zero). ``float16_error``, ``bfloat16_peak`` and the like are the same for these dtypes; they are missing where a
run leaves the range of float16. For
operations that are plain sums, ``condition`` is ‖Σ|terms|‖ / ‖result‖. ``margins`` are the smallest distances of the
decisions from their thresholds: ``halting`` is |c - (1 - ε)|, ``selection`` and ``order`` are relative gaps between
scores; null if the case makes no such decision.
"""
