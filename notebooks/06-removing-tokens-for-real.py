# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 6. Removing tokens for real
#
# Counting fewer GFLOPs saves no time. The released PyTorch code *counts* what a halted token would save, but computes the
# token all the same. This notebook removes halted tokens, shows that the answers stay the same to rounding, and measures the
# time. After it you can say
#
# - what living tokens see of halted ones, in two variants: `zero` and `masked`,
# - what the ghost token is, and why it is exact,
# - why the last layer needs only one query,
# - what halting saves on your machine.

# %%
import time
from dataclasses import replace

import numpy as np

import refvt
from refvt.model import flops
from refvt.weights import handmade_parameters

np.set_printoptions(precision=3, suppress=True)

# %% [markdown]
# ## What a halted token is to the others
#
# | variant | a halted token | who |
# | --- | --- | --- |
# | `zero` | its state is set to 0 before every block; it stays in the attention as a key and a value | the released HaltingVT |
# | `masked` | is no key any more | A-ViT; the text of the HaltingVT paper says "removing tokens" |
#
# `masked` is easy to make fast: delete the rows. `zero` is not: all halted tokens still count in every softmax. But they are
# all *equal*. The state is 0, LayerNorm(0) is its bias, so all have the same key k and the same value v. These are not zero: a
# halted token takes weight in the softmax and adds its value. Notebook 2 showed
# what m equal keys are: one key with log m added to its logit. So refvt removes all halted tokens and adds one **ghost** per
# clip. Nothing is approximated, forward or backward. log m is added after the division by √d, for every query and every head;
# a clip in which nothing has halted (m = 0) has no ghost.
#
# Let us do it by hand for one query.

# %%
rng = np.random.default_rng(1)
D, living, m = 6, 4, 20
q = rng.standard_normal(D)
keys, values = rng.standard_normal((2, living, D))  # of living tokens
ghost_k, ghost_v = rng.standard_normal((2, D))  # of any halted token


def attend(q, keys, values, bias):
    s = keys @ q / np.sqrt(D) + bias
    p = np.exp(s - s.max())
    return p / p.sum() @ values


all_of_them = attend(q, np.vstack([keys, np.tile(ghost_k, (m, 1))]), np.vstack([values, np.tile(ghost_v, (m, 1))]), 0)
with_ghost = attend(q, np.vstack([keys, ghost_k]), np.vstack([values, ghost_v]), np.array([0] * living + [np.log(m)]))
print("24 keys against 5 keys, largest difference:", np.abs(all_of_them - with_ghost).max())

# %% [markdown]
# *Predict first.* A ghost is key and value only. Why does it need no query, no MLP and no output?
#
# Because nothing reads its new state: the output of a halted token is already fixed, and before the next block its state would
# be set to zero again.
#
# ## The whole model, both ways
#
# `execution="dense"` keeps a row for every token, as the released code does. `execution="compact"` removes the halted ones.
# Here is HaltingVT-S at the paper's size, with weights set by hand so that a patch lives as long as something moves in it
# ([not trained](README.md#the-models-of-the-notebooks)).

# %%
config = refvt.HaltingVTConfig.preset("minik-g03-b10")
model = refvt.HaltingVT(config, handmade_parameters(config))
clip, _ = refvt.data.read_clip(refvt.data.find_sample_video("carphone_pristine.mp4"), config.num_frames, 8)
answers = {how: model(clip[None], execution=how) for how in ("dense", "compact")}
for how, out in answers.items():
    print(f"tokens alive in each joint layer, {how}:", out.tokens_per_layer[0])

# %% [markdown]
# The same tokens halt. (`dense` computes a row for the others, too; they are not counted as alive.) The answers would prove
# nothing here: these weights recognise nothing, all their logits are zero. So we compare the answers of a small model with
# random weights, in float64, for two clips:

# %%
small = refvt.HaltingVTConfig(
    image_size=(32, 32), patch_size=8, channels=1, num_frames=4, width=32, num_heads=4, glimpser_depth=1, depth=5,
    keep_rates=(0.5,), num_classes=8, halting_scale=10.0, halting_center=0.0,
)  # fmt: skip
tiny = refvt.HaltingVT(small, seed=3, backend="reference", dtype="float64")
two_clips = np.random.default_rng(2).standard_normal((2, 1, 4, 32, 32))
logits = {how: tiny(two_clips, execution=how).logits for how in ("dense", "compact")}
print(f"largest logit: {np.abs(logits['dense']).max():.2f}")
print("largest difference of the logits:", np.abs(logits["dense"] - logits["compact"]).max())
without = refvt.HaltingVT(replace(small, halted_keys="masked"), tiny.parameters, backend="reference", dtype="float64")
print("the same without the ghost:      ", np.abs(logits["dense"] - without(two_clips).logits).max())

# %% [markdown]
# The same answers, to rounding. Without the ghost (the variant `masked`, same weights) they differ by far more than rounding:
# it is another model, and weights trained with `zero` need the ghost. Now the time, with the large model again. We run both
# in turn and take the median, because machines are noisy.

# %%
times = {"dense": [], "compact": []}
for _ in range(5):
    for how in times:
        start = time.perf_counter()
        model(clip[None], execution=how)
        times[how].append(1e3 * (time.perf_counter() - start))
dense, compact = np.median(times["dense"]), np.median(times["compact"])
counted = answers["compact"].gflops[0]
executed = flops.executed_multiply_adds(config, answers["compact"].alive)[0] / 1e9
full = flops.clip_gflops(config, np.full((1, config.joint_depth), config.joint_tokens))[0]
print(f"time:             dense {dense:.0f} ms, compact {compact:.0f} ms: {compact / dense - 1:+.0%}")
print(f"counted GFLOPs:   {full:.1f} without halting, {counted:.1f} with it: {counted / full - 1:+.0%}")
print(f"compact executes: {executed:.1f}: {executed / full - 1:+.0%}")

# %% [markdown]
# `dense` computes every token in every layer, also after CLS has halted. `compact` computes even less than is counted,
# because its last layer computes CLS alone (see below). The time falls by a smaller share than the executed work:
# small products keep a processor less busy than large ones, and LayerNorm, softmax and GELU take time but are not counted. In
# a trained model other tokens halt. [docs/performance.md](../docs/performance.md) says how far from the machine's limit refvt
# runs.
#
# ## Three more things that need not be computed
#
# 1. *CLS has halted.* Nothing that comes later can reach the answer. At test time the clip is done.
# 2. *The last layer.* Every score there is 1, so every token halts, and only y of CLS is read. So only CLS needs a query, a
#    projection and an MLP; patches are still needed as keys and values. (The GFLOPs above, and the exercises of notebook 8, count
#    all living tokens in the last layer too, as the paper counts. So they say more than `compact` really computes:
#    [docs/multiply-adds.md](../docs/multiply-adds.md) has both figures.)
# 3. *y of patches.* No loss reads it. It is not formed at all.
#
# With `full_ponder=True` every token is followed to its own halt, also if CLS has halted before it. *Predict first:* which
# results of the small model can change?

# %%
stopped, followed = tiny(two_clips), tiny(two_clips, full_ponder=True)
print("CLS halts in layer", stopped.decisions.halting_layer[:, 0])
print("largest difference of the logits:", np.abs(followed.logits - stopped.logits).max())
for name, out in (("stopped", stopped), ("followed", followed)):
    print(f"{name}: tokens {out.tokens_per_layer.tolist()}, ponder unknown for {np.isnan(out.ponder).sum()}")

# %% [markdown]
# The answers cannot change. What can: for each token that outlives CLS its halting layer, its remainder and its ponder, and
# with them the counted tokens and GFLOPs. (This model has four joint layers, and CLS halts in layer 2. Had it halted in layer
# 3, the rest would follow without computing it: who lives after layer 3 halts in layer 4, the last.)
#
# ## The ghost's gradient
#
# In the backward the ghost gets gradients dk and dv like any other key and value. Where do they go? Its input is the zero
# vector, so LayerNorm(0) = bias, and its key is $W_\text{key}\, b + c_\text{key}$. Here b is the bias of `norm1`, and
# $W_\text{key}$ and $c_\text{key}$ are the rows of `qkv` (weight and bias) that make keys; the same for the value. So the
# ghost's gradient reaches **`norm1.bias`, and the k and v rows of `qkv` (weight and bias)**.
# Nothing reaches `norm1.weight` (it is multiplied by 0), nor the q rows (a ghost has no query). There is also a gradient at the
# zero vector itself. It goes no further: the zero does not depend on any state or parameter, so a halted token gets nothing from
# later layers. One ghost stands for m tokens; log m is a constant.
#
# *Predict first.* dense has m zero rows, compact one ghost. By how much do the gradients of all parameters differ?

# %%
gradients = {}
for how in ("dense", "compact"):
    loss, gradients[how] = tiny.loss_and_gradients(two_clips, np.array([1, 2]), np.array([1, 0]), execution=how)
print("tokens entering each joint layer:", loss.output.tokens_per_layer.tolist())
differ = {name: np.abs(gradients["dense"][name] - g).max() for name, g in gradients["compact"].items()}
print("largest difference of a gradient, dense against compact:", max(differ.values()))

# %% [markdown]
# They agree to rounding. Now one ghost alone, with a random bias b and a random gradient of its key and value:

# %%
reference = refvt.backends.get("reference")
D = 6
rng = np.random.default_rng(3)
weight, b, W, c = (
    rng.standard_normal(D),
    rng.standard_normal(D),
    rng.standard_normal((3 * D, D)),
    rng.standard_normal(3 * D),
)
normed, norm_cache = reference.layernorm.forward(np.zeros((1, D)), weight, b)
qkv, qkv_cache = reference.linear.forward(normed, W, c)
dqkv = np.concatenate([np.zeros(D), rng.standard_normal(2 * D)])[None]  # a ghost has no query
dnormed, dqkv_weight, dqkv_bias = reference.linear.backward(dqkv, qkv_cache)[:3]
_, dweight, db = reference.layernorm.backward(dnormed, norm_cache)
for name, g in (("norm1.weight", dweight), ("norm1.bias", db)):
    print(f"d({name}): largest {np.abs(g).max():.3f}")
for name, rows in (("q", slice(0, D)), ("k", slice(D, 2 * D)), ("v", slice(2 * D, 3 * D))):
    print(
        f"rows of {name}: d(qkv.weight) largest {np.abs(dqkv_weight[rows]).max():.3f}, d(qkv.bias) {np.abs(dqkv_bias[rows]).max():.3f}"
    )

# %% [markdown]
# ## Exercise
#
# Say nothing is dropped, so that N' = N = 1569 tokens enter the joint blocks, and n of them live. In the attention of one
# layer, `dense` computes N · N pairs of query and key. How many does `compact` compute, in the variant `zero`? (If no token
# has halted, there is no ghost.) Write `pairs(n, N)`.


# %%
def pairs(n, N): ...


[pairs(n, 1569) for n in (1569, 1000, 1)] == [1569 * 1569, 1000 * 1001, 2]

# %% [markdown]
# <details><summary>A solution</summary>
#
# ```python
# def pairs(n, N):
#     return n * (n if n == N else n + 1)  # the ghost is one more key
# ```
# </details>
#
# Sources: the released HaltingVT code for `zero`; A-ViT (CVPR 2022) for `masked`. The ghost and its proof are refvt's:
# [refvt/ops/compaction](../refvt/ops/compaction/__init__.py).
#
# Next: [7, The motion loss and static twins](07-the-motion-loss-and-static-twins.ipynb)
