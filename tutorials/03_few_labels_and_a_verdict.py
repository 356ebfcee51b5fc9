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
# # 3. Few labels and a verdict
#
# **Goal:** train a segmentation network with the labels of a few subjects, and decide whether
# pretraining helped.
#
# The scans are small synthetic pictures. The tutorial takes about three minutes on one CPU core,
# because a verdict needs ten training runs. Everything is written into the folder `tutorial_3`.

# %%
import csv
import logging
import shutil
import sys
from pathlib import Path

import medssl

logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
folder = Path("tutorial_3")
shutil.rmtree(folder, ignore_errors=True)
index, store, pretrained = folder / "index.sqlite", folder / "store", folder / "runs" / "spark"

# %% [markdown]
# ## Scans, store and a pretrained encoder
#
# These steps are the subject of tutorials 1 and 2.

# %%
medssl.phantoms(folder / "scans", count=80, labeled=50, shape=(48, 48))
medssl.index(
    folder / "scans",
    index=index,
    files={"modality": "MR"},
    subject="(PHANTOM-[0-9]+)",
    label={
        "masks": "images=labels",
        "class_names": "0=background,1=liver,2=spleen,3=kidneys",
        "split": "train=0.6,val=0.1,test=0.3",
    },
)
medssl.cache(index, store, preprocess="mr")
medssl.pretrain(
    "spark_2d_small",
    store=store,
    run=pretrained,
    encoder={"base": "resenc_small_2d", "init_args": {"channels": (8, 16, 32, 64)}},
    objective={"decoder_width": None, "view": {"size": (48, 48), "area": (0.2, 1.0)}},
    training={"steps": 100, "batch_size": 4},
    data={"workers": 0},
)

# %% [markdown]
# ## Fine-tune with four labels
#
# `labels=4` takes four subjects of the split `train`. The split `val` follows the training. The
# split `test` is not used.
#
# ```
# medssl finetune --config segment_2d_small --store tutorial_3/store --run tutorial_3/runs/few \
#     --pretrained tutorial_3/runs/spark --labels 4 --data.view.size 48,48 --data.workers 0 \
#     --training.steps 40 --training.batch_size 4 --training.output.validate_every 20 \
#     --optimizer.learning_rate 5e-3
# medssl evaluate tutorial_3/runs/few --index tutorial_3/index.sqlite --out tutorial_3/scores/few
# ```

# %%
recipe = {
    "data": {"view": {"size": (48, 48)}, "workers": 0},
    "training": {"steps": 40, "batch_size": 4, "output": {"validate_every": 20}},
    "optimizer": {"learning_rate": 5e-3},
}
run = folder / "runs" / "few"
medssl.finetune("segment_2d_small", store=store, run=run, pretrained=pretrained, labels=4, **recipe)
medssl.evaluate(run, index=index, out=folder / "scores" / "few")

# %% [markdown]
# The scores are of one run. Another selection of four subjects gives other scores. The difference
# between two single runs says little about pretraining.
#
# ## Compare
#
# `compare` trains several runs of each arm: from the pretrained encoder, and from random weights.
# Runs with one number share the labeled subjects and the seed. All networks are scored on the split
# `test`. Five runs of each arm are the smallest number for a verdict.
#
# ```
# medssl compare spark=tutorial_3/runs/spark --config segment_2d_small --store tutorial_3/store \
#     --index tutorial_3/index.sqlite --out tutorial_3/study --labels 4 --runs 5 \
#     --data.view.size 48,48 --data.workers 0 --training.steps 40 --training.batch_size 4 \
#     --training.output.validate_every 20 --optimizer.learning_rate 5e-3
# ```

# %%
study = folder / "study"
result = medssl.compare(
    f"spark={pretrained}",
    "segment_2d_small",
    store=store,
    index=index,
    out=study,
    labels=(4,),
    runs=5,
    **recipe,
)

# %% [markdown]
# ## Read the verdict
#
# - The row `spark less scratch` is the difference in Dice with its 95 % interval. The interval
#   includes the variation of runs and of test subjects.
# - `p` is the probability of such a difference by chance, corrected for all comparisons.
# - The last line is the verdict. "No difference" does not prove that there is none: the interval
#   shows how large it could be.
#
# Here the pretraining was 100 steps on small pictures, so expect no difference or a small one.

# %%
print(*result.verdicts, sep="\n")
result

# %% [markdown]
# ## Look at the runs
#
# Each point is one run. Runs with the same number share their labeled subjects. If the lines go up
# and down together, the selection of subjects matters more than pretraining.

# %%
from medssl.reporting.curves import Point, Series, line_chart


class Chart(str):
    """An SVG chart that notebooks show."""

    def _repr_svg_(self):
        return str(self)


with (study / "runs.csv").open() as file:
    rows = list(csv.DictReader(file))
lines = []
for arm in ("spark", "scratch"):
    points = (Point(int(row["run"]) + 1, float(row["test"])) for row in rows if row["arm"] == arm)
    lines.append(Series(arm, tuple(points), marked=True))
picture = Chart(line_chart(lines, title="4 labeled subjects", x_label="run", y_label="test Dice"))
(study / "runs.svg").write_text(picture)
picture

# %% [markdown]
# ## On your own data
#
# 1. Keep at least 20 test subjects. Few test subjects make every interval wide.
# 2. Tune the learning rate on validation subjects, for the baseline too, before you compare.
# 3. Train until the baseline has converged. Otherwise every pretraining looks good.
# 4. Compare several numbers of labels in one command: `--labels 2,4,8 --runs 5`.
# 5. Choose the number of runs before the first result.
#
# Read more in the guides [Fine-tune with few labels](../docs/guides/finetune.md) and [Compare
# pretraining with training from scratch](../docs/guides/compare.md).
