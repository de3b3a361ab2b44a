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
# - what the keep rate R trades.

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
print(f"{T} frames of {S} patches, width {config.width}, keep rates {config.keep_rates}, one per Glimpser block")

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
# At the paper's size divided attention has between seven and eight times fewer pairs. The price: a patch cannot read
# another place at another time directly. It reads a patch of its own frame, and that patch has read the other time.
# (Glimpser blocks are counted from 0, joint layers from 1.)
#
# ## The score of a patch
#
# In the spatial attention CLS attends to every patch of its frame. The weight that it gives to a patch, averaged over heads,
# is the score of the patch. No extra network is needed. (It is not the halting score of notebook 4: this one is an attention
# weight.) Here are the scores of frame 3, from the queries and keys of the last Glimpser block:

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
# Each Glimpser block has its own keep rate. The paper uses two blocks, with rate 1 in the first, where nothing is selected,
# and R < 1 in the second. Where we write R alone, it is the rate of the second block. There, in each frame, the
# S' = ⌈R · S⌉ patches of highest score stay, ordered by score. The others are gone for good. The choice stands between the
# spatial attention and the MLP of the block, so a dropped patch has no MLP there.
#
# Each frame chooses for itself, so the kept patches of two frames may show different places. After the selection a patch is
# numbered by its *rank*: patch 0 of a frame is the one with the highest score, patch 1 the next. The token itself still knows
# its place: `pos_embed` was added before.

# %%
keep = config.num_kept_patches(g, S)
kept = np.argsort(-scores, kind="stable")[:keep]
print("by hand:", kept)
print("refvt:  ", trace.output.decisions.kept[-1][0, 3])

# %% [markdown]
# Does it keep the patches with the digit, those of which at least a fifth of the pixels are digit? Over 64 clips that the
# model never saw, the share of patches that stay, of those with the digit and of those that never hold it:

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
# scores get no gradient from it. A kept patch gets the gradient that later blocks send to it. A dropped patch gets nothing from
# later blocks, because they do not have it. It does get a gradient from the attention of this block: there it was still a key
# and a value, and other tokens read it. The attention of CLS learns to look at useful patches because its *output* is useful,
# not because of the selection.
#
# This is also a danger: if a useful patch is dropped in training, no gradient says that it should have been kept.
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
# Pairs are not the whole cost. The linear layers of a block (qkv, proj and the MLP) cost 12 · n · D² multiply-adds for n tokens,
# and the pairs 2 · n² · D (q · k, and weights times v). So at 473 tokens the pairs are only a sixth of a block. The whole model,
# counted with [refvt/model/flops.py](../refvt/model/flops.py), in GFLOPs (10⁹ multiply-adds a clip, as the literature counts):
#
# | R | tokens entering the joint blocks | patches and two Glimpser blocks | one joint block | ten of them | whole clip, nothing halts |
# | --- | --- | --- | --- | --- | --- |
# | 1 | 1569 | 8.83 | 4.67 | 46.67 | 55.50 |
# | 0.7 | 1105 | 8.28 | 2.89 | 28.93 | 37.21 |
# | 0.5 | 785 | 7.91 | 1.86 | 18.62 | 26.53 |
# | 0.3 | 473 | 7.54 | 1.01 | 10.09 | 17.63 |
#
# **In short:** the linear layers cost in proportion to the number of tokens, the attention in proportion to its *square*. So
# with R = 0.3 the Glimpser saves 70 % of the linear layers and 91 % of the pairs in a joint block, and 68 % of the whole
# clip. Its own two blocks hardly become cheaper. The rest is saved by halting: the paper reports 9.9 GFLOPs with R = 0.3 and
# β = 10 (67.2 % on Mini-Kinetics), and 24.2 GFLOPs with R = 0.7 and β = 20 (75.0 %). Between these two both R and β change,
# so their difference is not the effect of R alone.
#
# ## Why redundant tokens mislead, above all in shallow layers
#
# The paper claims two things of redundant tokens, such as static background: they cost compute, and in shallow layers they
# may also mislead (its abstract). So dropping many of them early is said to save *and* to gain accuracy; the paper credits
# the Glimpser with 2.5 % accuracy. (How the paper measured this, and at which R, is in tables that were not at hand when this
# was written.) The argument: softmax weights sum to one, and no weight is zero. So the weight that CLS gives to background is
# missing for the digit, and the *content* of the background, its values, is mixed into CLS instead. In a deep layer queries
# and keys come from tokens that have already read one another several times, so CLS can tell what matters. In a shallow layer
# it cannot yet, and most patches are background.
#
# *Predict first.* A model that was trained without halting and without dropping (the backbone in [this
# table](README.md#the-models-of-the-notebooks)) keeps all 128 patches. 12 % of them hold the digit, 54 % never do. Which
# share of its attention does CLS give to each group in the four joint layers?

# %%
backbone_config = recipe.backbone.config
parameters = weights.find_backbone(recipe)
backbone = refvt.HaltingVT(backbone_config, parameters, backend="reference")
few = backbone.trace(clips[:16])
group = object_tokens(ink[:16], backbone_config, few.output)  # 1 the digit is in it, 0 it never is
G, tokens = backbone_config.glimpser_depth, backbone_config.joint_tokens  # tokens: N'
print(f"patches: {(group == 1).mean():.0%} with the digit, {(group == 0).mean():.0%} never")
for layer in range(1, backbone_config.joint_depth + 1):
    q = few[f"blocks.{G + layer - 1}.attn.q"].reshape(16, tokens, A, d)
    k = few[f"blocks.{G + layer - 1}.attn.k"].reshape(16, tokens, A, d)
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
# Compare with the shares of the patches. Background is 54 % of the patches and gets 35 to 44 % of the attention: much weight
# that the digit does not get, as the paper says, but less than the background's share of the patches. Patches with the digit
# are 12 % and get 15 to 31 %, more than their share. So CLS prefers the digit in every layer, also in the first. (The rest
# goes to patches that hold the digit in another frame, or less than a fifth of a patch of it in this one.)
#
# This supports only a part of the argument. The digit gets most in the last layer, but the worst layer is the second, not the
# first. And "layer 1" is not really shallow: it is the first *joint* layer, and two Glimpser blocks come before it, in which CLS
# has read the clip twice.
#
# Now the test. We take the background away *by hand* after a certain layer (we impose its halting layer) and look at the
# answers. For comparison we take away as many patches drawn at random, which can hold the digit.

# %%
from dataclasses import replace

from refvt.model.decisions import Decisions

# In this model nothing halts by itself. Decisions says for each token in which joint layer it halts: this layer is the
# last that computes it. masked: nobody reads it afterwards (notebooks 4 and 6).
free = refvt.HaltingVT(replace(backbone_config, halted_keys="masked"), parameters)
many = np.stack([data.clip(i) for i in range(256)])
truth = np.array([data.target(i) for i in range(256)])
untouched = free(many)
pixels = np.stack([data.object_pixels(i) for i in range(256)])
never_digit = np.pad(object_tokens(pixels, backbone_config, untouched) == 0, ((0, 0), (1, 0)))  # CLS first
rng = np.random.default_rng(0)
at_random = np.pad(rng.permuted(never_digit[:, 1:], axis=1), ((0, 0), (1, 0)))
last = backbone_config.joint_depth
print(f"nothing taken away: {(untouched.logits.argmax(axis=1) == truth).mean():.1%} right")
for layer in (1, 2, 3):
    right = []
    for taken in (never_digit, at_random):
        halting_layer = np.where(taken, layer, last)
        out = free(many, decisions=Decisions(untouched.decisions.kept, halting_layer))
        right.append((out.logits.argmax(axis=1) == truth).mean())
    print(f"taken away after layer {layer}: the background {right[0]:.1%} right, as many at random {right[1]:.1%}")

# %% [markdown]
# One clip of 256 is 0.4 points. Without the background after layer 1 four more clips are right (+1.6 points); without random
# patches two fewer are right. After layer 2 or 3 two fewer are right without the background. The direction after layer 1 is the
# paper's. But differences of two to four clips are hardly more than chance, and this model was never trained to work without
# these patches. (Here the background was taken out of the softmax, `masked`. In the released variant a halted patch stays in
# it and still takes weight, notebook 6. Only what the Glimpser drops is out for good.)
#
# When models are *trained* with a Glimpser that drops patches, ours did not become more accurate. Against R = 1 accuracy
# changed by −0.2 ± 0.8 points at R = 0.7, −0.6 ± 0.5 at R = 0.5 and −1.1 ± 0.8 at R = 0.3 (95 % intervals over five seeds;
# [docs/results/experiment-table1.md](../docs/results/experiment-table1.md)).
# (These are means of runs with and without the motion loss.)
#
# **In short**, the paper's hypothesis: redundant tokens take weight in the softmax and put their content into CLS, most of
# all in shallow layers, where attention cannot yet tell what matters; the remedy is to drop them early. The argument is
# plausible. On our small data a gain of 2.5 points is excluded; what holds for real actions we cannot say.
#
# ## Exercise
#
# The option *fuse* (`fuse_dropped` in a configuration, off by default) adds one more token per frame: the sum of the dropped
# patches, each times its score. Compute it for frame
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
# Sources: TimeSformer (ICML 2021) for divided attention, EViT (ICLR 2022) for the score of CLS and the fused token, HaltingVT
# section 3.2. The code: [refvt/model/glimpser.py](../refvt/model/glimpser.py),
# [refvt/ops/glimpser](../refvt/ops/glimpser/__init__.py).
#
# Next: [4, Halting: one token's life](04-one-tokens-life.ipynb)
