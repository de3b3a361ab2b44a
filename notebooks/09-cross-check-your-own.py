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
# # 9. Cross-check your own implementation
#
# You have written token halting yourself. Is it right? The shapes are, the values look plausible, training even learns
# something. This notebook plants four bugs, three in one small function and one in its backward, and finds them. After it you
# can say
#
# - what `refvt check` compares, and how it tells rounding from a bug,
# - what *first difference*, *last agreeing* and *variant* mean in its report,
# - which bugs no fixed test case can see, and how a property-based test finds them.

# %%
import numpy as np

from refvt.conformance import check
from refvt.notebooks import check_exercise, worked_example

np.set_printoptions(precision=3, suppress=True)
states, scale, center, epsilon, names = worked_example()

# %% [markdown]
# ## Your implementation
#
# The smallest candidate is one function, `halt_tokens(states, scale, center, epsilon)`, which returns y, the ponder and
# the halting layers. Here it is, with a place to plant a bug: `mistake`.


# %%
class Mine:
    mistake = None

    @classmethod
    def halt_tokens(cls, states, scale, center, epsilon):
        L, N, D = states.shape
        y, ponder, halting_layer = np.zeros((N, D)), np.zeros(N), np.zeros(N, int)
        limit = 1 - epsilon
        for k in range(N):
            used = 0.0
            for layer in range(1, L + 1):
                x = states[layer - 1, k].astype(np.float64)
                h = 1.0 if layer == L else 1 / (1 + np.exp(-(scale * x[0] - center)))
                if used + h > limit or (cls.mistake == "ties halt" and used + h == limit):
                    remainder = h if cls.mistake == "no remainder" else 1 - used
                    y[k] += remainder * x
                    ponder[k] = layer + remainder - (cls.mistake == "layers from 0")
                    halting_layer[k] = layer
                    break
                y[k] += h * x
                used += h
        return y, ponder, halting_layer


y, ponder, halting_layer = Mine.halt_tokens(states, scale, center, epsilon)
print("y of the token 'in layer 2':", y[2], " ponder:", ponder, " halting layers:", halting_layer)

# %% [markdown]
# This is the worked example of notebook 4: y of "in layer 2" is 0.6 · x¹ + 0.4 · x², and its ponder is 2.4.
#
# ## Check it
#
# The truth is a set of *golden cases*: PyTorch computed them once in float64, forward and backward, and their results ship
# with refvt. Seven of them are for `halt_tokens`. On the shell one writes `refvt check mine:Mine`; in Python:


# %%
def say(report):
    print(report.sentence)
    for case in report.cases:
        print(f"  {case.name:26s} {case.status}")
        if case.first:
            print(f"     first: {case.first.tensor}, {case.first.share:.0f} times what is allowed")
            print(f"     agrees with variant: {case.variant}")


say(check(Mine, cases="*halt_tokens*"))

# %% [markdown]
# All agree. Each case has four tensors to compare: y, ponder, halting layer, and the gradient of the states. Our function
# returns the first three of them. So 3 · 7 = 21 of 4 · 7 = 28 tensors were compared.
#
# How exact must a result be? No number is set by eye. PyTorch ran each case in float32 too, and what *it* errs sets the
# budget: a candidate may err eight times as much, with a floor of four units of rounding. So rounding passes, and a bug of
# one part in a thousand does not. If a decision differs whose score is within rounding of the limit, the case is called
# *ambiguous*: neither right nor wrong.
#
# ## Plant a bug, predict, run
#
# The first bug: a token that halts keeps its own score h as weight. The remainder is forgotten.
#
# *Predict first.* Which of the three results are wrong? In which kind of case would nobody notice?

# %%
Mine.mistake = "no remainder"
report = check(Mine, cases="*halt_tokens*")
say(report)

# %% [markdown]
# y and the ponder are wrong, the halting layers are right. y differs first, and the report names the *variant*: "no
# remainder". refvt knows about a hundred ways in which implementations differ. It computes the case under each, and names the
# one that agrees with everything that was given.
#
# One case still agrees: `one-layer`. In a model of one layer h = 1 and r = 1, so the bug changes nothing. **A test case
# can see a bug only if the bug changes something in it.** And in the case `first` all tokens halt at once, with scores just
# below 1: the error there is 1 − h, a thousand times smaller than in the others, but still 250 times what is allowed.
#
# Here is the full text of one case. *Worst element* says where to set the breakpoint:

# %%
from refvt.conformance.report import describe_case

print(describe_case(report.cases[0]).split("reproduce")[0])

# %% [markdown]
# The second bug: layers are counted from 0, as Python does. *Predict first:* which result differs, and which two are right?

# %%
Mine.mistake = "layers from 0"
say(check(Mine, cases="tiny-op-halt_tokens*"))

# %% [markdown]
# Only the ponder. (In the report's `ponder=N−1+r` N stands for $N_k$, the layer in which the token halts.) All ponders are
# too small by exactly 1, and so is the ponder loss. But its *gradient is right*, so training would not show the bug. A
# comparison with the figures of a paper would.
#
# ## A bug that only the gradient shows
#
# A candidate may bring its backward: `halt_tokens_forward` returns (results, cache), `halt_tokens_backward` takes (dy,
# dponder, cache). Here is the formula of notebook 5. The third bug is easily made in a framework with autograd: the remainder
# is *detached*, it has no gradient.


# %%
class WithBackward:
    detached = False

    @staticmethod
    def halt_tokens_forward(states, scale, center, epsilon):
        results = right(states, scale, center, epsilon)
        return results, (states, scale, center, results[2])

    @classmethod
    def halt_tokens_backward(cls, dy, dponder, cache):
        states, scale, center, halting_layer = cache
        dstates = np.zeros(states.shape)
        for k, n in enumerate(halting_layer):  # n is N_k
            x = states[:n, k].astype(np.float64)  # the layers in which the token lived
            h = 1 / (1 + np.exp(-(scale * x[:-1, 0] - center)))
            dstates[:n, k] = np.append(h, 1 - h.sum())[:, None] * dy[k]  # each state is a term of y
            later = 0 if cls.detached else x[-1] @ dy[k] + dponder[k]
            dstates[: n - 1, k, 0] += scale * h * (1 - h) * (x[:-1] @ dy[k] - later)
        return dstates


def right(*arguments):
    Mine.mistake = None
    return Mine.halt_tokens(*arguments)


say(check(WithBackward, cases="tiny-op-halt_tokens*"))
WithBackward.detached = True
say(check(WithBackward, cases="tiny-op-halt_tokens*"))

# %% [markdown]
# Forward everything agrees. The difference is in `d(states)`, and the variant is named again. Such a model trains. But
# the ponder loss reaches no score any more, so nothing teaches it to halt, and each score gets the gradient $g_y \cdot x^l$
# where $g_y \cdot (x^l - x^{N_k}) - g_\rho$ is right.
#
# ## A bug that no fixed case shows
#
# The rule says: halts where the sum *exceeds* 1 − ε. The fourth bug lets a token halt at equality too, ≥ for >.
#
# *Predict first.* How many of the seven cases notice?

# %%
Mine.mistake = "ties halt"
say(check(Mine, cases="*halt_tokens*"))

# %% [markdown]
# None. Random numbers never lie exactly on the line. The bug is real, though: two programs that treat a tie differently
# give different answers, and in float16 or with a score that saturates ties do happen.
#
# **Property-based tests** look for such places. Instead of one input you write a *strategy*, which describes many, and a
# *property* that must hold for each of them. Hypothesis draws inputs, and if one breaks the property it *shrinks* it to
# the smallest that still does. refvt's strategies know the edges of each operation:

# %%
from hypothesis import given, settings

from refvt.conformance.strategies import EDGES, edges_of, inputs_for

for edge in edges_of("halt_tokens"):
    print(f"{edge:20s} {EDGES[edge]}")

# %% [markdown]
# The property here is the rule itself: a token that has not halted before layer l has used at most 1 − ε, and in the layer
# where it halts it exceeds this. We test it on inputs near the threshold, some of which lie on it.


# %%
def rule_holds(inputs):
    limit = 1 - inputs["epsilon"]
    _, _, halting_layer = Mine.halt_tokens(inputs["states"], inputs["scale"], inputs["center"], inputs["epsilon"])
    for k, n in enumerate(halting_layer):
        used = 0.0
        for layer in range(1, n + 1):
            logit = inputs["scale"] * inputs["states"][layer - 1, k, 0] - inputs["center"]
            used += 1.0 if layer == len(inputs["states"]) else 1 / (1 + np.exp(-logit))
            assert (used > limit) == (layer == n), f"token {k} in layer {layer}: sum {used}, limit {limit}"


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(inputs_for("halt_tokens", edge="near the threshold", dtype="float64"))
def test_rule(inputs):
    if inputs.get("forced") is None:
        rule_holds(inputs)


for mistake in ("ties halt", None):
    Mine.mistake = mistake
    try:
        test_rule()
        print(mistake, "-> the rule holds in 200 examples")
    except AssertionError as error:
        print(mistake, "->", error)

# %% [markdown]
# The strategy draws a sum that is exactly the limit, and the bug is found. Hypothesis would have told us also the smallest
# inputs. You need not write the properties yourself: `refvt check CANDIDATE --laws` runs all *laws* of all operations that
# a candidate has (the backward is the adjoint of the forward, weights sum to one, nothing is changed in place).
#
# ## A whole model
#
# The same works for a model: a function of a *case* that returns named tensors. Here the candidate is refvt's own model with
# one switch set the other way: halted tokens are *masked* where the case says *zero* (notebook 6). *Predict first:* do the
# logits differ? And which tensor differs *first*? (The first tokens halt in joint layer 1.)

# %%
from dataclasses import replace

import refvt


def candidate(case):
    config = replace(case.config, halted_keys="masked")
    model = refvt.HaltingVT(config, case.parameters, backend="reference", dtype="float64")
    return dict(model.trace(case.clips))


report = check(candidate, dtype="float64", cases="tiny-model-zero")
print(describe_case(report.cases[0]).split("reproduce")[0])

# %% [markdown]
# Blocks are counted from 0, joint layers from 1. Here G = 1: block 0 is the Glimpser, and block 2 is joint layer 2. Up to its
# queries, keys and values all agree; its attention is the first step in which a halted token takes part. So the mistake lies
# between `attn.v` and `attn.y`: in the attention. To find this by hand one would compare a hundred tensors.
#
# The last line says that logits and ponder agree with the case. This case has two joint layers, and CLS halts in layer 1, so its
# y is fixed before a halted token could be missed. Ponder agrees, too: who is alive in layer 2, the last, halts there whatever
# its score is. Who compares logits and ponder alone does not see this bug here. (The *error* is the norm of the difference,
# divided by the norm of the right tensor.)
#
# ## Exercises
#
# **1.** Three mistakes. Which of `y`, `ponder`, `halting_layer` and `d(states)` differs *first*, in the order of
# computation? The first two you have seen. (N in the second is $N_k$.)

# %%
answer = {"no remainder": "", "ponder = N − 1 + r": "", "remainder detached": ""}
check_exercise("first tensors", answer)

# %% [markdown]
# <details><summary>A solution</summary>
#
# ```python
# answer = {"no remainder": "y", "ponder = N − 1 + r": "ponder", "remainder detached": "d(states)"}
# ```
# </details>
#
# **2.** Find an input that shows the bug "ties halt": `(states, scale, center, epsilon)`, with states [L, N, D], for which >
# and ≥ halt in different layers. Choose numbers that are exact in binary.

# %%
answer = (states, scale, center, epsilon)
check_exercise("tie", answer)

# %% [markdown]
# <details><summary>A solution</summary>
#
# ```python
# states = np.ones((2, 1, 2))  # the score of layer 1 is σ(10 · 1 − 10) = 0.5, exactly
# answer = states, 10.0, 10.0, 0.5  # the limit is 1 − 0.5 = 0.5, exactly
# ```
# </details>
#
# **3.** Write a law: `weights_sum_to_one(halt_tokens, states, scale, center, epsilon)` returns True if the weights of every
# token sum to one. You see no weights, only y. (What is a mean of ones?)


# %%
def weights_sum_to_one(halt_tokens, states, scale, center, epsilon): ...


check_exercise("law of weights", weights_sum_to_one)

# %% [markdown]
# <details><summary>A solution</summary>
#
# ```python
# def weights_sum_to_one(halt_tokens, states, scale, center, epsilon):
#     same = np.ones_like(states)
#     same[:, :, 0] = states[:, :, 0]  # the logits stay: the tokens halt where they did
#     y, _, _ = halt_tokens(same, scale, center, epsilon)
#     return bool(np.allclose(y[:, 1:], 1))  # a mean of ones
# ```
# </details>
#
# ## What to remember
#
# - A case sees a bug only if the bug changes something in it. Take several, and give named tensors, not only outputs.
# - Test the backward by itself: a wrong gradient leaves every forward result right.
# - Decisions have edges (ties, saturation). Fixed cases miss them; strategies look for them.
#
# [docs/checking.md](../docs/checking.md) has all forms of a candidate: PyTorch modules, JAX functions, any language through
# files. [docs/strategies.md](../docs/strategies.md) has the strategies, [docs/variants.md](../docs/variants.md) the variants.
#
# Next: [10, The same loop three times: NumPy, Numba, CUDA](10-the-same-loop-three-times.ipynb)
