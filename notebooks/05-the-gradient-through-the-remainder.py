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
# # 5. The gradient through the remainder, and the ponder loss
#
# Notebook 4 showed how a token halts. The layer in which it halts is a whole number, so it has no gradient. How then can a
# network learn when to halt? This notebook derives the answer on paper, checks it with numbers, and shows what the ponder
# loss does. After it you can say
#
# - which gradient reaches the halting logit of a token in each layer, and why in the layer where it halts none comes through
#   the score,
# - what that gradient means: which two states it compares,
# - what the ponder loss adds to it,
# - why patches, unlike CLS, learn from the ponder loss alone through their scores.

# %%
import numpy as np

from refvt import backends
from refvt.notebooks import check_exercise, worked_example

np.set_printoptions(precision=4, suppress=True)
halt_tokens = backends.get("reference").halt_tokens
states, scale, center, epsilon, names = worked_example()
(y, ponder, halting_layer), cache = halt_tokens.forward(states, scale, center, epsilon)
print(halting_layer)

# %% [markdown]
# ## What is constant and what is not
#
# For one token that halts in layer $N_k$:
#
# $$y = \sum_{l<N_k} h^l x^l + r\, x^{N_k}, \qquad \rho = N_k + r, \qquad r = 1 - \sum_{l<N_k} h^l$$
#
# Change one score a little, so little that the token still halts in the same layer. Then
#
# - $N_k$ stays as it is: the comparison "sum > 1 − ε" has no slope,
# - each $h^l$ with $l < N_k$ changes its own term, **and it changes r**, because r is what the others leave,
# - $h^{N_k}$ itself occurs nowhere! It was replaced by r. So its slope is zero.
#
# ## The derivation
#
# Write $g_y = \partial \mathcal{L} / \partial y$ (a vector) and $g_\rho = \partial \mathcal{L} / \partial \rho$ (a number).
# For $l < N_k$:
#
# $$\frac{\partial y}{\partial h^l} = x^l - x^{N_k}, \qquad \frac{\partial \rho}{\partial h^l} = -1$$
#
# The first: the term $h^l x^l$ grows by $x^l$, and r shrinks by the same amount, which takes away $x^{N_k}$. The second: ρ
# contains r, which shrinks. So
#
# $$\frac{\partial \mathcal{L}}{\partial h^l} = g_y \cdot (x^l - x^{N_k}) - g_\rho$$
#
# The score is $h = \sigma(\gamma x[0] - \beta)$, and $\sigma' = \sigma (1 - \sigma)$. So through the score the logit, channel 0
# of the state, gets
#
# $$\boxed{\delta^l = \gamma\, h^l (1 - h^l) \left( g_y \cdot (x^l - x^{N_k}) - g_\rho \right)}$$
#
# for $l < N_k$, and $\delta^l = 0$ for $l \ge N_k$.
#
# **The whole gradient.** The score is one of three ways from channel 0 to the loss. Channel 0 is also an ordinary channel of the
# state, and so a part of y, where it has the same factor as all other channels. And the next block reads the state. So
#
# $$\frac{\partial \mathcal{L}}{\partial x^l[0]} = \delta^l + h^l\, g_y[0] + (\text{from block } l + 1)$$
#
# for $l < N_k$,
#
# $$\frac{\partial \mathcal{L}}{\partial x^{N_k}[0]} = r\, g_y[0]$$
#
# for $l = N_k$, and zero for $l > N_k$. In layer $N_k$ nothing comes from the next block: there the token has halted.
#
# What comes from block l + 1 is the usual backward of a block: through its residual path, its MLP, the token's own query, and
# its key and value, which other tokens read. Write $g_{x_j}^{l+1}$ for the whole gradient of the loss at $x_j^{l+1}$, the
# state of token j after block l + 1. Then it is
#
# $$\sum_j g_{x_j}^{l+1} \cdot \frac{\partial x_j^{l+1}}{\partial x^l[0]}$$
#
# over the tokens j that live in that block, the token itself included. It is a recursion: $g_x^{l+1}$ contains $\delta^{l+1}$
# in channel 0, so the score of a later layer also reaches earlier layers, through the blocks. It ends in the layer where
# a token halts, with $g_x^{N_k} = r\, g_y$. The worked example has no blocks, so this part is zero in it.
#
# **No gradient passes** through the comparison with 1 − ε, so none through $N_k$; through the score of layer $N_k$, which the
# remainder replaced; through any later layer of this token; nor through the choice of the Glimpser (notebook 3).
#
# The boxed part in words: **A token is moved to use layer l more if its state there has a smaller $g_y \cdot x$, that is, is
# better for the loss, than its state in layer $N_k$. And the ponder loss ($g_\rho > 0$) always moves it to use earlier layers
# more**, that is, to halt earlier.

# %% [markdown]
# ## On paper: $\partial \mathcal{L} / \partial x[0]$ for a token that halts in layer 3
#
# CLS of the worked example: scores 0.3 and 0.5, remainder 0.2, γ = 10. Its states in channel 1 are 1, 2 and 4. Let the loss
# be $\mathcal{L} = y[1] + 0.5\, \rho$, so $g_y = (0, 1, 0)$ and $g_\rho = 0.5$. Take a pencil and find all three numbers
# before you read on.
#
# The formula above, written out for a token that halts in layer 3:
#
# $$\begin{aligned} l = 1, 2: \quad & \gamma\, h^l (1 - h^l) \left( g_y \cdot (x^l - x^3) - g_\rho \right) \\ & + h^l\, g_y[0] + (\text{from block } l + 1) \\ l = 3: \quad & (1 - h^1 - h^2)\, g_y[0] \end{aligned}$$
#
# Here $g_y[0] = 0$, and nothing comes from a block. So only the part through the score is left:
#
# | layer l | γ h (1 − h) | g_y · (xˡ − x³) | −g_ρ | product: δˡ |
# | --- | --- | --- | --- | --- |
# | 1 | 10 · 0.3 · 0.7 = 2.1 | 1 − 4 = −3 | −0.5 | 2.1 · (−3.5) = **−7.35** |
# | 2 | 10 · 0.5 · 0.5 = 2.5 | 2 − 4 = −2 | −0.5 | 2.5 · (−2.5) = **−6.25** |
# | 3 | | | | **0** |
#
# In layer 3 the score was replaced by r, so nothing passes through it. $x^2$ does not occur in the row of layer 1: each state is
# compared only with the state in the layer where the token halts.
#
# Now let $g_y = (2, 1, 0)$, so that $g_y[0]$ is not zero. The states in channel 0 are 0.915, 1 and 0.5.
#
# | layer l | g_y · (xˡ − x³) | δˡ | factor in y, times g_y[0] | sum: ∂𝓛/∂xˡ[0] |
# | --- | --- | --- | --- | --- |
# | 1 | 2 · 0.415 − 3 = −2.17 | 2.1 · (−2.67) = −5.61 | 0.3 · 2 = 0.6 | **−5.01** |
# | 2 | 2 · 0.5 − 2 = −1 | 2.5 · (−1.5) = −3.75 | 0.5 · 2 = 1 | **−2.75** |
# | 3 | | | 0.2 · 2 = 0.4 | **0.4** |
#
# The cell below computes the first table. (Set `dy[0]` to `[2, 1, 0]` for the second.) In both tables the numbers of layers 1
# and 2 are negative, so descent *raises* both logits: the token moves to earlier layers, where the state has a smaller
# $g_y \cdot x$ (1, 2, 4 in the first table; 2.83, 4, 5 in the second).

# %%
dy, dponder = np.zeros((5, 3)), np.zeros(5)
dy[0], dponder[0] = [0, 1, 0], 0.5
print(halt_tokens.backward(dy, dponder, cache)[:, 0, 0] + 0.0)

# %% [markdown]
# ## Check it with numbers
#
# Take a random loss that is linear in y and ρ: $\mathcal{L} = \sum_k g_{y,k} \cdot y_k + g_{\rho,k}\, \rho_k$. Its gradient
# can be measured: move one logit by a small step in both directions and look at $\mathcal{L}$.

# %%
rng = np.random.default_rng(0)
dy, dponder = rng.standard_normal((5, 3)), rng.standard_normal(5)


def loss(states):
    (y, ponder, _), _ = halt_tokens.forward(states, scale, center, epsilon)
    return (dy * y).sum() + dponder @ ponder


step = 1e-6
measured = np.zeros((3, 5))
for layer in range(3):
    for k in range(5):
        moved = []
        for sign in (1, -1):
            other = states.copy()
            other[layer, k, 0] += sign * step
            moved.append(loss(other))
        measured[layer, k] = (moved[0] - moved[1]) / (2 * step)
measured

# %% [markdown]
# Compare with refvt's hand-written backward. It gives the part through the score and the part through y together, as the
# measurement does.

# %%
dstates = halt_tokens.backward(dy, dponder, cache)
print(dstates[:, :, 0])
print("largest difference:", np.abs(dstates[:, :, 0] - measured).max())

# %% [markdown]
# *Predict first.* Some entries belong to layers after a token has halted. What should they be? And for the token
# "at once", which halts in layer 1: what reaches its logit *through the score*?
#
# Below, the part that channel 0 gets as an ordinary channel of y is subtracted. What is left came through the score, δ:

# %%
scores = 1 / (1 + np.exp(-(scale * states[:, :, 0] - center)))
weights = np.where(np.arange(1, 4)[:, None] < halting_layer, scores, 0.0)
weights[halting_layer - 1, np.arange(5)] = 1 - weights.sum(axis=0)
through_the_score = dstates[:, :, 0] - weights * dy[:, 0]
print(np.round(through_the_score, 6) + 0.0)

# %% [markdown]
# The column of "at once" is zero. It halts in layer 1, its output is $1 \cdot x^1$, and no score occurs in it. **Through its
# score, a token that halts at once gets no gradient that could make it live longer.** Once all tokens halt in layer 1, no
# score has a gradient. The network's parameters still change, because of other gradients, and with them a score may become
# smaller by chance. (Channel 0 of CLS gets $g_y[0]$, for example, as a part of y.) But no term of the gradient pushes it
# there, so a model that has collapsed need not recover. [docs/training.md](../docs/training.md) reports such a collapse, in
# which nearly all tokens halt early.
#
# ## The local form: one number instead of $x^{N_k}$
#
# The formula above needs $x^{N_k}$ in every earlier layer. A program that runs backward through the layers can do without: it
# carries one number per token, `dused`: the gradient of `used`, the sum of the weights so far.
#
# The *weight* of a layer is the factor of its state in y: h while the token lives on, 1 − used = r in the layer where it
# halts. `dweight` is the gradient of the loss at this weight. From y it gets $g_y \cdot x^l$, because y is the sum of weight
# · state. In the layer where the token halts the weight is r, and ρ = $N_k$ + r contains it too. So there dweight $= g_y
# \cdot x^{N_k} + g_\rho$.
#
# | | forward | backward |
# | --- | --- | --- |
# | lives on | weight = h, used' = used + h | dh = dweight + dused', dused = dused' |
# | halts | weight = 1 − used, used' = 1 | dused = −dweight |
#
# Here it is for one token, CLS, from layer 3 back to layer 1:

# %%
k, dused = 0, 0.0
for layer in (3, 2, 1):
    dweight = dy[k] @ states[layer - 1, k]  # y = sum of weight · x
    if layer == halting_layer[k]:
        dweight += dponder[k]  # ρ = N_k + r, and r is the weight of the last layer
        dused = -dweight
        print(f"layer {layer}: halts, dused = {dused:.4f}")
    else:
        h = scores[layer - 1, k]
        dh = dweight + dused
        print(f"layer {layer}: lives on, dlogit = {scale * h * (1 - h) * dh:.4f}")
h = scores[:2, k]
formula = scale * h * (1 - h) * ((states[:2, k] - states[2, k]) @ dy[k] - dponder[k])
print("from the boxed formula, layers 2 and 1:", formula[::-1])

# %% [markdown]
# This is what [refvt/ops/halting/reference.py](../refvt/ops/halting/reference.py) does (`halt_backward`), and the Numba and
# CUDA kernels do the same.
#
# ## The ponder loss
#
# The ponder loss is the mean of ρ over all clips and over the N' tokens of each that enter the joint blocks. A batch has 2B
# clips: B clips and their B static twins (notebook 7). The ponder loss is added to the loss with a small weight w, 5e-4 in
# the paper:
#
# $$\mathcal{L}_\text{ponder} = \frac{1}{2B N'} \sum_{\text{clips}} \sum_k \rho_k, \qquad g_{\rho} = \frac{w}{2B N'}$$
#
# Every token has the same $g_\rho$. With $g_y = 0$ only this is left of the part through the score:
#
# $$\delta^l = -\gamma\, h^l (1 - h^l)\, g_\rho$$
#
# Descent moves against the gradient, so each logit grows, the scores grow, and the token halts earlier. The factor
# $h(1 - h)$ is small when h is near 0 or 1: a token with tiny scores feels almost nothing.

# %%
only_ponder = halt_tokens.backward(np.zeros((5, 3)), np.full(5, 1 / 5), cache)[:, :, 0]
print(only_ponder)

# %% [markdown]
# ## Through their scores, patches learn from the ponder loss alone
#
# The heads read only CLS. So $g_y$ is zero for every other token: no answer depends on the y of a patch. What a patch feels
# through its score is the ponder loss alone, which moves all patches to halt.
#
# A patch does matter to the answer, but in another way: while it lives, it is a key and a value that CLS can read. So the
# class loss and the motion loss do reach channel 0 of a patch, through the next block. But there it is a feature that other
# tokens read, like every other channel. So two things must be kept apart: the class loss reaches *channel 0* of a patch,
# because others read it as a feature; it never reaches the patch's *score*, that is, how long it lives.
#
# Whether it lives is decided by the comparison, and the comparison has no gradient. So no term of the gradient keeps a needed
# patch alive. That patches differ at all is a side effect: all tokens share the weights that write channel 0, and channel 0
# is made from the same hidden features as every other channel. These change with the class loss and the motion loss, and the
# scores change with them.
#
# This is a limit of the method as the paper writes it, and it can be measured: in one short run with the paper's form of the
# ponder loss, but forty times its weight and without the motion loss, patches with the moving digit halted even earlier than
# the background (AUC 0.37, notebook 8). See [docs/training.md](../docs/training.md), "The variant changing_ponder", for the
# figures and for a small change that helps.
#
# ## Exercise
#
# Write `logit_gradient(states, scale, center, epsilon, dy, dponder)`: what reaches each logit through the score, [L, N]. Use
# the boxed formula.


# %%
def logit_gradient(states, scale, center, epsilon, dy, dponder): ...


check_exercise("gradient of the logit", logit_gradient)

# %% [markdown]
# <details><summary>A solution</summary>
#
# ```python
# def logit_gradient(states, scale, center, epsilon, dy, dponder):
#     L, N, _ = states.shape
#     gradient = np.zeros((L, N))
#     for k in range(N):
#         h = 1 / (1 + np.exp(-(scale * states[:, k, 0] - center)))
#         h[-1] = 1
#         sums = np.cumsum(h)
#         last = int(np.argmax(sums > 1 - epsilon))  # N_k − 1
#         for layer in range(last):
#             better = dy[k] @ (states[layer, k] - states[last, k])
#             gradient[layer, k] = scale * h[layer] * (1 - h[layer]) * (better - dponder[k])
#     return gradient
# ```
# </details>
#
# ## What to remember
#
# - The comparison has no gradient. The remainder has: through it every score before $N_k$ feels the state in layer $N_k$.
# - $\partial \mathcal{L} / \partial h^l = g_y \cdot (x^l - x^{N_k}) - g_\rho$ for $l < N_k$, and zero from $N_k$ on.
# - Channel 0 gets this times γ h (1 − h), and in addition what every channel gets: from y, and from the next block.
# - The ponder loss gives every token the same $g_\rho$, and moves it to halt earlier; how far depends on h(1 − h).
# - Through its score, a token that halts in layer 1 learns nothing.
#
# Source: HaltingVT (arXiv 2401.04975), sections 3.3 and 3.4. The derivation is ours; `refvt/ops/halting/__init__.py` has it
# in short.
#
# Next: [6, Removing tokens for real](06-removing-tokens-for-real.ipynb)
