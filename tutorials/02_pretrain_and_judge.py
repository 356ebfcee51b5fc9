# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 2. Pretrain and judge
#
# **Goal:** pretrain an encoder without labels, check that the training works, and measure its
# features.
#
# The scans are small synthetic pictures, so the tutorial takes about one minute on one CPU core.
# Everything is written into the folder `tutorial_2`. Real runs use more steps, larger networks and a
# GPU.

# %%
import json
import logging
import shutil
import sys
from pathlib import Path

from PIL import Image

import medssl

logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
folder = Path("tutorial_2")
shutil.rmtree(folder, ignore_errors=True)
index, store, run = folder / "index.sqlite", folder / "store", folder / "runs" / "spark"

# %% [markdown]
# ## Scans, index and store
#
# These steps are the subject of tutorial 1. There are 100 pictures of 64 x 64 pixels, 60 of them with
# a mask.
#
# ```
# medssl phantoms tutorial_2/scans --count 100 --labeled 60 --shape 64,64
# medssl index tutorial_2/scans --index tutorial_2/index.sqlite --files.modality MR \
#     --subject '(PHANTOM-[0-9]+)' --label.masks images=labels \
#     --label.class_names 0=background,1=liver,2=spleen,3=kidneys \
#     --label.split train=0.6,val=0.2,test=0.2
# medssl cache tutorial_2/index.sqlite tutorial_2/store --preprocess mr
# ```

# %%
medssl.phantoms(folder / "scans", count=100, labeled=60, shape=(64, 64))
medssl.index(
    folder / "scans",
    index=index,
    files={"modality": "MR"},
    subject="(PHANTOM-[0-9]+)",
    label={
        "masks": "images=labels",
        "class_names": "0=background,1=liver,2=spleen,3=kidneys",
        "split": "train=0.6,val=0.2,test=0.2",
    },
)
medssl.cache(index, store, preprocess="mr")

# %% [markdown]
# ## Pretrain
#
# The objective is SparK. It hides 60 % of the picture, and a decoder reconstructs the hidden cells
# from the features of the visible ones. Only scans of the split `train` are used. Their masks are not
# read.
#
# The recipe `spark_2d_small` is for pictures of 160 pixels and a ResNet-18. The overrides make the
# network and the view smaller.
#
# ```
# medssl pretrain --config spark_2d_small --store tutorial_2/store --run tutorial_2/runs/spark \
#     --encoder resenc_small_2d --encoder.channels 8,16,32,64 --objective.decoder_width null \
#     --objective.view.size 64,64 --objective.view.area 0.2,1.0 \
#     --training.steps 150 --training.batch_size 8 --training.output.health_every 10 \
#     --training.output.picture_every 50 --data.workers 0
# ```

# %%
result = medssl.pretrain(
    "spark_2d_small",
    store=store,
    run=run,
    encoder={"base": "resenc_small_2d", "init_args": {"channels": (8, 16, 32, 64)}},
    objective={"decoder_width": None, "view": {"size": (64, 64), "area": (0.2, 1.0)}},
    training={"steps": 150, "batch_size": 8, "output": {"health_every": 10, "picture_every": 50}},
    data={"workers": 0},
)

# %% [markdown]
# ## Is it working?
#
# Check three things:
#
# 1. The loss falls below `chance`, the loss of a network that knows nothing. If it stays there,
#    nothing is learned.
# 2. The line `health:` reports no alarm. It measures, for example, whether embeddings of different
#    scans differ.
# 3. The reconstructions show coarse anatomy. They are in the last cell.
#
# All values are rows of `metrics.jsonl`. A result of `pretrain` is shown as the curve of its loss.

# %%
rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
print(f"loss {rows[-1]['loss_smoothed']:.2f}, chance {rows[-1]['chance']:.2f}")
result

# %% [markdown]
# ## Probe the features
#
# A probe keeps the encoder frozen and fits a linear classifier for each voxel. It takes seconds. The
# second call is the from-scratch baseline: the same encoder with random weights. Only the difference
# shows an effect of pretraining.
#
# ```
# medssl probe tutorial_2/runs/spark --store tutorial_2/store --out tutorial_2/probes/spark \
#     --target mask
# medssl probe tutorial_2/runs/spark --store tutorial_2/store --out tutorial_2/probes/scratch \
#     --target mask --from-scratch
# ```

# %%
dice = {}
for name in ("spark", "scratch"):
    out, scratch = folder / "probes" / name, name == "scratch"
    probe = medssl.probe(run, store=store, out=out, target="mask", from_scratch=scratch)
    dice[name] = probe.metrics["voxel_logistic"]["dice"]
dice

# %% [markdown]
# Compare the column `dice` of both tables, with its 95 % interval. After 150 steps on 60 pictures the
# difference can have either sign. A verdict needs several runs: see tutorial 3.
#
# ## Look at the reconstructions
#
# The picture has rows of input, mask and reconstruction. Hidden cells are predicted from the visible
# ones. Fine texture cannot be predicted, so that a good reconstruction is smooth.

# %%
newest = sorted((run / "pictures").glob("step_*.png"))[-1]
picture = Image.open(newest)
picture

# %% [markdown]
# ## On your own data
#
# 1. Start with a `*_small` recipe and 300 steps. It shows in minutes whether data and settings are
#    sound.
# 2. Choose a view that contains several structures. `--objective.view.size` is in voxels of the
#    store.
# 3. Read `health:` and look at the pictures before you start a long run.
# 4. Then take the full recipe on a GPU: `spark_3d` or `spark_2d`, with `--training.precision bf16`.
# 5. A stopped run continues with the same command.
#
# Read more in the guides [Pretrain an encoder](../docs/guides/pretrain.md) and [Probe a frozen
# encoder](../docs/guides/probe.md). Then continue with tutorial 3.
