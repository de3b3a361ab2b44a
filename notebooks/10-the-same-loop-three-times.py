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
# # 10. The same loop three times: NumPy, Numba, CUDA
#
# The formula of halting is five lines long. A machine can go through it in several ways: layer by layer over all tokens, or
# token by token over all layers, or with one thread per token. This notebook writes `halt_tokens` three times for the worked
# example and compares. After it you can say
#
# - which loop stands outside in each version, and why,
# - why halting needs no communication between threads,
# - what CUDA's simulator shows, and what it cannot show.
#
# No GPU is needed: Numba has a simulator, which runs CUDA kernels as Python code. It must be chosen before numba is imported.

# %%
import os

os.environ["NUMBA_ENABLE_CUDASIM"] = "1"

import math
import time

import numpy as np
from numba import cuda, njit

from refvt.notebooks import check_exercise, worked_example

np.set_printoptions(precision=3, suppress=True)
states, scale, center, epsilon, names = worked_example()
L, N, D = states.shape
limit = 1 - epsilon

# %% [markdown]
# ## NumPy: layer by layer, all tokens at once
#
# NumPy is fast where one call works on a long array. So the loop over layers stands outside, and each line does its work for
# all tokens. A token that has halted must then be left out by hand: `alive` holds the indices of the others.


# %%
def halt_numpy(states):
    L, N, D = states.shape
    y, ponder, halting_layer = np.zeros((N, D)), np.zeros(N), np.zeros(N, int)
    alive, used = np.arange(N), np.zeros(N)
    for layer in range(1, L + 1):
        x = states[layer - 1, alive]  # [alive, D]
        # 1. the score
        h = np.ones(len(alive)) if layer == L else 1 / (1 + np.exp(-(scale * x[:, 0] - center)))
        # 2. the decision, and the remainder where a token halts
        stops = used + h > limit
        weight = np.where(stops, 1 - used, h)
        # 3. one more term of the output
        y[alive] += weight[:, None] * x
        # 4. those that halt are done, the others go on
        ponder[alive[stops]] = layer + weight[stops]
        halting_layer[alive[stops]] = layer
        alive, used = alive[~stops], (used + h)[~stops]
        print(f"layer {layer}: {stops.sum()} tokens halt, {len(alive)} go on")
    return y, ponder, halting_layer


expected = halt_numpy(states)
print("ponder", expected[1], "halting layers", expected[2])

# %% [markdown]
# ## Numba: token by token
#
# Numba compiles loops. A loop in machine code costs nothing extra, so the order can be the natural one: take a token, follow
# it through the layers, and *stop*. `alive` is gone; `break` does its work, and `used` is one number in a register.
#
# *Predict first.* NumPy computed a score for every token that was alive. How many scores does each version compute for the
# worked example?


# %%
@njit
def halt_numba(states, scale, center, limit, y, ponder, halting_layer):
    L, N, D = states.shape
    scores = 0
    for k in range(N):
        used = 0.0
        for layer in range(1, L + 1):
            # 1. the score
            h = 1.0
            if layer < L:
                h = 1 / (1 + math.exp(-(scale * states[layer - 1, k, 0] - center)))
                scores += 1
            # 2. the decision and the remainder
            stops = used + h > limit
            weight = 1 - used if stops else h
            # 3. one more term of the output
            for c in range(D):
                y[k, c] += weight * states[layer - 1, k, c]
            # 4. halted: on to the next token
            if stops:
                ponder[k], halting_layer[k] = layer + weight, layer
                break
            used += h
    return scores


def results():
    return np.zeros((N, D)), np.zeros(N), np.zeros(N, np.int64)


found = results()
scores = halt_numba(states, scale, center, limit, *found)
print("largest difference:", max(np.abs(a - b).max() for a, b in zip(found, expected, strict=True)))
print("scores computed:", scores)

# %% [markdown]
# Nine in both: five in layer 1, four in layer 2 ("at once" has halted), and none in layer 3, whose score is 1. The work is
# the same; only the order differs, and with it the memory that is touched. NumPy goes through `y` once per layer; here y of
# a token stays in the cache until the token is done.
#
# ## CUDA: one thread per token
#
# On a GPU thousands of threads run the same function, the *kernel*. Each finds out which thread it is (`cuda.grid(1)`) and
# takes the token of that number. The loop over tokens is gone: the hardware is the loop. Tokens do not depend on one another
# in halting, so no thread needs the result of another.


# %%
@cuda.jit
def halt_cuda(states, scale, center, limit, y, ponder, halting_layer):
    k = cuda.grid(1)  # which thread am I, of all
    L, N, D = states.shape
    if k < N:  # the last block may have more threads than tokens
        used = 0.0
        for layer in range(1, L + 1):
            # 1. the score
            h = 1.0
            if layer < L:
                h = 1 / (1 + math.exp(-(scale * states[layer - 1, k, 0] - center)))
            # 2. the decision and the remainder
            stops = used + h > limit
            weight = 1 - used if stops else h
            # 3. one more term of the output
            for c in range(D):
                y[k, c] += weight * states[layer - 1, k, c]
            # 4. halted: this thread is done
            if stops:
                ponder[k], halting_layer[k] = layer + weight, layer
                break
            used += h


found = results()
threads = 4
blocks = (N + threads - 1) // threads  # N / threads, rounded up
halt_cuda[blocks, threads](states, scale, center, limit, *found)
print(blocks, "blocks of", threads, "threads for", N, "tokens")
print("largest difference:", max(np.abs(a - b).max() for a, b in zip(found, expected, strict=True)))

# %% [markdown]
# Side by side, the bodies of the last two differ in the loop over tokens: `for k in range(N)` became `k = cuda.grid(1)`, and
# `if k < N` was added. (`scores`, which only counts, is left out, too.) This is why refvt keeps the same names and the same
# pass numbers in the three files of each operation: [reference.py](../refvt/ops/halting/reference.py),
# [jit.py](../refvt/ops/halting/jit.py), [cuda.py](../refvt/ops/halting/cuda.py).
#
# | | NumPy | Numba | CUDA |
# | --- | --- | --- | --- |
# | outer loop | layers | tokens | none: a thread per token |
# | a halted token | is left out of `alive` | `break` | its thread ends |
# | `used` | an array [alive] | a number | a number per thread |
# | reads `states` | a slice of a layer | a column of a token | 32 tokens side by side |
# | what limits it | passes over memory | one core per loop | memory, and the slowest thread of each 32 |
#
# *The last row.* 32 threads (a *warp*) go in step. If one token of a warp lives to layer 10 and 31 halt in layer 1, 31 threads
# wait. *Predict first:* take five tokens in one warp. How many of its thread-layers are useful in the worked example?

# %%
halting_layer = expected[2]
print(
    f"useful {halting_layer.sum()} of {N * halting_layer.max()}: {halting_layer.sum() / (N * halting_layer.max()):.0%}"
)

# %% [markdown]
# This loss is small next to what halting saves in the model: there, halted tokens are *removed* before the next block
# (notebook 6), so the attention and the MLP that follow get full warps of living tokens.
#
# ## Backward, in the same three orders
#
# In NumPy the backward goes through the layers in reverse and carries `dused` for all tokens. In Numba and CUDA each token
# goes back alone, from the layer in which it halted. This is the local form of notebook 5, in one thread:


# %%
@cuda.jit
def halt_backward_cuda(dy, dponder, states, scale, center, halting_layer, dstates):
    k = cuda.grid(1)
    _, N, D = states.shape
    if k < N:
        n = halting_layer[k]
        remainder = 1.0
        for layer in range(1, n):
            remainder -= 1 / (1 + math.exp(-(scale * states[layer - 1, k, 0] - center)))
        # the layer in which it halts: weight = 1 − used, so dused = −dweight
        dweight = dponder[k]
        for c in range(D):
            dweight += dy[k, c] * states[n - 1, k, c]
            dstates[n - 1, k, c] = remainder * dy[k, c]
        dused = -dweight
        # the layers before, backward: used' = used + h, so dused stays
        for layer in range(n - 1, 0, -1):
            h = 1 / (1 + math.exp(-(scale * states[layer - 1, k, 0] - center)))
            dweight = 0.0
            for c in range(D):
                dweight += dy[k, c] * states[layer - 1, k, c]
                dstates[layer - 1, k, c] = h * dy[k, c]
            dstates[layer - 1, k, 0] += scale * h * (1 - h) * (dweight + dused)


from refvt import backends

rng = np.random.default_rng(0)
dy, dponder = rng.standard_normal((N, D)), rng.standard_normal(N)
dstates = np.zeros_like(states)
halt_backward_cuda[blocks, threads](dy, dponder, states, scale, center, halting_layer, dstates)
_, cache = backends.get("reference").halt_tokens.forward(states, scale, center, epsilon)
theirs = backends.get("reference").halt_tokens.backward(dy, dponder, cache)
print("largest difference to refvt's backward:", np.abs(dstates - theirs).max())

# %% [markdown]
# ## What the simulator shows, and what it cannot
#
# The simulator runs each thread as a thread of Python. So it shows whether indices, bounds and formulas are right. Four
# things it cannot show.
#
# **1. Races.** Here is a kernel that is wrong on every GPU: all threads add to one number without an atomic operation.
# Two threads read the same old value, both add, and one addition is lost. *Predict first:* what does the simulator say?


# %%
@cuda.jit
def wrong_sum(x, total):
    k = cuda.grid(1)
    if k < x.shape[0]:
        total[0] += x[k]  # read, add, write: another thread may come in between


total = np.zeros(1)
wrong_sum[2, 128](np.ones(256), total)
print("sum of 256 ones:", total[0])

# %% [markdown]
# 256: right by luck, because Python seldom switches threads in the middle of this line. On a GPU the 32 threads of a warp
# read together and write together; of their 32 additions one remains. refvt adds no shared number this way: every sum
# belongs to one thread.
#
# **2. Reads and writes out of bounds.** *Predict first:* a thread with k = 0 writes to `x[k - 1]`. What happens?


# %%
@cuda.jit
def wrong_index(x):
    x[cuda.grid(1) - 1] = 1


x = np.zeros(4)
wrong_index[1, 1](x)
print(x)

# %% [markdown]
# In Python, index −1 is the last element. Compiled CUDA code does the same for an array that Numba knows, but a wrong index
# beyond the end, which raises an error here, silently writes into another array's memory there.
#
# **3. Rounding.** The simulator computes with Python's floats, which are float64, wherever a kernel calls `math.exp` or writes
# 0.5. A GPU in float32 rounds every step. How large is that?

# %%
x32 = np.linspace(-6, 6, 2001, dtype=np.float32)
in_double = 1 / (1 + np.exp(-x32.astype(np.float64)))
one = np.float32(1)
in_single = one / (one + np.exp(-x32))
print(f"largest difference of a score: {np.abs(in_single - in_double).max():.1e}")

# %% [markdown]
# A few 10⁻⁸: no bug, but enough to turn a decision whose sum lies that close to 1 − ε. This is why `refvt check` calls such a
# decision *ambiguous* ([docs/checking.md](../docs/checking.md#what-the-report-says)).
#
# **4. Speed.** The simulator is slower than plain Python, because it makes a thread for every thread.

# %%
many = np.random.default_rng(1).normal(0.8, 0.4, (3, 256, 3))
for name, run in (
    ("Numba", lambda *out: halt_numba(many, scale, center, limit, *out)),
    ("CUDA, simulated", lambda *out: halt_cuda[2, 128](many, scale, center, limit, *out)),
):
    out = np.zeros((256, 3)), np.zeros(256), np.zeros(256, np.int64)
    start = time.perf_counter()
    run(*out)
    print(f"{name:16s} {1e3 * (time.perf_counter() - start):8.2f} ms for 256 tokens")

# %% [markdown]
# These times say nothing about a GPU, not even which of two kernels is faster. What refvt's kernels were checked with
# instead (compiled code executed instruction by instruction, registers counted) and what ran on a GPU is in
# [docs/cuda-checks.md](../docs/cuda-checks.md) and [docs/cuda.md](../docs/cuda.md).
#
# ## refvt's own kernel, in the simulator
#
# refvt's CUDA files need the package numba-cuda (`pip install "refvt[cuda]"`). If it is there, this cell runs them:

# %%
if "cuda" in backends.available():
    table = backends.get("cuda")
    device = table.arrays.from_numpy(states)
    (y, ponder, layers), _ = table.halt_tokens.forward(device, scale, center, epsilon)
    print("refvt's kernel: ponder", table.arrays.to_numpy(ponder), "halting layers", table.arrays.to_numpy(layers))
else:
    print("numba-cuda is not installed: the kernels of this notebook ran in Numba's own simulator")

# %% [markdown]
# ## Exercises
#
# **1.** How many blocks are needed for N tokens, and how many threads have no token? Write `launch(N, threads)`.


# %%
def launch(N, threads): ...


check_exercise("blocks of threads", launch)

# %% [markdown]
# <details><summary>A solution</summary>
#
# ```python
# def launch(N, threads):
#     blocks = -(-N // threads)  # N / threads, rounded up
#     return blocks, blocks * threads - N
# ```
# </details>
#
# **2.** Write the work of one thread as a plain function: `one_token(states, k, scale, center, limit, y, ponder,
# halting_layer)` fills row k of the three results. They come filled with rubbish, as memory on a GPU is, and the tokens come
# in any order.


# %%
def one_token(states, k, scale, center, limit, y, ponder, halting_layer): ...


check_exercise("one token", one_token)

# %% [markdown]
# <details><summary>A solution</summary>
#
# ```python
# def one_token(states, k, scale, center, limit, y, ponder, halting_layer):
#     L, used = len(states), 0.0
#     y[k] = 0
#     for layer in range(1, L + 1):
#         h = 1.0 if layer == L else 1 / (1 + np.exp(-(scale * states[layer - 1, k, 0] - center)))
#         stops = used + h > limit
#         weight = 1 - used if stops else h
#         y[k] += weight * states[layer - 1, k]
#         if stops:
#             ponder[k], halting_layer[k] = layer + weight, layer
#             return
#         used += h
# ```
# </details>
#
# ## What to remember
#
# - The work is the same in all three; what changes is which loop stands outside, and what has to be kept for it.
# - Tokens halt independently, so a thread per token needs no communication. Attention does need it, and is the harder kernel.
# - A simulator checks formulas and indices. Races, float32 rounding, memory and speed need compiled code or a GPU.
#
# This is the last notebook. [All of them](README.md)
