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
# # 7. The motion loss and static twins
#
# Notebook 5 ended with a limit: no gradient keeps a needed patch alive. The motion loss does not lift this limit. It gives CLS
# a reason to look at other patches: a second task, to say whether anything in the clip changes from frame to frame. After this
# notebook you can say
#
# - what a static twin is, and how the batch changes,
# - what the motion head reads, and what its loss is,
# - what the paper reports of it, and why that is not obvious,
# - where the paper and the released code disagree.

# %%
import numpy as np

import refvt
from refvt.data import MovingDigits

np.set_printoptions(precision=3, suppress=True)

# %% [markdown]
# ## A twin in which nothing moves
#
# For every clip of a batch, one of its frames is drawn at random and repeated T times. This is its *static twin*. The batch
# then holds the B clips, followed by their B twins. The motion label is 1 for a clip and 0 for a twin.

# %%
data = MovingDigits("test", clips=8, noise=4)
clips = np.stack([data.clip(i) for i in range(4)])
both, moving = refvt.static_twins(clips, np.random.default_rng(0))
print("clips", clips.shape, "-> with twins", both.shape, "motion labels", moving)
change = np.abs(np.diff(both, axis=2)).mean(axis=(1, 2, 3, 4))
print("mean change from frame to frame:", change)

# %% [markdown]
# A clip and its twin show the same digit on the same background. They differ only in what changes from frame to frame, and that
# is what the model is to look at. Motion is not the only change: the camera noise of a clip is new in every frame, and a twin
# repeats it. (`noise` is its standard deviation in grey levels.) So noise alone can also give a twin away.
#
# ## The whole loss, in one line
#
# The head for motion reads the same vector as the head for classes: norm(y of CLS), the weighted mean of notebook 4. It has two
# outputs. Its loss, the motion loss, is the usual two-class cross-entropy, the mean over all 2B clips, without label smoothing.
# (refvt can smooth the labels of the class loss; its recipes do not.) The whole loss:
#
# $$\mathcal{L} = \underbrace{\mathcal{L}_\text{class}}_{\text{cross-entropy, } 2B \text{ clips}}
#     + w \underbrace{\frac{1}{2B N'} \sum_{\text{clips}} \sum_k \rho_k}_{\text{ponder loss}}
#     + \lambda \underbrace{\mathcal{L}_\text{motion}}_{\text{cross-entropy, } 2B \text{ clips}}$$
#
# w is the weight of the ponder loss, 5e-4 in the paper. λ is the weight of the motion loss, 1 in refvt. (The paper's formula
# has a factor there, but its value was not to be had; see the table at the end of this notebook.) $\rho_k = N_k + r_k$ is the
# ponder of token k (notebook 4), and the sum runs over all N' tokens of a clip that enter the joint blocks.
# $\mathcal{L}_\text{class}$ is the cross-entropy of the classes, and $\mathcal{L}_\text{motion}$ asks of each clip: moving or
# static?
#
# A twin keeps the class label of its clip, and it counts in all three parts. *Predict first:* in a model that has learnt
# nothing, what are the values of $\mathcal{L}_\text{class}$ for 8 classes, and of $\mathcal{L}_\text{motion}$?

# %%
config = refvt.HaltingVTConfig(
    image_size=(32, 32), patch_size=8, channels=1, num_frames=8, width=32, num_heads=4,
    glimpser_depth=1, depth=4, keep_rates=(0.5,), num_classes=8,
)  # fmt: skip
model = refvt.HaltingVT(config, seed=0, backend="reference")
labels = np.array([data.target(i) for i in range(4)])
loss, gradients = model.loss_and_gradients(both, np.concatenate([labels, labels]), moving)
print(f"class {loss.recognition:.3f} (log 8 = {np.log(8):.3f})")
print(f"motion {loss.motion:.3f} (log 2 = {np.log(2):.3f})")
print(f"ponder {loss.ponder:.3f}")
print(f"total {loss.total:.4f} = {loss.recognition + 5e-4 * loss.ponder + loss.motion:.4f}")

# %% [markdown]
# Here depth = 4 and there is one Glimpser block, so L = 3. Nothing halts yet, so ρ is nearly L + 1 = 4.
#
# ## Why a motion loss, and what it can reach
#
# *Why.* Many class labels can be guessed from one frame: a pool suggests "swimming". A model that is trained on classes alone
# may learn to look at the pool, and then a patch that moves is worth no more than one that stands still. A clip and its twin
# show the same pool and have the same label. Only what changes between frames tells them apart: motion, but also camera
# noise, flicker or a cut. So the motion loss falls only if the model looks at changes.
#
# *How.* The motion head reads norm(y of CLS) and has two outputs. Of each of the 2B clips it must say whether it moves (1) or
# is a static twin (0); the motion loss is the two-class cross-entropy of that.
#
# Its gradient goes the way of the class loss: into y of CLS, into the scores of CLS, and through attention into the states of
# the patches that CLS attends to. It does **not** reach the scores of patches.
#
# The effect that the paper describes is therefore indirect. To tell a clip from its twin, CLS must attend to patches that
# change. In the Glimpser the attention of CLS *is* the selection: the patches with the largest weights stay. So a CLS that
# looks at what changes keeps the patches that change; mostly these are the ones that move. This does not alter how *many* are
# kept. The paper reports 5.4 % fewer GFLOPs with the motion loss; they must come from earlier halting. The paper's idea: if
# CLS needs only what moves, static patches are dispensable, and the ponder loss can halt more of them earlier. We know of no
# derivation, and notebook 5 shows why it is not obvious: no gradient of the motion loss reaches the score of a patch. The
# score is in the patch's own y and ρ alone, and the motion loss reads neither.
#
# *Can one see it?* The direct test would be two models that differ in nothing but the motion loss, and the attention of CLS
# in each. Such a pair does not come with refvt: both models with halting that ship
# ([table](README.md#the-models-of-the-notebooks)) were trained without twins and without the motion loss. So this notebook
# cannot show attention with and without it. You can make the second model, in some hours on two cores, with
# `refvt train --recipe photographs --set static_twins=true --out run`, and compare the two with the cell of notebook 3 that
# prints the attention of CLS. (Without the motion loss there are no twins either. So the class loss and the ponder loss see
# half as many clips, none of them static: two such models differ in that, too.)
#
# *What was measured instead* is what the motion loss does to cost and accuracy, in 40 runs on moving digits over photographs
# ([docs/results/experiment-table1.md](../docs/results/experiment-table1.md)): R = 1, 0.7, 0.5 and 0.3, each with and without,
# five seeds, all from one trained backbone. With the motion loss GFLOPs changed by +1.5 ± 0.5 %, and accuracy by −1.0 ± 0.3
# points (95 % intervals over the seeds). So on these data the motion loss did not lower the cost; it raised it a little.
# Notebook 8 says what this does and does not mean.
#
# ## A trap: when the label is the motion
#
# *Predict first.* In moving digits the class is how the digit moves. A twin of a clip of the class "left" carries the label
# "left", but nothing in it moves to the left. What does that do to the class loss?
#
# The best a model can do on twins is to guess: every class is equally likely in a clip without motion, so the class loss of
# a twin cannot fall below log 8 = 2.08 (unless the model recognises single clips by heart). Half of the batch then pulls the
# logits towards "don't know" for clips without motion. That is harmless for clips that move, as long as the model tells motion
# from no motion. But it disturbs the class "still": a clip of this class looks like the twin of a clip of any other class. With
# real actions this is different: a single frame of a swimmer suggests "swimming".

# %%
still = data.names.index("still")
quiet = MovingDigits("test", clips=8, noise=0)
clip = quiet.clip(still)
twin = refvt.static_twins(clip[None], np.random.default_rng(0))[0][1]
print("a clip of the class still equals its twin:", np.array_equal(clip, twin))

# %% [markdown]
# ## Where paper and code disagree
#
# | | paper | released code |
# | --- | --- | --- |
# | weight λ of the motion loss | a factor in its formula; we could not get its value | the configurations name 0.001, but the loss only tests that it is above 0, and adds the motion loss with weight 1 |
# | the twin's frame | one of the clip's own frames | the video is sampled again for the twin, and augmented by itself |
# | halted tokens | removed | set to zero; they stay keys and values (notebook 6) |
#
# refvt: `motion_weight` is 1 by default, and twins repeat one of the clip's own frames. Optimiser, learning rate and epochs
# of the paper are in notebook 8, "The settings of the paper".
#
# ## Exercise
#
# Take the motion labels of a batch and swap 0 and 1. How do the class loss, the ponder loss and the motion loss change?
# Predict, then run. (Only the motion loss changes. In a model that has learnt nothing it hardly does, because it is log 2
# either way.)

# %%
swapped, _ = model.loss_and_gradients(both, np.concatenate([labels, labels]), 1 - moving)
for name in ("recognition", "ponder", "motion"):
    print(f"{name:12s} {getattr(loss, name):.5f} -> {getattr(swapped, name):.5f}")

# %% [markdown]
# Source: HaltingVT (arXiv 2401.04975), section 3.4. For the table of differences: the released code
# (github.com/dun-research/HaltingVT), `configs/` and `models/losses/ada_halt_ce_loss.py`;
# [docs/released-pipeline.md](../docs/released-pipeline.md).
#
# Next: [8, Training it: accuracy against GFLOPs](08-training-it.ipynb)
