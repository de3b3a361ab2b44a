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
# # 2. Attention, forward and backward by hand
#
# Attention is the step in which tokens read one another: each token takes a weighted mean of what all tokens offer. This notebook
# computes it for five tokens, forward and backward, in a dozen lines of NumPy. After it you can say
#
# - what queries, keys and values do,
# - how the gradient goes back through the softmax, and why it needs one sum per query,
# - what an added number on the logit of a key (`key_bias`) does. It will replace many halted tokens by one.

# %%
import numpy as np

from refvt import backends

np.set_printoptions(precision=3, suppress=True)
attention = backends.get("reference").attention
rng = np.random.default_rng(0)

# %% [markdown]
# ## Forward
#
# Five tokens, one head of width d = 4. Three linear layers have made a query q, a key k and a value v of each token; here
# they are just random. (In this notebook k and y are not those of halting: k are the keys, y is the output of the attention.)

# %%
N, d = 5, 4
q, k, v = rng.standard_normal((3, N, d))

# %% [markdown]
# 1. *Logits*: how well the query of token i fits the key of token j. $s_{ij} = q_i \cdot k_j / \sqrt d$
# 2. *Weights*: softmax over the keys, so that the weights of each query sum to one. $p_{ij} = e^{s_{ij}} / \sum_{j'} e^{s_{ij'}}$
# 3. *Output*: the mean of the values with these weights. $y_i = \sum_j p_{ij} v_j$

# %%
s = q @ k.T / np.sqrt(d)
p = np.exp(s - s.max(axis=1, keepdims=True))  # the shift changes nothing, but e^s cannot overflow
p /= p.sum(axis=1, keepdims=True)
y = p @ v
print(p)
print("rows sum to", p.sum(axis=1))

# %% [markdown]
# refvt computes the same. Its attention takes *offsets*, because the tokens of several clips stand below one another: rows
# 0 to 4 are one segment here.

# %%
offsets = np.array([0, N])
y_refvt, cache = attention.forward(q, k, v, offsets, offsets, 1)
print("largest difference:", np.abs(y - y_refvt).max())

# %% [markdown]
# ## Backward
#
# Given is dy, the gradient of the loss at y. We go through the three steps in reverse.
#
# *Step 3.* $y = p\,v$ is a matrix product, so $dv = p^\top dy$ and $dp = dy\, v^\top$.
#
# *Step 2.* The softmax. A weight $p_{ij}$ depends on all logits of its row: raising $s_{ij}$ raises $p_{ij}$ and lowers the
# others. The result, for each row:
#
# $$ds_{ij} = p_{ij} \left( dp_{ij} - \sum_{j'} p_{ij'}\, dp_{ij'} \right)$$
#
# In words: the sum is the mean of dp over all keys, weighted by p. It is one number per query. A logit gets a positive
# gradient if its own dp is larger than this mean, and a negative one if it is smaller.
#
# *Step 1.* Another matrix product: $dq = ds\, k / \sqrt d$ and $dk = ds^\top q / \sqrt d$.

# %%
dy = rng.standard_normal((N, d))
dv = p.T @ dy
dp = dy @ v.T
ds = p * (dp - (p * dp).sum(axis=1, keepdims=True))
dq = ds @ k / np.sqrt(d)
dk = ds.T @ q / np.sqrt(d)

for name, ours, theirs in zip(("dq", "dk", "dv"), (dq, dk, dv), attention.backward(dy, cache), strict=True):
    print(name, "largest difference:", np.abs(ours - theirs).max())

# %% [markdown]
# *Predict first.* What is the sum of each row of ds? And what does that say about adding the same number to all logits of a
# query?

# %%
print(ds.sum(axis=1))

# %% [markdown]
# Zero (to rounding). Adding a constant to all logits of a query changes nothing, so there is no gradient in that direction.
#
# ## Never trust a backward: the adjoint identity
#
# How does one check a gradient without another program? For any direction $(u_q, u_k, u_v)$ of the inputs, the derivative
# of y along it, Ju, must satisfy
#
# $$\langle J u, \, dy \rangle = \langle u, \, J^\top dy \rangle = \langle u_q, dq\rangle + \langle u_k, dk\rangle + \langle u_v, dv\rangle$$
#
# The left side needs only the forward, at two points that lie close together:

# %%
uq, uk, uv = rng.standard_normal((3, N, d))
step = 1e-6
plus, _ = attention.forward(q + step * uq, k + step * uk, v + step * uv, offsets, offsets, 1)
minus, _ = attention.forward(q - step * uq, k - step * uk, v - step * uv, offsets, offsets, 1)
left = ((plus - minus) / (2 * step) * dy).sum()
right = (uq * dq).sum() + (uk * dk).sum() + (uv * dv).sum()
print(left, right)

# %% [markdown]
# Note that dy is *random*, not all ones. With all ones only the sum over all channels would be checked: a dv whose channels
# are mixed up would pass. Here is a real mistake, ds without the sum, seen by the check:

# %%
wrong = p * dp
wrong_dq, wrong_dk = wrong @ k / np.sqrt(d), wrong.T @ q / np.sqrt(d)
print("random dy: left", left, "right", (uq * wrong_dq).sum() + (uk * wrong_dk).sum() + (uv * dv).sum())

# %% [markdown]
# ## A number on the logit of a key
#
# `key_bias` [N] is added to the logit of each key, for every query. What does a bias of log m do? $e^{s + \log m} = m\, e^s$:
# the key counts m times.
#
# *Predict first.* Take token 4 and copy it twice, so that it is there three times. How do y of the other tokens change,
# compared with a single token 4 whose logit got log 3?

# %%
three_k, three_v = np.vstack([k, k[4:], k[4:]]), np.vstack([v, v[4:], v[4:]])
copies, _ = attention.forward(q, three_k, three_v, offsets, np.array([0, 7]), 1)
bias = np.array([0, 0, 0, 0, np.log(3)])
once, _ = attention.forward(q, k, v, offsets, offsets, 1, bias)
print("largest difference:", np.abs(copies - once).max())

# %% [markdown]
# Nothing changes: three equal keys and one key with log 3 give the same output. In the released HaltingVT, and by default in
# refvt, all halted tokens of a clip are set to zero, so they have equal keys and equal values (not zero: notebook 6). (This
# is the variant `zero`; the paper's text says that they are removed, notebook 6.) So one *ghost* token with log m replaces
# all m of them, exactly. Notebook 6 saves time with it.
#
# ## Exercise
#
# Two heads: the first two channels of q, k, v are one head, the last two another. Each attends by itself, with
# $\sqrt{d/2}$. Write it, and compare with `attention.forward(q, k, v, offsets, offsets, 2)`.


# %%
def two_heads(q, k, v): ...


expected, _ = attention.forward(q, k, v, offsets, offsets, 2)
answer = two_heads(q, k, v)
answer is not None and bool(np.allclose(answer, expected))

# %% [markdown]
# <details><summary>A solution</summary>
#
# ```python
# def two_heads(q, k, v):
#     parts = []
#     for c in (slice(0, 2), slice(2, 4)):
#         s = q[:, c] @ k[:, c].T / np.sqrt(2)
#         p = np.exp(s - s.max(axis=1, keepdims=True))
#         parts.append(p / p.sum(axis=1, keepdims=True) @ v[:, c])
#     return np.concatenate(parts, axis=1)
# ```
# </details>
#
# Sources: Vaswani et al. 2017 (arXiv 1706.03762) for attention; the ghost token is refvt's
# ([refvt/ops/compaction](../refvt/ops/compaction/__init__.py)). The code of this notebook, for many clips and heads, is
# [refvt/ops/attention/reference.py](../refvt/ops/attention/reference.py).
#
# Next: [3, Divided space-time attention and the Glimpser](03-divided-attention-and-the-glimpser.ipynb)
