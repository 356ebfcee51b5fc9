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
# # 1. Your scans in
#
# **Goal:** from folders of files to an index and a store. You also look at what was rejected, and
# why.
#
# The scans are synthetic, so the tutorial runs anywhere, in about ten seconds on one CPU core.
# Everything is written into the folder `tutorial_1`.

# %%
import io
import logging
import shutil
import sys
from pathlib import Path

from PIL import Image

import medssl

logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
folder = Path("tutorial_1")
shutil.rmtree(folder, ignore_errors=True)
scans = folder / "scans"

# %% [markdown]
# ## Some files
#
# The first call writes 24 synthetic patients, 12 of them with a mask of three organs. Some are NIfTI
# files, some are DICOM series.
#
# Real folders also contain damaged and unrelated files. The cell adds four of them: a text file, a
# truncated NIfTI file, a DICOM series with a missing slice, and a mask without an image.
#
# ```
# medssl phantoms tutorial_1/scans --count 24 --labeled 12 --shape 48,40,40
# ```

# %%
medssl.phantoms(scans, count=24, labeled=12, shape=(48, 40, 40))

images = sorted((scans / "images").glob("*.nii.gz"))
(scans / "README.txt").write_text("scans of the liver study\n")
(scans / "images" / "PHANTOM-0100.nii.gz").write_bytes(images[0].read_bytes()[:5000])
series = sorted((scans / "dicom").rglob("IM*"))
series[len(series) // 4].unlink()
shutil.copy(scans / "labels" / images[0].name, scans / "labels" / "PHANTOM-0101.nii.gz")
print(len(list(scans.rglob("*.*"))), "files")

# %% [markdown]
# ## Index
#
# The index reads the headers of all files. It needs three rules, because NIfTI files do not contain
# this information:
#
# - the modality (`MR`),
# - how the path names the subject: `PHANTOM-` and digits,
# - how the path of a mask follows from the path of its image, and what its values mean.
#
# ```
# medssl index tutorial_1/scans --index tutorial_1/index.sqlite --files.modality MR \
#     --subject '(PHANTOM-[0-9]+)' --label.masks images=labels \
#     --label.class_names 0=background,1=liver,2=spleen,3=kidneys
# ```

# %%
index = folder / "index.sqlite"
result = medssl.index(
    scans,
    index=index,
    files={"modality": "MR"},
    subject="(PHANTOM-[0-9]+)",
    label={"masks": "images=labels", "class_names": "0=background,1=liver,2=spleen,3=kidneys"},
)

# %% [markdown]
# ## What was left out
#
# *Failed* files could not be read or are incomplete. *Rejected* files are images, but no scans to
# train on. *Ignored* files are no images. Each has a reason. Read these lists before you train: a
# missing slice or a mask without an image is often a mistake in an export.
#
# ```
# medssl index --index tutorial_1/index.sqlite --show failed
# medssl index --index tutorial_1/index.sqlite --show rejected
# medssl index --index tutorial_1/index.sqlite --show ignored
# ```

# %%
print(result.left_out)
for status in ("failed", "rejected", "ignored"):
    medssl.index(index=index, show=status)

# %% [markdown]
# ## Select with SQL
#
# The index is a SQLite file. `--where` takes a condition on its columns. This one lists the scans
# with thin slices.
#
# ```
# medssl index --index tutorial_1/index.sqlite --where "status = 'ok' AND spacing_k_mm < 10"
# ```

# %%
medssl.index(index=index, where="status = 'ok' AND spacing_k_mm < 10")

# %% [markdown]
# ## Store
#
# The store holds the scans after preprocessing: orientation, spacing, crop, and the rule for the
# intensity. The preset `mr` clips to percentiles and normalizes each scan. Voxels of 8 mm keep the
# tutorial fast.
#
# ```
# medssl cache tutorial_1/index.sqlite tutorial_1/store --preprocess mr --preprocess.spacing_mm 8,8,8
# ```

# %%
store = folder / "store"
medssl.cache(index, store, preprocess={"base": "mr", "spacing_mm": (8.0, 8.0, 8.0)})

# %%
opened = medssl.Store.open(store)
print(len(opened), "scans, spacing", opened.preprocess.spacing_mm, "mm")
print("subjects in each split:", opened.splits)

# %% [markdown]
# ## Look at the result
#
# A picture of a stored scan and its mask shows more mistakes than any table. Check the orientation,
# and check that the mask lies on the organ. Volumes are in radiological orientation: the patient's
# right is on the left.
#
# The cell draws three scans of the store with their masks, one below the other.

# %%
from medssl.reporting.overlay import overlay

with_mask = [number for number in range(len(opened)) if opened.label_dtype(number) is not None]
tiles = []
for number in with_mask[:3]:
    start, shape = (0, 0, 0), opened.records.shape(number)
    image = opened.read(number, start, shape)  # [C, x, y, z]
    mask = opened.read_label(number, start, shape)[0]  # [x, y, z]
    png = overlay(image, mask, None, opened.schema, opened.preprocess.spacing_mm)
    tiles.append(Image.open(io.BytesIO(png)))

picture = Image.new("RGB", (max(tile.width for tile in tiles), sum(tile.height for tile in tiles)))
top = 0
for tile in tiles:
    picture.paste(tile, (0, top))
    top += tile.height
picture.save(folder / "store.png")
picture

# %% [markdown]
# ## On your own data
#
# 1. Index a small folder first. For DICOM, leave out `--files.modality` and `--subject`: both are in
#    the files.
# 2. Read the notes and the lists of failed and rejected files. Add options until the counts are
#    right.
# 3. Check that the number of subjects is the number of patients. A wrong pattern makes splits leak.
# 4. Make the store on a disk with enough space: the command prints the size before it starts.
# 5. Look at pictures of ten scans.
#
# Read more in the guides [Index your scans](../docs/guides/data.md) and [Preprocess scans into a
# store](../docs/guides/store.md). Then continue with tutorial 2.
