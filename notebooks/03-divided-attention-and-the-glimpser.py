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
# # 3. Divided space-time attention and the Glimpser
#
# Attention among all 1569 tokens of a clip is expensive. The first blocks of HaltingVT do something cheaper, and then keep
# only the patches that look worth it. After this notebook you can say
#
# - what divided space-time attention computes, and what it saves,
# - how the Glimpser scores patches, and which it keeps,
# - why a selection has no gradient, and what that means,
# - what `R` trades.

# %%
import numpy as np

import refvt
from refvt import weights
from refvt.data.moving_digits import MovingDigits
from refvt.evaluation.selectivity import object_tokens
from refvt.training.recipe import make_moving_digits

np.set_printoptions(precision=3, suppress=True)
model, recipe = weights.load("photographs", backend="reference")
config = model.config
data: MovingDigits = make_moving_digits(recipe)[1]
clip = data.clip(1)
trace = model.trace(clip[None])
T, S = config.num_frames, config.patches_per_frame
print(f"{T} frames of {S} patches, width {config.width}, keep rates R = {config.keep_rates}")

# %% [markdown]
# ## Divided attention: first through time, then inside each frame
#
# 1. *Temporal*: each patch index by itself. Its T tokens, one per frame, attend to one another. CLS takes no part.
# 2. *Spatial*: each frame by itself. Its S patches and a copy of CLS attend to one another. The T results at CLS are averaged.
#
# *Predict first.* How many pairs of query and key does that make for HaltingVT-S (T = 8, S = 196), and how many does joint
# attention make?


# %%
def divided(T, S):
    return S * T * T + T * (1 + S) ** 2


def joint(T, S):
    return (1 + S * T) ** 2


for t, s in ((8, 196), (T, S)):
    print(
        f"T = {t}, S = {s}: divided {divided(t, s):9,d} pairs, joint {joint(t, s):9,d}, ratio {joint(t, s) / divided(t, s):.1f}"
    )

# %% [markdown]
# Divided attention is between seven and eight times cheaper at the paper's size. The price: a patch cannot attend to
# another place at another time directly, only by way of a third patch.
#
# ## The score of a patch
#
# In the spatial attention CLS asks every patch of its frame. The weight that it gives to a patch, averaged over heads, is
# the score of the patch. No extra network is needed. Here are the scores of frame 3, from the queries and keys of the last
# Glimpser block:

# %%
g = config.glimpser_depth - 1
A, d = config.num_heads, config.width // config.num_heads
rows = slice(3 * (1 + S), 4 * (1 + S))  # frame 3: CLS, then its patches
q = trace[f"blocks.{g}.attn.q"][rows].reshape(1 + S, A, d)
k = trace[f"blocks.{g}.attn.k"][rows].reshape(1 + S, A, d)
logits = np.einsum("ad,nad->an", q[0], k) / np.sqrt(d)  # CLS asks
p = np.exp(logits - logits.max(axis=1, keepdims=True))
p /= p.sum(axis=1, keepdims=True)
scores = p.mean(axis=0)[1:]  # of the patches; CLS also attends to itself
print(scores.reshape(config.grid))

# %% [markdown]
# ## How the Glimpser decides what to keep
#
# Each Glimpser block has its own keep rate R. The paper uses two blocks, with R = 1 in the first, where nothing is selected,
# and R < 1 in the second. There, in each frame, the S' = ⌈R · S⌉ patches of highest score
# stay, best first. The others are gone for good. Patches of different
# frames need not be at the same place: from now on "patch index s" means "rank s".

# %%
keep = config.num_kept_patches(g, S)
kept = np.argsort(-scores, kind="stable")[:keep]
print("by hand:", kept)
print("refvt:  ", trace.output.decisions.kept[-1][0, 3])

# %% [markdown]
# Does it keep the patches with the digit? Over 64 clips that the model never saw, the share of patches that stay, of those
# that hold the digit and of those that never do:

# %%
clips = np.stack([data.clip(i) for i in range(64)])
ink = np.stack([data.object_pixels(i) for i in range(64)])
out = model(clips)
entering = object_tokens(ink, config, out)
everything = ink.reshape(64, T, config.grid[0], config.patch_size, config.grid[1], config.patch_size).mean(axis=(3, 5))
with_digit = (everything >= 0.2).sum()
never = (everything.max(axis=1, keepdims=True) == 0).sum() * T
print(
    f"with the digit {np.mean((entering == 1).sum() / with_digit):.0%}, never the digit {(entering == 0).sum() / never:.0%}"
)

# %% [markdown]
# ## A decision without a gradient
#
# Which patches are kept is a decision: a small change of a score changes nothing, until two patches swap places. So the
# scores get no gradient from it. The gather that follows passes the gradient of each kept patch back to it. A dropped patch
# gets what came through the attention of this block, where it was still a key, and nothing from later blocks. The attention of CLS learns to look at useful patches because its *output* is useful, not because of the
# selection.
#
# This is also a danger: a patch that is dropped in training cannot show that it would have been useful.
#
# ## What the Glimpser saves, and what R trades
#
# The number of tokens that enter the joint blocks is 1 + T · ⌈R · S⌉. At the paper's size:

# %%
for R in (1.0, 0.7, 0.5, 0.3):
    kept_patches = int(np.ceil(R * 196))
    n = 1 + 8 * kept_patches
    print(f"R = {R}: {n:5d} tokens, {n * n / 1569**2:6.1%} of the pairs in each joint layer")

# %% [markdown]
# The paper reports 67.2 % at 9.9 GFLOPs with R = 0.3 and β = 10, and 75.0 % at 24.2 GFLOPs with R = 0.7 and β = 20
# (Mini-Kinetics).
#
# ## Why redundant tokens mislead, above all in shallow layers
#
# The paper credits the Glimpser with 2.5 % accuracy. So dropping patches is said to do more than to save: redundant tokens
# *mislead*. The argument: softmax weights sum to one, and no weight is zero. What CLS gives to a wall it takes from the
# digit. A deep layer can tell what matters, because its queries and keys were computed from several looks at the clip. A
# shallow layer cannot yet, and the walls are many.
#
# *Predict first.* A model that was trained without halting and without dropping keeps all 128 patches. 12 % of them hold the
# digit, 54 % never do. Which share of its attention does CLS give to each group in the four joint layers?

# %%
dense_config = recipe.backbone.config
parameters = weights.find_backbone(recipe)
dense = refvt.HaltingVT(dense_config, parameters, backend="reference")
few = dense.trace(clips[:16])
group = object_tokens(ink[:16], dense_config, few.output)  # 1 the digit is in it, 0 it never is
G, N = dense_config.glimpser_depth, dense_config.joint_tokens
print(f"patches: {(group == 1).mean():.0%} with the digit, {(group == 0).mean():.0%} never")
for layer in range(1, dense_config.joint_depth + 1):
    q = few[f"blocks.{G + layer - 1}.attn.q"].reshape(16, N, A, d)
    k = few[f"blocks.{G + layer - 1}.attn.k"].reshape(16, N, A, d)
    logits = np.einsum("bad,bnad->ban", q[:, 0], k) / np.sqrt(d)  # CLS asks
    p = np.exp(logits - logits.max(axis=2, keepdims=True))
    p /= p.sum(axis=2, keepdims=True)
    p = p.mean(axis=1)[:, 1:]  # over heads, patches alone
    p /= p.sum(axis=1, keepdims=True)
    on_digit, on_rest = ((p * (group == which)).sum(axis=1).mean() for which in (1, 0))
    print(
        f"layer {layer}: attention of CLS to patches with the digit {on_digit:.0%}, to those that never hold it {on_rest:.0%}"
    )

# %% [markdown]
# In every layer more than a third goes to patches that never hold the digit. The digit gets most in the last layer, though
# layer 1 is not the worst: the picture is less simple than the argument. Now the test: take the background away *by hand* after
# a certain layer (we impose its halting layer), and look at the answers. For comparison, as many patches drawn at random.

# %%
from dataclasses import replace

from refvt.model.decisions import Decisions

# masked: what is taken away is seen by nobody; the model has no halting of its own (γ = 0)
free = refvt.HaltingVT(replace(dense_config, halted_keys="masked"), parameters)
many = np.stack([data.clip(i) for i in range(256)])
truth = np.array([data.target(i) for i in range(256)])
untouched = free(many)
pixels = np.stack([data.object_pixels(i) for i in range(256)])
never_digit = np.pad(object_tokens(pixels, dense_config, untouched) == 0, ((0, 0), (1, 0)))  # CLS first
rng = np.random.default_rng(0)
at_random = np.pad(rng.permuted(never_digit[:, 1:], axis=1), ((0, 0), (1, 0)))
last = dense_config.joint_depth
print(f"nothing taken away: {(untouched.logits.argmax(axis=1) == truth).mean():.1%} right")
for layer in (1, 2, 3):
    right = []
    for taken in (never_digit, at_random):
        halting_layer = np.where(taken, layer, last)
        out = free(many, decisions=Decisions(untouched.decisions.kept, halting_layer))
        right.append((out.logits.argmax(axis=1) == truth).mean())
    print(f"taken away after layer {layer}: the background {right[0]:.1%} right, as many at random {right[1]:.1%}")

# %% [markdown]
# Taken away early, right after layer 1, the background's absence *helps* a little; as many random patches gone does harm. After
# a later layer it makes no difference. So the direction is the paper's: the earlier redundant tokens go, the better. But one
# clip of 256 is 0.4 points, so the gain of one to two points is hardly more than chance, and this model was never trained to do
# without them. In our trained versions, dropping by the Glimpser did not raise accuracy (notebook 8). The claim is a
# hypothesis that our small experiments neither confirm nor refute.
#
# ## Exercise
#
# The option *fuse* adds one more token per frame: the sum of the dropped patches, each times its score. Compute it for frame
# 3 from the scores above and from `states`, the patches after the spatial attention.

# %%
states = np.random.default_rng(0).standard_normal((S, config.width))  # stands for the patches of frame 3


def fused(states, scores, kept): ...


dropped = np.setdiff1d(np.arange(S), kept)
answer = fused(states, scores, kept)
answer is not None and bool(np.allclose(answer, (scores[dropped, None] * states[dropped]).sum(axis=0)))

# %% [markdown]
# <details><summary>A solution</summary>
#
# ```python
# def fused(states, scores, kept):
#     dropped = np.ones(len(scores), bool)
#     dropped[kept] = False
#     return scores[dropped] @ states[dropped]
# ```
# </details>
#
# Sources: TimeSformer (ICML 2021) for divided attention, EViT (ICLR 2022) for the score of CLS and the fused token,
# HaltingVT section 3.2. The code: [refvt/model/glimpser.py](../refvt/model/glimpser.py),
# [refvt/ops/glimpser](../refvt/ops/glimpser/__init__.py).
