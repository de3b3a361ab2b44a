"""Golden files: what HaltingVT computes, from a PyTorch model that shares no line with refvt.

    python -m golden.generate              write golden/data: one .npz per case and manifest.json
    python -m golden.generate --check      generate again and compare with what is stored
    python -m golden.generate --search     write them with newly searched seeds of the model cases
    python -m golden.verify                hold the PyTorch model against identities and finite differences

All floats are float64 and come from CPU autograd. Arguments, parameters, clips and cotangents are representable
in float32, so that a float32 candidate is given the very same numbers. Indices are int64, decisions bool.

Keys of an operation case, `op-<operation>-<variant>.npz`:

    argument/<name>       the arguments that are present; settings (num_heads, k, ...) are in the manifest
    cotangent/<result>    random normal, one per float result
    result/<name>         what the operation returns
    gradient/<argument>   of the sum of cotangent · result, one per argument that has a gradient

Keys of a model case, `model-<name>.npz`:

    clips, labels, motion_labels, parameters/<name>
    forward/<tensor>      named tensors
    backward/<tensor>     gradient of the total loss at that tensor, zeros where none reaches it
    gradients/<name>      gradient of the total loss at that parameter
    decisions/            kept.<g>, halting_layer
    output/               logits, motion_logits, features, ponder, tokens_per_layer, alive
    loss/                 total, recognition, ponder, motion

Keys of a training case, `training-<optimiser>.npz`, 20 steps on one batch:

    clips, labels, motion_labels, start/<name>
    losses                total loss before each step
    final/<name>          parameters after the last step
    decisions/            kept.<g>, halting_layer, of every step

Some model cases leave the named tensors out to save space. Files of `tiny-` cases are for slow machines: width 8, two
heads, ten tokens at most.

Conventions of the named tensors:

- They are flat rows, clip by clip. A state has CLS first, then patch s of frame t at 1 + s*T + t. Temporal
  attention has rows (clip, patch, frame), spatial attention (clip, frame, [CLS, patches]).
- `temporal_fc`, `attn.proj` and `mlp` of a block contain their residual, `temporal_attn.proj` has none. Gains of
  stochastic depth are applied. `attn.proj` of a Glimpser block holds CLS once per frame, its skip input included
  unless the block selects without `cls_skip`.
- A joint block computes every token. Rows of halted ones enter as zero; under `masked` their keys are at -inf
  besides. What comes out at these rows is not used. A clip without any key has `attn.y` = 0.
- `joint.l.logit` and `joint.l.weight`, and their gradients, are zero where a token does not enter layer l;
  `joint.L.logit` is zero everywhere. The gradient at a logit is that of the halting score alone, the gradient at
  a weight that of y and ρ alone.
- `kept.<g>` counts patches as they stood in the frame; the fused token is -1. It names all patches where a block
  keeps all.

The manifest says how far PyTorch's float32 is from each tensor: `float32_error` is the relative L2 error, the
largest over several orders of summation (`absolute`: the truth is zero, the error absolute). For operations that
are plain sums `condition` is ‖Σ|terms|‖ / ‖result‖. `margins` are the smallest distances at which a decision
would have gone the other way: `halting` is |c - (1 - ε)|, `selection` and `order` are relative gaps of scores;
null where nothing is decided.
"""
