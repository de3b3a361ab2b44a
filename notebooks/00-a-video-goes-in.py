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
# # 0. A video goes in
#
# A video transformer cuts every frame into patches. Each patch becomes a *token*, a vector, and every layer computes every
# token. Most of them show a wall, a lawn, a sky: things that do not change from frame to frame.
#
# HaltingVT stops computing a token once it has been computed enough. In this notebook you see it happen, in a few cells.
# The notebooks that follow say how it works.
#
# The model below is a small HaltingVT ([which one](README.md#the-models-of-the-notebooks)). It was not trained exactly as the
# paper trains: it was told to go on computing the patches that change. (Notebook 8 says how. In one short run with the
# paper's form of the *ponder* loss, at forty times its weight and without the motion loss, halting did not follow what moves.)

# %%
from refvt import weights
from refvt.data import find_sample_video
from refvt.evaluation.scenes import alive_by_change, change_auc, run_on_scene

model, recipe = weights.load("photographs")  # a small trained model that comes with refvt

# %%
scene = run_on_scene(model, find_sample_video("carphone_pristine.mp4"), stride=1)
for layer, (changing, other) in enumerate(alive_by_change(scene), start=1):
    print(f"layer {layer}: alive are {changing:4.0%} of the patches that change, and {other:4.0%} of those that do not")

# %% [markdown]
# (The model takes clips of 48 × 48 pixels. The video is cut into 2 × 2 windows of this size, and each is a clip of its own,
# with its own CLS.)
#
# In layer 1 nothing has halted yet. What is missing there was dropped before, by the *Glimpser* (notebook 3). It counts as
# not alive.
#
# A patch *changes* if its pixels differ from those of the frame before or after by more than 4 grey levels in the mean, and
# by more than twice the first quartile of all patches' changes.

# %%
from pathlib import Path
from tempfile import TemporaryDirectory

from IPython.display import Image

from refvt.plots.scene import draw_scene

with TemporaryDirectory() as folder:
    picture, _ = draw_scene(scene, "carphone: 8 frames of a person in a car", Path(folder), "scene")
    shown = Image(picture.read_bytes())
shown

# %% [markdown]
# From left to right are eight frames of the video. The first row is the video; each further row is a layer of the model. A
# patch in its own colours is *alive*: it is computed in this layer. A patch in orange has halted in an earlier layer. A patch
# in dark blue was dropped before the first of these layers, by the Glimpser. This cut follows motion only a little: it takes
# 16 % of the patches that change, also some on the face, and 30 % of the others.
#
# The model was trained on handwritten digits that move in front of photographs. It has never seen a person. Still, the
# patches that change live longer than those that do not. How clear is the difference? Draw one patch that changes and one
# that does not, at random. The number below is the probability that the first lives through more layers. (If both live
# through equally many, it counts half. A model that halts at random would get 0.5.)

# %%
round(change_auc(scene), 2)

# %% [markdown]
# This number is an *AUC*. Patches that the Glimpser dropped do not count in it.
#
# Now follow single tokens. Point at a patch, or tap it, and you see its whole life: in each layer it gets a *score*, and it
# halts when its scores add up to nearly 1 (notebook 4 says why). On the page N is the layer in which the token halts, $N_k$
# in the notebooks. The sliders and the arrow keys move through frames and layers. The page counts frames from 1, as
# `refvt halt` does; the code of the notebooks counts them from 0.

# %%
from IPython.display import HTML

from refvt.plots.halting_page import embed_page
from refvt.plots.scene import scene_page

page = scene_page(model, scene, "carphone: 8 frames of a person in a car")
HTML(embed_page(page))

# %% [markdown]
# No page above? Run the cell. Jupyter does not show the stored page of a notebook that it does not trust, and code hosts do
# not show it at all. `refvt halt VIDEO --html page.html` writes the same page for a video of your own.
#
# ## The way ahead
#
# | notebook | question |
# | --- | --- |
# | 1 | How does a clip become tokens? |
# | 2, 3 | What is attention, forward and backward? What does the Glimpser keep? |
# | 4 | When does a token halt, and what is the remainder? |
# | 5 | How does the gradient reach the halting score, so that a network learns when to halt? |
# | 6 | How much time does it really save? |
# | 7 | Why is there a loss that asks whether anything moves? |
# | 8 | What does it cost in accuracy? |
# | 9 | Is *my* implementation right? |
# | 10 | The same loop in NumPy, Numba and CUDA |
#
# Halting and its gradient only: [4](04-one-tokens-life.ipynb), then [5](05-the-gradient-through-the-remainder.ipynb).
#
# Next: [1, From clip to tokens](01-from-clip-to-tokens.ipynb)
