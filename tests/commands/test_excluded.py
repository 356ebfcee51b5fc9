"""Voxels that no loss may look at, from files to losses: what they hold changes nothing, whatever learns."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from data.make_scans import write_nifti
from data.stores import PLAIN, fill_store, scan_of, volume
from heads.made import network, schema
from objectives.small import SIZES, mae

from medssl import cli
from medssl.data.index.scan_index import Index
from medssl.data.loading.loader import make_loader
from medssl.data.store.coding import EXCLUDED
from medssl.data.store.store import Store
from medssl.heads.segmentation import UNet
from medssl.inference.evaluation import without_paths
from medssl.training.settings import Examples
from medssl.training.supervised import Supervised
from medssl.types import Batch, Geometry, Intensity, Step, ViewPlan, ViewSpec
from medssl.views.plan import make_batch, read_size

LOUD = Intensity((1.0, 0.2), (1.0, 1.0), (1.0, 0.3), (1.0, 0.7, 1.4), (1.0, 0.7, 1.5), (1.0, 0.4))
SHAPE = (26, 30, 22)
AFFINE = np.diag([1.0, 1.5, 2.0, 1.0])


def head_of(name: str) -> np.ndarray:
    """A ball of tissue in noise."""
    generator = np.random.default_rng(ord(name))
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1)
    ball = np.linalg.norm(grid - np.array(SHAPE) / 2, axis=-1) < 10
    return (generator.integers(0, 60, SHAPE) + 500 * ball).astype(np.int16)


def face() -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[8:, 18:, 4:16] = True
    return mask


def store_of(folder: Path, value: int, monkeypatch) -> Store:
    """Heads whose excluded face holds ``value``, resampled; labels are of classes 0 and 10."""
    mask, held = face(), {}
    for name in "abcd":
        image = np.where(mask, value, head_of(name)).astype(np.int16)
        held[name] = volume(image[None], AFFINE, 10 * (head_of(name) > 300)[None].astype(np.uint8), mask[None])
    rules = dataclasses.replace(PLAIN, spacing_mm=(1.0, 1.0, 1.0), foreground_crop=True)
    return fill_store(folder, held, monkeypatch, preprocess=rules)


def batch_of(store: Store, view: ViewSpec) -> Batch:
    plan = ViewPlan((view,))
    loader = make_loader(store, plan=plan, read_size=read_size(plan), batch_size=4, seed=2, workers=0, with_labels=True)
    return make_batch(next(iter(loader)), plan, seed=2, device="cpu")


@pytest.fixture
def pair(tmp_path, monkeypatch):
    """Batches of two stores that differ in what is excluded alone, with every change of geometry and intensity."""
    view = ViewSpec(SIZES[3], scale=(0.8, 1.2), geometry=Geometry("all", (10.0,)), intensity=LOUD)
    return [batch_of(store_of(tmp_path / f"{value}", value, monkeypatch), view) for value in (0, 20_000)]


STEP = Step(3, 10, 0, (0, 1, 2, 3))


def test_what_is_excluded_reaches_no_batch(pair):
    one, other = (batch.views[0] for batch in pair)
    for field in dataclasses.fields(one):
        assert torch.equal(getattr(one, field.name), getattr(other, field.name)), field.name
    assert torch.equal(pair[0].targets[0], pair[1].targets[0])
    assert bool((one.valid & ~one.scored).any())


def with_everything_scored(batch: Batch) -> Batch:
    view = batch.views[0]
    return dataclasses.replace(batch, views=(dataclasses.replace(view, scored=view.valid),))


def test_reconstruction_is_not_scored_where_voxels_are_excluded(pair):
    torch.manual_seed(0)
    objective = mae(3).eval()
    one, other = (objective(batch, STEP).total for batch in pair)
    assert torch.equal(one, other)
    assert objective(with_everything_scored(pair[0]), STEP).total != one
    view = pair[0].views[0]
    # targets alone: the network gives what it gave, whatever excluded voxels hold
    given = objective.reconstruct(view.image, objective.hidden(view, STEP))
    objective.reconstruct = lambda image, hidden: given
    image = torch.where(view.scored, view.image, 1e6)
    changed = dataclasses.replace(pair[0], views=(dataclasses.replace(view, image=image),))
    torch.testing.assert_close(objective(changed, STEP).total, one)


def test_labels_are_not_learned_where_voxels_are_excluded(pair):
    made = network(UNet, 3, classes=2)
    objective = Supervised(made, Examples(ViewSpec(SIZES[3]))).eval()
    assert schema(2).classes[1][0] == 10
    batch = pair[0]
    total = objective(batch, STEP).total
    assert torch.equal(objective(pair[1], STEP).total, total)
    wrong = torch.where(batch.views[0].scored, batch.targets[0], 10)
    assert torch.equal(objective(dataclasses.replace(batch, targets=(wrong,)), STEP).total, total)
    learned = dataclasses.replace(with_everything_scored(batch), targets=(wrong,))
    assert objective(learned, STEP).total != total


def test_a_reason_that_may_be_passed_on_names_no_mask():
    held = volume(np.zeros((1, 4, 4, 4), np.int16), None, None, np.ones((1, 4, 4, 4), bool))
    reason = "mask of excluded voxels a.excluded.nii has 2 channels: expected one, holding 0 where voxels count"
    assert without_paths(reason, scan_of("a", held), Path("scans")) == reason.replace("a.excluded.nii", "the file")


# --- the command line


def call(*words: object) -> str:
    """Calls a verb, which must succeed; returns what it said."""
    mask, threads, text = os.umask(0o077), torch.get_num_threads(), io.StringIO()
    try:
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            code = cli.main([*map(str, words)])
    finally:
        os.umask(mask)
        torch.set_num_threads(threads)
    assert code == 0, text.getvalue()
    return text.getvalue()


def pretrained(place: Path, value: int) -> list[dict[str, float]]:
    """Log of two steps on heads whose excluded faces hold ``value``."""
    for name in "abcd":
        image = np.where(face(), value, head_of(name)).astype(np.int16)
        write_nifti(place / "scans/images" / f"{name}.nii.gz", image, AFFINE)
        write_nifti(place / "scans/faces" / f"{name}.nii.gz", face().astype(np.uint8), AFFINE)
    key = place.parent / "key"
    key.write_text("0" * 64)
    key.chmod(0o600)
    said = call("index", place / "scans", "--index", place / "index.sqlite", "--files.key", key, "--files.modality=MR",
                r"--subject=(\w)\.nii", "--label.excluded", "images=faces", "--label.split", "train=1")  # fmt: skip
    assert "scans: 4\n  scans: 4 MR volume, 26 x 30 x 22, 4 subjects, 4 with excluded voxels\n" in said
    shown = call("index", "--index", place / "index.sqlite", "--show", scan_in(place))
    assert shown.count("\n  excluded ") == 1
    call("cache", place / "index.sqlite", place / "store", "--preprocess=mr", "--workers=0")
    call("pretrain", "--config=mae_3d_small", "--store", place / "store", "--run", place / "run", "--training.steps=2",
         "--training.batch_size=2", "--data.workers=1", "--objective.view.size=[16,16,16]",
         "--encoder={class_path: medssl.encoders.vit.ViT, init_args: {patch: [8, 8, 8], width: 24, depth: 1}}",
         "--objective.decoder_width=24", "--objective.decoder_depth=1", "--training.output.log_every=1")  # fmt: skip
    lines = (place / "run" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def scan_in(place: Path) -> str:
    with contextlib.closing(Index.open(place / "index.sqlite")) as index:
        return next(iter(index.scans())).scan_id


def test_from_the_index_to_the_loss(tmp_path):
    logs = [pretrained(tmp_path / name, value) for name, value in (("quiet", 0), ("loud", 9000))]
    store = Store.open(tmp_path / "loud" / "store")
    assert store.records.facts["excluded"].all()
    assert (store.read(0, (0, 0, 0), store.shape(0)) == EXCLUDED).any()
    losses = [[row["loss"] for row in log if "loss" in row] for log in logs]
    assert len(losses[0]) == 2
    assert losses[0] == losses[1]
