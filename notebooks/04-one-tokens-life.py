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
# # 4. Halting: one token's life
#
# A transformer computes every token in every layer. HaltingVT lets each token stop when it has been computed enough. This
# happens in its *joint* blocks, which follow the Glimpser of notebook 3; "layer 1" below is the first of them.
# This notebook follows five tokens through three layers, by hand. After it you can say
#
# - what a *halting score* is and where it comes from,
# - in which layer a token halts, and what ε is for,
# - what the *remainder* is and why it is needed,
# - what the *ponder* of a token is.
#
# You need NumPy and a rough idea of a transformer: a token is a vector, and each layer changes it.

# %%
import numpy as np

from refvt.notebooks import check_exercise, worked_example
from refvt.notebooks.pictures import draw_lives

np.set_printoptions(precision=3, suppress=True)

# %% [markdown]
# ## The example
#
# Five tokens, three layers, three channels. Layers are counted from 1: `states[l - 1, k]` is $x_k^l$, the vector with which
# token $k$ leaves layer $l$. The example comes back in the next notebooks, with the same names.

# %%
states, scale, center, epsilon, names = worked_example()
states

# %% [markdown]
# ## The score
#
# There is no extra network that decides about halting. **Channel 0 of a token is its halting logit.** After layer $l$
# the
# token gets the score
#
# $$h^l = \sigma(\gamma \cdot x^l[0] - \beta), \qquad \sigma(z) = \frac{1}{1 + e^{-z}}$$
#
# γ (`scale`) and β (`center`) are fixed numbers, 10 and 10 in the paper. In the last layer the score is 1, whatever the
# state is.
#
# The states of the example were made so that the scores are round:

# %%
scores = 1 / (1 + np.exp(-(scale * states[:, :, 0] - center)))
scores[-1] = 1
scores

# %% [markdown]
# ## When a token halts
#
# Add up the scores of a token, layer by layer. **It halts in the first layer where the sum exceeds $1 - \epsilon$.**
# Here
# ε = 0.01, so the limit is 0.99.
#
# *Predict first.* Look at the columns above. In which layer does each token halt? Write it down, then check:

# %%
prediction = [1, 1, 1, 1, 1]  # one number per token: write your own
check_exercise("halting layers", prediction)

# %% [markdown]
# Why is there an ε at all? σ never reaches 1, so without ε no token could halt in layer 1: one score alone would
# never exceed 1. The token "at once" has 0.995 in layer 1, which is enough with ε = 0.01.
#
# Note also what the rule does *not* do: it does not ask for one large score. The token "in layer 2" has scores of 0.6
# and
# 0.5. Neither is large, but together they exceed 0.99.

# %% [markdown]
# ## The remainder
#
# The output of a token is a mean of its own states, weighted by the scores. For that the weights must sum to one. The
# token "in layer 2" has 0.6 + 0.5 = 1.1, which is too much. So the last score is replaced by what is left:
#
# $$r = 1 - \sum_{l < N} h^l$$
#
# where $N$ is the layer in which the token halts. This is the **remainder**. For "in layer 2" it is 1 − 0.6 = 0.4.
#
# In the picture each bar is one token. It fills with scores from left to right. The hatched part is the remainder: the
# last slice, cut so that the bar ends at 1. What was cut off is drawn faintly.

# %%
draw_lives(scores, epsilon, names)

# %% [markdown]
# The output of the token and its *ponder*:
#
# $$y = \sum_{l<N} h^l x^l + r\, x^{N}, \qquad \rho = N + r$$
#
# ρ says how long the token was computed: the number of layers, plus the remainder. The remainder is in it so that ρ has
# a
# gradient: N is a whole number and has none (notebook 5).
#
# Here is the whole computation for one token, "in layer 2":

# %%
k = 2
used, y = 0.0, np.zeros(3)
for layer in range(1, 4):
    h = scores[layer - 1, k]
    if used + h > 1 - epsilon:
        remainder = 1 - used
        y += remainder * states[layer - 1, k]
        print(f"layer {layer}: {used:.2f} + {h:.2f} > {1 - epsilon}: halts, remainder {remainder:.2f}")
        break
    y += h * states[layer - 1, k]
    print(f"layer {layer}: {used:.2f} + {h:.2f} <= {1 - epsilon}: lives on")
    used += h
ponder = layer + remainder
print("y =", y, " ponder =", ponder)

# %% [markdown]
# Now all five tokens, as refvt computes them. The first result is y, the second ρ, the third N:

# %%
from refvt import backends

(y, ponder, halting_layer), _ = backends.get("reference").halt_tokens.forward(states, scale, center, epsilon)
for name, row in zip(names, zip(y.tolist(), ponder.tolist(), halting_layer.tolist(), strict=True), strict=True):
    print(f"{name:12s} y = {np.round(row[0], 3)}  ponder = {row[1]:.2f}  halts in layer {row[2]}")

# %% [markdown]
# The code of `halt_tokens` is in
# [refvt/ops/halting/reference.py](../refvt/ops/halting/reference.py). It does the same for all tokens at once, and it
# carries one number per token: `used`, the sum of the weights so far.
#
# ## A law: the weights of a token sum to one
#
# This holds for every token, whatever the scores are. It is what the remainder is for.

# %%
weights = np.where(np.arange(1, 4)[:, None] < halting_layer, scores, 0.0)
weights[halting_layer - 1, np.arange(5)] = 1 - weights.sum(axis=0)
print(weights)
print("sums:", weights.sum(axis=0))

# %% [markdown]
# ## What changes when one score crosses the limit
#
# The token "just not" has scores of 0.5 and 0.45, the sum is 0.95. It lives on and halts in layer 3 with the small
# remainder 0.05. (The answer to the question above is 3, 1, 2, 3, 3.)
#
# *Predict first.* We raise its score in layer 2 from 0.45 to 0.48, and then to 0.50. What happens to N, r and ρ?

# %%
for second in (0.45, 0.48, 0.489, 0.491, 0.50):
    h = np.array([0.5, second, 1.0])
    last = int(np.argmax(np.cumsum(h) > 1 - epsilon))
    r = 1 - h[:last].sum()
    print(f"score {second:.3f}: halts in layer {last + 1}, remainder {r:.3f}, ponder {last + 1 + r:.3f}")

# %% [markdown]
# Up to 0.489 the ponder falls slowly, from 3.05 to 3.011: the remainder shrinks. Between 0.489 and 0.491 the token
# begins
# to halt in layer 2. The ponder jumps to 2.5, and the remainder from almost 0 to 0.5: it is now cut from the second
# score,
# not from the third.
#
# So N and r jump, and y jumps with them. Gradient descent does not see the jump. It sees only the slope on either side.
# That is the subject of the next notebook.
#
# ## ε by sight
#
# A larger ε lets tokens halt earlier. The same five tokens with three values of ε:

# %%
for value in (0.01, 0.06, 0.3):
    (_, ponder, layers), _ = backends.get("reference").halt_tokens.forward(states, scale, center, value)
    print(f"epsilon {value:4.2f}: halting layers {layers}, mean ponder {ponder.mean():.2f}")

# %% [markdown]
# ## CLS halts like every other token
#
# Token 0 is CLS, the token that holds the answer. It has its own scores and its own bar. When CLS has halted, nothing
# that
# is computed later can change the answer: the heads read only y of CLS. At test time the whole clip is done then, and
# the
# ponder of tokens that were still alive is not known. In training the others are followed to their end, because the
# ponder
# loss needs them.
#
# ## Exercise
#
# Write the loop for all tokens: `halt_tokens(states, scale, center, epsilon)`, which returns y, the ponder and the
# halting
# layers. Do not look into refvt; look at the loop for one token above.


# %%
def halt_tokens(states, scale, center, epsilon): ...


check_exercise("halt_tokens", halt_tokens)

# %% [markdown]
# <details><summary>A solution</summary>
#
# ```python
# def halt_tokens(states, scale, center, epsilon):
#     L, N, D = states.shape
#     y, ponder, halting_layer = np.zeros((N, D)), np.zeros(N), np.zeros(N, int)
#     for k in range(N):
#         used = 0.0
#         for layer in range(1, L + 1):
#             x = states[layer - 1, k]
#             h = 1.0 if layer == L else 1 / (1 + np.exp(-(scale * x[0] - center)))
#             if used + h > 1 - epsilon:
#                 remainder = 1 - used
#                 y[k] += remainder * x
#                 ponder[k], halting_layer[k] = layer + remainder, layer
#                 break
#             y[k] += h * x
#             used += h
#     return y, ponder, halting_layer
# ```
# </details>
#
# ## What to remember
#
# | | |
# | --- | --- |
# | score | $h^l = \sigma(\gamma x^l[0] - \beta)$; channel 0 is the logit; $h^L = 1$ |
# | halts | in the first layer $N$ where the sum of the scores exceeds $1 - \epsilon$ |
# | remainder | $r = 1 - \sum_{l<N} h^l$, the last slice of the bar |
# | output | $y = \sum_{l<N} h^l x^l + r x^N$ |
# | ponder | $\rho = N + r$, between 2 and $L + 1$ |
#
# Source: HaltingVT (arXiv 2401.04975), section 3.3. The remainder goes back to ACT (arXiv 1603.08983), channel 0 as the
# halting logit to A-ViT (CVPR 2022).
