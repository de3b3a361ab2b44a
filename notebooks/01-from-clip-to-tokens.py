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
# # 1. From clip to tokens
#
# The input of a transformer is not a picture but a list of vectors, the tokens. This notebook makes tokens of a clip, by
# hand, and compares the result with refvt. After it you can say
#
# - how many tokens a clip has, and which token belongs to which patch of which frame,
# - what CLS is,
# - how a token carries its place and its time.

# %%
import numpy as np

import refvt
from refvt.data import MovingDigits
from refvt.notebooks.pictures import draw_model

np.set_printoptions(precision=3, suppress=True)

# %% [markdown]
# ## The whole model in one picture
#
# From bottom to top, at the paper's size with R = 0.3. Beside the arrows stands how many tokens pass. This notebook is about
# the blue part, notebook 3 about the Glimpser, notebooks 4 to 6 about halting in the joint blocks, notebook 7 about the
# heads. All symbols stand in the tables at the end.

# %%
draw_model(refvt.HaltingVTConfig.preset("minik-g03-b10"))

# %% [markdown]
# ## What a block does
#
# A *block*, or layer, takes tokens of width D and returns as many of the same width. It has two steps. Each *adds* its result
# to what came in, which is called a residual or skip connection:
#
# $$x \leftarrow x + \text{attention}(\text{norm1}(x))$$
#
# $$x \leftarrow x + \text{MLP}(\text{norm2}(x))$$
#
# - *norm* is LayerNorm. It takes one token, subtracts the mean of its D numbers and divides by their standard deviation (with
#   1e-6 added to the variance). Then it multiplies by a learnt weight and adds a learnt bias.
# - *Attention* is the only step in which tokens read one another (notebook 2).
# - The *MLP* treats each token by itself: a linear layer from D to 4 · D numbers, GELU, and a linear layer back to D.
# - *GELU* is applied to each number: GELU(z) = z · Φ(z), where Φ(z) is the probability that a normally distributed number is
#   below z. So large numbers pass, very negative ones become 0, and the change between the two is smooth.
#
# A Glimpser block has one more attention, and it drops patches (notebook 3). Blocks are counted from 0 in the names of
# parameters, joint layers from 1 in the text: with G = 2, `blocks.0` and `blocks.1` are the Glimpser, and `blocks.2` is joint
# layer 1.

# %% [markdown]
# ## The clip
#
# A clip is an array [C, T, height, width]: C colours, T frames. A batch has B of them. The value of a pixel is scaled from
# 0…255 to −1…1, with (value − 127.5) / 127.5.

# %%
data = MovingDigits("test", clips=2, size=32)
clip = data.clip(0)
print(clip.shape, clip.dtype, clip.min(), clip.max())

# %% [markdown]
# ## Patches
#
# Every frame is cut into squares of P × P pixels. Here P = 8, so a frame of 32 × 32 has S = 4 · 4 = 16 patches. A patch is
# flattened in the order (colour, row, column) to a vector of C · P · P = 64 numbers.

# %%
C, T, height, width = clip.shape
P = 8
rows, columns = height // P, width // P
patches = clip.reshape(C, T, rows, P, columns, P).transpose(1, 2, 4, 0, 3, 5).reshape(T, rows * columns, C * P * P)
print(patches.shape, "= frames, patches, numbers per patch")

# %% [markdown]
# *Predict first.* Which patch of frame 0 holds the most of the digit? The digit is 8 pixels wide and high. `data.places()` gives
# its top left corner as (row, column). The canvas wraps around: what leaves it at the bottom comes in at the top.

# %%
print("corner of the digit in frame 0:", data.places()[0, 0])
brightness = patches[0].mean(axis=1)
print(brightness.reshape(rows, columns))
print("brightest patch:", divmod(int(brightness.argmax()), columns), "(row, column)")

# %% [markdown]
# The corner is in row 31, the last of the canvas. So only the first row of the digit is at the bottom, in patch (3, 2), and the
# other seven are at the top, in patch (0, 2). (Brightness −1 is black.)
#
# ## Projection
#
# One linear layer makes D numbers of the C · P · P numbers of a patch: token = W · patch + b, with the same W and b for all
# patches.

# %%
config = refvt.HaltingVTConfig(
    image_size=(32, 32), patch_size=8, channels=1, num_frames=8, width=12, num_heads=3,
    glimpser_depth=1, depth=3, keep_rates=(0.5,), num_classes=8,
)  # fmt: skip
model = refvt.HaltingVT(config, seed=0, backend="reference", dtype="float64")
W = model.parameters["patch_embed.proj.weight"].reshape(12, -1)  # [D, C·P·P]
b = model.parameters["patch_embed.proj.bias"]
projected = patches.astype(np.float64) @ W.T + b
print(projected.shape, "= frames, patches, D")

# %% [markdown]
# ## Where and when
#
# Attention treats its tokens as a set: without help it cannot know which patch is where. So each token gets two learnt
# vectors added:
#
# - `pos_embed[1 + s]`, the same for patch s in every frame: *where*,
# - `time_embed[t]`, the same for every patch of frame t: *when*.
#
# One more token joins: **CLS**, a learnt vector that belongs to no patch. At the end, the answer is read from it. CLS gets
# `pos_embed[0]` and no time.

# %%
p = model.parameters
tokens = projected + p["pos_embed"][0, 1:] + p["time_embed"][0][:, None]  # [T, S, D]
cls = p["cls_token"][0, 0] + p["pos_embed"][0, 0]
print(tokens.shape, cls.shape)

# %% [markdown]
# ## The order of tokens
#
# The model stores all tokens of a clip as rows: CLS first, then patch by patch, and within a patch frame by frame. Token
# 1 + s · T + t is patch s of frame t. This *patch-major* order puts the T tokens of one patch next to each other, which is
# what attention through time needs (notebook 3).

# %%
ours = np.concatenate([cls[None], tokens.transpose(1, 0, 2).reshape(-1, 12)])
trace = model.trace(clip[None].astype(np.float64))
print(ours.shape, "tokens of a clip: 1 +", rows * columns, "·", T)
print("largest difference to refvt:", np.abs(ours - trace["embed"]).max())

# %% [markdown]
# *Predict first.* Frame-major order would put all patches of a frame next to each other. It is a common mistake when the
# model is written again. In which tokens would the two orders agree?

# %%
frame_major = np.concatenate([cls[None], tokens.reshape(-1, 12)])
same = np.flatnonzero(np.abs(frame_major - ours).max(axis=1) < 1e-12)
print("tokens that agree:", same)

# %% [markdown]
# CLS, the first patch of the first frame, and the last one of the last. The others that agree are black patches at the same
# place of two frames: in a model that is not trained yet, `time_embed` is zero, so nothing tells them apart. The shapes are
# right in both orders, so nothing complains: only numbers show such a mistake. `refvt check` names it.
#
# ## At the paper's size
#
# HaltingVT-S sees 8 frames of 224 × 224 pixels in patches of 16 × 16: 196 patches a frame, 1 + 8 · 196 = 1569 tokens of
# width 384. Attention among all of them compares each with each, 2.5 million pairs in each head and layer. Most show
# nothing that matters. What to do about it is the rest of the story.
#
# ## Exercise
#
# Write `place_of_token(token, S, T)`, which returns (patch, frame) of a token, and None for CLS. Check it below.


# %%
def place_of_token(token, S, T): ...


expected = [None] + [(s, t) for s in range(16) for t in range(8)]
[place_of_token(i, 16, 8) for i in range(129)] == expected

# %% [markdown]
# <details><summary>A solution</summary>
#
# ```python
# def place_of_token(token, S, T):
#     return None if token == 0 else divmod(token - 1, T)
# ```
# </details>
#
# ## Symbols, and letters with a second meaning
#
# | symbol | meaning | HaltingVT-S |
# | --- | --- | --- |
# | B, T, C | clips of a batch, frames of a clip, colours | T = 8, C = 3 |
# | P, S | side of a patch in pixels, patches of a frame | 16, 196 |
# | D, A, d | width of a token, attention heads, width of a head D/A | 384, 6, 64 |
# | F | hidden width of the MLP, 4 · D | 1536 |
# | N, N' | tokens of a clip 1 + S · T; those that enter the joint blocks | 1569, 473 |
# | n | tokens that are still alive in a layer | |
# | m | tokens that have halted (notebooks 2 and 6) | |
# | s, t | a patch of a frame, a frame; both counted from 0 | |
# | k, l | a token; a joint layer, counted from 1 | |
# | G, L | Glimpser blocks, joint blocks; `depth` in a configuration is G + L | 2, 10 |
# | R, S' | keep rate of the Glimpser, patches that it keeps in a frame ⌈R · S⌉ | 0.3, 59 |
# | h, γ, β, ε | halting score, its scale and centre, the slack of the limit 1 − ε | γ = 10, β = 10 or 20 (5 in one released configuration), ε = 0.01 |
# | σ, δ | the sigmoid; what reaches the halting logit through the score (notebook 5) | |
# | $N_k$, $r_k$, $\rho_k$ | the layer in which token k halts, its remainder, its ponder | |
# | $x_k^l$, $y_k$ | state of token k after layer l, its output | |
# | $g_y$, $g_\rho$, $g_x$ | gradient of the loss at an output (`dy` in the code), at a ponder (`dponder`), at a state | |
# | w, λ | weight of the ponder loss, weight of the motion loss | 5e-4; 1 in refvt and in the released code, the paper's value is unknown |
# | K, $\mathcal{L}$ | classes, the loss | 200 |
#
# B counts clips without their static twins (notebook 7); with twins a batch holds 2B. A small example has its own values of
# N, L and D: five tokens, three layers, three channels in notebooks 4 and 5.
#
# Some letters have a second meaning, as everywhere in the field:
#
# | letter | where | second meaning |
# | --- | --- | --- |
# | q, k, v | attention (notebooks 2, 3, 6) | queries, keys and values; tokens are i and j there |
# | s, p, y | attention (notebooks 2, 3, 6) | logits, weights and output of one attention |
# | logit | everywhere | of attention (2, 3, 6), of halting (4, 5), of a class (4, 7, 8) |
# | `p` | code of notebooks 1 and 4 | the parameters of a model |
# | `m`, `v` | code of notebook 8 | the two moments of Adam |
# | `n`, N | `n` in the code of notebooks 9 and 10; N on the page of notebook 0 and in the reports of notebook 9 | $N_k$, the layer in which the token halts |
# | b, W | linear layers and LayerNorm | bias and weight matrix |
# | `weight` | code of notebooks 4, 5 and 10 | the factor of a state in y: h, or r in the last layer |
#
# Source: HaltingVT (arXiv 2401.04975), section 3.1. The code is in
# [refvt/ops/embedding/reference.py](../refvt/ops/embedding/reference.py).
#
# Halting and its gradient only: [4](04-one-tokens-life.ipynb), then [5](05-the-gradient-through-the-remainder.ipynb).
#
# Next: [2, Attention, forward and backward by hand](02-attention-forward-and-backward.ipynb)
