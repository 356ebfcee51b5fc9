"""The smallest encoder and objective that can show every duty of the engine: dropout, norms, masks, pictures."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from torch import nn

from medssl.data.formats.reading import Volume
from medssl.data.store import chunks, records
from medssl.data.store.naming import content_digest, scan_file, scan_key
from medssl.data.store.preprocess import prepare
from medssl.data.store.store import Store
from medssl.encoders.base import Encoder
from medssl.objectives.base import Objective
from medssl.ops.collectives import mean_over
from medssl.ops.draws import draws
from medssl.types import (
    Batch,
    Digests,
    Features,
    Grid,
    Loss,
    Part,
    Preprocess,
    Scan,
    Source,
    Step,
    Subject,
    UserError,
    ViewPlan,
    ViewSpec,
)


class ToyEncoder(Encoder):
    """Two convolutions with a norm and dropout."""

    def __init__(self, in_channels: int = 1, *, width: int = 4, norm: str = "batch", dropout: float = 0.2):
        super().__init__()
        self.ndims, self.in_channels = frozenset({3}), in_channels
        self.channels, self.strides = (width, width), ((1, 1, 1), (2, 2, 2))
        self.mask_modes, self.mask_cell = frozenset({"fill"}), (2, 2, 2)
        kind = {"batch": nn.BatchNorm3d, "instance": lambda n: nn.InstanceNorm3d(n, affine=True)}[norm]
        self.first = nn.Sequential(
            nn.Conv3d(in_channels, width, 3, padding=1, bias=False), kind(width), nn.Dropout(dropout)
        )
        self.second = nn.Sequential(nn.Conv3d(width, width, 3, 2, padding=1, bias=False), kind(width), nn.ReLU())

    def forward(self, image, hidden=None, mode=None):
        first = self.first(image)
        second = self.second(first)
        return Features(maps=(first, second), pooled=second.mean(dim=(2, 3, 4)))


class ToyObjective(Objective):
    """Fills in voxels that were set to zero; optionally its loss is NaN or no Loss, or it asks for endless memory."""

    def __init__(
        self,
        encoder: Encoder,
        *,
        view: ViewSpec,
        share: float = 0.5,
        fail_at: int = -1,
        fail: str = "nan",
        spare: bool = False,
    ):
        super().__init__()
        self.spare = nn.Parameter(torch.zeros(3)) if spare else None
        if any(n % s for n, s in zip(view.size, encoder.strides[-1], strict=True)):
            raise UserError(f"size {list(view.size)} is not divisible by 2: nearest sizes that work")
        self.encoder, self.needs = encoder, ViewPlan((view,))
        self.head = nn.Conv3d(encoder.channels[0], encoder.in_channels, 1)
        self.register_buffer("steps_seen", torch.zeros((), dtype=torch.int64))
        self.share, self.fail_at, self.fail = share, fail_at, fail

    def forward(self, batch: Batch, step: Step) -> Loss:
        view = batch.views[0]
        hidden = draws(step, "toy").uniform(1, *view.image.shape[2:]).to(view.image.device) < self.share
        features = self.encoder(torch.where(hidden, 0.0, view.image))
        merged = features.maps[0] + nn.functional.interpolate(features.maps[1], view.image.shape[2:])
        error = (self.head(merged) - view.image) ** 2
        total = mean_over((error * hidden).sum(), hidden.sum() * view.image.shape[1])
        if step.index == self.fail_at:
            if self.fail == "memory":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            if self.fail == "tensor":
                return total
            total = total * torch.nan
        return Loss(total, {"loss": total.detach(), "hidden": hidden.float().mean()}, features.pooled.detach())

    def after_step(self, step: Step) -> None:
        self.steps_seen += 1

    def pictures(self, batch: Batch, step: Step):
        image = batch.views[0].image
        return {"input": image, "half": image / 2}


def toy_store(
    folder: Path, *, count: int = 5, shape: tuple[int, int, int] = (20, 18, 12), state: str = "d", first: int = 0
) -> Path:
    """A store of random MR-like volumes, as ``medssl cache`` would write it from files in some ``state``."""
    preprocess = Preprocess(foreground_crop=False)
    store = Store.create(folder, preprocess, index_digest="toy")
    affine = np.eye(4)
    rows = []
    for number in range(count):
        image = np.random.default_rng(first + number).integers(0, 200, (1, *shape)).astype(np.int16)
        grid = Grid(shape, (1.0, 1.0, 1.0), tuple(map(tuple, affine.tolist())))
        source = Source("toys", "volume", "MR", "mr", (Part(f"{number}.nii"),))
        split = "val" if number == count - 1 else "train"
        scan = Scan(
            f"scan{number}", Subject(f"subject{number}", split=split), source, grid, Digests(f"{state}{number}")
        )
        prepared = prepare(Volume(image, affine, (1.0, 1.0, 1.0), None), preprocess, domain="mr")
        key = scan_key(scan, preprocess, store.tier)
        file = scan_file(folder, key, "", store.tier)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(chunks.chunked_bytes(prepared.image))
        rows.append(records.row(scan, key, prepared, records.Place(), content_digest(prepared)))
    with closing(records.connect(folder / "records.sqlite")) as connection:
        records.insert(connection, rows)
    return folder
