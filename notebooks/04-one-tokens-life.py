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
# There is no extra network that decides about halting. **Channel 0 of a token is its halting logit.** After layer $l$ the
# token gets the score
#
# $$h^l = \sigma(\gamma \cdot x^l[0] - \beta), \qquad \sigma(z) = \frac{1}{1 + e^{-z}}$$
#
# γ (`scale`) and β (`center`) are fixed numbers. In the paper γ = 10, and β = 10 or 20 (5 in one released configuration). In
# the last layer the score is 1, whatever the state is.
#
# The states of the example were made so that the scores are round. Here γ = β = 10. For CLS in layer 1 this makes
# 10 · 0.915 − 10 = −0.85, and σ(−0.85) = 0.30.

# %%
scores = 1 / (1 + np.exp(-(scale * states[:, :, 0] - center)))
scores[-1] = 1
scores

# %% [markdown]
# ## When a token halts
#
# Add up the scores of a token, layer by layer. **It halts in the first layer where the sum exceeds $1 - \epsilon$.** Here ε =
# 0.01, as in the paper, so the limit is 0.99. A token that halts in layer l is computed in layer l and in no later one: it is
# *alive* in layers 1 to l. "It halts after layer l" means the same.
#
# *Predict first.* Look at the columns above. In which layer does each token halt? Write it down, then check:

# %%
prediction = [1, 1, 1, 1, 1]  # one number per token: write your own
check_exercise("halting layers", prediction)

# %% [markdown]
# Why is there an ε at all? σ never reaches 1, so without ε no token could halt in layer 1: one score alone would
# never exceed 1. The token "at once" has 0.995 in layer 1, which is enough with ε = 0.01.
#
# Note also what the rule does *not* do: it does not ask for one large score. The token "in layer 2" has scores of 0.6 and
# 0.5. Neither is large, but together they exceed 0.99.

# %% [markdown]
# ## The remainder
#
# The output of a token is a weighted mean of its own states; the weights are the scores. For that the weights must sum to
# one. The token "in layer 2" has 0.6 + 0.5 = 1.1, which is too much. So the last score is replaced by what is left:
#
# $$r = 1 - \sum_{l < N_k} h^l$$
#
# where $N_k$ is the layer in which token number k halts. (N and N' count tokens, notebook 1; $N_k$ is a layer.) This is the
# **remainder**. For "in layer 2" it is 1 − 0.6 = 0.4. Where only one token is meant, we write h, r, y and ρ without the index k.
#
# In the picture each bar is one token. It fills with scores from left to right. The hatched part is the remainder: the
# last slice, cut or stretched so that the bar ends at 1. What was cut off is drawn faintly.

# %%
draw_lives(scores, epsilon, names)

# %% [markdown]
# The output of the token and its *ponder*:
#
# $$y = \sum_{l<N_k} h^l x^l + r\, x^{N_k}, \qquad \rho = N_k + r$$
#
# ρ says how long the token was computed: the number of layers, plus the remainder. The remainder is in it so that ρ has a
# gradient: $N_k$ is a whole number and has none (notebook 5).
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
# Now all five tokens, as refvt computes them. The first result is y, the second ρ, the third $N_k$:

# %%
from refvt import backends

(y, ponder, halting_layer), _ = backends.get("reference").halt_tokens.forward(states, scale, center, epsilon)
for name, row in zip(names, zip(y.tolist(), ponder.tolist(), halting_layer.tolist(), strict=True), strict=True):
    print(f"{name:12s} y = {np.round(row[0], 3)}  ponder = {row[1]:.2f}  halts in layer {row[2]}")

# %% [markdown]
# The code of `halt_tokens` is in [refvt/ops/halting/reference.py](../refvt/ops/halting/reference.py). It does the same for
# all tokens at once, and it carries one number per token: `used`, the sum of the weights so far.
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
# remainder 0.05.
#
# *Predict first.* We raise its score in layer 2 from 0.45 to 0.48, and then to 0.50. What happens to $N_k$, r and ρ?

# %%
for second in (0.45, 0.48, 0.489, 0.491, 0.50):
    h = np.array([0.5, second, 1.0])
    last = int(np.argmax(np.cumsum(h) > 1 - epsilon))
    r = 1 - h[:last].sum()
    print(f"score {second:.3f}: halts in layer {last + 1}, remainder {r:.3f}, ponder {last + 1 + r:.3f}")

# %% [markdown]
# Up to 0.489 the ponder falls slowly, from 3.05 to 3.011: the remainder shrinks. Between 0.489 and 0.491 the token begins to
# halt in layer 2. The ponder jumps to 2.5, and the remainder from almost 0 to 0.5: it is now cut from the second score, not
# from the third.
#
# So $N_k$ and r jump, and y jumps with them. Gradient descent does not see the jump. It sees only the slope on either side.
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
# With a running kernel you can move ε and β here. A larger β makes every score smaller, a smaller β makes every score larger.
# *Predict first:* make β smaller, step by step. One token after another begins to halt in layer 1. Which token is the last?
# (The one with the smallest score in layer 1: "slow".)

# %%
from refvt.notebooks import explore_life

explore_life(scores, epsilon, names=names)

# %% [markdown]
# ## What the head reads
#
# Token 0 is CLS, the token that holds the answer. It halts like every other: it has its own scores and its own bar. Both
# heads (class and motion) read one vector, norm(y of CLS). It is **the weighted mean of its states over the layers it lived
# through**, with the weights h and r, and not its last state. Here is a trained model, the one of notebook 0 ("photographs"
# in [the table of models](README.md#the-models-of-the-notebooks); what follows holds for any HaltingVT). We take y of CLS and
# nothing else, and compute the logits by hand:

# %%
from refvt import weights
from refvt.training.recipe import make_moving_digits

model, recipe = weights.load("photographs", backend="reference")
clip = make_moving_digits(recipe)[1].clip(0)[None]
trace = model.trace(clip)
p, tokens, L = model.parameters, model.config.joint_tokens, model.config.joint_depth  # tokens: N'
output = trace["y"].reshape(tokens, -1)  # [N', D], CLS first


def logits_of(cls):
    normed = (cls - cls.mean()) / np.sqrt(cls.var() + 1e-6) * p["norm.weight"] + p["norm.bias"]
    return normed @ p["head.weight"].T + p["head.bias"]


print("largest difference of the logits:", np.abs(logits_of(output[0]) - trace.output.logits[0]).max())

# %% [markdown]
# The logits are the same: y of a patch is read by no head and no loss. A patch shows what it has only while it lives, as a key
# and a value that other tokens read, and so in the end CLS. (In the released variant it stays a key and a value afterwards,
# but one that no longer holds anything of the patch, the same for all halted tokens: notebook 6.)
#
# ## What is unknown once CLS has halted
#
# When CLS has halted, nothing that is computed later can change the answer. So at test time the clip is done. The answer and the
# cost are known then. For each token that was still alive three things stay unknown: the layer in which it would have halted,
# its remainder and its ponder. (The only exception: if CLS halts in layer L − 1, the others must halt in layer L, and their
# scores so far give the remainder. refvt marks them as unknown, too.) In training every token is followed to its end, because
# the ponder loss needs its ρ.
#
# What this means for figures: accuracy is the same both ways. GFLOPs and tokens per layer are smaller if clips leave with CLS.
# A mean ponder, and shares of patches alive in later layers, need every token followed (`full_ponder=True`); over the known
# values alone they would be too small. So each figure must say which was done. In these notebooks GFLOPs are of clips that
# leave with CLS, except for the two tables at the end of this notebook; pictures and shares of living patches follow every
# token.
#
# In the model "digits" (same table) CLS halts early. *Predict first:* how many of its tokens are left unknown?

# %%
digits, digits_recipe = weights.load("digits", backend="reference")
digits_data = make_moving_digits(digits_recipe)[1]
some = np.stack([digits_data.clip(i) for i in range(16)])
out, followed = digits(some), digits(some, full_ponder=True)
print("CLS halts in layer", out.decisions.halting_layer[:, 0])
print(
    f"tokens with an unknown ponder: {np.isnan(out.ponder).sum()} of {out.ponder.size}; followed to the end: {np.isnan(followed.ponder).sum()}"
)
print("largest difference of the logits:", np.abs(out.logits - followed.logits).max())

# %% [markdown]
# ## What is new: against frame sampling, early exit and A-ViT
#
# | method | what is left out | who decides, and when |
# | --- | --- | --- |
# | frame sampling | whole frames | a rule or a policy network, before recognition |
# | early exit | the rest of the layers, or of the frames, for the whole clip at once | a gate after a layer or a frame, when the answer seems sure |
# | A-ViT (CVPR 2022) | tokens of one *image*, layer by layer | the token itself, by its channel 0: **the rule of this notebook** |
# | HaltingVT | tokens of a *video*, layer by layer; CLS may end the clip, which is early exit as a special case | the same rule, after the Glimpser's cut, with the motion loss |
#
# So the rule is A-ViT's. New in HaltingVT are: this rule on joint space-time attention, so that a token halts knowing all frames; the
# Glimpser, which drops most patches before; and the motion loss. Left out is A-ViT's *distributional prior*, a loss term that
# pulls the mean score per layer towards a given distribution. No policy network, no reinforcement learning, no second training.
#
# The difference can be counted. Below are two clips, one in which a digit moves and one in which nothing does. Each table has
# the number of patches alive, a row per layer and a column per frame. (The model is that of notebook 0. That its halting follows
# what moves is due to `changing_ponder`, see notebook 8.)

# %%
data = make_moving_digits(recipe)[1]
for index in (0, 6):
    # every token is followed to its own halt, and GFLOPs count that
    out = model(data.clip(index)[None], full_ponder=True)
    per_frame = out.alive[0, :, 1:].reshape(L, -1, model.config.num_frames).sum(axis=1)
    print(f"{data.names[data.target(index)]}: {out.gflops[0]:.4f} GFLOPs, tokens {out.tokens_per_layer[0]}")
    print(per_frame)

# %% [markdown]
# Frame sampling works on time alone: it empties whole columns, and a frame that it keeps is computed whole, with all its
# background. But no column of the moving clip is empty: this model computes something in every frame, and little of each.
# Early exit over layers stops all patches of a clip after the same layer: it empties the lower rows of the table, which are
# the last layers. Early exit over frames empties the last columns. But in the moving clip many patches halt in layer 1, while
# four in each frame live to layer 4. Halting takes single patches out, each from some layer on, and different ones in each
# clip. Notebook 8 asks what this costs or gains in accuracy.
#
# ## Exercise
#
# Write the loop for all tokens: `halt_tokens(states, scale, center, epsilon)`, which returns y, the ponder and the halting
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
# | halts | in the first layer $N_k$ where the sum of the scores exceeds $1 - \epsilon$ |
# | remainder | $r = 1 - \sum_{l<N_k} h^l$, the last slice of the bar |
# | output | $y = \sum_{l<N_k} h^l x^l + r x^{N_k}$ |
# | ponder | $\rho = N_k + r$; $2 \le \rho < L + 1$ if there are two layers or more: a token that halts in layer 1 has r = 1, any other has $N_k \ge 2$ and $0 < r < 1$ |
#
# Source: HaltingVT (arXiv 2401.04975), section 3.3. The remainder goes back to ACT (arXiv 1603.08983), channel 0 as the
# halting logit to A-ViT (CVPR 2022).
#
# Next: [5, The gradient through the remainder, and the ponder loss](05-the-gradient-through-the-remainder.ipynb)
