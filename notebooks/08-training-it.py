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
# # 8. Training it: accuracy against GFLOPs
#
# Halting has a price and a gain, and training decides about both. This notebook trains the worked example, takes a few steps
# with a real model, and then looks at finished runs. After it you can say
#
# - how the three losses act together, and on which tokens each acts,
# - what R and β trade,
# - what Table 1 and Figure 3 of the paper say, and where our small experiments do not confirm them,
# - where the paper stands beside other methods, and what its limits are.

# %%
import json
from pathlib import Path

import numpy as np

import refvt
from refvt import backends, weights
from refvt.evaluation.selectivity import object_tokens
from refvt.notebooks import check_exercise, worked_example
from refvt.notebooks.pictures import draw_alive, draw_points
from refvt.training.recipe import make_moving_digits

np.set_printoptions(precision=2, suppress=True)

# %% [markdown]
# ## How task and ponder loss act together: train the worked example
#
# Five tokens, three layers. Only the ten halting logits of layers 1 and 2 are trained; everything else stands still. The loss
# has the form of the paper's:
#
# $$\mathcal{L} = \lVert y_\text{CLS} - \text{target} \rVert^2 + \frac{w}{5} \sum_k \rho_k$$
#
# The first part, the task, reads CLS alone. The second, the ponder loss, reads every token.
# The target is the state of CLS in layer 3. So for the task CLS should use layer 3 as much as it can, and the ponder loss
# wants every token to halt at once.
#
# *Predict first.* Who wins, for CLS and for the four patches, with a small and with a large weight w?

# %%
halt_tokens = backends.get("reference").halt_tokens
for w in (0.5, 8.0):
    states, scale, center, epsilon, names = worked_example()
    target = states[2, 0, 1:]
    print(f"w = {w}")
    for step in range(401):
        (y, ponder, halting_layer), cache = halt_tokens.forward(states, scale, center, epsilon)
        miss = y[0, 1:] - target
        if step in (0, 50, 400):
            print(f"  step {step:3d}: task {miss @ miss:.3f}, ponder {ponder}, halting layers {halting_layer}")
        dy = np.zeros((5, 3))
        dy[0, 1:] = 2 * miss  # the task: CLS alone
        dstates = halt_tokens.backward(dy, np.full(5, w / 5), cache)
        states[:2, :, 0] -= 0.002 * dstates[:2, :, 0]

# %% [markdown]
# CLS keeps layer 3 with both weights, because its task pulls against the ponder loss: its scores in layers 1 and 2 become
# small, and the remainder is nearly all. The patches have nothing that pulls. With w = 8 all four halt in layer 1 after 400
# steps, also "slow", which began with the smallest scores; with w = 0.5 they go the same way, but have not arrived yet. A patch
# that halts in layer 1 has reached the end: its gradient is zero (notebook 5).
#
# In the real model a patch is spared only by what its weights do elsewhere, because all tokens share the weights that write
# channel 0. Here is the whole process:
#
# | loss | reads | acts on CLS | acts on patches |
# | --- | --- | --- | --- |
# | class (task) | y of CLS | directly: where its later states are better it lives longer | through attention, on their states; never on whether they live |
# | ponder, weight 5e-4 | ρ of every token | halts earlier | halts earlier, all with the same force |
# | motion, weight 1 | y of CLS | as the class loss | as the class loss |
#
# The formula of the whole loss stands in notebook 7. Nothing else is needed: one network, one loss, one training.
#
# ## A few steps live
#
# One step of training: B clips and their B static twins, the loss and all gradients, Adam. The model starts from a backbone
# that was trained without halting and ships with refvt, as the paper starts from trained image weights.

# %%
trained, recipe = weights.load("photographs")
config = trained.config
parameters = {name: p.copy() for name, p in weights.find_backbone(recipe).items()}
train_set, test_set = make_moving_digits(recipe)
moments = {name: (np.zeros_like(p), np.zeros_like(p)) for name, p in parameters.items()}
rng = np.random.default_rng(0)
for step in range(1, 7):
    chosen = rng.integers(0, len(train_set), 4)
    clips, moving = refvt.static_twins(np.stack([train_set.clip(i) for i in chosen]), rng)
    labels = np.tile([train_set.target(i) for i in chosen], 2)
    model = refvt.HaltingVT(config, parameters, backend="reference")
    loss, gradients = model.loss_and_gradients(clips, labels, moving, ponder_weight=5e-4, motion_weight=1.0)
    for name, g in gradients.items():
        m, v = moments[name]
        m += 0.1 * (g - m)
        v += 0.001 * (g * g - v)
        parameters[name] -= 2e-4 * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
    parts = f"class {loss.recognition:.3f} + 5e-4 · ponder {loss.ponder:.3f} + motion {loss.motion:.3f}"
    print(f"step {step}: {parts} = {loss.total:.3f}")

# %% [markdown]
# *Class*: the backbone answers "still" for every twin, with great confidence, but the label of a twin is that of its clip. It
# becomes unsure in a few steps; half of the batch cannot get below log 8 = 2.08 (notebook 7), so the mean not below 1.04. *Motion*: a
# head that knows nothing, log 2 = 0.69. *Ponder*: almost 5 = L + 1, no token halts yet. Over a whole run that changes.
#
# This is the log of the model that ships with refvt (28 epochs). *Predict first:* what happens first, that tokens halt, or that they
# halt in the right places?

# %%
log = [json.loads(line) for line in weights.find_files("photographs").log.read_text().splitlines()]
print("step  tokens entering layers 1 to 4")
for line in log:
    if line["event"] == "step" and line["epoch"] == 1 and line["step"] % 60 == 0:
        print(f"{line['step']:4d}  {np.array(line['tokens_per_layer'])}")
print("\nepoch accuracy GFLOPs  tokens                        AUC")
for line in log:
    if line["event"] == "evaluation" and line["epoch"] in (1, 2, 4, 7, 14, 28):
        tokens = " ".join(f"{n:6.1f}" for n in line["tokens_per_layer"])
        print(
            f"{line['epoch']:5d} {line['top1']:8.1%} {line['gflops']:.4f}  {tokens}  {line['selectivity']['auc']:.2f}"
        )

# %% [markdown]
# (AUC: the probability that a patch with the digit lives longer than one that never holds it; 0.5 is chance.) For 150 steps
# nothing halts. Then, within 100 steps, half of the tokens do, and they soon do so in the right places. Accuracy falls below the
# backbone's 92.0 % and needs about seven epochs to
# come back.
#
# **This is not the paper's ponder loss.** With it halting did *not* follow the digit (AUC 0.37, so the digit's patches halted
# *earlier* than the background). The recipe gives patches that change between frames a negative weight in the ponder loss; see
# [docs/training.md](../docs/training.md), "The variant changing_ponder". The worked example above shows why something like it
# is needed.
#
# ## R and β: what each trades
#
# - **R**, the keep rate of the Glimpser, decides how many patches enter the joint blocks. It acts on all clips alike and
#   before anything is known of them but one look.
# - **β**, the halting centre, is what a logit has to overcome: $h = \sigma(\gamma x[0] - \beta)$. A larger β means smaller
#   scores, later halting, more GFLOPs. It acts on each token by what it holds.
#
# Change both on the trained model, *without* training again. *Predict first:* the model was trained with R = 0.75 and β = 5.
# Which change costs more accuracy for the GFLOPs that it saves?

# %%
from dataclasses import replace

number = 96
clips = np.stack([test_set.clip(i) for i in range(number)])
labels = np.array([test_set.target(i) for i in range(number)])


def measure(**changes):
    out = refvt.HaltingVT(replace(config, **changes), trained.parameters)(clips)
    return (out.logits.argmax(axis=1) == labels).mean(), out.gflops.mean(), out.tokens_per_layer.mean(axis=0)


points = {}
for R in (1.0, 0.75, 0.5, 0.25, 0.125):
    points[f"R = {R:g}"] = measure(keep_rates=(1.0, R))
for beta in (1.0, 3.0, 8.0, 12.0):
    points[f"β = {beta:g}"] = measure(halting_center=beta)
for name, (top1, gflops, tokens) in points.items():
    print(f"{name:9s} accuracy {top1:6.1%}  {gflops:.4f} GFLOPs  tokens {tokens}")

# %%
draw_points("The trained model with other R and β", {n: ([g], [a]) for n, (a, g, _) in points.items()})

# %% [markdown]
# (96 clips: one of them is one point of accuracy, and two points more or less mean nothing.)
#
# Look at R first. From 1 down to 0.5 GFLOPs fall by 23 % and accuracy does not: here, dropping is free. Below that accuracy begins to
# fall, by two points at 0.25 and by four at 0.125. So R does trade accuracy for GFLOPs, but **much later than in the paper**, where
# R = 0.3 has 67.2 % and R = 0.7 has 75.0 % (with another β). The likely reason: fewer than two of our 16 patches of a frame hold the
# digit (a fifth of their pixels or more), and on real videos what matters does not fit in 30 % of the patches.
#
# β moves GFLOPs less, because objects and background are far apart: their logits lie on both sides of any reasonable β. It sets
# how *sure* a token must be. To compare settings fairly each has to be trained, as the paper does, and as the next section does
# in small.
#
# ## Table 1 in small: R, and whether the motion loss lowers GFLOPs
#
# The paper's Table 1 shows accuracy and GFLOPs for several R, with and without the motion loss. Ours trains a small model on
# moving digits. The full results are in docs/results; this cell reads them. The first lines say what the numbers themselves
# allow to be said, also where they contradict the paper.

# %%
from IPython.display import Markdown


def load_result(name):
    path = Path("../docs/results") / f"experiment-{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def reading(result):
    """What the numbers of an experiment allow to be said, as the experiment itself wrote it."""
    if result is None:
        return Markdown(
            "docs/results is not there (an installed package has no docs): `refvt experiment` makes it again"
        )
    size = f"*{len(result['seeds'])} seeds, {len(result['runs'])} runs of {result['recipe']['epochs']} epochs.*"
    return Markdown("\n- ".join([size + "\n", *result["reading"]]))


table1 = load_result("table1")
reading(table1)

# %%
if table1 is not None:
    shown = {}
    for row in table1["figures"]["rows"]:
        which = f"R = {row['R']:g}" + ("" if row["motion_loss"] else ", no motion")
        runs = [
            r for r in table1["runs"] if r["run"] == f"R{row['R']:g}" + ("" if row["motion_loss"] else "-no-motion")
        ]
        shown[which] = [r["gflops"] for r in runs], [r["top1"] for r in runs]
        print(f"{which:18s} {np.mean(shown[which][1]):6.1%}  {np.mean(shown[which][0]):.4f} GFLOPs")
draw_points("Table 1 in small; small marks are single runs", shown) if table1 is not None else None

# %% [markdown]
# What the paper says, and what we can add:
#
# | claim of the paper | our small version |
# | --- | --- |
# | A smaller R costs accuracy and saves GFLOPs: 67.2 % at 9.9 (R = 0.3, β = 10), 75.0 % at 24.2 (R = 0.7, β = 20) | GFLOPs fall with R, by construction. Accuracy: see the table above and its spread |
# | The Glimpser gains 2.5 % accuracy | not seen, see the lines above |
# | The motion loss lowers GFLOPs by 5.4 % | the lines above give the measured change and its spread |
#
# *Why should the motion loss lower GFLOPs at all?* It adds no pressure on the score of any patch (notebook 7). The paper's
# explanation is that a model which looks at what moves needs fewer tokens. It can work only indirectly: through CLS, and
# through the weights that all tokens share. On moving digits twins also carry labels that cannot be learnt, which is a reason
# why our version may differ.
#
# ## Figure 3 in small: how halting differs over layers and frames
#
# The paper's Figure 3 shows which patches live, layer by layer and frame by frame. We count them on 64 clips that the model
# never saw, every token followed to its own halt.

# %%
ink = np.stack([test_set.object_pixels(i) for i in range(64)])
out = trained(clips[:64], full_ponder=True)
group = object_tokens(ink, config, out)  # 1 the digit is in it, 0 never, −1 neither
alive = out.alive[:, :, 1:]  # without CLS
shares = {
    name: [float(alive[:, layer][group == which].mean()) for layer in range(config.joint_depth)]
    for name, which in (("patches with the digit", 1), ("patches that never hold it", 0))
}
draw_alive(shares, "Over layers: 64 clips")

# %%
T = config.num_frames
for index in (0, 5, 6):
    patches = alive[index].reshape(config.joint_depth, -1, T).sum(axis=1)  # [L, T]
    print(f"clip {index}, {test_set.names[labels[index]]}: patches alive, a row per layer, a column per frame")
    print(patches)

# %% [markdown]
# *Over layers*: the background goes first, nearly all of it before layer 3; of the patches with the digit nine in ten live to
# the end. *Over frames*: a clip in which the digit moves keeps a few patches in **every** frame, and their number
# differs from frame to frame. In the clip of the class "still" almost everything halts after one layer. So the model spends where something
# happens, in space and in time, and differently for each clip. That is what the paper's figure says, too.
#
# ## Where the paper stands beside other methods
#
# Figures on Mini-Kinetics, from the abstracts of the two papers; the 1.6 points are from a summary of HaltingVT's results:
#
# | method | top-1 | GFLOPs |
# | --- | --- | --- |
# | HaltingVT, R = 0.7, β = 20 | 75.0 % | 24.2 |
# | HaltingVT, R = 0.3, β = 10 | 67.2 % | 9.9 |
# | the best before HaltingVT | 73.4 % (1.6 points below) | comparable |
# | FrameExit: early exit over frames | not stated | 2.1 times fewer than the best before it |
#
# On ActivityNet-v1.3 (measured in mAP) HaltingVT was evaluated, too; FrameExit states 1.3 times fewer GFLOPs than the best before
# it there. The full tables of the papers were not at hand when this was written, so no more of their figures are given here. Two
# cautions: the methods have different backbones and numbers of frames, and GFLOPs are *counted*. The released code computes what
# it has halted, so its time does not fall (notebook 6).
#
# *Against adaptive sampling of frames.* Sampling takes whole frames away. In the table of patches above no frame is ever
# empty while the digit moves: what is redundant is most of *each* frame. Our own comparison, halting against fewer frames
# and against dropping patches in advance, is in
# [docs/results/experiment-frontier.md](../docs/results/experiment-frontier.md); this is what its numbers allow to be said:

# %%
reading(load_result("frontier"))

# %% [markdown]
# ## Limits, and experiments that would tell more
#
# | limit | what shows it | an experiment |
# | --- | --- | --- |
# | The loss cannot tell a patch that it is needed. | the boxed gradient in notebook 5; AUC 0.37 with the paper's ponder loss | a gradient through the presence of a token; `changing_ponder` |
# | A token that halts in layer 1 gets no gradient; training can collapse. | the worked example above; with γ = β = 10 hardly any token lived beyond layer 1 after 32 steps from scratch | warm up the ponder weight; start with small scores |
# | Dropping by the Glimpser is final, and made after one or two blocks. | notebook 3: a dropped patch is seen by no later layer | `fuse_dropped`; let a fused token come back |
# | GFLOPs are not time. | notebook 6: the time falls by less than the GFLOPs | measure on your machine, `refvt bench` |
# | A moving camera: everything changes. | AUC 0.96 where the camera stands still (vtest.avi), 0.64 where it moves in parts (bikes.mp4) | train with moving backgrounds; estimate the camera's motion |
# | Two data sets, one backbone, no training code. | the released repository | the recipes `paper-…` of refvt, on your data |
# | Our own experiments are small: one synthetic task, few runs, wide spreads. | the sentences above | more seeds, longer runs: `refvt experiment table1 --seeds 8` |
#
# ## Exercises
#
# **1.** What does a joint block cost? Write `joint_cost(n, D)`: multiply-adds with n living tokens, hidden width F = 4 D.


# %%
def joint_cost(n, D): ...


check_exercise("cost of a joint block", joint_cost)

# %% [markdown]
# <details><summary>A solution</summary>
#
# ```python
# def joint_cost(n, D):
#     linear = n * (3 * D * D + D * D + 2 * D * 4 * D)  # qkv, proj, the two layers of the MLP
#     attention = 2 * n * n * D  # q kᵀ, and weights times v
#     return linear + attention
# ```
# </details>
#
# **2.** Which share of the joint blocks does halting save? Write `saved(tokens_per_layer, D)`. All tokens enter layer 1; without
# halting as many would enter every layer. (For 97, 61, 44, 43 tokens and D = 64 it is about 40 %.)


# %%
def saved(tokens_per_layer, D): ...


check_exercise("saved by halting", saved)

# %% [markdown]
# <details><summary>A solution</summary>
#
# ```python
# def saved(tokens_per_layer, D):
#     def cost(n):
#         return 12 * n * D * D + 2 * n * n * D
#
#     full = len(tokens_per_layer) * cost(tokens_per_layer[0])
#     return 1 - sum(cost(n) for n in tokens_per_layer) / full
# ```
# </details>
#
# **3.** Write the whole loss: `total_loss(logits, labels, ponder, motion_logits, moving)`, with weights 5e-4 and 1.


# %%
def total_loss(logits, labels, ponder, motion_logits, moving): ...


check_exercise("the whole loss", total_loss)

# %% [markdown]
# <details><summary>A solution</summary>
#
# ```python
# def total_loss(logits, labels, ponder, motion_logits, moving):
#     def cross_entropy(z, right):
#         z = z - z.max(axis=1, keepdims=True)
#         log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
#         return -log_p[np.arange(len(z)), right].mean()
#
#     return cross_entropy(logits, labels) + 5e-4 * ponder.mean() + 1.0 * cross_entropy(motion_logits, moving)
# ```
# </details>
#
# Sources: HaltingVT (arXiv 2401.04975), abstract and section 4; FrameExit (arXiv 2104.13400), abstract;
# [docs/experiments.md](../docs/experiments.md) for what ± means, [docs/training.md](../docs/training.md) for the runs.
