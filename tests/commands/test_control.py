"""The demo's synthetic patients are hard enough to mean something: labels of others teach nothing but usual places."""

from __future__ import annotations

import itertools
import json
import os

import numpy as np
import pytest
import torch

from medssl import cli
from medssl.data.synthetic.phantoms import CLASSES, phantom

pytestmark = pytest.mark.slow


def trained(folder, *, shuffled: bool) -> float:
    """Mean test Dice of a network from scratch that four patients taught; minutes."""
    scans, index, store, run, scores = (folder / name for name in ("scans", "index.sqlite", "store", "run", "scores"))
    key = folder.parent / f"{folder.name}.key"
    key.write_text("0" * 64)
    key.chmod(0o600)
    size, labels = "[40,40,40]", "0=background,1=liver,2=spleen,3=kidneys"
    commands = [
        ["phantoms", scans, "--count=40", "--labeled=20", f"--shuffle_labels={str(shuffled).lower()}"],
        ["index", scans, f"--index={index}", f"--files.key={key}", "--files.modality=MR", r"--subject=(PHANTOM-\d+)",
         "--label.masks=images=labels", f"--label.class_names={labels}",
         "--label.split=train=0.55,val=0.15,test=0.3"],
        ["cache", index, store, "--preprocess=mr", "--preprocess.spacing_mm=[6,6,6]", "--workers=0"],
        ["finetune", "--config=segment_3d_small", f"--store={store}", f"--run={run}", "--encoder=resenc_small_3d",
         "--labels=4", f"--data.view.size={size}", "--training.steps=300", "--training.output.validate_every=100",
         "--optimizer.learning_rate=3e-3"],
        ["evaluate", run, f"--index={index}", f"--out={scores}"],
    ]  # fmt: skip
    mask, threads = os.umask(0o077), torch.get_num_threads()
    try:
        for words in commands:
            assert cli.main(list(map(str, words))) == 0, words
    finally:
        os.umask(mask)
        torch.set_num_threads(threads)
    return json.loads((scores / "summary.json").read_text())["metrics"]["dice"]["value"]


def test_labels_of_other_patients_teach_no_more_than_chance(tmp_path):
    masks = [phantom(0, (48, 40, 40), number=number).label for number in range(8)]
    pairs = [(a == value, b == value) for a, b in itertools.combinations(masks, 2) for value, _ in CLASSES[1:]]
    chance = np.mean([2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in pairs])
    for name in ("right", "wrong"):
        (tmp_path / name).mkdir()
    right, wrong = trained(tmp_path / "right", shuffled=False), trained(tmp_path / "wrong", shuffled=True)
    assert 0.4 <= right <= 0.8
    assert wrong <= chance
    assert right > chance + 0.05
