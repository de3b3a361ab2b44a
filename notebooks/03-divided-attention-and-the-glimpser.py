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
# ## What stays
#
# Each Glimpser block has its own keep rate R. The paper uses two blocks, with R = 1 in the first, where nothing is selected,
# and R < 1 in the second. There, in each frame, the k = ⌈R · S⌉ patches of highest score stay, best first. The others are gone for good. Patches of different
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
# ## What R trades
#
# The number of tokens that enter the joint blocks is 1 + T · ⌈R · S⌉. At the paper's size:

# %%
for R in (1.0, 0.7, 0.5, 0.3):
    kept_patches = int(np.ceil(R * 196))
    n = 1 + 8 * kept_patches
    print(f"R = {R}: {n:5d} tokens, {n * n / 1569**2:6.1%} of the pairs in each joint layer")

# %% [markdown]
# The paper reports 67.2 % at 9.9 GFLOPs with R = 0.3, and 75.0 % at 24.2 GFLOPs with R = 0.7 (Mini-Kinetics). It credits the
# Glimpser with 2.5 % accuracy: it argues that redundant tokens do not only cost, but mislead, above all in shallow layers,
# where CLS cannot yet tell what matters.
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
